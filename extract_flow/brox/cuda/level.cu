// Small levels: a block runs all warps of a level that one tile covers. flow[pair][2] is start and result,
// data[pair][TERMS] and equations[pair][EQUATIONS] room to work in.

// A lane's flow for all others.
__device__ __forceinline__ void hand_whole(
    const Unknowns& flow, float (*u)[TILE_WIDTH], float (*v)[TILE_WIDTH], const Place& place)
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        *(float2*)&u[place.warp * ROWS + r][2 * place.lane] = flow.u[r];
        *(float2*)&v[place.warp * ROWS + r][2 * place.lane] = flow.v[r];
    }
}

// Diffusivities of a lane's pixels from the flow of the whole tile.
__device__ __forceinline__ void tile_diffusivities(
    System& system, const float (*u)[TILE_WIDTH], const float (*v)[TILE_WIDTH], const Place& place)
{
    // Addresses computed anew: held through the loop around this, they would not fit the registers.
    const int left = again(place.x), top = again(place.y), height = place.height, width = place.width;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int y = clamped(top + r, height), north = clamped(y - 1, height), south = clamped(y + 1, height);
        #pragma unroll
        for (int column = 0; column < 2; column++) {
            const int x = clamped(left + column, width), west = clamped(x - 1, width), east = clamped(x + 1, width);
            const bool inside = left + column < width && top + r < height;
            const float to_left = diffusivity(
                u[y][x] - u[y][west], .25f * (u[south][x] + u[south][west] - u[north][x] - u[north][west]),
                v[y][x] - v[y][west], .25f * (v[south][x] + v[south][west] - v[north][x] - v[north][west]));
            const float to_above = diffusivity(
                u[y][x] - u[north][x], .25f * (u[y][east] + u[north][east] - u[y][west] - u[north][west]),
                v[y][x] - v[north][x], .25f * (v[y][east] + v[north][east] - v[y][west] - v[north][west]));
            (column ? system.left[r].y : system.left[r].x) = inside && x > 0 ? to_left : 0.f;
            (column ? system.above[r].y : system.above[r].x) = inside && y > 0 ? to_above : 0.f;
        }
    }
}

// Everything else of the lane's equations. `flow` [2] and `equations` [EQUATIONS] point to the lane's first pixel: room for
// what a loop needs that is not unrolled, which spares registers; a lane reads back what it has written itself.
__device__ __forceinline__ void tile_equations(
    System& system, const Unknowns& unknowns, const float* __restrict__ data, float* flow, float* equations, int area,
    int pitch, const Place& place, float gamma, float half_inverse_alpha, float relaxation)
{
    float2 smoothness[ROWS];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float2 down = r + 1 < ROWS ? system.above[r + 1 < ROWS ? r + 1 : 0] : system.below;
        smoothness[r].x = system.left[r].x + system.left[r].y + system.above[r].x + down.x;
        smoothness[r].y = system.left[r].y + system.right[r] + system.above[r].y + down.y;
    }
    store_rows(unknowns.u, flow, pitch, place);
    store_rows(unknowns.v, flow + area, pitch, place);
    store_rows(smoothness, equations, pitch, place);
    #pragma unroll 1
    for (int k = 0; k < 2 * ROWS; k++) {
        const int x = place.x + (k & 1), y = place.y + (k >> 1), at = (k >> 1) * pitch + (k & 1);
        if (x >= padded(place.width) || y >= place.height) continue;
        Equation equation = {0.f, 0.f, 0.f, 0.f, 0.f};
        if (x < place.width)
            equation = equation_of(data + at, area, flow[at], flow[area + at], equations[at], gamma, half_inverse_alpha,
                                   relaxation);
        float* out = equations + at;
        out[0] = equation.step_u;
        out[area] = equation.step_v;
        out[image_at(2, area)] = equation.coupling;
        out[image_at(3, area)] = equation.right_u;
        out[image_at(4, area)] = equation.right_v;
    }
    const float* in = equations;
    load_rows(system.step_u, in, pitch, place);
    load_rows(system.step_v, in = next_plane(in, area), pitch, place);
    load_rows(system.coupling, in = next_plane(in, area), pitch, place);
    load_rows(system.right_u, in = next_plane(in, area), pitch, place);
    load_rows(system.right_v, in = next_plane(in, area), pitch, place);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) solve_level(
    const float* __restrict__ level, int frames, const int* __restrict__ first, const int* __restrict__ second, float* flow,
    float* data, float* equations, int warps, int inner_iterations, int sweeps, int height, int width, int pitch, float gamma,
    float half_inverse_alpha, float relaxation)
{
    // The flow of the whole tile and the rows that warps hand over are never needed at once.
    __shared__ union {
        struct { float u[TILE_HEIGHT][TILE_WIDTH], v[TILE_HEIGHT][TILE_WIDTH]; } whole;
        Rows rows[2];
    } memory;
    __shared__ float2 above[WARPS + 1][32];
    const int pair = blockIdx.x, area = height * pitch;
    const Place place = place_of(0, 0, 0, height, width);
    data += image_at(pair * TERMS, area);
    Unknowns unknowns;
    System system;
    {
        const float* in = flow + image_at(2 * pair, area) + place.y * pitch + place.x;
        load_rows(unknowns.u, in, pitch, place);
        load_rows(unknowns.v, in + area, pitch, place);
    }
    #pragma unroll 1
    for (int warp = 0; warp < warps; warp++) {
        hand_whole(unknowns, memory.whole.u, memory.whole.v, place);
        // A loop that is not unrolled spares registers; a lane reads back what it has written itself.
        #pragma unroll 1
        for (int k = 0; k < 2 * ROWS; k++) {
            const int row = place.warp * ROWS + (k >> 1), x = 2 * place.lane + (k & 1);
            if (x >= width || row >= height) continue;
            linearise_pixel(level, frames, first[pair], second[pair], x, row, memory.whole.u[row][x],
                            memory.whole.v[row][x], height, width, pitch, data);
        }
        #pragma unroll 1
        for (int inner = 0; inner < inner_iterations; inner++) {
            hand_whole(unknowns, memory.whole.u, memory.whole.v, place);
            __syncthreads();
            tile_diffusivities(system, memory.whole.u, memory.whole.v, place);
            complete_diffusivities(system, above, place);
            const int lane_at = again(place.y) * pitch + place.x;
            tile_equations(system, unknowns, data + lane_at, flow + image_at(2 * again(pair), area) + lane_at,
                           equations + image_at(EQUATIONS * again(pair), area) + lane_at, area, pitch, place, gamma,
                           half_inverse_alpha, relaxation);
            sweep_tile(unknowns, system, memory.rows, place, sweeps, relaxation);
        }
    }
    float* out = flow + image_at(2 * again(pair), area) + again(place.y) * pitch + place.x;
    store_rows(unknowns.u, out, pitch, place);
    store_rows(unknowns.v, out + area, pitch, place);
}
