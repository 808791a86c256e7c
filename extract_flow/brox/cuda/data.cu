// Derivatives of the frames, and the data term linearised around a flow. The rules are those of
// extract_flow/brox/rules.py.
//
// A level holds CHANNELS planes for each frame, level[channel][frame]: I, Ix, Iy, Ixx, Ixy, Iyy. MIRROR: where the flow
// leads out of the frame, the frame is reflected; else the data term is dropped. EPSILON2, TINY: as in rules.py.
#define CHANNELS 6
#define TERMS 8   // planes of a pair's data term: ix, iy, ixx, ixy, iyy and three constants

// Index of the pixel that stands at `index` at most one size beyond the border; low as in rules.reflected.
__device__ __forceinline__ int reflected(int index, int size, int low)
{
    if (index < 0) index = low - 1 - index;
    if (index >= size) index = 2 * size - 1 - index;
    return clamped(index, size);
}

__device__ __forceinline__ float derivative(float before2, float before, float after, float after2)
{
    return (8.f * (after - before) - (after2 - before2)) * (1.f / 12);
}

// Derivatives of planes along rows and columns; blockIdx.z is the plane.
extern "C" __global__ void derive(
    const float* __restrict__ source, float* __restrict__ by_x, float* __restrict__ by_y, int low, int height, int width,
    int pitch)
{
    IMAGE_PIXEL
    if (x >= width || y >= height) return;
    const size_t plane = image_at(blockIdx.z, height * pitch);
    const float* row = source + plane + y * pitch;
    const float* column = source + plane + x;
    by_x[plane + y * pitch + x] = derivative(
        row[reflected(x - 2, width, low)], row[reflected(x - 1, width, low)], row[reflected(x + 1, width, low)],
        row[reflected(x + 2, width, low)]);
    by_y[plane + y * pitch + x] = derivative(
        column[reflected(y - 2, height, low) * pitch], column[reflected(y - 1, height, low) * pitch],
        column[reflected(y + 1, height, low) * pitch], column[reflected(y + 2, height, low) * pitch]);
}

// Warp the second frame to one pixel by (u, v) and write the data term linearised there; `level` is [CHANNELS][frames].
__device__ __forceinline__ void linearise_pixel(
    const float* __restrict__ level, int frames, int first, int second, int x, int y, float u, float v, int height,
    int width, int pitch, float* __restrict__ data)
{
    const int area = height * pitch, at = y * pitch + x;
    const size_t step = image_at(frames, area);   // from channel to channel
    float to_x = x + u, to_y = y + v;
    if (!MIRROR && !(to_x >= 0.f && to_y >= 0.f && to_x <= (float)(width - 1) && to_y <= (float)(height - 1))) {
        #pragma unroll
        for (int term = 0; term < TERMS; term++) data[image_at(term, area) + at] = 0.f;
        return;
    }
    to_x = fminf(fmaxf(to_x, -width), 2 * width - 1);
    to_y = fminf(fmaxf(to_y, -height), 2 * height - 1);
    const float whole_x = floorf(to_x), whole_y = floorf(to_y), across = to_x - whole_x, down = to_y - whole_y;
    const int left = reflected((int)whole_x, width, 0), right = reflected((int)whole_x + 1, width, 0);
    const int top = reflected((int)whole_y, height, 0) * pitch, bottom = reflected((int)whole_y + 1, height, 0) * pitch;
    const float both = across * down, a = 1.f - across - down + both, b = across - both, c = down - both;
    float warped[CHANNELS];
    const float* target = level + image_at(second, area);
    const float* source = level + image_at(first, area) + at;
    #pragma unroll
    for (int channel = 0; channel < CHANNELS; channel++) {
        warped[channel] = a * target[top + left] + b * target[top + right] + c * target[bottom + left]
            + both * target[bottom + right];
        target += step;
    }
    const float ix = warped[1], iy = warped[2], ixx = warped[3], ixy = warped[4], iyy = warped[5];
    data += at;
    data[0] = ix;
    data[image_at(1, area)] = iy;
    data[image_at(2, area)] = ixx;
    data[image_at(3, area)] = ixy;
    data[image_at(4, area)] = iyy;
    data[image_at(5, area)] = warped[0] - source[0] - ix * u - iy * v;
    data[image_at(6, area)] = ix - source[step] - ixx * u - ixy * v;
    data[image_at(7, area)] = iy - source[2 * step] - ixy * u - iyy * v;
}

// The data term of every pixel; flow[pair][2], data[pair][TERMS], blockIdx.z is the pair.
extern "C" __global__ void linearise(
    const float* __restrict__ level, int frames, const int* __restrict__ first, const int* __restrict__ second,
    const float* __restrict__ flow, float* __restrict__ data, int height, int width, int pitch)
{
    IMAGE_PIXEL
    if (x >= width || y >= height) return;
    const int pair = blockIdx.z, area = height * pitch;
    const float* u = flow + image_at(2 * pair, area) + y * pitch + x;
    linearise_pixel(level, frames, first[pair], second[pair], x, y, u[0], u[area], height, width, pitch,
                    data + image_at(pair * TERMS, area));
}

// psi': the weight of a squared residual in the next linear system.
__device__ __forceinline__ float robust(float squared) { return .5f * rsqrtf(squared + EPSILON2); }

__device__ __forceinline__ float diffusivity(float across_u, float along_u, float across_v, float along_v)
{
    return robust(across_u * across_u + along_u * along_u + across_v * across_v + along_v * along_v);
}

// A pixel's equations but for its diffusivities.
struct Equation { float step_u, step_v, coupling, right_u, right_v; };

// At the flow (u, v); `smoothness` is the sum of the four diffusivities, `data` points to the pixel's first term.
__device__ __forceinline__ Equation equation_of(
    const float* __restrict__ data, int area, float u, float v, float smoothness, float gamma, float half_inverse_alpha,
    float relaxation)
{
    const float ix = data[0], iy = data[area], ixx = data[image_at(2, area)], ixy = data[image_at(3, area)],
                iyy = data[image_at(4, area)], iz = data[image_at(5, area)], ixz = data[image_at(6, area)],
                iyz = data[image_at(7, area)];
    const float brightness = iz + ix * u + iy * v;
    const float gradient_x = ixz + ixx * u + ixy * v, gradient_y = iyz + ixy * u + iyy * v;
    const float squared = brightness * brightness + gamma * (gradient_x * gradient_x + gradient_y * gradient_y);
    const float weight = half_inverse_alpha * rsqrtf(squared + EPSILON2);
    const float diagonal_u = weight * (ix * ix + gamma * (ixx * ixx + ixy * ixy)) + smoothness + TINY;
    const float diagonal_v = weight * (iy * iy + gamma * (iyy * iyy + ixy * ixy)) + smoothness + TINY;
    Equation equation;
    equation.step_u = __fdividef(relaxation, diagonal_u);
    equation.step_v = __fdividef(relaxation, diagonal_v);
    equation.coupling = weight * (ix * iy + gamma * ixy * (ixx + iyy));
    equation.right_u = -weight * (ix * iz + gamma * (ixx * ixz + ixy * iyz));
    equation.right_v = -weight * (iy * iz + gamma * (iyy * iyz + ixy * ixz));
    return equation;
}
