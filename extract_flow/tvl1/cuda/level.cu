// Small levels: a block runs all warps of a level that one tile covers, with its own early stops. `before` [pair][2] and
// `constants` [pair][CONSTANTS] are room to work in.

// The gradient at a pixel from the warped image in shared memory and the first frame, both with their borders repeated.
__device__ __forceinline__ void level_slopes(
    const float (*warped)[TILE_WIDTH], const float* __restrict__ image, int x, int y, int height, int width, int pitch,
    float& across, float& down)
{
    const int left2 = clamped(x - 2, width), left = clamped(x - 1, width), right = clamped(x + 1, width),
              right2 = clamped(x + 2, width), above2 = clamped(y - 2, height), above = clamped(y - 1, height),
              below = clamped(y + 1, height), below2 = clamped(y + 2, height);
    const float* row = image + y * pitch;
    const float* column = image + x;
    across = blend_slopes(
        warped[y][left2], warped[y][left], warped[y][right], warped[y][right2], row[left2], row[left], row[right],
        row[right2]);
    down = blend_slopes(
        warped[above2][x], warped[above][x], warped[below][x], warped[below2][x], column[above2 * pitch],
        column[above * pitch], column[below * pitch], column[below2 * pitch]);
}

// Squared differences of a lane's pixels from what a plane holds.
__device__ __forceinline__ void add_changes(
    float& change, const float2 (&values)[ROWS], const float* at, int pitch, const Place& place)
{
    float2 old[ROWS];
    load_rows(old, at, pitch, place);
    #pragma unroll
    for (int r = 0; r < ROWS; r++)
        change += (values[r].x - old[r].x) * (values[r].x - old[r].x) + (values[r].y - old[r].y) * (values[r].y - old[r].y);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) refine_level(
    float* state, const float* __restrict__ images, const float* __restrict__ targets, const float* __restrict__ steps,
    const int* __restrict__ first, const int* __restrict__ second, float* before, float* constants, int height, int width,
    int pitch, int warps, int iterations, float tau, float step, float data_weight, Sum epsilon_sum, Sum warp_sum)
{
    __shared__ Rows flow, duals;
    __shared__ Sum totals[2];
    __shared__ float warped[TILE_HEIGHT][TILE_WIDTH];
    const int pair = blockIdx.x, area = height * pitch, t = threadIdx.x;
    const float most = 4294967296.f / TILE_THREADS;   // so that no sum overflows
    const Place place = place_of(0, 0, 0, height, width);
    Tile tile;
    {
        const float* u = state + image_at(pair * STATE, area) + place.y * pitch + place.x;
        load_rows(tile.u1, u, pitch, place);
        load_rows(tile.u2, u + area, pitch, place);
    }
    clear_rows(tile.p11);
    clear_rows(tile.p12);
    clear_rows(tile.p21);
    clear_rows(tile.p22);
#if EDGES
    load_rows(tile.steps, steps + image_at(first[pair], area) + place.y * pitch + place.x, pitch, place);
#endif
    if (t < 2) totals[t] = 0;
    clear_outer_rows(flow, duals, place);
    hand_down_duals(tile, duals, place);
    #pragma unroll 1
    for (int warp = 0; warp < warps; warp++) {
        const int number = again(pair), lane_at = again(place.y) * pitch + place.x;
        const float* target = targets + image_at(second[number], area);
        const float* source = images + image_at(first[number], area);
        float* keep = before + image_at(2 * number, area) + lane_at;
        float* fixed = constants + image_at(number * CONSTANTS, area) + lane_at;
        store_rows(tile.u1, keep, pitch, place);
        store_rows(tile.u2, keep + area, pitch, place);
        // Loops that are not unrolled spare registers; a lane reads back what it has written itself.
        #pragma unroll 1
        for (int k = 0; k < 2 * ROWS; k++) {
            const int row = k >> 1, x = place.x + (k & 1), y = place.y + row, at = row * pitch + (k & 1);
            if (x >= width || y >= height) continue;
            const Position to = locate(x + keep[at], y + keep[area + at], height, width);
#if TARGET_GRADIENT
            float across, down;
            warped[y][x] = interpolate_slopes(target, to, height, width, pitch, across, down);
            fixed[at] = across;
            fixed[area + at] = down;
#else
            warped[y][x] = interpolate(target, to, height, width, pitch);
#endif
        }
        __syncthreads();
        #pragma unroll 1
        for (int k = 0; k < 2 * ROWS; k++) {
            const int row = k >> 1, x = place.x + (k & 1), y = place.y + row, at = row * pitch + (k & 1);
            if (x >= padded(width) || y >= height) continue;
            if (x == width) {
                fixed[at] = fixed[area + at] = fixed[2 * area + at] = fixed[3 * area + at] = 0.f;
                continue;
            }
#if TARGET_GRADIENT
            const float across = fixed[at], down = fixed[area + at];
#else
            float across, down;
            level_slopes(warped, source, x, y, height, width, pitch, across, down);
#endif
            const float u1 = keep[at], u2 = keep[area + at];
            const Linear linear = normalise(
                across, down, warped[y][x], source[y * pitch + x], u1, u2, lies_inside(x + u1, y + u2, height, width),
                data_weight);
            fixed[at] = linear.nx;
            fixed[area + at] = linear.ny;
            fixed[2 * area + at] = linear.residual;
            fixed[3 * area + at] = linear.limit;
        }
        const float* in = fixed;
        load_rows(tile.nx, in, pitch, place);
        load_rows(tile.ny, in = next_plane(in, area), pitch, place);
        load_rows(tile.residual, in = next_plane(in, area), pitch, place);
        load_rows(tile.limit, in = next_plane(in, area), pitch, place);
        #pragma unroll 1
        for (int k = 0; k < iterations; k++) {
            iterate_once<true>(
                tile, flow, duals, place, tau, step, most, &totals[k & 1], &totals[(k + 1) & 1]);
            if (totals[k & 1] <= epsilon_sum) break;
        }
        __syncthreads();
        if (t < 2) totals[t] = 0;
        __syncthreads();
        if (warp_sum < 0 || warp + 1 == warps) continue;
        const float* old = before + image_at(2 * again(pair), area) + again(place.y) * pitch + place.x;
        float change = 0.f;
        add_changes(change, tile.u1, old, pitch, place);
        add_changes(change, tile.u2, old + area, pitch, place);
        change = warp_total(change);
        if (place.lane == 0) add_to(&totals[0], (Sum)(fminf(change, most) * UNIT));
        __syncthreads();
        const Sum total = totals[0];
        __syncthreads();
        if (t == 0) totals[0] = 0;
        if (total <= warp_sum) break;
    }
    float* u = state + image_at(STATE * again(pair), area) + again(place.y) * pitch + place.x;
    store_rows(tile.u1, u, pitch, place);
    store_rows(tile.u2, u + area, pitch, place);
}
