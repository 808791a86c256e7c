// Warp of the target and linearisation of the residual, in one launch.
//
// GRADIENT: where the gradient comes from (extract_flow.tvl1.cpu.TARGET, WARPED_IMAGE, BLENDED); SPLINE: cubic B-spline
// coefficients with mirrored borders instead of Keys' kernel (KEYS) with the border repeated; MASKED: no data term where
// the target lies outside the frame; BLEND, NEAR, FAR, FLAT, EDGE_LIMIT: as in cpu.py and rules.py.
#define TARGET_GRADIENT (GRADIENT == 0)
#define BLENDED (GRADIENT == 2)
#define NEAR_WARPED (BLENDED ? NEAR * (1.f - BLEND) : .5f)
#define FAR_WARPED (BLENDED ? FAR * (1.f - BLEND) : 0.f)
#define NEAR_FIRST (NEAR * BLEND)
#define FAR_FIRST (FAR * BLEND)

// Weights of the four pixels around a fraction t.
__device__ __forceinline__ void cubic_weights(float t, float weights[4])
{
    const float s = 1.f - t;
#if SPLINE
    weights[0] = s * s * s * (1.f / 6);
    weights[1] = 2.f / 3 - t * t * (1.f - .5f * t);
    weights[3] = t * t * t * (1.f / 6);
    weights[2] = 1.f - weights[0] - weights[1] - weights[3];
#else
    weights[0] = KEYS * t * s * s;
    weights[1] = 1.f + t * t * ((KEYS + 2.f) * t - (KEYS + 3.f));
    weights[3] = KEYS * s * t * t;
    weights[2] = 1.f - weights[0] - weights[1] - weights[3];
#endif
}

// The pixel that stands at an index up to five outside, as extract_flow.tvl1.cpu.extend_border fills the ring.
__device__ __forceinline__ int neighbour(int index, int count)
{
#if SPLINE
    const int last = count - 1;
    index = abs(index);
    index = abs(last - abs(last - index));
    index = abs(last - abs(last - index));
    return min(index, last);
#else
    return clamped(index, count);
#endif
}

struct Position { int left, top; float across, down; };

__device__ __forceinline__ bool lies_inside(float to_x, float to_y, int height, int width)
{
    return to_x >= 0.f && to_x <= (float)(width - 1) && to_y >= 0.f && to_y <= (float)(height - 1);
}

// Where a pixel goes: the first of its four columns and rows, and the fractions.
__device__ __forceinline__ Position locate(float to_x, float to_y, int height, int width)
{
    Position at;
    const float right = width - 1, bottom = height - 1;
    // Beyond two pixels outside every tap has the border's value already.
    to_x = fminf(fmaxf(to_x, -2.f), right + 2.f);
    to_y = fminf(fmaxf(to_y, -2.f), bottom + 2.f);
    const float whole_x = floorf(to_x), whole_y = floorf(to_y);
    at.left = (int)whole_x - 1;
    at.top = (int)whole_y - 1;
    at.across = to_x - whole_x;
    at.down = to_y - whole_y;
    return at;
}

// values[index] for an index that is not known when compiling, from registers.
template <int COUNT> __device__ __forceinline__ float pick(const float (&values)[COUNT], int index)
{
    float value = values[0];
    #pragma unroll
    for (int k = 1; k < COUNT; k++) value = index == k ? values[k] : value;
    return value;
}

__device__ __forceinline__ float interpolate(
    const float* __restrict__ target, const Position& at, int height, int width, int pitch)
{
    float wx[4], wy[4], value = 0.f;
    cubic_weights(at.across, wx);
    cubic_weights(at.down, wy);
    if (at.left >= 0 && at.left + 3 < width && at.top >= 0 && at.top + 3 < height) {
        const float* row = target + at.top * pitch + at.left;
        #pragma unroll
        for (int j = 0; j < 4; j++, row += pitch)
            value += wy[j] * (wx[0] * row[0] + wx[1] * row[1] + wx[2] * row[2] + wx[3] * row[3]);
    } else {
        #pragma unroll 1
        for (int j = 0; j < 4; j++) {
            const float* row = target + neighbour(at.top + j, height) * pitch;
            float total = 0.f;
            #pragma unroll
            for (int k = 0; k < 4; k++) total += wx[k] * row[neighbour(at.left + k, width)];
            value += pick(wy, j) * total;
        }
    }
    return value;
}

