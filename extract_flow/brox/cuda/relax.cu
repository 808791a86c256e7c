// Red-black SOR on tiles in registers (extract_flow/cuda/tile.cuh), and the equations that it solves.
//
// equations[pair][EQUATIONS]: diffusivity to the left and to the pixel above, step_u, step_v, coupling, right_u, right_v.
// Outside the frame all are zero, so nothing moves there and nothing flows in. A tile begins at even x and y, hence in
// each row of a lane one of its two columns is red.
#define EQUATIONS 7

struct Unknowns { float2 u[ROWS], v[ROWS]; };

struct System {
    float2 left[ROWS], above[ROWS];   // diffusivities
    float right[ROWS];                // of the right column, to the next lane
    float2 below;                     // of the last row, to the next warp
    float2 step_u[ROWS], step_v[ROWS], coupling[ROWS], right_u[ROWS], right_v[ROWS];
};

// Every warp's first and last rows for its neighbours: slot w of `first`, slot w + 1 of `last`.
struct Rows { float2 first_u[WARPS + 1][32], first_v[WARPS + 1][32], last_u[WARPS + 1][32], last_v[WARPS + 1][32]; };

__device__ __forceinline__ void hand_over(const Unknowns& flow, Rows& rows, const Place& place)
{
    rows.first_u[place.warp][place.lane] = flow.u[0];
    rows.first_v[place.warp][place.lane] = flow.v[0];
    rows.last_u[place.warp + 1][place.lane] = flow.u[ROWS - 1];
    rows.last_v[place.warp + 1][place.lane] = flow.v[ROWS - 1];
}

// Zero above and below the tile.
__device__ __forceinline__ void clear_outer_rows(Rows& rows, const Place& place)
{
    if (place.warp == 0) {
        const float2 zero = make_float2(0.f, 0.f);
        rows.last_u[0][place.lane] = rows.last_v[0][place.lane] = zero;
        rows.first_u[WARPS][place.lane] = rows.first_v[WARPS][place.lane] = zero;
    }
}

// The diffusivities that belong to the pixels to the right of a lane's columns and below its last row. A barrier.
__device__ __forceinline__ void complete_diffusivities(System& system, float2 (*above)[32], const Place& place)
{
    above[place.warp][place.lane] = system.above[0];
    if (place.warp == 0) above[WARPS][place.lane] = make_float2(0.f, 0.f);
    __syncthreads();
    system.below = above[place.warp + 1][place.lane];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float next = __shfl_down_sync(ALL_LANES, system.left[r].x, 1);
        system.right[r] = place.lane == 31 ? 0.f : next;
    }
}

// One pixel: u first, then v with the new u.
__device__ __forceinline__ void update(
    float& u, float& v, float keep, float step_u, float step_v, float coupling, float right_u, float right_v,
    float around_u, float around_v)
{
    u = keep * u + step_u * (around_u + right_u - coupling * v);
    v = keep * v + step_v * (around_v + right_v - coupling * u);
}

