// Small levels: a block runs all warps of a level that one tile covers. flow[pair][2] is start and result,
// data[pair][TERMS] room to work in.

// Diffusivities of a lane's pixels from the flow of the whole tile.
__device__ __forceinline__ void tile_diffusivities(
    System& system, const float (*u)[TILE_WIDTH], const float (*v)[TILE_WIDTH], const Place& place)
{
    const int height = place.height, width = place.width;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int y = clamped(place.y + r, height), north = clamped(y - 1, height), south = clamped(y + 1, height);
        #pragma unroll
        for (int column = 0; column < 2; column++) {
            const int x = clamped(place.x + column, width), west = clamped(x - 1, width), east = clamped(x + 1, width);
            const bool inside = place.x + column < width && place.y + r < height;
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

// Everything else of the lane's equations.
__device__ __forceinline__ void tile_equations(
    System& system, const Unknowns& flow, const float* __restrict__ data, int pitch, const Place& place, float gamma,
    float half_inverse_alpha, float relaxation)
{
    const int area = place.height * pitch;
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float2 down = r + 1 < ROWS ? system.above[r + 1 < ROWS ? r + 1 : 0] : system.below;
        system.step_u[r] = system.step_v[r] = system.coupling[r] = system.right_u[r] = system.right_v[r] =
            make_float2(0.f, 0.f);
        #define TILE_EQUATION(c, offset, right_diffusivity, below_diffusivity)                                  \
            if (place.x + offset < place.width && place.y + r < place.height) {                                 \
                const Equation equation = equation_of(                                                          \
                    data + (place.y + r) * pitch + place.x + offset, area, flow.u[r].c, flow.v[r].c,            \
                    system.left[r].c + right_diffusivity + system.above[r].c + below_diffusivity, gamma,        \
                    half_inverse_alpha, relaxation);                                                            \
                system.step_u[r].c = equation.step_u;                                                           \
                system.step_v[r].c = equation.step_v;                                                           \
                system.coupling[r].c = equation.coupling;                                                       \
                system.right_u[r].c = equation.right_u;                                                         \
                system.right_v[r].c = equation.right_v;                                                         \
            }
        TILE_EQUATION(x, 0, system.left[r].y, down.x)
        TILE_EQUATION(y, 1, system.right[r], down.y)
    }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) solve_level(
    const float* __restrict__ level, int frames, const int* __restrict__ first, const int* __restrict__ second, float* flow,
    float* data, int warps, int inner_iterations, int sweeps, int height, int width, int pitch, float gamma,
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
    float* out = flow + image_at(2 * pair, area) + place.y * pitch + place.x;
    data += image_at(pair * TERMS, area);
    Unknowns unknowns;
    System system;
    load_rows(unknowns.u, out, pitch, place);
    load_rows(unknowns.v, out + area, pitch, place);
    #pragma unroll 1
    for (int warp = 0; warp < warps; warp++) {
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {   // a lane reads back what it writes
            if (place.y + r >= height) continue;
            if (place.x < width)
                linearise_pixel(level, frames, first[pair], second[pair], place.x, place.y + r, unknowns.u[r].x,
                                unknowns.v[r].x, height, width, pitch, data);
            if (place.x + 1 < width)
                linearise_pixel(level, frames, first[pair], second[pair], place.x + 1, place.y + r, unknowns.u[r].y,
                                unknowns.v[r].y, height, width, pitch, data);
        }
        #pragma unroll 1
        for (int inner = 0; inner < inner_iterations; inner++) {
            #pragma unroll
            for (int r = 0; r < ROWS; r++) {
                *(float2*)&memory.whole.u[place.warp * ROWS + r][2 * place.lane] = unknowns.u[r];
                *(float2*)&memory.whole.v[place.warp * ROWS + r][2 * place.lane] = unknowns.v[r];
            }
            __syncthreads();
            tile_diffusivities(system, memory.whole.u, memory.whole.v, place);
            complete_diffusivities(system, above, place);
            tile_equations(system, unknowns, data, pitch, place, gamma, half_inverse_alpha, relaxation);
            sweep_tile(unknowns, system, memory.rows, place, sweeps, relaxation);
        }
    }
    store_rows(unknowns.u, out, pitch, place);
    store_rows(unknowns.v, out + area, pitch, place);
}