// The same with the centred differences of what is interpolated, from 6 x 6 pixels.
__device__ __forceinline__ float interpolate_slopes(
    const float* __restrict__ target, const Position& at, int height, int width, int pitch, float& across, float& down)
{
    float vx[6] = {0.f}, vy[6] = {0.f}, sx[6], sy[6], value = 0.f;
    cubic_weights(at.across, vx + 1);
    cubic_weights(at.down, vy + 1);
    #pragma unroll
    for (int k = 0; k < 6; k++) {
        sx[k] = .5f * ((k > 0 ? vx[k > 0 ? k - 1 : 0] : 0.f) - (k < 5 ? vx[k < 5 ? k + 1 : 5] : 0.f));
        sy[k] = .5f * ((k > 0 ? vy[k > 0 ? k - 1 : 0] : 0.f) - (k < 5 ? vy[k < 5 ? k + 1 : 5] : 0.f));
    }
    across = down = 0.f;
    #pragma unroll 1
    for (int j = 0; j < 6; j++) {
        const float* row = target + neighbour(at.top - 1 + j, height) * pitch;
        float total = 0.f, slope = 0.f;
        #pragma unroll
        for (int k = 0; k < 6; k++) {
            const float pixel = row[neighbour(at.left - 1 + k, width)];
            total += vx[k] * pixel;
            slope += sx[k] * pixel;
        }
        value += pick(vy, j) * total;
        across += pick(vy, j) * slope;
        down += pick(sy, j) * total;
    }
    return value;
}

// Derivative of the warped image, plus that of the first frame where they are blended.
__device__ __forceinline__ float blend_slopes(
    float warped_before2, float warped_before, float warped_after, float warped_after2, float before2, float before,
    float after, float after2)
{
    float slope = NEAR_WARPED * (warped_after - warped_before) - FAR_WARPED * (warped_after2 - warped_before2);
    if (BLENDED) slope += NEAR_FIRST * (after - before) - FAR_FIRST * (after2 - before2);
    return slope;
}

// What data_step needs of a pixel.
struct Linear { float nx, ny, residual, limit; };

__device__ __forceinline__ Linear normalise(
    float across, float down, float warped, float image, float u1, float u2, bool inside, float data_weight)
{
    Linear linear;
    const float squared = across * across + down * down;
    const float inverse = squared > FLAT ? rsqrtf(squared) : 0.f;
    linear.nx = across * inverse;
    linear.ny = down * inverse;
    linear.residual = (warped - image - across * u1 - down * u2) * inverse;
    linear.limit = inside || !MASKED ? data_weight * squared * inverse : 0.f;
    return linear;
}

