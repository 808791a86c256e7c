// Large levels on GPUs with clusters: one cluster of blocks holds a level through all iterations of a warp, without a halo
// and with nothing computed twice. The result is that of `iterate`, bit by bit.
//
// A level is cut into units of 64 x ROWS pixels, one to a warp, numbered down the first 64 columns, then down the next 64.
// Every block has as many warps and takes as many consecutive units. The state stays in registers, the constants in the
// block's own shared memory. After each half of an iteration a warp stores what its four neighbours need of it into their
// blocks' shared memory; then the cluster waits for all.
#if CLUSTERS
#define CLUSTER_BLOCKS 16   // of a cluster at most
#define CLUSTER_WARPS 24    // of a block at most: 80 registers for each thread

#define NOBODY 0xffffffffu

// What the neighbours store for a unit: the flow in the row below and the column to the right, the dual in the row above
// and the column to the left; zero where there is no neighbour. A column's values come in pairs, (u1, u2) or (p11, p21).
// Then where the neighbours keep theirs, NOBODY without a neighbour; and the unit's first pixel.
struct Border {
    float2 below1[32], below2[32], above12[32], above22[32], right[ROWS], left[ROWS];
    Remote to_above, to_left, to_below, to_right;
    volatile int x, y;   // read again where they are needed: kept, they would cost registers
    int unused[2];
};

// What a lane needs of its pixels in every iteration: (nx, nx, ny, ny), (residual, residual, limit, limit), the steps.
struct Fixed {
    float4 normal[ROWS][32], data[ROWS][32];
#if EDGES
    float2 steps[ROWS][32];
#endif
};

// A block's shared memory: a Border and a Fixed for each of its warps, in this order.
#ifdef __CUDACC__
extern __shared__ float4 room[];
#else
__shared__ float4 room[CLUSTER_WARPS * (sizeof(Border) + sizeof(Fixed)) / sizeof(float4)];
#endif

#if EDGES
static_assert(sizeof(Border) == 1120 && sizeof(Fixed) == 40 * 32 * ROWS, "the host sizes the shared memory by these");
#endif

// Sums of a block's warps and of the cluster's blocks.
struct Sums { Sum warps[32], blocks[CLUSTER_BLOCKS]; };

// Called by one warp of each block when the sums of its warps are complete; after a barrier those of the blocks are.
__device__ __forceinline__ void share_sum(Sums& sums, int lane)
{
    const Sum total = warp_sum(lane < blockDim.x / 32 ? sums.warps[lane] : 0);
    if (lane < cluster_size()) store_remote(remote(&sums.blocks[cluster_rank()], lane), total);
}

__device__ __forceinline__ Sum cluster_total(const Sums& sums, int lane)
{
    return warp_sum(lane < cluster_size() ? sums.blocks[lane] : 0);
}

__device__ __forceinline__ Remote border_of(Border* borders, bool exists, int unit)
{
    const int warps = blockDim.x / 32;
    return exists ? remote(&borders[unit % warps], unit / warps) : NOBODY;
}

// The pixels of this lane.
__device__ __forceinline__ Place place_of_unit(const Border& border, int height, int width)
{
    Place place;
    place.lane = threadIdx.x & 31;
    place.warp = threadIdx.x >> 5;
    place.height = height;
    place.width = width;
    place.x = border.x + 2 * place.lane;
    place.y = border.y;
    place.first_inner = 0;
    place.end_inner = height - place.y;
    place.in_width = place.inner_left = place.x < width;
    place.inner_right = place.x + 1 < width;
    place.at_frame = border.x < width;
    return place;
}

// Where an array of `border` lies in a neighbour's.
#define FIELD(neighbour, name) ((neighbour) + (unsigned)((const char*)border.name - (const char*)&border))

// A lane's column of two planes, for the unit beside it.
template <class Side>
__device__ __forceinline__ void store_column(Remote at, const float2 (&first)[ROWS], const float2 (&second)[ROWS], Side side)
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        store_remote(at + r * sizeof(float2), side(first[r]));
        store_remote(at + r * sizeof(float2) + sizeof(float), side(second[r]));
    }
}

// Rows go to the unit below or above, lane by lane; columns to the unit on the right or left, by the lane beside it.
__device__ __forceinline__ void hand_on_flow(
    const Border& border, int lane, const float2 (&u1)[ROWS], const float2 (&u2)[ROWS])
{
    const Remote above = border.to_above, left = border.to_left;
    if (above != NOBODY) {
        store_remote(FIELD(above, below1) + lane * sizeof(float2), u1[0]);
        store_remote(FIELD(above, below2) + lane * sizeof(float2), u2[0]);
    }
    if (left != NOBODY && lane == 0)
        store_column(FIELD(left, right), u1, u2, [](float2 pixels) { return pixels.x; });
}