// The pixels of one colour; reads the neighbours' rows from one set and leaves its own in the other. Ends with a barrier.
template <int COLOUR>
__device__ __forceinline__ void half_sweep(
    Unknowns& flow, const System& system, const Rows& from, Rows& to, const Place& place, float keep)
{
    if (place.at_frame) {
        const float2 above_u = from.last_u[place.warp][place.lane], above_v = from.last_v[place.warp][place.lane];
        const float2 below_u = from.first_u[place.warp + 1][place.lane];
        const float2 below_v = from.first_v[place.warp + 1][place.lane];
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int before = r > 0 ? r - 1 : 0, after = r + 1 < ROWS ? r + 1 : 0;
            const float2 north_u = r > 0 ? flow.u[before] : above_u, north_v = r > 0 ? flow.v[before] : above_v;
            const float2 south_u = r + 1 < ROWS ? flow.u[after] : below_u;
            const float2 south_v = r + 1 < ROWS ? flow.v[after] : below_v;
            const float2 down = r + 1 < ROWS ? system.above[after] : system.below;
            if ((r & 1) == COLOUR) {   // the left column
                const float west_u = __shfl_up_sync(ALL_LANES, flow.u[r].y, 1);
                const float west_v = __shfl_up_sync(ALL_LANES, flow.v[r].y, 1);
                update(
                    flow.u[r].x, flow.v[r].x, keep, system.step_u[r].x, system.step_v[r].x, system.coupling[r].x,
                    system.right_u[r].x, system.right_v[r].x,
                    system.left[r].x * west_u + system.left[r].y * flow.u[r].y + system.above[r].x * north_u.x
                        + down.x * south_u.x,
                    system.left[r].x * west_v + system.left[r].y * flow.v[r].y + system.above[r].x * north_v.x
                        + down.x * south_v.x);
            } else {
                const float east_u = __shfl_down_sync(ALL_LANES, flow.u[r].x, 1);
                const float east_v = __shfl_down_sync(ALL_LANES, flow.v[r].x, 1);
                update(
                    flow.u[r].y, flow.v[r].y, keep, system.step_u[r].y, system.step_v[r].y, system.coupling[r].y,
                    system.right_u[r].y, system.right_v[r].y,
                    system.left[r].y * flow.u[r].x + system.right[r] * east_u + system.above[r].y * north_u.y
                        + down.y * south_u.y,
                    system.left[r].y * flow.v[r].x + system.right[r] * east_v + system.above[r].y * north_v.y
                        + down.y * south_v.y);
            }
        }
        hand_over(flow, to, place);
    }
    __syncthreads();
}

// Sweeps over the tile; begins and ends with a barrier.
__device__ __forceinline__ void sweep_tile(
    Unknowns& flow, const System& system, Rows (&rows)[2], const Place& place, int sweeps, float relaxation)
{
    #pragma unroll
    for (int side = 0; side < 2; side++) {
        hand_over(flow, rows[side], place);
        clear_outer_rows(rows[side], place);
    }
    __syncthreads();
    #pragma unroll 1
    for (int sweep = 0; sweep < sweeps; sweep++) {
        half_sweep<0>(flow, system, rows[0], rows[1], place, 1.f - relaxation);
        half_sweep<1>(flow, system, rows[1], rows[0], place, 1.f - relaxation);
    }
}

// `sweeps` sweeps of the linear system from one flow [pair][2] to another; a tile's halo is two pixels per sweep.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) relax(
    const float* __restrict__ equations, const float* __restrict__ from, float* __restrict__ to, int sweeps, int height,
    int width, int pitch, float relaxation)
{
    __shared__ Rows rows[2];
    __shared__ float2 above[WARPS + 1][32];
    const int pair = blockIdx.z, area = height * pitch, halo = 2 * sweeps;
    const Place place = place_of(
        blockIdx.x * (TILE_WIDTH - 2 * halo) - halo, blockIdx.y * (TILE_HEIGHT - 2 * halo) - halo, halo, height, width);
    const int lane_at = place.y * pitch + place.x;
    Unknowns flow;
    System system;
    const float* in = from_here(equations + image_at(pair * EQUATIONS, area) + lane_at);
    load_fixed_rows(system.left, in, pitch, place);
    load_fixed_rows(system.above, in = next_plane(in, area), pitch, place);
    load_fixed_rows(system.step_u, in = next_plane(in, area), pitch, place);
    load_fixed_rows(system.step_v, in = next_plane(in, area), pitch, place);
    load_fixed_rows(system.coupling, in = next_plane(in, area), pitch, place);
    load_fixed_rows(system.right_u, in = next_plane(in, area), pitch, place);
    load_fixed_rows(system.right_v, in = next_plane(in, area), pitch, place);
    in = from_here(from + image_at(2 * pair, area) + lane_at);
    load_fixed_rows(flow.u, in, pitch, place);
    load_fixed_rows(flow.v, in = next_plane(in, area), pitch, place);
    complete_diffusivities(system, above, place);
    sweep_tile(flow, system, rows, place, sweeps, relaxation);
    float* out = from_here(to + image_at(2 * pair, area) + lane_at);
    store_rows(flow.u, out, pitch, place);
    store_rows(flow.v, next_plane(out, area), pitch, place);
}