// Constants of every pixel from the flow in the state; the flow is kept in `before` [pair][2] unless that is null. A
// block takes 64 x 16 pixels, blockIdx.z is the pair; the warped image of a block and its ring stay in shared memory.
#define WARP_THREADS 256
#define RING 2
extern "C" __global__ void __launch_bounds__(WARP_THREADS) warp_and_linearise(
    const float* __restrict__ state, const float* __restrict__ images, const float* __restrict__ targets,
    const int* __restrict__ first, const int* __restrict__ second, float* __restrict__ constants,
    float* __restrict__ before, Pairs all, int warp, int height, int width, int pitch, float data_weight)
{
    constexpr int WIDTH = 64, HEIGHT = 16, SIDE = WIDTH + 2 * RING;
    const int pair = blockIdx.z, area = height * pitch, t = threadIdx.x;
    if (!active(all, pair, warp)) return;
    const float* u =
        state + image_at((all.current[pair * (all.warps + 1) + warp] * all.pairs + pair) * STATE, area);
    const float* target = targets + image_at(second[pair], area);
    const float* source = images + image_at(first[pair], area);
    const int left = blockIdx.x * WIDTH - RING, top = blockIdx.y * HEIGHT - RING;
#if !TARGET_GRADIENT
    __shared__ float warped[HEIGHT + 2 * RING][SIDE], image[HEIGHT + 2 * RING][SIDE];
    for (int i = t; i < (HEIGHT + 2 * RING) * SIDE; i += WARP_THREADS) {
        const int row = i / SIDE, column = i - row * SIDE;
        const int x = clamped(left + column, width), y = clamped(top + row, height), at = y * pitch + x;
        warped[row][column] =
            interpolate(target, locate(x + u[at], y + u[area + at], height, width), height, width, pitch);
        image[row][column] = source[at];
    }
    __syncthreads();
#endif
    #pragma unroll 1
    for (int k = 0; k < HEIGHT * WIDTH / WARP_THREADS; k++) {
        const int column = (t & (WIDTH - 1)) + RING, row = t / WIDTH + k * (WARP_THREADS / WIDTH) + RING;
        const int x = left + column, y = top + row, at = y * pitch + x;
        if (x >= padded(width) || y >= height) continue;
        float* out = constants + image_at(pair * CONSTANTS, area) + at;
        if (x == width) {
            out[0] = out[area] = out[2 * area] = out[3 * area] = 0.f;
            continue;
        }
        const float u1 = u[at], u2 = u[area + at];
        float across, down;
#if TARGET_GRADIENT
        const Position to = locate(x + u1, y + u2, height, width);
        const float value = interpolate_slopes(target, to, height, width, pitch, across, down), pixel = source[at];
#else
        const float value = warped[row][column], pixel = image[row][column];
        across = blend_slopes(
            warped[row][column - 2], warped[row][column - 1], warped[row][column + 1], warped[row][column + 2],
            image[row][column - 2], image[row][column - 1], image[row][column + 1], image[row][column + 2]);
        down = blend_slopes(
            warped[row - 2][column], warped[row - 1][column], warped[row + 1][column], warped[row + 2][column],
            image[row - 2][column], image[row - 1][column], image[row + 1][column], image[row + 2][column]);
#endif
        const bool inside = lies_inside(x + u1, y + u2, height, width);
        const Linear linear = normalise(across, down, value, pixel, u1, u2, inside, data_weight);
        out[0] = linear.nx;
        out[area] = linear.ny;
        out[2 * area] = linear.residual;
        out[3 * area] = linear.limit;
        if (before) {
            float* keep = before + image_at(2 * pair, area) + at;
            keep[0] = u1;
            keep[area] = u2;
        }
    }
}

// Steps of the dual where image edges loosen the smoothness (extract_flow.tvl1.cpu.weigh_edges); blockIdx.z is the frame.
extern "C" __global__ void weigh_edges(
    const float* __restrict__ images, float* steps, float step, float edges, int height, int width,
    int pitch)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= padded(width) || y >= height) return;
    steps += image_at(blockIdx.z, height * pitch) + y * pitch + x;
    if (x == width) {
        *steps = 0.f;
        return;
    }
    const float* image = images + image_at(blockIdx.z, height * pitch);
    const float here = image[y * pitch + x];
    const float across = image[y * pitch + min(x + 1, width - 1)] - here;
    const float down = image[min(y + 1, height - 1) * pitch + x] - here;
    float root = 1.f + fminf(edges * sqrtf(across * across + down * down), EDGE_LIMIT) * (1.f / 8);
    root *= root;
    root *= root;
    *steps = step * root * root;
}
