// Large levels: overlapping tiles, up to HALO iterations to a launch.
//
// A launch reads the state from one of two buffers and writes the tiles' inner pixels to the other. Each iteration's sum
// of squared changes is added up per pair. The next launch reads these sums: where iteration k of the last launch was
// the one to stop at, it repeats that launch's iterations up to k from the buffer it had read, which is untouched;
// where a pair stopped earlier, its blocks return at once. So a pair stops at the same iteration as on the CPU, and
// the host never waits.
//
// state[(buffer * pairs + pair) * STATE + plane], constants[pair * CONSTANTS + plane]: planes of height * pitch.
// Per level and pair: current[warp], the buffer that holds the state when a warp begins; moved[warp], the sum of squared
// changes of the flow by a warp, 0 for a warp that is left out, so that all later ones are left out too;
// changes[warp][iteration], sums of squared changes.

struct Pairs {
    int* current;          // [pairs][warps + 1]
    Sum* moved;            // [pairs][warps]
    Sum* changes;          // [pairs][warps][iterations]
    int pairs, warps, iterations, check;
    Sum epsilon_sum, warp_sum;
};

// How far a pixel's flow moved, squared.
__device__ __forceinline__ float squared_change(float u1, float old1, float u2, float old2)
{
    return (u1 - old1) * (u1 - old1) + (u2 - old2) * (u2 - old2);
}

// Whether a pair still takes part in a warp.
__device__ __forceinline__ bool active(const Pairs& all, int pair, int warp)
{
    return warp == 0 || all.moved[pair * all.warps + warp - 1] > all.warp_sum;
}

// The first of `count` iterations at which a pair stops, `never` if it does not; the whole block takes part.
__device__ __forceinline__ int find_stop(const Pairs& all, int pair, int warp, int count, int never, int* shared)
{
    const Sum* changes = all.changes + (size_t)(pair * all.warps + warp) * all.iterations;
    if (threadIdx.x == 0) *shared = never;
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += blockDim.x)
        if ((k + 1) % all.check == 0 && changes[k] <= all.epsilon_sum) atomicMin(shared, k);
    __syncthreads();
    return *shared;
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) iterate(
    float* state, const float* __restrict__ constants, const float* __restrict__ steps, const int* __restrict__ first,
    Pairs all, int number, int warp, int height, int width, int pitch, float tau, float step, float most)
{
    __shared__ Rows flow, duals;
    __shared__ Sum totals[HALO];
    __shared__ int stop;
    const int pair = blockIdx.z, area = height * pitch;
    if (!active(all, pair, warp)) return;
    const int begin = number * HALO, never = 1 << 30;
    const int last = find_stop(all, pair, warp, min(begin, all.iterations), never, &stop);
    int source = (all.current[pair * (all.warps + 1) + warp] + number) & 1, start = begin;
    int count = min(HALO, all.iterations - begin);
    const bool again = last < never;   // the last launch went too far, or a pair has its result already
    if (again) {
        start = begin - HALO;
        if (last < start || last + 1 == min(begin, all.iterations)) return;
        source ^= 1;
        count = last + 1 - start;
    } else if (count <= 0) return;

    const float* from = state + image_at((source * all.pairs + pair) * STATE, area);
    const float* fixed = constants + image_at(pair * CONSTANTS, area);
    const Place place =
        place_of(blockIdx.x * (TILE_WIDTH - 2 * HALO) - HALO, blockIdx.y * (TILE_HEIGHT - 2 * HALO) - HALO, HALO, height,
                 width);
    const int lane_at = place.y * pitch + place.x;
    Tile tile;
    const float* in = from_here(from + lane_at);
    load_fixed_rows(tile.u1, in, pitch, place);
    load_fixed_rows(tile.u2, in = next_plane(in, area), pitch, place);
    if (warp == 0 && start == 0) {   // the dual begins at zero, which nobody has written
        clear_rows(tile.p11);
        clear_rows(tile.p12);
        clear_rows(tile.p21);
        clear_rows(tile.p22);
    } else {
        load_fixed_rows(tile.p11, in = next_plane(in, area), pitch, place);
        load_fixed_rows(tile.p12, in = next_plane(in, area), pitch, place);
        load_fixed_rows(tile.p21, in = next_plane(in, area), pitch, place);
        load_fixed_rows(tile.p22, in = next_plane(in, area), pitch, place);
    }
    in = from_here(fixed + lane_at);
    load_fixed_rows(tile.nx, in, pitch, place);
    load_fixed_rows(tile.ny, in = next_plane(in, area), pitch, place);
    load_fixed_rows(tile.residual, in = next_plane(in, area), pitch, place);
    load_fixed_rows(tile.limit, in = next_plane(in, area), pitch, place);
#if EDGES
    load_fixed_rows(tile.steps, from_here(steps + image_at(first[pair], area) + lane_at), pitch, place);
#endif
    if (threadIdx.x < HALO) totals[threadIdx.x] = 0;
    clear_outer_rows(flow, duals, place);
    hand_down_duals(tile, duals, place);
    __syncthreads();
    #pragma unroll 1
    for (int k = 0; k < count; k++)
        iterate_once<false>(tile, flow, duals, place, tau, step, most, &totals[k], nullptr);
    if (!again && threadIdx.x < count)
        add_to(all.changes + (size_t)(pair * all.warps + warp) * all.iterations + begin + threadIdx.x,
               totals[threadIdx.x]);
    float* out = from_here(state + image_at(((1 - source) * all.pairs + pair) * STATE, area) + lane_at);
    store_rows(tile.u1, out, pitch, place);
    store_rows(tile.u2, out = next_plane(out, area), pitch, place);
    store_rows(tile.p11, out = next_plane(out, area), pitch, place);
    store_rows(tile.p12, out = next_plane(out, area), pitch, place);
    store_rows(tile.p21, out = next_plane(out, area), pitch, place);
    store_rows(tile.p22, out = next_plane(out, area), pitch, place);
}

// After a warp's iterations: the buffer that they ended in, and how far the warp moved the flow from `before`
// [pair][2]; `before` is null where nobody asks. Blocks of FINISH_THREADS in strips of one pair (blockIdx.y).
#define FINISH_THREADS 256
extern "C" __global__ void __launch_bounds__(FINISH_THREADS) finish_warp(
    const float* __restrict__ state, const float* __restrict__ before, Pairs all, int warp, int height, int width,
    int pitch, float most)
{
    __shared__ int stop;
    __shared__ Sum total;
    const int pair = blockIdx.y, area = height * pitch, t = threadIdx.x;
    int* current = all.current + pair * (all.warps + 1) + warp;
    if (!active(all, pair, warp)) {
        if (blockIdx.x == 0 && t == 0) current[1] = current[0];
        return;
    }
    if (t == 0) total = 0;
    const int last = find_stop(all, pair, warp, all.iterations, all.iterations - 1, &stop);
    const int buffer = (current[0] + last / HALO + 1) & 1;
    if (blockIdx.x == 0 && t == 0) current[1] = buffer;
    if (!before) return;
    const float* u = state + image_at((buffer * all.pairs + pair) * STATE, area);
    const float* old = before + image_at(2 * pair, area);
    Sum change = 0;
    for (int i = blockIdx.x * FINISH_THREADS + t; i < height * width; i += gridDim.x * FINISH_THREADS) {
        const int at = i / width * pitch + i % width;
        change += in_units(squared_change(u[at], old[at], u[area + at], old[area + at]), most);
    }
    change = warp_sum(change);
    if ((t & 31) == 0) add_to(&total, change);
    __syncthreads();
    if (t == 0) add_to(all.moved + pair * all.warps + warp, total);
}
