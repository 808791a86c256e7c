// TV-L1 iterations of a tile (extract_flow/cuda/tile.cuh) with its state in registers.
//
// Masks stand in for branches: outside the frame the dual, the unit gradient and the limit are zero, hence the flow
// stays zero.
// The update rules are those of extract_flow/tvl1/rules.py.
//
// EDGES: whether each pixel has a step of its own. The host defines it, as all upper-case options.
#define STATE 6       // planes of a pair's state: u1, u2, p11, p12, p21, p22
#define CONSTANTS 4   // planes that stay the same during the iterations: nx, ny, residual, limit

// Rows handed from warp to warp. Slot w + 1 of `duals` holds the last row of warp w, slot w of `flow` the first row.
struct Rows { float2 first[WARPS + 1][32], second[WARPS + 1][32]; };

// What a lane holds of its ROWS x 2 pixels.
struct Tile {
    float2 u1[ROWS], u2[ROWS], p11[ROWS], p12[ROWS], p21[ROWS], p22[ROWS], nx[ROWS], ny[ROWS], residual[ROWS],
        limit[ROWS];
#if EDGES
    float2 steps[ROWS];
#endif
};

__device__ __forceinline__ float2 data_step(float2 residual, float2 nx, float2 ny, float2 a, float2 b, float2 limit)
{
    float2 move;
    move.x = fminf(fmaxf(residual.x + nx.x * a.x + ny.x * b.x, -limit.x), limit.x);
    move.y = fminf(fmaxf(residual.y + nx.y * a.y + ny.y * b.y, -limit.y), limit.y);
    return move;
}

// Both components' duals of one pixel; one division serves the two.
__device__ __forceinline__ void dual_step(
    float& p11, float& p12, float& p21, float& p22, float ax, float ay, float bx, float by, float tau, float step)
{
    const float length_a = 1.f + step * sqrtf(ax * ax + ay * ay), length_b = 1.f + step * sqrtf(bx * bx + by * by);
    const float both = __fdividef(1.f, length_a * length_b);
    const float inverse_a = both * length_b, inverse_b = both * length_a;
    p11 = (p11 + tau * ax) * inverse_a;
    p12 = (p12 + tau * ay) * inverse_a;
    p21 = (p21 + tau * bx) * inverse_b;
    p22 = (p22 + tau * by) * inverse_b;
}

// The flow of two neighbouring pixels after an iteration; adds the squares of what it changes where that `counts`.
__device__ __forceinline__ void flow_step(
    float2& u1, float2& u2, float2 move, float2 nx, float2 ny, float2 p11, float2 p12, float2 p21, float2 p22,
    float left11, float left21, float2 above12, float2 above22, bool counts, float& change_left, float& change_right)
{
    const float2 a = u1, b = u2;
    u1.x = a.x - move.x * nx.x + (p11.x - left11 + p12.x - above12.x);
    u1.y = a.y - move.y * nx.y + (p11.y - p11.x + p12.y - above12.y);
    u2.x = b.x - move.x * ny.x + (p21.x - left21 + p22.x - above22.x);
    u2.y = b.y - move.y * ny.y + (p21.y - p21.x + p22.y - above22.y);
    if (counts) {
        change_left += (u1.x - a.x) * (u1.x - a.x) + (u2.x - b.x) * (u2.x - b.x);
        change_right += (u1.y - a.y) * (u1.y - a.y) + (u2.y - b.y) * (u2.y - b.y);
    }
}

// 1 where an index has a successor inside, else 0: a forward difference is zero in the last row and column.
__device__ __forceinline__ float lies_above_last(int index, int count)
{
    return (unsigned)index < (unsigned)(count - 1) ? 1.f : 0.f;
}

// The duals of two neighbouring pixels after an iteration, from their flow and that to the right and below.
__device__ __forceinline__ void dual_steps(
    float2& p11, float2& p12, float2& p21, float2& p22, float2 a, float2 b, float right1, float right2, float2 down1,
    float2 down2, float inside_left, float inside_right, float inside, float tau, float2 steps)
{
    dual_step(
        p11.x, p12.x, p21.x, p22.x, (a.y - a.x) * inside_left, (down1.x - a.x) * inside, (b.y - b.x) * inside_left,
        (down2.x - b.x) * inside, tau, steps.x);
    dual_step(
        p11.y, p12.y, p21.y, p22.y, (right1 - a.y) * inside_right, (down1.y - a.y) * inside,
        (right2 - b.y) * inside_right, (down2.y - b.y) * inside, tau, steps.y);
}

