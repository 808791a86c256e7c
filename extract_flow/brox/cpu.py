"""The sweeps on the CPU: numba kernels and the order in which they run for one frame and one pair.

**Parity planes.** During a level every array of the linear solver lies in four planes, by row parity p and column
parity q: pixel (y, x) is element `origin + (y // 2) * pitch + x // 2` of plane 2 p + q. A red-black colour is then two
whole planes, and each of a pixel's neighbours lies in one other plane at one constant offset, so that a sweep is a flat
loop over contiguous memory. One guard column (left of a row, and so right of the row before) and guard rows hold what
lies beyond the border: mirrored flow, zero diffusivity.

**Wavefront.** One pass over a level's blocks of rows does a whole inner iteration: diffusivities of block i, equations
of block i - 1, and SOR half-sweep k on block i - 1 - k. Each half-sweep sees exactly the values that it would see in
separate passes, but they are still in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from extract_flow.brox import rules, solver
from extract_flow.brox.parameters import Parameters
from extract_flow.flow_method import FlowMethod
from pipeline.compiled import inlined, kernel

Floats = npt.NDArray[np.float32]

CHANNELS = 8
"""Floats per pixel of a prepared frame: I, Ix, Iy, Ixx, Ixy, Iyy and two unused, so that a pixel is one vector."""

PLANES = 17
"""Arrays of the solver, of four parity planes each: u, v, 8 of the data term, 7 of the linear system."""

GROUP = 8
PREPARED_BYTES = 256 << 20
"""Pairs per thread between two rounds of preparing frames; fewer, at least one, where their frames exceed this."""

BLOCK = 192
"""Elements of a plane that one loop of the wavefront covers at least."""


_loop: Any = partial(inlined, no_alias=True)


@inlined
def _at(index):  # type: ignore[no-untyped-def]
    """An index that is never negative: unsigned, so that numba adds no wrap-around (which stops vectorisation)."""
    return np.uint64(index)


# ---- per frame ----


@kernel
def _resample(source, first_y, weights_y, first_x, weights_x, rows, target, factor):  # type: ignore[no-untyped-def]
    """target[y, x] = factor * separable resampling of source; `rows` is scratch for one row of the source's width."""
    width = source.shape[1]
    row = rows[:width]
    for y in range(target.shape[0]):
        row[:] = 0
        for tap in range(weights_y.shape[1]):
            weight = weights_y[y, tap] * factor
            line = source[first_y[y] + tap]
            for x in range(width):
                row[x] += weight * line[x]
        out = target[y]
        for x in range(target.shape[1]):
            total = np.float32(0)
            begin = first_x[x]
            for tap in range(weights_x.shape[1]):
                total += weights_x[x, tap] * row[_at(begin + tap)]
            out[x] = total


@_loop
def _along(padded, out):  # type: ignore[no-untyped-def]
    """Derivative along a row; padded has two reflected pixels on each side."""
    for x in range(out.shape[0]):
        i = _at(x)
        out[x] = rules.derivative(
            padded[i], padded[i + np.uint64(1)], padded[i + np.uint64(3)], padded[i + np.uint64(4)]
        )


@_loop
def _across(above2, above, below, below2, out):  # type: ignore[no-untyped-def]
    """Derivative across rows."""
    for x in range(out.shape[0]):
        out[x] = rules.derivative(above2[x], above[x], below[x], below2[x])


@inlined
def _pad(line, padded, low):  # type: ignore[no-untyped-def]
    width = line.shape[0]
    padded[2 : width + 2] = line
    for offset in range(1, 3):
        padded[2 - offset] = line[rules.reflected(-offset, width, low)]
        padded[width + 1 + offset] = line[rules.reflected(width - 1 + offset, width, low)]


