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

// A value of 0 or more in units, `most` at most. What is summed up as floats first must be the same pixels in the same
// order however a kernel cuts up the frame: then so is the sum.
__device__ __forceinline__ Sum in_units(float value, float most) { return __float2ll_rn(fminf(value, most) * UNIT); }

// The warp's total of values of 0 or more that is below 2^63, in every lane.
__device__ __forceinline__ Sum warp_sum(Sum value)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    #pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
#else
    const unsigned low = __reduce_add_sync(ALL_LANES, (unsigned)value & 0x7ffffffu);
    const unsigned middle = __reduce_add_sync(ALL_LANES, (unsigned)(value >> 27) & 0x7ffffffu);
    const unsigned high = __reduce_add_sync(ALL_LANES, (unsigned)(value >> 54));
    return ((Sum)high << 54) + ((Sum)middle << 27) + low;
#endif
}

__device__ __forceinline__ void add_to(Sum* total, Sum value)
{
    atomicAdd((unsigned long long*)total, (unsigned long long)value);
}
