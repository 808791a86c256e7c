"""The CPU sweeps of TV-L1: row loops that LLVM turns into the vector instructions of the machine at hand.

Every image is a *plane*: a flat float32 array whose rows lie `pitch` apart. Rows are padded to whole blocks of `LANES`
pixels, so that loops need no scalar remainder, and between two rows and around the image lie guards of at least `RING`
pixels, so that neighbours need no branches (`PyramidLevel` has the layout).

What keeps the loops fast, each measured:

- rows are handed over as raw pointers to functions that are inlined and promise LLVM that they do not overlap
  (`noalias`). The promise holds by design: what a row function writes, it reads through no other argument;
- one index, unit stride, float32 throughout;
- planes start at different offsets modulo 4096 bytes; else their loads and stores collide in the first-level cache.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from extract_flow.tvl1.interpolation import TAPS
from extract_flow.tvl1.rules import HALF, ONE, ZERO, data_step, dual_length, dual_step, inverse_gradient
from pipeline.compiled import inlined, kernel

LANES = 16
RING = 5
SCRATCH_ROWS = 15
"""Rows of scratch: of a warp fractions 2, weights and slopes 6 each; of the median 5 columns and 5 pairs of them."""
U1, U2, P11, P12, P21, P22, NX, NY, RESIDUAL, LIMIT, BEFORE1, BEFORE2, STEPS = range(13)
"""Planes of a level: flow, dual, data term (unit gradient, residual, limit), flow before a warp, steps of the dual."""
WARPED = BEFORE1
"""The warped image lives where the flow is kept afterwards."""
LARGE = 160_000
"""Pixels from which a level no longer fits the caches and is swept in blocks of `BLOCKED` iterations."""
BLOCKED = 5
TARGET, WARPED_IMAGE, BLENDED = range(3)
"""Where the gradient comes from, in the order of `parameters.GRADIENTS`."""
BLEND = np.float32(0.4)
"""Weight of the first frame's gradient in a blended one (Wedel et al. 2009, "An improved algorithm for TV-L1")."""
EDGE_LIMIT = np.float32(2.5)
"""Edges lower the weight of smoothness by at most exp(-2.5): pixels that are cut off would follow noise."""

NEAR, FAR = np.float32(8 / 12), np.float32(1 / 12)
"""Weights of the five-tap derivative [1 -8 0 8 -1] / 12."""

Plane = npt.NDArray[np.float32]


class PyramidLevel(NamedTuple):
    """Size of a pyramid level and the layout of its planes: pixel (y, x) is element origin + y * pitch + x."""

    height: int
    width: int
    pitch: int
    origin: int
    size: int


class Settings(NamedTuple):
    """What `refine_level` needs of `parameters.Parameters`."""

    tau: np.float32
    step: np.float32  # tau / theta
    data_weight: np.float32  # lambda theta
    edges: np.float32
    warps: int
    warp_stop: float
    epsilon: float
    iterations: int
    masked: bool
    gradient: int
    median: int