@kernel
def _derive(image, low, vertical, scratch, channels):  # type: ignore[no-untyped-def]
    """Fill channels [H, W, 8] with image, Ix, Iy, Ixx, Ixy, Iyy; vertical [H, W] and scratch [6, W + 4] are scratch."""
    height, width = image.shape
    for y in range(height):
        _across(
            image[rules.reflected(y - 2, height, low)],
            image[rules.reflected(y - 1, height, low)],
            image[rules.reflected(y + 1, height, low)],
            image[rules.reflected(y + 2, height, low)],
            vertical[y],
        )
    padded = scratch[0, : width + 4]
    ix, ixx, ixy, iyy = scratch[1, :width], scratch[2, :width], scratch[3, :width], scratch[4, :width]
    for y in range(height):
        _pad(image[y], padded, low)
        _along(padded, ix)
        _pad(ix, padded, low)
        _along(padded, ixx)
        _pad(vertical[y], padded, low)
        _along(padded, ixy)
        _across(
            vertical[rules.reflected(y - 2, height, low)],
            vertical[rules.reflected(y - 1, height, low)],
            vertical[rules.reflected(y + 1, height, low)],
            vertical[rules.reflected(y + 2, height, low)],
            iyy,
        )
        out = channels[y]
        for x in range(width):
            out[x, 0] = image[y, x]
            out[x, 1] = ix[x]
            out[x, 2] = vertical[y, x]
            out[x, 3] = ixx[x]
            out[x, 4] = ixy[x]
            out[x, 5] = iyy[x]


# ---- per pair: between natural order and planes ----


