// Flow to levels and means, bit for bit as pipeline.codec.Quantiser.quantise defines them; compiled with IEEE
// arithmetic. Flow is float32[n][2][height][pitch], levels are uint8[n][2][height][width]. Blocks of THREADS threads.
#define THREADS 512
#define LARGEST 3.402823466e38f

// ranges[4 pair + 2 component] and the next: scale and offset of a component's own range; a block for each component.
extern "C" __global__ void __launch_bounds__(THREADS) find_ranges(
    const float* __restrict__ flow, float* __restrict__ ranges, int height, int width, int pitch)
{
    __shared__ float low[THREADS], high[THREADS];
    const int t = threadIdx.x, field = blockIdx.x;
    const float* values = flow + image_at(field, height * pitch);
    float smallest = LARGEST, largest = -LARGEST;
    for (int i = t; i < height * width; i += THREADS) {
        const float value = values[i / width * pitch + i % width];
        smallest = fminf(smallest, value);
        largest = fmaxf(largest, value);
    }
    low[t] = smallest;
    high[t] = largest;
    for (int half = THREADS / 2; half; half >>= 1) {
        __syncthreads();
        if (t < half) {
            low[t] = fminf(low[t], low[t + half]);
            high[t] = fmaxf(high[t], high[t + half]);
        }
    }
    if (t == 0) {
        const float scale = (high[0] - low[0]) * .5f;
        ranges[2 * field] = scale != 0.f ? scale : 1.f;
        ranges[2 * field + 1] = (high[0] + low[0]) * .5f;
    }
}

// Levels; sums[2 pair + component] in units of 1 / units; counts[2 pair] pixels outside the range, counts[2 pair + 1]
// values that are not finite. sums and counts start at zero. ranges is null where scale is 1 and offset 0 throughout.
// A block takes STRIP pixels of one pair (blockIdx.y).
#define STRIP 8192
extern "C" __global__ void __launch_bounds__(THREADS) quantise(
    const float* __restrict__ flow, const float* __restrict__ edges, float lowest, float highest, float units,
    float mean_limit, const float* __restrict__ ranges, unsigned char* __restrict__ levels, Sum* __restrict__ sums,
    int* __restrict__ counts, int height, int width, int pitch)
{
    __shared__ float ladder[255];
    __shared__ Sum totals[2];
    __shared__ int outside_total, broken_total;
    const int t = threadIdx.x, pair = blockIdx.y, pixels = height * width;
    if (t < 255) ladder[t] = edges[t];
    if (t < 2) totals[t] = 0;
    if (t == 0) outside_total = broken_total = 0;
    __syncthreads();
    Sum own[2] = {0, 0};
    int outside_count = 0, broken_count = 0;
    const int begin = blockIdx.x * STRIP;
    for (int i = begin + t; i < min(begin + STRIP, pixels); i += THREADS) {
        bool outside = false;
        #pragma unroll
        for (int component = 0; component < 2; component++) {
            const int field = 2 * pair + component;
            float value = flow[image_at(field, height * pitch) + i / width * pitch + i % width];
            if (!(fabsf(value) <= LARGEST)) {
                broken_count++;
                value = 0.f;
            }
            own[component] += (Sum)rintf(fminf(fmaxf(value, -mean_limit), mean_limit) * units);
            if (ranges) value = (value - ranges[2 * field + 1]) / ranges[2 * field];
            const float inside = fminf(fmaxf(value, lowest), highest);
            outside |= inside != value;
            int level = 0;
            #pragma unroll
            for (int step = 128; step; step >>= 1)
                if (ladder[level + step - 1] <= inside) level += step;
            levels[image_at(field, pixels) + i] = (unsigned char)level;
        }
        outside_count += outside;
    }
    add_to(&totals[0], own[0]);
    add_to(&totals[1], own[1]);
    atomicAdd(&outside_total, outside_count);
    atomicAdd(&broken_total, broken_count);
    __syncthreads();
    if (t < 2) add_to(&sums[2 * pair + t], totals[t]);
    if (t == 0) {
        atomicAdd(&counts[2 * pair], outside_total);
        atomicAdd(&counts[2 * pair + 1], broken_total);
    }
}
