// A tile of 64 x 64 pixels whose values stay in the registers of one block.
//
// A warp owns ROWS rows of 64 columns, two neighbouring columns to a lane. Neighbours across come by shuffle,
// neighbours down from the lane's own registers; only a warp's first and last row go through shared memory. A tile
// may reach beyond the frame: values there are zero.
#define ROWS 4
#define WARPS 16
#define TILE_THREADS (32 * WARPS)
#define TILE_WIDTH 64
#define TILE_HEIGHT (ROWS * WARPS)

// Where a lane's pixels lie: (x, y) its first one, and which of its pixels count and are written.
struct Place {
    int x, y, height, width, lane, warp;
    int first_inner, end_inner;     // rows of this warp
    bool inner_left, inner_right;   // this lane's columns
    bool in_width;                  // whether the lane's first column lies in the frame
    bool at_frame;                  // whether any row of the warp lies in the frame
};

__device__ __forceinline__ Place place_of(int left, int top, int halo, int height, int width)
{
    Place place;
    const int t = threadIdx.x;
    place.lane = t & 31;
    place.warp = t >> 5;
    place.height = height;
    place.width = width;
    place.x = left + 2 * place.lane;
    place.y = top + place.warp * ROWS;
    place.first_inner = halo - place.warp * ROWS;
    place.end_inner = min(TILE_HEIGHT - halo - place.warp * ROWS, height - place.y);
    const int column = 2 * place.lane;
    place.inner_left = column >= halo && column < TILE_WIDTH - halo && place.x < width;
    place.inner_right = column + 1 >= halo && column + 1 < TILE_WIDTH - halo && place.x + 1 < width;
    place.in_width = place.x >= 0 && place.x < width;
    place.at_frame = place.y < height && place.y + ROWS > 0;
    return place;
}

// One plane's pixels of a lane, zero where they lie outside the frame; `at` points to the lane's first pixel, inside or
// not. The pitch is even and so is x; where the width is odd, the padding beside it holds zeros.
__device__ __forceinline__ void load_rows(float2 (&values)[ROWS], const float* at, int pitch, const Place& place)
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        values[r] = make_float2(0.f, 0.f);
        if (place.in_width && place.y + r >= 0 && place.y + r < place.height)
            values[r] = *(const float2*)(at + r * pitch);
    }
}

// The same from memory that nobody writes while the kernel runs.
__device__ __forceinline__ void load_fixed_rows(float2 (&values)[ROWS], const float* at, int pitch, const Place& place)
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        values[r] = make_float2(0.f, 0.f);
        if (place.in_width && place.y + r >= 0 && place.y + r < place.height)
            values[r] = __ldg((const float2*)(at + r * pitch));
    }
}

// Inner pixels only. A halo is even, hence both columns of a lane are inner or none.
__device__ __forceinline__ void store_rows(const float2 (&values)[ROWS], float* at, int pitch, const Place& place)
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (r >= place.first_inner && r < place.end_inner && place.inner_left) *(float2*)(at + r * pitch) = values[r];
}

__device__ __forceinline__ void clear_rows(float2 (&values)[ROWS])
{
    #pragma unroll
    for (int r = 0; r < ROWS; r++) values[r] = make_float2(0.f, 0.f);
}

// Step from plane to plane with one addition: left alone, the compiler computes every address from the start.
template <class T> __device__ __forceinline__ T* from_here(T* at)
{
#ifdef __CUDACC__
    asm volatile("" : "+l"(at));
#endif
    return at;
}

template <class T> __device__ __forceinline__ T* next_plane(T* at, int area) { return from_here(at + area); }