// The last row of every warp's dual for the warp below; call before the first iteration, then a barrier.
__device__ __forceinline__ void hand_down_duals(const Tile& tile, Rows& duals, const Place& place)
{
    duals.first[place.warp + 1][place.lane] = tile.p12[ROWS - 1];
    duals.second[place.warp + 1][place.lane] = tile.p22[ROWS - 1];
}

// Zero above the tile's first row, below its last one, and where a warp lies outside the frame, which does nothing else.
__device__ __forceinline__ void clear_outer_rows(Rows& flow, Rows& duals, const Place& place)
{
    if (place.warp == 0) {
        const float2 zero = make_float2(0.f, 0.f);
        duals.first[0][place.lane] = duals.second[0][place.lane] = zero;
        flow.first[WARPS][place.lane] = flow.second[WARPS][place.lane] = zero;
    }
    if (!place.at_frame)
        flow.first[place.warp][place.lane] = flow.second[place.warp][place.lane] = make_float2(0.f, 0.f);
}

// One iteration; the whole block takes part. Adds the squared changes of the inner pixels to *total. On return the
// total of this iteration is complete for every thread; *next, which all have read before the call, is zero. FRAME: the
// tile is the frame, without a halo.
template <bool FRAME>
__device__ __forceinline__ void iterate_once(
    Tile& tile, Rows& flow, Rows& duals, const Place& place, float tau, float step, float most, Sum* total, Sum* next)
{
    const int lane = place.lane, warp = place.warp;
    if (place.at_frame) {
        float2 above12 = duals.first[warp][lane], above22 = duals.second[warp][lane];
        float change_left = 0.f, change_right = 0.f;
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float left11 = __shfl_up_sync(ALL_LANES, tile.p11[r].y, 1);
            float left21 = __shfl_up_sync(ALL_LANES, tile.p21[r].y, 1);
            if (FRAME && lane == 0) left11 = left21 = 0.f;
            const float2 move = data_step(tile.residual[r], tile.nx[r], tile.ny[r], tile.u1[r], tile.u2[r], tile.limit[r]);
            const bool counts = r >= place.first_inner && r < place.end_inner;   // the same for the whole warp
            flow_step(
                tile.u1[r], tile.u2[r], move, tile.nx[r], tile.ny[r], tile.p11[r], tile.p12[r], tile.p21[r], tile.p22[r],
                left11, left21, above12, above22, counts, change_left, change_right);
            above12 = tile.p12[r];
            above22 = tile.p22[r];
        }
        flow.first[warp][lane] = tile.u1[0];
        flow.second[warp][lane] = tile.u2[0];
        const float change = (place.inner_left ? change_left : 0.f) + (place.inner_right ? change_right : 0.f);
        const Sum sum = warp_sum(in_units(change, most));
        if (lane == 0) add_to(total, sum);
    }
    __syncthreads();
    if (FRAME && threadIdx.x == 0) *next = 0;
    if (place.at_frame) {
        const float2 below1 = flow.first[warp + 1][lane], below2 = flow.second[warp + 1][lane];
        const float inside_left = lies_above_last(place.x, place.width);
        const float inside_right = lies_above_last(place.x + 1, place.width);
        #pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float right1 = __shfl_down_sync(ALL_LANES, tile.u1[r].x, 1);
            const float right2 = __shfl_down_sync(ALL_LANES, tile.u2[r].x, 1);
            const float2 down1 = r + 1 < ROWS ? tile.u1[r + 1 < ROWS ? r + 1 : 0] : below1;
            const float2 down2 = r + 1 < ROWS ? tile.u2[r + 1 < ROWS ? r + 1 : 0] : below2;
            const float inside = lies_above_last(place.y + r, place.height);
#if EDGES
            const float2 steps = tile.steps[r];
#else
            const float2 steps = make_float2(step, step);
#endif
            dual_steps(
                tile.p11[r], tile.p12[r], tile.p21[r], tile.p22[r], tile.u1[r], tile.u2[r], right1, right2, down1, down2,
                inside_left, inside_right, inside, tau, steps);
        }
        hand_down_duals(tile, duals, place);
    }
    __syncthreads();
}
