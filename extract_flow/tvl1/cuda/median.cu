// The flow of every pair out of its state, median-filtered over MEDIAN x MEDIAN pixels (1: as it is), the border
// repeated. MEDIAN_NETWORK lists the compare-exchanges after which the middle value is the median
// (median.py).
#define FILTER_WIDTH 64
#define FILTER_HEIGHT 16
#define FILTER_THREADS 256

// flow[pair][2]; `current` [pairs][warps + 1] says which buffer holds the state, null for the first one. blockIdx.z is
// 2 pair + plane.
extern "C" __global__ void __launch_bounds__(FILTER_THREADS) take_flow(
    const float* __restrict__ state, const int* __restrict__ current, float* __restrict__ flow, int pairs, int warps,
    int height, int width, int pitch)
{
    const int pair = blockIdx.z >> 1, plane = blockIdx.z & 1, area = height * pitch, t = threadIdx.x;
    const int buffer = current ? current[pair * (warps + 1) + warps] : 0;
    const float* u = state + image_at((buffer * pairs + pair) * STATE + plane, area);
    float* out = flow + image_at(blockIdx.z, area);
    const int left = blockIdx.x * FILTER_WIDTH, top = blockIdx.y * FILTER_HEIGHT;
#if MEDIAN > 1
    constexpr int REACH = MEDIAN / 2, SIDE = FILTER_WIDTH + 2 * REACH;
    __shared__ float tile[FILTER_HEIGHT + 2 * REACH][SIDE];
    for (int i = t; i < (FILTER_HEIGHT + 2 * REACH) * SIDE; i += FILTER_THREADS) {
        const int row = i / SIDE, column = i - row * SIDE;
        tile[row][column] =
            u[clamped(top + row - REACH, height) * pitch + clamped(left + column - REACH, width)];
    }
    __syncthreads();
#endif
    #pragma unroll 1
    for (int k = 0; k < FILTER_WIDTH * FILTER_HEIGHT / FILTER_THREADS; k++) {
        const int column = t & (FILTER_WIDTH - 1);
        const int row = t / FILTER_WIDTH + k * (FILTER_THREADS / FILTER_WIDTH);
        const int x = left + column, y = top + row;
        if (x >= width || y >= height) continue;
#if MEDIAN > 1
        float v[MEDIAN * MEDIAN];
        #pragma unroll
        for (int i = 0; i < MEDIAN * MEDIAN; i++) v[i] = tile[row + i / MEDIAN][column + i % MEDIAN];
        #define EXCHANGE(low, high)                         \
            {                                               \
                const float smaller = fminf(v[low], v[high]); \
                v[high] = fmaxf(v[low], v[high]);           \
                v[low] = smaller;                           \
            }
        MEDIAN_NETWORK
        out[y * pitch + x] = v[MEDIAN * MEDIAN / 2];
#else
        out[y * pitch + x] = u[y * pitch + x];
#endif
    }
}