// The linear system of every pixel at a flow [pair][2]. A block takes 64 x 16 pixels, blockIdx.z is the pair.
#define SYSTEM_THREADS 256
extern "C" __global__ void __launch_bounds__(SYSTEM_THREADS) make_equations(
    const float* __restrict__ flow, const float* __restrict__ data, float* __restrict__ equations, int height, int width,
    int pitch, float gamma, float half_inverse_alpha, float relaxation)
{
    constexpr int WIDTH = 64, HEIGHT = 16;
    // The flow with a ring around it; index 0 is one pixel outside. Diffusivities reach one pixel to the right and below.
    __shared__ float u[HEIGHT + 2][WIDTH + 2], v[HEIGHT + 2][WIDTH + 2];
    __shared__ float to_left[HEIGHT][WIDTH + 1], to_above[HEIGHT + 1][WIDTH];
    const int pair = blockIdx.z, area = height * pitch, t = threadIdx.x;
    const int left = blockIdx.x * WIDTH, top = blockIdx.y * HEIGHT;
    const float* source = flow + image_at(2 * pair, area);
    for (int i = t; i < (HEIGHT + 2) * (WIDTH + 2); i += SYSTEM_THREADS) {
        const int row = i / (WIDTH + 2), column = i - row * (WIDTH + 2);
        const int at = clamped(top + row - 1, height) * pitch + clamped(left + column - 1, width);
        u[row][column] = source[at];
        v[row][column] = source[area + at];
    }
    __syncthreads();
    for (int i = t; i < HEIGHT * (WIDTH + 1); i += SYSTEM_THREADS) {
        const int row = i / (WIDTH + 1), column = i - row * (WIDTH + 1), x = left + column, p = column + 1, q = row + 1;
        const float value = diffusivity(
            u[q][p] - u[q][p - 1], .25f * (u[q + 1][p] + u[q + 1][p - 1] - u[q - 1][p] - u[q - 1][p - 1]),
            v[q][p] - v[q][p - 1], .25f * (v[q + 1][p] + v[q + 1][p - 1] - v[q - 1][p] - v[q - 1][p - 1]));
        to_left[row][column] = x > 0 && x < width ? value : 0.f;
    }
    for (int i = t; i < (HEIGHT + 1) * WIDTH; i += SYSTEM_THREADS) {
        const int row = i / WIDTH, column = i - row * WIDTH, y = top + row, p = column + 1, q = row + 1;
        const float value = diffusivity(
            u[q][p] - u[q - 1][p], .25f * (u[q][p + 1] + u[q - 1][p + 1] - u[q][p - 1] - u[q - 1][p - 1]),
            v[q][p] - v[q - 1][p], .25f * (v[q][p + 1] + v[q - 1][p + 1] - v[q][p - 1] - v[q - 1][p - 1]));
        to_above[row][column] = y > 0 && y < height ? value : 0.f;
    }
    __syncthreads();
    #pragma unroll 1
    for (int k = 0; k < HEIGHT * WIDTH / SYSTEM_THREADS; k++) {
        const int column = t & (WIDTH - 1), row = t / WIDTH + k * (SYSTEM_THREADS / WIDTH);
        const int x = left + column, y = top + row, at = y * pitch + x;
        if (x >= padded(width) || y >= height) continue;
        float* out = equations + image_at(pair * EQUATIONS, area) + at;
        if (x == width) {
            #pragma unroll
            for (int plane = 0; plane < EQUATIONS; plane++) out[image_at(plane, area)] = 0.f;
            continue;
        }
        const float smoothness =
            to_left[row][column] + to_left[row][column + 1] + to_above[row][column] + to_above[row + 1][column];
        const Equation equation = equation_of(
            data + image_at(pair * TERMS, area) + at, area, u[row + 1][column + 1], v[row + 1][column + 1], smoothness,
            gamma, half_inverse_alpha, relaxation);
        out[0] = to_left[row][column];
        out[area] = to_above[row][column];
        out[image_at(2, area)] = equation.step_u;
        out[image_at(3, area)] = equation.step_v;
        out[image_at(4, area)] = equation.coupling;
        out[image_at(5, area)] = equation.right_u;
        out[image_at(6, area)] = equation.right_v;
    }
}
