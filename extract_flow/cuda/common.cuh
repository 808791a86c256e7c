// What the kernels of every method share.
//
// A plane is float32[height][pitch]; pixels x >= width of a row are padding. What writes a plane that a tile kernel reads
// puts a zero beside an odd width (see `padded`); other padding may hold anything. Indices are 32-bit within an image;
// only the step from image to image is 64-bit.

#define ALL_LANES 0xffffffffu

// Sums that decide when to stop are whole multiples of 1 / UNIT, added as integers: the total, and with it the result,
// does not depend on the order in which blocks arrive.
#define UNIT 1073741824.f

typedef long long Sum;

__device__ __forceinline__ int clamped(int index, int count) { return min(max(index, 0), count - 1); }

// A width with the pixel beside it that makes it even.
__device__ __forceinline__ int padded(int width) { return (width + 1) & ~1; }

// Start of an image within a buffer of many.
__device__ __forceinline__ size_t image_at(int number, int area) { return (size_t)number * area; }

// The number, in a way that hides where it comes from: the compiler then computes anew what follows from it instead of
// holding it in registers through a long loop.
__device__ __forceinline__ int again(int number)
{
#ifdef __CUDACC__
    asm volatile("" : "+r"(number));
#endif
    return number;
}

// The warp's total of a value of 0 or more, in every lane; the order of the additions is fixed.
__device__ __forceinline__ float warp_total(float value)
{
    #pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ void add_to(Sum* total, Sum value)
{
    atomicAdd((unsigned long long*)total, (unsigned long long)value);
}