@kernel
def _split(field, planes, origin, pitch):  # type: ignore[no-untyped-def]
    """Copy a field [H, W] into its four planes [4, N]."""
    height, width = field.shape
    for y in range(height):
        start = origin + (y // 2) * pitch
        for q in range(2):
            plane = planes[2 * (y % 2) + q]
            for k in range((width - q + 1) // 2):
                plane[start + k] = field[y, 2 * k + q]


@kernel
def _join(planes, origin, pitch, field):  # type: ignore[no-untyped-def]
    """Copy four planes [4, N] into a field [H, W]."""
    height, width = field.shape
    for y in range(height):
        start = origin + (y // 2) * pitch
        for q in range(2):
            plane = planes[2 * (y % 2) + q]
            for k in range((width - q + 1) // 2):
                field[y, 2 * k + q] = plane[start + k]


@inlined
def _mirror_guards(planes, origin, pitch, height, width):  # type: ignore[no-untyped-def]
    """Fill a field's guard rows and columns with the nearest pixels (reflection, edge pixels repeated)."""
    last_x, beyond_x = (width - 1) // 2, width // 2
    last_y, beyond_y = (height - 1) // 2, height // 2
    for k in range((width + 1) // 2):
        for q in range(2):
            planes[2 + q, origin - pitch + k] = planes[q, origin + k]
            edge = planes[2 * ((height - 1) % 2) + q, origin + last_y * pitch + k]
            planes[2 * (height % 2) + q, origin + beyond_y * pitch + k] = edge
    for y in range(-1, height + 1):
        p = y % 2
        start = origin + ((y - p) // 2) * pitch
        planes[2 * p + 1, start - 1] = planes[2 * p, start]
        planes[2 * p + width % 2, start + beyond_x] = planes[2 * p + (width - 1) % 2, start + last_x]


@kernel
def _linearise(  # type: ignore[no-untyped-def]
    first, second, u, v, data, height, width, origin, pitch, mirror, corners, weights, warped
):
    """Warp the second frame by (u, v) and write the data term's 8 arrays (each of four planes) around that flow.

    data[0..7] are ix, iy, ixx, ixy, iyy and the constants of brightness and of the two gradient equations; where the
    flow leads out of the frame and `mirror` is false all are zero, which drops the data term. Three passes over each
    half row, so that the middle one reads whole pixels (all channels at once) instead of gathering single values.
    """
    here = weights[4]
    for y in range(height):
        start = origin + (y // 2) * pitch
        for q in range(2):
            plane, count = 2 * (y % 2) + q, (width - q + 1) // 2
            _locate(
                u[plane], v[plane], corners[0], corners[1], corners[2], corners[3],
                weights[0], weights[1], weights[2], weights[3], here, start, count, q, y, height, width, mirror,
            )  # fmt: skip
            _blend_row(second, warped, corners, weights, count)
            _fold(
                first[y], warped, u[plane], v[plane], here,
                data[0, plane], data[1, plane], data[2, plane], data[3, plane],
                data[4, plane], data[5, plane], data[6, plane], data[7, plane], start, count, q,
            )  # fmt: skip


@_loop
def _locate(  # type: ignore[no-untyped-def]
    u, v, corner_a, corner_b, corner_c, corner_d, weight_a, weight_b, weight_c, weight_d, here,
    start, count, q, y, height, width, mirror,
):  # fmt: skip
    """Where to read for bilinear interpolation: offsets of four pixels, their weights, and 1 or (no data) 0."""
    for k in range(count):
        n = _at(start + k)
        x, y_ = np.float32(2 * k + q) + u[n], np.float32(y) + v[n]
        data = np.float32(1) if mirror or rules.in_frame(x, y_, width, height) else np.float32(0)
        x, y_ = rules.near_frame(x, width), rules.near_frame(y_, height)
        left, top = np.int32(np.floor(x)), np.int32(np.floor(y_))
        a, b, c, d = rules.bilinear(x - np.float32(left), y_ - np.float32(top))
        right, bottom = rules.reflected(left + 1, width, 0), rules.reflected(top + 1, height, 0)
        left, top = rules.reflected(left, width, 0), rules.reflected(top, height, 0)
        corner_a[k] = CHANNELS * (top * width + left)
        corner_b[k] = CHANNELS * (top * width + right)
        corner_c[k] = CHANNELS * (bottom * width + left)
        corner_d[k] = CHANNELS * (bottom * width + right)
        weight_a[k], weight_b[k], weight_c[k], weight_d[k] = data * a, data * b, data * c, data * d
        here[k] = data


@intrinsic
def _blend(_context, image, offsets, weights, target, position):  # type: ignore[no-untyped-def]
    """target[position:][:8] = sum over i of weights[i] * image[offsets[i]:][:8], flat float32 arrays.

    Eight channels in one vector: left to itself LLVM vectorises over pixels with gathers, at half the speed.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(ir.FloatType(), CHANNELS)

        def pointer(array, index):  # type: ignore[no-untyped-def]
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        total = ir.Constant(vector, None)
        for corner in range(4):
            pixel = builder.load(pointer(0, builder.extract_value(arguments[1], corner)), align=4)
            weight = builder.extract_value(arguments[2], corner)
            lanes = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.IntType(32)(0))
            lanes = builder.shuffle_vector(
                lanes, lanes, ir.Constant(ir.VectorType(ir.IntType(32), CHANNELS), None)
            )
            total = builder.fadd(total, builder.fmul(pixel, lanes, flags=["fast"]), flags=["fast"])
        builder.store(total, pointer(3, arguments[4]), align=4)
        return context.get_dummy_value()

    return types.void(image, offsets, weights, target, types.intp), codegen


@inlined
def _blend_row(second, warped, corners, weights, count):  # type: ignore[no-untyped-def]
    """Bilinear interpolation of all channels at the places that `_locate` found."""
    for k in range(count):
        _blend(
            second,
            (corners[0, k], corners[1, k], corners[2, k], corners[3, k]),
            (weights[0, k], weights[1, k], weights[2, k], weights[3, k]),
            warped,
            CHANNELS * k,
        )


@_loop
def _fold(  # type: ignore[no-untyped-def]
    first, warped, u, v, here, ix, iy, ixx, ixy, iyy, constant, constant_x, constant_y, start, count, q
):
    """The data term's arrays from the warped pixels; `here` is 0 where there is no data."""
    for k in range(count):
        n, w, f = _at(start + k), _at(CHANNELS * k), _at(CHANNELS * (2 * k + q))
        value, by_x, by_y = warped[w], warped[w + np.uint64(1)], warped[w + np.uint64(2)]
        by_xx, by_xy, by_yy = warped[w + np.uint64(3)], warped[w + np.uint64(4)], warped[w + np.uint64(5)]
        ix[n], iy[n], ixx[n], ixy[n], iyy[n] = by_x, by_y, by_xx, by_xy, by_yy
        old, old_x, old_y = first[f], first[f + np.uint64(1)], first[f + np.uint64(2)]
        constant[n] = rules.linearised(value - here[k] * old, by_x, by_y, u[n], v[n])
        constant_x[n] = rules.linearised(by_x - here[k] * old_x, by_xx, by_xy, u[n], v[n])
        constant_y[n] = rules.linearised(by_y - here[k] * old_y, by_xy, by_yy, u[n], v[n])


# ---- per pair: one block of one plane ----
# Suffixes: _h is the plane of the horizontal neighbours, _v of the vertical ones, _d of the diagonal ones; left, right,
# up and down are the offsets of the neighbours in them.


@_loop
def _diffusivities(  # type: ignore[no-untyped-def]
    u, u_h, u_v, u_d, v, v_h, v_v, v_d, sx, sy, begin, end, left, right, up, down
):
    """Diffusivity between each pixel and its left (sx) and upper (sy) neighbour."""
    quarter = np.float32(0.25)
    for n in range(begin, end):
        here, west, east, north, south = _at(n), _at(n + left), _at(n + right), _at(n + up), _at(n + down)
        north_west, north_east = _at(n + up + left), _at(n + up + right)
        south_west = _at(n + down + left)
        across_u = u[here] - u_h[west]
        along_u = quarter * (u_v[south] + u_d[south_west] - u_v[north] - u_d[north_west])
        across_v = v[here] - v_h[west]
        along_v = quarter * (v_v[south] + v_d[south_west] - v_v[north] - v_d[north_west])
        sx[here] = rules.diffusivity(across_u, along_u, across_v, along_v)
        across_u = u[here] - u_v[north]
        along_u = quarter * (u_h[east] + u_d[north_east] - u_h[west] - u_d[north_west])
        across_v = v[here] - v_v[north]
        along_v = quarter * (v_h[east] + v_d[north_east] - v_h[west] - v_d[north_west])
        sy[here] = rules.diffusivity(across_u, along_u, across_v, along_v)


@_loop
def _equations(  # type: ignore[no-untyped-def]
    u, v, ix, iy, ixx, ixy, iyy, iz, ixz, iyz, sx, sx_h, sy, sy_v,
    step_u, step_v, coupling, right_u, right_v, begin, end, right, down, gamma, half_inverse_alpha, relaxation,
):  # fmt: skip
    """The two linear equations of each pixel, at the flow of the last inner iteration."""
    for n in range(begin, end):
        here = _at(n)
        smoothness = sx[here] + sx_h[_at(n + right)] + sy[here] + sy_v[_at(n + down)]
        diagonal_u, diagonal_v, both, constant_u, constant_v = rules.data_equations(
            ix[here], iy[here], iz[here], ixx[here], ixy[here], iyy[here], ixz[here], iyz[here],
            u[here], v[here], gamma, half_inverse_alpha,
        )  # fmt: skip
        size_u, size_v = rules.step_sizes(diagonal_u, diagonal_v, smoothness, relaxation)
        step_u[here] = size_u
        step_v[here] = size_v
        coupling[here] = both
        right_u[here] = constant_u
        right_v[here] = constant_v


@_loop
def _relax(  # type: ignore[no-untyped-def]
    u, u_h, u_v, v, v_h, v_v, sx, sx_h, sy, sy_v, step_u, step_v, coupling, right_u, right_v,
    begin, end, left, right, up, down, keep,
):  # fmt: skip
    """One SOR half-sweep: u first, then v from the new u."""
    for n in range(begin, end):
        here, west, east, north, south = _at(n), _at(n + left), _at(n + right), _at(n + up), _at(n + down)
        s_west, s_east, s_north, s_south = sx[here], sx_h[east], sy[here], sy_v[south]
        around_u = s_west * u_h[west] + s_east * u_h[east] + s_north * u_v[north] + s_south * u_v[south]
        around_v = s_west * v_h[west] + s_east * v_h[east] + s_north * v_v[north] + s_south * v_v[south]
        new_u = rules.relaxed(u[here], keep, step_u[here], around_u, right_u[here], coupling[here], v[here])
        u[here] = new_u
        v[here] = rules.relaxed(v[here], keep, step_v[here], around_v, right_v[here], coupling[here], new_u)


@kernel
def _inner_iteration(  # type: ignore[no-untyped-def]
    u, v, data, system, origin, pitch, height, width, rows, sweeps, gamma, half_inverse_alpha, relaxation
):
    """New robust weights and `sweeps` SOR sweeps on them: one pass over blocks of `rows` row pairs (module docstring).

    u, v: planes [4, N]; data: [8, 4, N]; system: [7, 4, N] of sx, sy, step_u, step_v, coupling, right_u, right_v.
    """
    pairs = (height + 1) // 2
    blocks = (pairs + rows - 1) // rows
    keep = np.float32(1) - relaxation
    sx, sy, step_u, step_v, coupling, right_u, right_v = (
        system[0], system[1], system[2], system[3], system[4], system[5], system[6],
    )  # fmt: skip
    _mirror_guards(u, origin, pitch, height, width)
    _mirror_guards(v, origin, pitch, height, width)
    # A block's rows begin at their left guard.
    first, last = origin - 1, origin - 1 + (pairs - 1) * pitch
    sx[:, last + pitch] = 0
    sy[:2, last + pitch : last + 2 * pitch] = 0
    for front in range(blocks + 2 * sweeps):
        if front < blocks:
            begin = first + front * rows * pitch
            end = first + min((front + 1) * rows, pairs) * pitch
            for plane in range(4):
                p, q = plane // 2, plane % 2
                h, w, d = plane ^ 1, plane ^ 2, plane ^ 3
                _diffusivities(
                    u[plane], u[h], u[w], u[d], v[plane], v[h], v[w], v[d], sx[plane], sy[plane],
                    begin, end, q - 1, q, (p - 1) * pitch, p * pitch,
                )  # fmt: skip
            for start in range(begin, end, pitch):
                sx[:, start] = 0
                sx[0, start + 1] = sx[2, start + 1] = 0
                if width % 2:
                    sx[1, start + pitch - 1] = sx[3, start + pitch - 1] = 0
            if front == 0:
                sy[:2, first : first + pitch] = 0
            if front == blocks - 1 and height % 2:
                sy[2:, last : last + pitch] = 0
        block = front - 1
        if 0 <= block < blocks:
            begin = first + block * rows * pitch
            end = first + min((block + 1) * rows, pairs) * pitch
            for plane in range(4):
                p, q = plane // 2, plane % 2
                h, w = plane ^ 1, plane ^ 2
                _equations(
                    u[plane], v[plane], data[0, plane], data[1, plane], data[2, plane], data[3, plane],
                    data[4, plane], data[5, plane], data[6, plane], data[7, plane],
                    sx[plane], sx[h], sy[plane], sy[w],
                    step_u[plane], step_v[plane], coupling[plane], right_u[plane], right_v[plane],
                    begin, end, q, p * pitch, gamma, half_inverse_alpha, relaxation,
                )  # fmt: skip
            # Beyond the border nothing moves.
            for start in range(begin, end, pitch):
                step_u[:, start] = step_v[:, start] = 0
                if width % 2:
                    beyond = start + pitch - 1
                    step_u[1, beyond] = step_v[1, beyond] = step_u[3, beyond] = step_v[3, beyond] = 0
            if block == blocks - 1 and height % 2:
                step_u[2:, last : last + pitch] = 0
                step_v[2:, last : last + pitch] = 0
        for half in range(2 * sweeps):
            block = front - 1 - half
            if 0 <= block < blocks:
                begin = first + block * rows * pitch
                end = first + min((block + 1) * rows, pairs) * pitch
                for p in range(2):
                    q = (p + half) % 2
                    plane = 2 * p + q
                    h, w = plane ^ 1, plane ^ 2
                    _relax(
                        u[plane], u[h], u[w], v[plane], v[h], v[w], sx[plane], sx[h], sy[plane], sy[w],
                        step_u[plane], step_v[plane], coupling[plane], right_u[plane], right_v[plane],
                        begin, end, q - 1, q, (p - 1) * pitch, p * pitch, keep,
                    )  # fmt: skip


# ---- frames and pairs ----


class PyramidLevel(NamedTuple):
    """One pyramid level's size and the layout of its parity planes (module docstring)."""

    width: int
    height: int
    pitch: int
    origin: int
    length: int
    rows: int


PreparedFrame = list[Floats]
"""A frame's levels from the full size down, each float32[H, W, 8] of I (0..1), Ix, Iy, Ixx, Ixy, Iyy, 0, 0."""


def make_levels(width: int, height: int, parameters: Parameters) -> list[PyramidLevel]:
    """Every level from the full size down."""
    sizes = solver.level_sizes(width, height, parameters.scale, parameters.outer_iterations)
    return [_layout(*size) for size in sizes]


def _layout(width: int, height: int) -> PyramidLevel:
    pitch = (width + 1) // 2 + 1
    pairs = (height + 1) // 2
    origin = -(-(pitch + 1) // 16) * 16
    length = origin + (pairs + 1) * pitch + 1
    # Planes that start at the same offset modulo the page size would collide in the cache: 80 floats further each.
    length += (80 - length) % 1024
    return PyramidLevel(width, height, pitch, origin, length, max(1, BLOCK // pitch))


class Workspace:
    """One thread's buffers for frames of one size; nothing is allocated while a frame or a pair is worked on."""

    def __init__(self, full: PyramidLevel) -> None:
        self.planes = np.zeros(PLANES * 4 * full.length, np.float32)
        self.fields = np.zeros((4, full.height * full.width), np.float32)
        self.lines = np.zeros((6, full.width + 4), np.float32)
        half = (full.width + 1) // 2
        self.corners = np.zeros((4, half), np.int64)
        self.weights = np.zeros((5, half), np.float32)
        self.warped = np.zeros(half * CHANNELS, np.float32)

    def field(self, index: int, level: PyramidLevel) -> Floats:
        """Scratch field float32[H, W] of a level's size."""
        return self.fields[index, : level.height * level.width].reshape(level.height, level.width)


def prepare_frame(
    frame: npt.NDArray[np.uint8],
    levels: list[PyramidLevel],
    parameters: Parameters,
    workspace: Workspace,
    prepared: PreparedFrame,
) -> None:
    """Fill `prepared` with the levels of a frame, uint8[H, W]."""
    low = 2 if parameters.pyramid == "opencv" else 0
    image, other = 0, 1
    np.divide(frame, np.float32(255), out=workspace.field(image, levels[0]), dtype=np.float32)
    for index, level in enumerate(levels):
        before = levels[max(index - 1, 0)]
        if index or parameters.blur > 0:
            if index:
                across = solver.shrink(before.width, level.width, parameters)
                down = solver.shrink(before.height, level.height, parameters)
            else:
                across = solver.blur(level.width, parameters.blur)
                down = solver.blur(level.height, parameters.blur)
            source, target = workspace.field(image, before), workspace.field(other, level)
            _resample(source, *down, *across, workspace.lines[0], target, np.float32(1))
            image, other = other, image
        _derive(
            workspace.field(image, level), low, workspace.field(2, level), workspace.lines, prepared[index]
        )


def solve_pair(
    first: PreparedFrame,
    second: PreparedFrame,
    levels: list[PyramidLevel],
    parameters: Parameters,
    workspace: Workspace,
    flow: Floats,
) -> None:
    """Write the flow from the first to the second frame to `flow`, float32[2, H, W] in pixels."""
    gamma, relaxation = np.float32(parameters.gamma), np.float32(parameters.relaxation)
    half_inverse_alpha = np.float32(0.5 / parameters.alpha)
    mirror = parameters.border == "mirror"
    coarse: PyramidLevel | None = None
    for level, frame_0, frame_1 in zip(levels[::-1], first[::-1], second[::-1], strict=True):
        origin, pitch = level.origin, level.pitch
        planes = workspace.planes[: PLANES * 4 * level.length].reshape(PLANES, 4, level.length)
        u, v, data, system = planes[0], planes[1], planes[2:10], planes[10:17]
        if coarse is None:
            planes[:2] = 0
        else:
            across, ratio_x = solver.enlarge(coarse.width, level.width, parameters)
            down, ratio_y = solver.enlarge(coarse.height, level.height, parameters)
            for component, (field, ratio) in enumerate(((u, ratio_x), (v, ratio_y))):
                source, target = workspace.field(component, coarse), workspace.field(2, level)
                _resample(source, *down, *across, workspace.lines[0], target, np.float32(ratio))
                _split(target, field, origin, pitch)
        for _ in range(parameters.warps):
            _linearise(
                frame_0.reshape(level.height, -1), frame_1.reshape(-1), u, v, data,
                level.height, level.width, origin, pitch, mirror,
                workspace.corners, workspace.weights, workspace.warped,
            )  # fmt: skip
            for _ in range(parameters.inner_iterations):
                _inner_iteration(
                    u, v, data, system, origin, pitch, level.height, level.width, level.rows,
                    parameters.solver_iterations, gamma, half_inverse_alpha, relaxation,
                )  # fmt: skip
        for component, field in enumerate((u, v)):
            _join(
                field,
                origin,
                pitch,
                flow[component] if level is levels[0] else workspace.field(component, level),
            )
        coarse = level


class BroxOnCpu(FlowMethod):
    """The method on CPU threads; every pair is solved alone, so results depend neither on threads nor on the batch."""

    name = "brox"
    device = "cpu"

    def __init__(self, parameters: Parameters, threads: int = 1) -> None:
        self._parameters = parameters
        self.parameters = dataclasses.asdict(parameters)
        self.threads = threads
        self._size: tuple[int, int] | None = None
        self._workspaces: SimpleQueue[Workspace] = SimpleQueue()
        self._unused: list[PreparedFrame] = []

    def flow(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> Floats:
        """Flow of each pair (`FlowMethod.flow`); frames are prepared once, however many pairs they are in."""
        height, width = frames.shape[1:]
        levels = make_levels(width, height, self._parameters)
        self._fit(levels)
        flows = np.empty((len(pairs), 2, height, width), np.float32)
        # Neighbours in time together, so that few prepared frames are held at once.
        order = np.lexsort((pairs.max(axis=1), pairs.min(axis=1)))
        prepared: dict[int, PreparedFrame] = {}

        def prepare(index: int) -> None:
            with self._workspace() as workspace:
                prepare_frame(frames[index], levels, self._parameters, workspace, prepared[index])

        def solve(index: int) -> None:
            first, second = (prepared[int(frame)] for frame in pairs[index])
            with self._workspace() as workspace:
                solve_pair(first, second, levels, self._parameters, workspace, flows[index])

        # One thread works here and now, so that an interrupt ends it at once.
        with ThreadPoolExecutor(self.threads) if self.threads > 1 else nullcontext() as executor:
            spread = executor.map if executor else map
            size = self._group(levels)
            for start in range(0, len(order), size):
                group = order[start : start + size]
                needed = {int(frame) for frame in pairs[group].ravel()}
                for frame in prepared.keys() - needed:
                    self._unused.append(prepared.pop(frame))
                missing = sorted(needed - prepared.keys())
                for frame in missing:
                    prepared[frame] = self._unused.pop() if self._unused else _empty_frame(levels)
                # Consuming the results raises what a thread raised.
                list(spread(prepare, missing))
                list(spread(solve, group))
        self._unused.extend(prepared.values())
        return flows

    def _group(self, levels: list[PyramidLevel]) -> int:
        """Pairs between two rounds of preparing frames."""
        frame = 4 * CHANNELS * sum(level.width * level.height for level in levels)
        return max(self.threads, min(GROUP * self.threads, PREPARED_BYTES // frame))

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        workspace = self._workspaces.get()
        try:
            yield workspace
        finally:
            self._workspaces.put(workspace)

    def _fit(self, levels: list[PyramidLevel]) -> None:
        """Reallocate the buffers if the frames' size differs from the last call's."""
        size = (levels[0].width, levels[0].height)
        if size != self._size:
            self._workspaces = SimpleQueue()
            for _ in range(self.threads):
                self._workspaces.put(Workspace(levels[0]))
            self._unused = []
            self._size = size


def _empty_frame(levels: list[PyramidLevel]) -> PreparedFrame:
    return [np.zeros((level.height, level.width, CHANNELS), np.float32) for level in levels]
