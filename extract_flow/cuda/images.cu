// Frames to float32 and separable linear resampling, for all images of a batch at once (blockIdx.z).
//
// A resampling of one dimension is a table of taps: output i is the sum over k of weights[i * taps + k] *
// input[first[i] + k]. The host makes the tables, so any border rule is possible; the kernels have none.

#define IMAGE_PIXEL                                     \
    const int x = blockIdx.x * blockDim.x + threadIdx.x, \
              y = blockIdx.y * blockDim.y + threadIdx.y;

// images[height][pitch] = frames[height][width] * scale.
extern "C" __global__ void load_frames(
    const unsigned char* __restrict__ frames, float* __restrict__ images, float scale, int height, int width, int pitch)
{
    IMAGE_PIXEL
    if (x >= width || y >= height) return;
    const unsigned char* frame = frames + image_at(blockIdx.z, height * width);
    images[image_at(blockIdx.z, height * pitch) + y * pitch + x] = scale * frame[y * width + x];
}

// Columns: target [height][pitch] from source [source_height][pitch] of the same width.
extern "C" __global__ void resample_down(
    const float* __restrict__ source, const int* __restrict__ first, const float* __restrict__ weights, int taps,
    float* __restrict__ target, int source_height, int height, int width, int pitch)
{
    IMAGE_PIXEL
    if (x >= width || y >= height) return;
    const float* column = source + image_at(blockIdx.z, source_height * pitch) + first[y] * pitch + x;
    float total = 0.f;
    for (int k = 0; k < taps; k++) total += weights[y * taps + k] * column[k * pitch];
    target[image_at(blockIdx.z, height * pitch) + y * pitch + x] = total;
}

// Rows: target [height][pitch] from source [height][source_pitch], times factor, or odd_factor for odd images. Image i goes to plane i % planes of
// group i / planes; a group takes group_planes planes.
extern "C" __global__ void resample_across(
    const float* __restrict__ source, const int* __restrict__ first, const float* __restrict__ weights, int taps,
    float factor, float odd_factor, float* __restrict__ target, int height, int source_pitch, int width, int pitch,
    int planes, int group_planes)
{
    IMAGE_PIXEL
    if (x >= padded(width) || y >= height) return;
    float total = 0.f;
    if (x < width) {
        const float* row = source + image_at(blockIdx.z, height * source_pitch) + y * source_pitch + first[x];
        for (int k = 0; k < taps; k++) total += weights[x * taps + k] * row[k];
    }
    const int plane = blockIdx.z / planes * group_planes + blockIdx.z % planes;
    target[image_at(plane, height * pitch) + y * pitch + x] = (blockIdx.z & 1 ? odd_factor : factor) * total;
}

// Flow exactly zero between frames that are the same; a block per pair. Plane i of a pair lies at i * plane_step.
extern "C" __global__ void still(
    const unsigned char* __restrict__ frames, const int* __restrict__ first, const int* __restrict__ second, int pixels,
    float* __restrict__ flow, int values)
{
    const int pair = blockIdx.x;
    const unsigned char* a = frames + image_at(first[pair], pixels);
    const unsigned char* b = frames + image_at(second[pair], pixels);
    bool differs = false;
    for (int i = threadIdx.x; i < pixels && !differs; i += blockDim.x) differs = a[i] != b[i];
    if (__syncthreads_or(differs)) return;
    for (int i = threadIdx.x; i < values; i += blockDim.x) flow[image_at(pair, values) + i] = 0.f;
}
