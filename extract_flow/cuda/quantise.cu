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

// The pixels of a pair that a block takes, a strip of STRIP of them (blockIdx.x); blockIdx.y is the pair.
#define STRIP 8192
#define FOR_EACH_PIXEL \
    for (int i = blockIdx.x * STRIP + threadIdx.x, end = min((int)(blockIdx.x + 1) * STRIP, height * width); i < end; \
         i += THREADS)

// Where a pixel's value of a component lies.
__device__ __forceinline__ float value_at(
    const float* __restrict__ flow, int field, int pixel, int height, int width, int pitch)
{
    return flow[image_at(field, height * pitch) + pixel / width * pitch + pixel % width];
}

// sums[2 pair + component] in units of 1 / units, of values limited to +-mean_limit; counts[pair].broken of values that
// are not finite. Both start at zero.
#define RUNGS 11
struct Counts { int outside, broken, beyond[RUNGS]; };

extern "C" __global__ void __launch_bounds__(THREADS) sum_flow(
    const float* __restrict__ flow, float units, float mean_limit, Sum* __restrict__ sums, Counts* __restrict__ counts,
    int height, int width, int pitch)
{
    __shared__ Sum totals[2];
    __shared__ int broken_total;
    const int t = threadIdx.x, pair = blockIdx.y;
    if (t < 2) totals[t] = 0;
    if (t == 0) broken_total = 0;
    __syncthreads();
    Sum own[2] = {0, 0};
    int broken = 0;
    FOR_EACH_PIXEL {
        #pragma unroll
        for (int component = 0; component < 2; component++) {
            const float value = value_at(flow, 2 * pair + component, i, height, width, pitch);
            if (!(fabsf(value) <= LARGEST)) broken++;
            else own[component] += (Sum)rintf(fminf(fmaxf(value, -mean_limit), mean_limit) * units);
        }
    }
    add_to(&totals[0], own[0]);
    add_to(&totals[1], own[1]);
    if (broken) atomicAdd(&broken_total, broken);
    __syncthreads();
    if (t < 2) add_to(&sums[2 * pair + t], totals[t]);
    if (t == 0 && broken_total) atomicAdd(&counts[pair].broken, broken_total);
}

// pipeline.field_range.whole_pixel_offset: the mean in whole pixels, halves away from zero; units is a power of two.
__device__ __forceinline__ float whole_pixel_offset(Sum sum, int pixels, float units)
{
    const Sum unit = (Sum)pixels * (Sum)units, size = ((sum < 0 ? -sum : sum) + unit / 2) / unit;
    return (float)(sum < 0 ? -size : size);
}

// counts[pair].beyond[k]: pixels of which a component lies further than limits[k] from its offset; limits increase.
extern "C" __global__ void __launch_bounds__(THREADS) count_beyond(
    const float* __restrict__ flow, const Sum* __restrict__ sums, const float* __restrict__ limits, float units,
    Counts* __restrict__ counts, int height, int width, int pitch)
{
    __shared__ int totals[RUNGS];
    const int t = threadIdx.x, pair = blockIdx.y;
    if (t < RUNGS) totals[t] = 0;
    __syncthreads();
    const float offset_x = whole_pixel_offset(sums[2 * pair], height * width, units);
    const float offset_y = whole_pixel_offset(sums[2 * pair + 1], height * width, units);
    FOR_EACH_PIXEL {
        const float reach = fmaxf(
            fabsf(value_at(flow, 2 * pair, i, height, width, pitch) - offset_x),
            fabsf(value_at(flow, 2 * pair + 1, i, height, width, pitch) - offset_y));
        for (int k = 0; k < RUNGS && reach > limits[k]; k++) atomicAdd(&totals[k], 1);
    }
    __syncthreads();
    if (t < RUNGS && totals[t]) atomicAdd(&counts[pair].beyond[t], totals[t]);
}

// ranges[4 pair ...] scale and offset of either component: pipeline.field_range.ladder_rung. A thread for each pair.
extern "C" __global__ void choose_rungs(
    const Sum* __restrict__ sums, const Counts* __restrict__ counts, const float* __restrict__ ladder, float units,
    int pairs, int pixels, float* __restrict__ ranges)
{
    const int pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    int rung = 0;
    while (rung < RUNGS - 1 && 1000 * (Sum)counts[pair].beyond[rung] > pixels) rung++;
    #pragma unroll
    for (int component = 0; component < 2; component++) {
        ranges[4 * pair + 2 * component] = ladder[rung];
        ranges[4 * pair + 2 * component + 1] = whole_pixel_offset(sums[2 * pair + component], pixels, units);
    }
}

// Levels, and counts[pair].outside of pixels outside the range. ranges is null where scale is 1 and offset 0 throughout.
extern "C" __global__ void __launch_bounds__(THREADS) quantise(
    const float* __restrict__ flow, const float* __restrict__ edges, float lowest, float highest,
    const float* __restrict__ ranges, unsigned char* __restrict__ levels, Counts* __restrict__ counts, int height,
    int width, int pitch)
{
    __shared__ float ladder[255];
    __shared__ int outside_total;
    const int t = threadIdx.x, pair = blockIdx.y, pixels = height * width;
    if (t < 255) ladder[t] = edges[t];
    if (t == 0) outside_total = 0;
    __syncthreads();
    int outside_count = 0;
    FOR_EACH_PIXEL {
        bool outside = false;
        #pragma unroll
        for (int component = 0; component < 2; component++) {
            const int field = 2 * pair + component;
            float value = value_at(flow, field, i, height, width, pitch);
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
    if (outside_count) atomicAdd(&outside_total, outside_count);
    __syncthreads();
    if (t == 0 && outside_total) atomicAdd(&counts[pair].outside, outside_total);
}