__device__ __forceinline__ void hand_on_duals(
    const Border& border, int lane, const float2 (&p11)[ROWS], const float2 (&p12)[ROWS], const float2 (&p21)[ROWS],
    const float2 (&p22)[ROWS])
{
    const Remote below = border.to_below, right = border.to_right;
    if (below != NOBODY) {
        store_remote(FIELD(below, above12) + lane * sizeof(float2), p12[ROWS - 1]);
        store_remote(FIELD(below, above22) + lane * sizeof(float2), p22[ROWS - 1]);
    }
    if (right != NOBODY && lane == 31)
        store_column(FIELD(right, left), p11, p21, [](float2 pixels) { return pixels.y; });
}

extern "C" __global__ void __launch_bounds__(32 * CLUSTER_WARPS, 1) iterate_cluster(
    float* state, const float* __restrict__ constants, const float* __restrict__ steps, const int* __restrict__ first,
    Pairs all, int warp, int height, int width, int pitch, float tau, float step, float most, float most_moved)
{
    __shared__ Sums sums;
    const int pair = blockIdx.y, area = height * pitch;
    if (!active(all, pair, warp)) return;   // the whole cluster
    const int warps = blockDim.x / 32, lane = threadIdx.x & 31, own = threadIdx.x >> 5;
    const int unit = cluster_rank() * warps + own, strip = (height + ROWS - 1) / ROWS;
    Border* borders = (Border*)room;
    Border& border = borders[own];
    Fixed& fixed = ((Fixed*)(borders + warps))[own];

    for (int k = threadIdx.x; k < warps * sizeof(Border) / sizeof(float4); k += blockDim.x)
        room[k] = make_float4(0.f, 0.f, 0.f, 0.f);
    __syncthreads();
    if (lane == 0) {
        const int x = unit / strip * TILE_WIDTH, y = unit % strip * ROWS;
        const bool at_frame = x < width;
        border.x = x;
        border.y = y;
        sums.warps[own] = 0;
        border.to_above = border_of(borders, at_frame && y > 0, unit - 1);
        border.to_below = border_of(borders, at_frame && y + ROWS < height, unit + 1);
        border.to_left = border_of(borders, at_frame && x > 0, unit - strip);
        border.to_right = border_of(borders, at_frame && x + TILE_WIDTH < width, unit + strip);
    }
    __syncwarp();
    Place place = place_of_unit(border, height, width);
    const int lane_at = place.y * pitch + place.x;
    float2 u1[ROWS], u2[ROWS], p11[ROWS], p12[ROWS], p21[ROWS], p22[ROWS];
    if (place.at_frame) {
        float2 a[ROWS], b[ROWS];
        const float* in = from_here(constants + image_at(pair * CONSTANTS, area) + lane_at);
        load_fixed_rows(a, in, pitch, place);
        load_fixed_rows(b, in = next_plane(in, area), pitch, place);
        #pragma unroll
        for (int r = 0; r < ROWS; r++) fixed.normal[r][lane] = make_float4(a[r].x, a[r].y, b[r].x, b[r].y);
        load_fixed_rows(a, in = next_plane(in, area), pitch, place);
        load_fixed_rows(b, in = next_plane(in, area), pitch, place);
        #pragma unroll
        for (int r = 0; r < ROWS; r++) fixed.data[r][lane] = make_float4(a[r].x, a[r].y, b[r].x, b[r].y);
#if EDGES
        load_fixed_rows(a, from_here(steps + image_at(first[pair], area) + lane_at), pitch, place);
        #pragma unroll
        for (int r = 0; r < ROWS; r++) fixed.steps[r][lane] = a[r];
#endif
        in = from_here(state + image_at(pair * STATE, area) + lane_at);
        load_rows(u1, in, pitch, place);
        load_rows(u2, in = next_plane(in, area), pitch, place);
        clear_rows(p11);
        clear_rows(p12);
        clear_rows(p21);
        clear_rows(p22);
        if (warp > 0) {   // before, the dual is zero and nobody has written it
            load_rows(p11, in = next_plane(in, area), pitch, place);
            load_rows(p12, in = next_plane(in, area), pitch, place);
            load_rows(p21, in = next_plane(in, area), pitch, place);
            load_rows(p22, in = next_plane(in, area), pitch, place);
        }
    }
    cluster_barrier();
    if (place.at_frame) hand_on_duals(border, lane, p11, p12, p21, p22);
    cluster_barrier();

    #pragma unroll 1
    for (int k = 0; k < all.iterations; k++) {
        if (place.at_frame) {
            float2 above12 = border.above12[lane], above22 = border.above22[lane];
            float change_left = 0.f, change_right = 0.f;
            #pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float left11 = __shfl_up_sync(ALL_LANES, p11[r].y, 1);
                float left21 = __shfl_up_sync(ALL_LANES, p21[r].y, 1);
                const float2 beside = border.left[r];
                if (lane == 0) left11 = beside.x;
                if (lane == 0) left21 = beside.y;
                const float4 normal = fixed.normal[r][lane], data = fixed.data[r][lane];
                const float2 nx = make_float2(normal.x, normal.y), ny = make_float2(normal.z, normal.w);
                const float2 move = data_step(
                    make_float2(data.x, data.y), nx, ny, u1[r], u2[r], make_float2(data.z, data.w));
                flow_step(
                    u1[r], u2[r], move, nx, ny, p11[r], p12[r], p21[r], p22[r], left11, left21, above12, above22, true,
                    change_left, change_right);
                above12 = p12[r];
                above22 = p22[r];
            }
            hand_on_flow(border, lane, u1, u2);
            const Sum sum = warp_sum(in_units(change_left + change_right, most));
            if (lane == 0) sums.warps[own] = sum;
        }
        cluster_barrier();
        if (own == 0) share_sum(sums, lane);
        if (place.at_frame) {
            const float2 below1 = border.below1[lane], below2 = border.below2[lane];
            const int x = border.x + 2 * lane, y = border.y;
            const float inside_left = lies_above_last(x, width), inside_right = lies_above_last(x + 1, width);
            #pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float right1 = __shfl_down_sync(ALL_LANES, u1[r].x, 1);
                float right2 = __shfl_down_sync(ALL_LANES, u2[r].x, 1);
                const float2 beside = border.right[r];
                if (lane == 31) right1 = beside.x;
                if (lane == 31) right2 = beside.y;
                const float2 down1 = r + 1 < ROWS ? u1[r + 1 < ROWS ? r + 1 : 0] : below1;
                const float2 down2 = r + 1 < ROWS ? u2[r + 1 < ROWS ? r + 1 : 0] : below2;
#if EDGES
                const float2 own_steps = fixed.steps[r][lane];
#else
                const float2 own_steps = make_float2(step, step);
#endif
                dual_steps(
                    p11[r], p12[r], p21[r], p22[r], u1[r], u2[r], right1, right2, down1, down2, inside_left,
                    inside_right, lies_above_last(y + r, height), tau, own_steps);
            }
            hand_on_duals(border, lane, p11, p12, p21, p22);
        }
        cluster_barrier();
        if (cluster_total(sums, lane) <= all.epsilon_sum) break;
    }

    place = place_of_unit(border, height, width);
    float* out = from_here(state + image_at(pair * STATE, area) + place.y * pitch + place.x);
    if (all.warp_sum >= 0 && warp + 1 < all.warps) {   // how far this warp has moved the flow that is still there
        Sum moved = 0;
        const float* at = out;
        #pragma unroll
        for (int r = 0; r < ROWS; r++, at = from_here(at + pitch))
            if (place.at_frame && place.in_width && place.y + r < height) {
                const float2 old1 = *(const float2*)at, old2 = *(const float2*)(at + area);
                moved += in_units(squared_change(u1[r].x, old1.x, u2[r].x, old2.x), most_moved);
                if (place.inner_right)
                    moved += in_units(squared_change(u1[r].y, old1.y, u2[r].y, old2.y), most_moved);
            }
        moved = warp_sum(moved);
        if (lane == 0) sums.warps[own] = moved;
        cluster_barrier();   // until then others may still read the sums of the last iteration
        if (own == 0) share_sum(sums, lane);
        cluster_barrier();
        const Sum total = cluster_total(sums, lane);
        if (cluster_rank() == 0 && threadIdx.x == 0) all.moved[pair * all.warps + warp] = total;
    }
    if (!place.at_frame) return;
    store_rows(u1, out, pitch, place);
    store_rows(u2, out = next_plane(out, area), pitch, place);
    store_rows(p11, out = next_plane(out, area), pitch, place);
    store_rows(p12, out = next_plane(out, area), pitch, place);
    store_rows(p21, out = next_plane(out, area), pitch, place);
    store_rows(p22, out = next_plane(out, area), pitch, place);
}
#endif