def layout(height: int, width: int) -> PyramidLevel:
    """Rows in whole vectors, guards all around, and a size that staggers consecutive planes."""
    pitch = padded_width.py_func(width) + LANES
    if min(pitch % 1024, -pitch % 1024) < 64:  # two rows one page apart would collide
        pitch += 64
    size = (height + 2 * RING) * pitch + 2 * LANES
    return PyramidLevel(height, width, pitch, RING * pitch + LANES, -(-size // 1024) * 1024 + 112)


def pixels(plane: Plane, level: PyramidLevel) -> Plane:
    """The image in a plane, as a view [height, width]."""
    rows = plane[level.origin : level.origin + level.height * level.pitch]
    return rows.reshape(level.height, level.pitch)[:, : level.width]


def aligned(count: int) -> Plane:
    """Zeros that start on a cache line."""
    memory = np.zeros(count + LANES, np.float32)
    start = (-memory.ctypes.data // memory.itemsize) % LANES
    return memory[start : start + count]


row_function: Any = partial(inlined, no_alias=True)
IN_ORDER = {"nnan", "ninf", "nsz", "arcp", "afn", "contract"}
"""All of fastmath but the leave to reorder sums."""
AT_ONCE = 7
"""Pairs of taps of a filter that are added in one pass over a row; a spline has as many."""


@intrinsic
def at(_context, array, index):  # type: ignore[no-untyped-def]
    """Pointer to `array[index]`: a slice without its bookkeeping."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), codegen


@intrinsic
def shifted(_context, pointer, index):  # type: ignore[no-untyped-def]
    """Pointer to the element `index` further on."""

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.intp), codegen


@row_function
def fill_row(count, row, value):  # type: ignore[no-untyped-def]
    for x in range(count):
        row[x] = value


@row_function
def copy_row(count, source, row):  # type: ignore[no-untyped-def]
    for x in range(count):
        row[x] = source[x]


@inlined
def padded_width(width):  # type: ignore[no-untyped-def]
    """Width in whole blocks of lanes."""
    return (width + LANES - 1) // LANES * LANES


@inlined
def reflect(index, count):  # type: ignore[no-untyped-def]
    """Mirror an index into 0..count-1 without repeating the border pixel."""
    if count == 1:
        return 0
    while index < 0 or index >= count:  # mostly not at all; a division would take longer than a row's tap
        index = -index if index < 0 else 2 * count - 2 - index
    return index


# --- per frame -----------------------------------------------------------------------------------------------------


@inlined
def extend_border(plane, level, mirror):  # type: ignore[no-untyped-def]
    """Fill the ring around the image: mirrored (as the spline's coefficients continue) or the border repeated."""
    height, width, pitch, origin, _ = level
    for y in range(height):
        start = origin + y * pitch
        for k in range(1, RING + 1):
            plane[start - k] = plane[start + (reflect(-k, width) if mirror else 0)]
            plane[start + width - 1 + k] = plane[
                start + (reflect(width - 1 + k, width) if mirror else width - 1)
            ]
    for k in range(1, RING + 1):
        above = origin + (reflect(-k, height) if mirror else 0) * pitch
        below = origin + (reflect(height - 1 + k, height) if mirror else height - 1) * pitch
        for x in range(-RING, width + RING):
            plane[origin - k * pitch + x] = plane[above + x]
            plane[origin + (height - 1 + k) * pitch + x] = plane[below + x]


@row_function
def accumulate_row(count, first, second, weight, total):  # type: ignore[no-untyped-def]
    for x in range(count):
        total[x] += weight * (first[x] + second[x])


@row_function
def scale_row(count, row, weight, total):  # type: ignore[no-untyped-def]
    for x in range(count):
        total[x] = weight * row[x]


@partial(row_function, fastmath=IN_ORDER)
def accumulate_rows(count, row, before, after, taps, total):  # type: ignore[no-untyped-def]
    """`AT_ONCE` times `accumulate_row`."""
    for x in range(count):
        value = total[x]
        for k in range(1, AT_ONCE + 1):
            value += taps[k] * (row[x + before[k]] + row[x + after[k]])
        total[x] = value


@inlined
def filter_line(count, row, before, after, taps, total):  # type: ignore[no-untyped-def]
    """total[x] = taps[0] row[x] + sum over k > 0 of taps[k] (row[x + before[k]] + row[x + after[k]])."""
    scale_row(count, row, taps[0], total)
    together = AT_ONCE if len(taps) > AT_ONCE else 0
    if together:
        accumulate_rows(count, row, at(before, 0), at(after, 0), at(taps, 0), total)
    for k in range(together + 1, len(taps)):
        accumulate_row(count, shifted(row, before[k]), shifted(row, after[k]), taps[k], total)


@inlined
def filter_plane(source, plane, level, taps, scratch):  # type: ignore[no-untyped-def]
    """Convolve rows and columns with a symmetric kernel (taps[k] weighs distance k), mirroring at the border.

    `scratch` holds a row with `len(taps)` pixels on either side.
    """
    height, width, pitch, origin, _ = level
    radius = len(taps) - 1
    padded = padded_width(width)
    left, right, above, below = np.zeros((4, len(taps)), np.intp)
    for k in range(1, len(taps)):
        left[k], right[k] = -k, k
    for y in range(height):
        start = origin + y * pitch
        for k in range(1, len(taps)):
            above[k] = (reflect(y - k, height) - y) * pitch
            below[k] = (reflect(y + k, height) - y) * pitch
        filter_line(padded, at(source, start), above, below, taps, at(scratch, radius))
        for k in range(1, radius + 1):
            scratch[radius - k] = scratch[radius + reflect(-k, width)]
            scratch[radius + width - 1 + k] = scratch[radius + reflect(width - 1 + k, width)]
        filter_line(padded, at(scratch, radius), left, right, taps, at(plane, start))


@inlined
def resize_plane(  # type: ignore[no-untyped-def]
    source, source_start, source_level, plane, level, ratio_y, ratio_x, factor, scratch, index
):  # fmt: skip
    """Bilinear resampling with aligned centres, the border repeated, times `factor` (as cv2.resize INTER_LINEAR)."""
    bottom, right = source_level.height - 1, source_level.width - 1
    weights = max(source_level.pitch, level.pitch)  # where the scratch's second row starts
    for x in range(level.width):
        across = min(max((x + 0.5) * ratio_x - 0.5, 0.0), float(right))
        index[x] = np.int32(across)
        scratch[weights + x] = np.float32(across - np.floor(across))
    for y in range(level.height):
        position = min(max((y + 0.5) * ratio_y - 0.5, 0.0), float(bottom))
        upper = int(position)
        blend_row(
            source_level.width,
            at(source, source_start + source_level.origin + upper * source_level.pitch),
            at(source, source_start + source_level.origin + min(upper + 1, bottom) * source_level.pitch),
            np.float32(position - upper),
            factor,
            at(scratch, 0),
        )
        scratch[right + 1] = scratch[right]
        sample_row(
            level.width,
            at(scratch, 0),
            at(index, 0),
            at(scratch, weights),
            at(plane, level.origin + y * level.pitch),
        )


@kernel
def blur_image(source, image, level, taps, scratch):  # type: ignore[no-untyped-def]
    """`filter_plane`."""
    filter_plane(source, image, level, taps, scratch)


@kernel
def shrink_image(image, level, coarser, coarser_level, ratio, scratch, index):  # type: ignore[no-untyped-def]
    """The next coarser level of a pyramid; `ratio` is the size of a coarse pixel in fine ones."""
    resize_plane(image, 0, level, coarser, coarser_level, ratio, ratio, ONE, scratch, index)


@kernel
def make_target(image, target, level, taps, scratch):  # type: ignore[no-untyped-def]
    """The image's border, and what the warps interpolate: the filtered image, or without taps the image itself."""
    extend_border(image, level, False)
    if len(taps) > 0:
        filter_plane(image, target, level, taps, scratch)
        extend_border(target, level, True)


@row_function
def sample_row(count, source, index, fraction, row):  # type: ignore[no-untyped-def]
    for x in range(count):
        left = source[index[x]]
        row[x] = left + fraction[x] * (source[index[x] + 1] - left)


@row_function
def blend_row(count, upper, lower, fraction, factor, row):  # type: ignore[no-untyped-def]
    for x in range(count):
        row[x] = factor * (upper[x] + fraction * (lower[x] - upper[x]))


# --- per warp ------------------------------------------------------------------------------------------------------


@row_function
def polynomial(kernel, lane, t):  # type: ignore[no-untyped-def]
    """Weight of a lane at fraction t; kernel holds the coefficients of 1, t, t^2, t^3 for all lanes."""
    return kernel[lane] + t * (
        kernel[TAPS + lane] + t * (kernel[2 * TAPS + lane] + t * kernel[3 * TAPS + lane])
    )


@row_function
def locate_row(  # type: ignore[no-untyped-def]
    count, y, level, u1, u2, masked, index, fraction_x, fraction_y, inside
):  # fmt: skip
    """Where each pixel of a row goes: index of its lane 0, fractions, and 1 where it may have a data term, else 0."""
    height, width, pitch, origin, _ = level
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    start = np.int32(origin - 2 * pitch - 2)
    for x in range(count):
        to_x = np.float32(np.int32(x)) + u1[x]
        to_y = np.float32(y) + u2[x]
        within = (to_x >= ZERO) & (to_x <= right) & (to_y >= ZERO) & (to_y <= bottom)
        inside[x] = ONE if within | (not masked) else ZERO
        # Beyond two pixels outside every tap has the border's value already.
        to_x = min(max(to_x, np.float32(-2)), right + np.float32(2))
        to_y = min(max(to_y, np.float32(-2)), bottom + np.float32(2))
        whole_x, whole_y = np.floor(to_x), np.floor(to_y)
        index[x] = start + np.int32(whole_y) * np.int32(pitch) + np.int32(whole_x)
        fraction_x[x] = to_x - whole_x
        fraction_y[x] = to_y - whole_y


@row_function
def weigh_row(count, kernel, first, last, fraction, weights, stride):  # type: ignore[no-untyped-def]
    """Weights of lanes first..last-1 at each pixel's fraction, a row per lane."""
    for x in range(count):
        for k in range(first, last):
            weights[k * stride + x] = polynomial(kernel, k, fraction[x])


@intrinsic
def blend_rows(_context, image, index, pitch, w1, w2, w3, w4, blended):  # type: ignore[no-untyped-def]
    """blended[0:4] = sum over j = 1..4 of wj * image[index + j * pitch + 1 :][:4].

    Four neighbours in one vector: left to itself LLVM gathers each of the 16 pixels for many x at once, which takes
    longer than all else of a warp.
    """

    def codegen(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(ir.FloatType(), 4)
        image, index, pitch, *weights, blended = arguments
        start = builder.add(index, index.type(1))
        total = None
        for weight in weights:
            start = builder.add(start, pitch)
            pointer = builder.bitcast(builder.gep(image, [start]), vector.as_pointer())
            lanes = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.IntType(32)(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), 4), None)
            lanes = builder.shuffle_vector(lanes, lanes, zeros)
            product = builder.fmul(lanes, builder.load(pointer, align=4), flags=["fast"])
            total = product if total is None else builder.fadd(total, product, flags=["fast"])
        builder.store(total, builder.bitcast(blended, vector.as_pointer()), align=4)
        return _context.get_dummy_value()

    return types.void(image, types.intp, types.intp, w1, w2, w3, w4, blended), codegen


@row_function
def warp_row(  # type: ignore[no-untyped-def]
    count, image, pitch, index, fraction, weights, stride, kernel, columns, warped
):  # fmt: skip
    """Interpolate at the located positions: 4 rows of 4 pixels each, first down and then across."""
    for x in range(count):
        blend_rows(
            image, index[x], pitch, weights[stride + x], weights[2 * stride + x], weights[3 * stride + x],
            weights[4 * stride + x], shifted(columns, 4 * x),
        )  # fmt: skip
    for x in range(count):
        t = fraction[x]
        value = ZERO
        for k in range(1, 5):
            value += columns[4 * x + k - 1] * polynomial(kernel, k, t)
        warped[x] = value


@row_function
def warp_gradient_row(  # type: ignore[no-untyped-def]
    count, image, pitch, index, fraction, weights, slopes, stride, value_kernel, slope_kernel, warped, warped_x,
    warped_y
):  # fmt: skip
    """Interpolate value and both derivatives at the located positions: 6 rows of `TAPS` pixels each."""
    for x in range(count):
        i = np.int64(index[x])
        t = fraction[x]
        w0, w1, w2 = weights[x], weights[stride + x], weights[2 * stride + x]
        w3, w4, w5 = weights[3 * stride + x], weights[4 * stride + x], weights[5 * stride + x]
        s0, s1, s2 = slopes[x], slopes[stride + x], slopes[2 * stride + x]
        s3, s4, s5 = slopes[3 * stride + x], slopes[4 * stride + x], slopes[5 * stride + x]
        value = across = down = ZERO
        for k in range(TAPS):
            a, b, c = image[i + k], image[i + pitch + k], image[i + 2 * pitch + k]
            d, e, f = image[i + 3 * pitch + k], image[i + 4 * pitch + k], image[i + 5 * pitch + k]
            column = w0 * a + w1 * b + w2 * c + w3 * d + w4 * e + w5 * f
            slope = s0 * a + s1 * b + s2 * c + s3 * d + s4 * e + s5 * f
            weight = polynomial(value_kernel, k, t)
            value += column * weight
            down += slope * weight
            across += column * polynomial(slope_kernel, k, t)
        warped[x], warped_x[x], warped_y[x] = value, across, down


@row_function
def difference_row(  # type: ignore[no-untyped-def]
    count, before2, before1, after1, after2, first_before2, first_before1, first_after1, first_after2, near, far,
    first_near, first_far, slope
):  # fmt: skip
    """Derivative of the warped image plus that of the first frame; near and far weigh the two pairs of neighbours."""
    for x in range(count):
        slope[x] = (
            near * (after1[x] - before1[x])
            - far * (after2[x] - before2[x])
            + first_near * (first_after1[x] - first_before1[x])
            - first_far * (first_after2[x] - first_before2[x])
        )


@row_function
def normalise_row(count, image, warped, u1, u2, data_weight, nx, ny, rc, limit):  # type: ignore[no-untyped-def]
    """From warped value, gradient (nx, ny) and mask (limit) to the constants of `data_step`, in place."""
    for x in range(count):
        ix, iy = nx[x], ny[x]
        squared = ix * ix + iy * iy
        inverse = inverse_gradient(squared)
        residual = warped[x] - image[x] - ix * u1[x] - iy * u2[x]
        nx[x] = ix * inverse
        ny[x] = iy * inverse
        rc[x] = residual * inverse
        limit[x] = limit[x] * data_weight * squared * inverse


@inlined
def linearise(  # type: ignore[no-untyped-def]
    planes, image, target, level, value_kernel, slope_kernel, settings, scratch, index
):  # fmt: skip
    """Warp the target by the flow and linearise the residual there: fills NX, NY, RESIDUAL and LIMIT."""
    width, pitch = level.width, level.pitch
    u1, u2, warped = planes[U1], planes[U2], planes[WARPED]
    nx, ny, residual, limit = planes[NX], planes[NY], planes[RESIDUAL], planes[LIMIT]
    padded = padded_width(width)
    stride = padded + LANES
    fraction, weights, slopes = (
        stride,
        2 * stride,
        8 * stride,
    )  # rows of the scratch; row 0 holds the y fraction
    for y in range(level.height):
        start = level.origin + y * pitch
        locate_row(
            padded, y, level, at(u1, start), at(u2, start), settings.masked, at(index, 0), at(scratch, fraction),
            at(scratch, 0), at(limit, start),
        )  # fmt: skip
        fill_row(padded - width, at(limit, start + width), ZERO)
        if settings.gradient == TARGET:
            weigh_row(padded, at(value_kernel, 0), 0, 6, at(scratch, 0), at(scratch, weights), stride)
            weigh_row(padded, at(slope_kernel, 0), 0, 6, at(scratch, 0), at(scratch, slopes), stride)
            warp_gradient_row(
                width, at(target, 0), pitch, at(index, 0), at(scratch, fraction), at(scratch, weights),
                at(scratch, slopes), stride, at(value_kernel, 0), at(slope_kernel, 0), at(warped, start), at(nx, start),
                at(ny, start),
            )  # fmt: skip
        else:
            weigh_row(padded, at(value_kernel, 0), 1, 5, at(scratch, 0), at(scratch, weights), stride)
            warp_row(
                width, at(target, 0), pitch, at(index, 0), at(scratch, fraction), at(scratch, weights), stride,
                at(value_kernel, 0), at(scratch, slopes), at(warped, start),
            )  # fmt: skip
            fill_row(2, at(warped, start - 2), warped[start])
            fill_row(2, at(warped, start + width), warped[start + width - 1])
    if settings.gradient == BLENDED:
        near, far, first_near, first_far = (
            NEAR * (ONE - BLEND),
            FAR * (ONE - BLEND),
            NEAR * BLEND,
            FAR * BLEND,
        )
    else:
        near, far, first_near, first_far = HALF, ZERO, ZERO, ZERO
    last = level.height - 1
    for y in range(level.height):
        start = level.origin + y * pitch
        if settings.gradient != TARGET:
            above2, above = level.origin + max(y - 2, 0) * pitch, level.origin + max(y - 1, 0) * pitch
            below, below2 = level.origin + min(y + 1, last) * pitch, level.origin + min(y + 2, last) * pitch
            difference_row(
                width, at(warped, start - 2), at(warped, start - 1), at(warped, start + 1), at(warped, start + 2),
                at(image, start - 2), at(image, start - 1), at(image, start + 1), at(image, start + 2), near, far,
                first_near, first_far, at(nx, start),
            )  # fmt: skip
            difference_row(
                width, at(warped, above2), at(warped, above), at(warped, below), at(warped, below2), at(image, above2),
                at(image, above), at(image, below), at(image, below2), near, far, first_near, first_far, at(ny, start),
            )  # fmt: skip
        normalise_row(
            width, at(image, start), at(warped, start), at(u1, start), at(u2, start), settings.data_weight,
            at(nx, start), at(ny, start), at(residual, start), at(limit, start),
        )  # fmt: skip


@inlined
def weigh_edges(steps, image, level, step, edges):  # type: ignore[no-untyped-def]
    """Steps of the dual where image edges lower the weight g of smoothness: step / g, g ~ exp(-edges |grad I0|).

    A dual step of step / g keeps the dual within g theta, so that the sum of g |grad u| is minimised.
    """
    steps[:] = step
    for y in range(level.height):
        start = level.origin + y * level.pitch
        edge_row(
            level.width, at(image, start), at(image, start + 1), at(image, start + level.pitch), step, edges,
            at(steps, start),
        )  # fmt: skip


@row_function
def edge_row(count, image, right, below, step, edges, steps):  # type: ignore[no-untyped-def]
    for x in range(count):
        across, down = right[x] - image[x], below[x] - image[x]
        exponent = min(edges * math.sqrt(across * across + down * down), EDGE_LIMIT)
        root = ONE + exponent * np.float32(1 / 8)  # exp(x) ~ (1 + x/8)^8, which vectorises
        root *= root
        root *= root
        steps[x] = step * root * root


# --- per iteration -------------------------------------------------------------------------------------------------


@row_function
def iterate_row(  # type: ignore[no-untyped-def]
    count, u1, u2, above1, above2, right1, right2, p11, left11, p12, p21, left21, p22, above11, above12, above21,
    above22, nx, ny, rc, limit, inside, steps, tau
):  # fmt: skip
    """Flow of a row from the dual of this row and the row above; then at once the dual of the row above.

    right1, right2 is the row above shifted by one pixel; `inside` is 1 for pixels and 0 for padding, which has to
    stay out of the result, the sum of squared updates.
    """
    change = ZERO
    for x in range(count):
        a, b = u1[x], u2[x]
        move = data_step(rc[x] + nx[x] * a + ny[x] * b, limit[x])
        old12, old22 = above12[x], above22[x]
        new_a = a - move * nx[x] + (p11[x] - left11[x] + p12[x] - old12)
        new_b = b - move * ny[x] + (p21[x] - left21[x] + p22[x] - old22)
        u1[x], u2[x] = new_a, new_b
        change += inside[x] * ((new_a - a) * (new_a - a) + (new_b - b) * (new_b - b))

        up_a, up_b = above1[x], above2[x]
        ax, ay = right1[x] - up_a, new_a - up_a
        bx, by = right2[x] - up_b, new_b - up_b
        length_a, length_b = dual_length(steps[x], ax, ay), dual_length(steps[x], bx, by)
        both = ONE / (length_a * length_b)  # one division serves both components
        inverse_a, inverse_b = both * length_b, both * length_a
        above11[x] = dual_step(above11[x], tau, ax, inverse_a)
        above12[x] = dual_step(old12, tau, ay, inverse_a)
        above21[x] = dual_step(above21[x], tau, bx, inverse_b)
        above22[x] = dual_step(old22, tau, by, inverse_b)
    return change


@inlined
def iterate(planes, level, tau, edges, rows, times, changes):  # type: ignore[no-untyped-def]
    """`times` iterations in one pass over the image, iteration k running k rows behind the first.

    The row above the image and the one below it are guards: a dual of zero above, the last row's flow below, so that
    no row needs a case of its own. `rows` holds a row that is 1 for pixels and 0 for padding, and at `level.pitch` a
    row of steps for use without edges. changes[k] becomes the sum of squared updates of iteration k.
    """
    height, width, pitch = level.height, level.width, level.pitch
    u1, u2, p11, p12, p21, p22 = planes[U1], planes[U2], planes[P11], planes[P12], planes[P21], planes[P22]
    nx, ny, residual, limit = planes[NX], planes[NY], planes[RESIDUAL], planes[LIMIT]
    padded = padded_width(width)
    for k in range(times):
        changes[k] = 0.0
    for front in range(height + times):
        for k in range(max(0, front - height), min(front + 1, times)):
            i = level.origin + (front - k) * pitch
            j = i - pitch
            if front - k == 0:
                fill_row(padded, at(p12, j), ZERO)
                fill_row(padded, at(p22, j), ZERO)
            elif front - k == height:
                copy_row(padded, at(u1, j), at(u1, i))
                copy_row(padded, at(u2, j), at(u2, i))
            steps = at(planes[STEPS if edges else U1], j) if edges else at(rows, pitch)
            changes[k] += iterate_row(
                padded, at(u1, i), at(u2, i), at(u1, j), at(u2, j), at(u1, j + 1), at(u2, j + 1), at(p11, i),
                at(p11, i - 1), at(p12, i), at(p21, i), at(p21, i - 1), at(p22, i), at(p11, j), at(p12, j), at(p21, j),
                at(p22, j), at(nx, i), at(ny, i), at(residual, i), at(limit, i), at(rows, 0), steps, tau,
            )  # fmt: skip
            # No change across the right border: the dual's x component stays zero there.
            u1[i + width] = u1[i + width - 1]
            u2[i + width] = u2[i + width - 1]


@row_function
def squared_difference(count, first, second):  # type: ignore[no-untyped-def]
    total = ZERO
    for x in range(count):
        total += (first[x] - second[x]) * (first[x] - second[x])
    return total


@inlined
def change_since(before1, before2, u1, u2, level):  # type: ignore[no-untyped-def]
    """Sum of squared differences of two flows."""
    total = 0.0
    for y in range(level.height):
        start = level.origin + y * level.pitch
        total += squared_difference(level.width, at(before1, start), at(u1, start))
        total += squared_difference(level.width, at(before2, start), at(u2, start))
    return total


# --- median filter -------------------------------------------------------------------------------------------------


Exchange = tuple[int, int]
"""Two wires of a sorting network: afterwards the first holds the smaller value, the second the larger."""


def merge(first: list[int], second: list[int], network: list[Exchange]) -> list[int]:
    """Append Batcher's odd-even merge of two sorted lists of wires; returns the wires in sorted order."""
    if not first or not second:
        return first + second
    if len(first) == len(second) == 1:
        network.append((first[0], second[0]))
        return first + second
    even, odd = merge(first[::2], second[::2], network), merge(first[1::2], second[1::2], network)
    exchanged = list(zip(odd, even[1:], strict=False))
    network += exchanged
    return [even[0], *sum(exchanged, ()), *odd[len(exchanged) :], *even[1 + len(exchanged) :]]


def sort(wires: list[int], network: list[Exchange]) -> list[int]:
    """Append a merge sort; returns the wires in sorted order."""
    if len(wires) == 1:
        return wires
    half = len(wires) // 2
    return merge(sort(wires[:half], network), sort(wires[half:], network), network)


def unrolled(arguments: str, loads: list[str], network: list[Exchange], stores: list[str]) -> Any:
    """Row function that loads values v0, v1, ... at each x, sorts by the network and stores: all in registers.

    What the stores do not need of the network LLVM leaves out.
    """
    lines = [f"v{wire} = {load}" for wire, load in enumerate(loads)]
    lines += [f"v{i}, v{j} = min(v{i}, v{j}), max(v{i}, v{j})" for i, j in network]
    body = "\n".join(f"        {line}" for line in [*lines, *stores])
    scope: dict[str, Any] = {}
    exec(f"def rows({arguments}):\n    for x in range(count):\n{body}", scope)
    return row_function(scope["rows"])


def median_rows(side: int) -> tuple[Any, Any, Any]:
    """Row functions of the median over side x side pixels, in three steps, so that neighbours share the first two.

    Columns of `side` pixels are sorted; neighbouring columns are merged to pairs; the windows' medians come from
    (side - 1) / 2 pairs and one column (after Adams, "Fast median filters using separable sorting networks", 2021).
    """
    reach, pair = side // 2, 2 * side
    network: list[Exchange] = []
    order = sort(list(range(side)), network)
    columns = unrolled(
        "count, plane, pitch, columns, stride",
        [f"plane[x + {i - reach} * pitch]" for i in range(side)],
        network,
        [f"columns[{i} * stride + x] = v{wire}" for i, wire in enumerate(order)],
    )
    network = []
    order = merge(list(range(side)), list(range(side, pair)), network)
    pairs = unrolled(
        "count, columns, stride, pairs",
        [f"columns[{i} * stride + x + {k}]" for k in (0, 1) for i in range(side)],
        network,
        [f"pairs[{i} * stride + x] = v{wire}" for i, wire in enumerate(order)],
    )
    network, order = [], []
    for k in range(reach):
        order = merge(order, list(range(k * pair, (k + 1) * pair)), network)
    # The median is the smallest of the bounds max(pairs' value, column's value) that leave half of all values below.
    middle, last = side * side // 2, side * (side - 1)
    bounds = [f"max(v{order[middle - 1 - i]}, v{last + i})" for i in range(side)]
    medians = unrolled(
        "count, pairs, columns, stride, filtered",
        [f"pairs[{i} * stride + x + {2 * k}]" for k in range(reach) for i in range(pair)]
        + [f"columns[{i} * stride + x + {side - 1}]" for i in range(side)],
        network,
        [f"low = v{order[middle]}", *(f"low = min(low, {bound})" for bound in bounds), "filtered[x] = low"],
    )
    return columns, pairs, medians


sort_columns_3, merge_pairs_3, take_medians_3 = median_rows(3)
sort_columns_5, merge_pairs_5, take_medians_5 = median_rows(5)


@inlined
def median_filter(plane, filtered, level, side, scratch):  # type: ignore[no-untyped-def]
    """Median over 3x3 or 5x5 pixels, in place, the border repeated; `filtered` is a plane to work in."""
    extend_border(plane, level, False)
    padded = padded_width(level.width)
    count, stride, reach = padded + LANES, padded + 2 * LANES, side // 2
    columns, pairs = at(scratch, 0), at(scratch, side * stride)
    for y in range(level.height):
        start = level.origin + y * level.pitch
        if side == 3:
            sort_columns_3(count, at(plane, start - reach), level.pitch, columns, stride)
            merge_pairs_3(count, columns, stride, pairs)
            take_medians_3(padded, pairs, columns, stride, at(filtered, start))
        else:
            sort_columns_5(count, at(plane, start - reach), level.pitch, columns, stride)
            merge_pairs_5(count, columns, stride, pairs)
            take_medians_5(padded, pairs, columns, stride, at(filtered, start))
    for y in range(level.height):
        start = level.origin + y * level.pitch
        copy_row(level.width, at(filtered, start), at(plane, start))


# --- per level -----------------------------------------------------------------------------------------------------


@kernel
def start_level(workspace, coarser, planes, level, factor, scratch, index):  # type: ignore[no-untyped-def]
    """The coarser level's flow, at the start of the workspace, becomes the first two planes of this level.

    The flow is parked in the last planes of this level meanwhile. The dual starts at zero; so do the limits, whose
    guards stay zero; what else the planes hold is overwritten, or kept out by a limit of zero.
    """
    parked = len(planes) * level.size - 2 * coarser.size
    copy_row(2 * coarser.size, at(workspace, 0), at(workspace, parked))
    planes[:2] = ZERO
    ratio_y, ratio_x = coarser.height / level.height, coarser.width / level.width
    for component in range(2):
        start = parked + component * coarser.size
        resize_plane(
            workspace, start, coarser, planes[component], level, ratio_y, ratio_x, factor, scratch, index
        )
    planes[P11:NX] = ZERO
    planes[LIMIT] = ZERO


@kernel
def refine_level(  # type: ignore[no-untyped-def]
    planes, image, target, level, value_kernel, slope_kernel, settings, scratch, index, changes, work
):  # fmt: skip
    """All warps of one level: improves the flow in U1 and U2; the dual starts at zero and lives on from warp to warp.

    Adds the pixel-iterations and the warped pixels to `work`.
    """
    u1, u2, before1, before2 = planes[U1], planes[U2], planes[BEFORE1], planes[BEFORE2]
    width = level.width
    area = float(level.height * width)
    edges = settings.edges > 0
    if edges:
        weigh_edges(planes[STEPS], image, level, settings.step, settings.edges)
    for warp in range(settings.warps):
        linearise(planes, image, target, level, value_kernel, slope_kernel, settings, scratch, index)
        work[1] += area
        if settings.warp_stop > 0:
            copy_row(level.size, at(u1, 0), at(before1, 0))
            copy_row(level.size, at(u2, 0), at(before2, 0))
        scratch[:width] = ONE
        scratch[width : level.pitch] = ZERO
        scratch[level.pitch : 2 * level.pitch] = settings.step
        done = 0
        converged = False
        while done < settings.iterations and not converged:
            times = min(BLOCKED if area > LARGE else 1, settings.iterations - done)
            iterate(planes, level, settings.tau, edges, scratch, times, changes)
            done += times
            work[0] += times * area
            converged = changes[times - 1] <= settings.epsilon * settings.epsilon * area
        if warp + 1 < settings.warps and settings.warp_stop > 0:
            moved = change_since(before1, before2, u1, u2, level)
            if moved <= settings.warp_stop * settings.warp_stop * area:
                break
    if settings.median > 1:
        median_filter(u1, planes[NX], level, settings.median, scratch)
        median_filter(u2, planes[NX], level, settings.median, scratch)
