"""TV-L1 on NVIDIA GPUs, in numba-cuda: the algorithm of `solver.py`, a batch of pairs in every launch.

**Small levels**, whose state fits one block's shared memory, take one launch: a block per pair runs all warps of the
level, with its own early stops (`make_refine`).

**Large levels** are cut into overlapping tiles. A launch of `make_iterate` runs up to `halo` iterations on every tile
in shared memory and writes the tiles' inner pixels to the other of two buffers. Each iteration's sum of squared
updates is added up per pair in integers (`extract_flow.cuda.sums`). The next launch reads the sums: where iteration k
of the last launch was the one to stop at, it repeats that launch's first k iterations from the buffer it had read,
which is untouched; where a pair stopped earlier its blocks return at once. So a pair stops at the same iteration as on
the CPU, and the host never waits.

Planes are float32, row-major without padding; a pair's planes lie one after the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda, types

from extract_flow.cuda import device, sums
from extract_flow.cuda.device import SIMULATED, available
from extract_flow.cuda.images import DeviceTaps, load_frames, resample, upload_taps
from extract_flow.cuda.kernel import BYTES, F4, FLOATS, I4, I8, INTS, LONGS, Kernel, image_launch
from extract_flow.cuda.method import CudaMethod
from extract_flow.cuda.sums import LANES, fixed, fold, folded
from extract_flow.resampling import taps_of
from extract_flow.tvl1 import cpu, solver
from extract_flow.tvl1.cpu import BLEND, BLENDED, EDGE_LIMIT, FAR, NEAR, TARGET
from extract_flow.tvl1.interpolation import KERNELS, SPLINE_PREFILTER, gaussian
from extract_flow.tvl1.parameters import GRADIENTS, Parameters
from extract_flow.tvl1.rules import HALF, ONE, ZERO, data_step, dual_length, dual_step, inverse_gradient

__all__ = ["available", "create"]

TWO = np.float32(2)
STATE = 6
"""Planes of a pair's state: u1, u2, p11, p12, p21, p22."""
WORK = 3
"""Planes to work in: the flow before a warp (2) and the warped image."""
NEVER = np.int32(2**30)
STATIC = 8 * 1024
"""Bytes of static shared memory of any kernel here, at most."""


@dataclass(frozen=True)
class Variant:
    """What kernels are compiled for: the options of `Parameters` that choose code instead of values."""

    gradient: int
    mirrored: bool
    masked: bool
    edges: bool
    median: int

    @property
    def constants(self) -> int:
        """Planes that stay the same during the iterations: nx, ny, residual, limit, and steps with edges."""
        return 5 if self.edges else 4


@dataclass(frozen=True)
class Geometry:
    """How blocks cover levels.

    Attributes:
        tile_width, tile_height: pixels of a tile with its halo; threads are a multiple of tile_width.
        halo: iterations of a launch at most.
        threads: per block of a tile.
        registers: per thread of a tile, at most, so that `blocks` blocks find room.
        blocks: of tiles on a multiprocessor.
        level_threads: per block of a small level.
        level_bytes: dynamic shared memory that a small level may take.
    """

    tile_width: int
    tile_height: int
    halo: int
    threads: int
    registers: int
    blocks: int
    level_threads: int
    level_bytes: int

    @property
    def tile_bytes(self) -> int:
        """Dynamic shared memory of a tile."""
        return 4 * STATE * self.tile_width * self.tile_height

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Tiles in x and y that cover a level."""
        inner_width, inner_height = self.tile_width - 2 * self.halo, self.tile_height - 2 * self.halo
        return -(-width // inner_width), -(-height // inner_height)

    def fits(self, height: int, width: int, variant: Variant) -> bool:
        """Whether a level's state and constants fit one block."""
        return 4 * (STATE + variant.constants) * height * width <= self.level_bytes


def geometry(shared_memory: int, edges: bool) -> Geometry:
    """Tiles for a GPU whose blocks may have this many bytes of shared memory (99, 163 or 227 KB).

    Two blocks on a multiprocessor hide each other's barriers. Each thread keeps the constants of eight pixels in
    registers, of which a multiprocessor has 65,536: edges need eight more per thread, which only one block allows.
    """
    choices = [(56, 2, 72), (48, 2, 80), (56, 1, 128), (48, 1, 128)]
    for height, blocks, registers in choices[2 if edges else 0 :]:
        tile = Geometry(64, height, 6, 8 * height, registers, blocks, 512, shared_memory - 10 * 1024)
        if blocks * (tile.tile_bytes + STATIC) <= shared_memory:
            return tile
    raise ValueError(f"a GPU with only {shared_memory} bytes of shared memory for a block")


SIMULATED_GEOMETRY = Geometry(16, 20, 2, 16, 64, 1, 8, 4 * 10 * 16 * 19)
"""Tiny blocks for the simulator, in which a 20x24 level takes several tiles."""


# --- rules at one pixel, on planes that begin at `base` ---------------------------------------------------------------


@cuda.jit(device=True)
def clamped(index, count):  # type: ignore[no-untyped-def]
    return min(max(index, 0), count - 1)


@cuda.jit(device=True)
def mirrored(index, count):  # type: ignore[no-untyped-def]
    """`cpu.reflect` for an index at most 5 outside, without its division."""
    last = count - 1
    index = abs(index)
    index = abs(last - abs(last - index))
    index = abs(last - abs(last - index))
    return min(index, last)


@cuda.jit(device=True)
def polynomial(kernels, lane, t):  # type: ignore[no-untyped-def]
    """Weight of a lane at fraction t; see `cpu.polynomial`."""
    return kernels[lane] + t * (kernels[8 + lane] + t * (kernels[16 + lane] + t * kernels[24 + lane]))


@cuda.jit(device=True)
def inside(to_x, to_y, height, width):  # type: ignore[no-untyped-def]
    return to_x >= ZERO and to_x <= np.float32(width - 1) and to_y >= ZERO and to_y <= np.float32(height - 1)


@cuda.jit(device=True)
def limited(position, count):  # type: ignore[no-untyped-def]
    """Beyond two pixels outside every tap has the border's value already."""
    return min(max(position, -TWO), np.float32(count - 1) + TWO)


@functools.cache
def make_interpolate(mirror: bool) -> Any:
    """value(target, base, height, width, to_x, to_y, kernels): cubic interpolation from 4 x 4 pixels."""
    neighbour = mirrored if mirror else clamped

    @cuda.jit(device=True)
    def interpolate(target, base, height, width, to_x, to_y, kernels):  # type: ignore[no-untyped-def]
        to_x, to_y = limited(to_x, width), limited(to_y, height)
        whole_x, whole_y = math.floor(to_x), math.floor(to_y)
        t, s = np.float32(to_x - whole_x), np.float32(to_y - whole_y)
        left, top = int(whole_x) - 2, int(whole_y) - 2
        value = ZERO
        for j in range(1, 5):
            row = base + neighbour(top + j, height) * width
            total = ZERO
            for k in range(1, 5):
                total += polynomial(kernels, k, t) * target[row + neighbour(left + k, width)]
            value += polynomial(kernels, j, s) * total
        return value

    return interpolate


@functools.cache
def make_interpolate_slopes(mirror: bool) -> Any:
    """(value, d/dx, d/dy) of the same interpolation, from 6 x 6 pixels; slopes are kernels[32:]."""
    neighbour = mirrored if mirror else clamped

    @cuda.jit(device=True)
    def interpolate_slopes(target, base, height, width, to_x, to_y, kernels):  # type: ignore[no-untyped-def]
        to_x, to_y = limited(to_x, width), limited(to_y, height)
        whole_x, whole_y = math.floor(to_x), math.floor(to_y)
        t, s = np.float32(to_x - whole_x), np.float32(to_y - whole_y)
        left, top = int(whole_x) - 2, int(whole_y) - 2
        value, across, down = ZERO, ZERO, ZERO
        for j in range(6):
            row = base + neighbour(top + j, height) * width
            total, slope = ZERO, ZERO
            for k in range(6):
                pixel = target[row + neighbour(left + k, width)]
                total += polynomial(kernels, k, t) * pixel
                slope += polynomial(kernels, 32 + k, t) * pixel
            weight = polynomial(kernels, j, s)
            value += weight * total
            across += weight * slope
            down += polynomial(kernels, 32 + j, s) * total
        return value, across, down

    return interpolate_slopes


@cuda.jit(device=True)
def difference_across(plane, base, width, x, y, near, far):  # type: ignore[no-untyped-def]
    """near times the difference of the next pixels, less far times that of the second, the border repeated."""
    row = base + y * width
    close = plane[row + min(x + 1, width - 1)] - plane[row + max(x - 1, 0)]
    return near * close - far * (plane[row + min(x + 2, width - 1)] - plane[row + max(x - 2, 0)])


@cuda.jit(device=True)
def difference_down(plane, base, height, width, x, y, near, far):  # type: ignore[no-untyped-def]
    column = base + x
    close = plane[column + min(y + 1, height - 1) * width] - plane[column + max(y - 1, 0) * width]
    distant = plane[column + min(y + 2, height - 1) * width] - plane[column + max(y - 2, 0) * width]
    return near * close - far * distant


@functools.cache
def make_gradient(gradient: int) -> Any:
    """(x, y) gradient where it comes from the warped image: see `gradient` in `solver.Parameters`."""
    blended = gradient == BLENDED
    near, far = (NEAR * (ONE - BLEND), FAR * (ONE - BLEND)) if blended else (HALF, ZERO)
    near_first, far_first = NEAR * BLEND, FAR * BLEND

    @cuda.jit(device=True)
    def image_gradient(warped, warped_base, image, image_base, height, width, x, y):  # type: ignore[no-untyped-def]
        across = difference_across(warped, warped_base, width, x, y, near, far)
        down = difference_down(warped, warped_base, height, width, x, y, near, far)
        if blended:
            across += difference_across(image, image_base, width, x, y, near_first, far_first)
            down += difference_down(image, image_base, height, width, x, y, near_first, far_first)
        return across, down

    return image_gradient


@cuda.jit(device=True)
def edge_step(image, base, height, width, x, y, step, edges):  # type: ignore[no-untyped-def]
    """Step of the dual where image edges loosen the smoothness; see `cpu.weigh_edges`."""
    here = image[base + y * width + x]
    across = image[base + y * width + min(x + 1, width - 1)] - here
    down = image[base + min(y + 1, height - 1) * width + x] - here
    root = ONE + min(edges * math.sqrt(across * across + down * down), EDGE_LIMIT) * np.float32(1 / 8)
    root *= root
    root *= root
    return step * root * root


def median_network(count: int) -> list[tuple[int, int]]:
    """Compare-exchanges (low, high) after which the middle one of `count` values is their median.

    Batcher's odd-even merge sort without the exchanges that do not lead to the middle.
    """
    exchanges = []
    power = 1
    while power < count:
        half = power
        while half >= 1:
            for start in range(half % power, count - half, 2 * half):
                for low in range(start, min(start + half, count - half)):
                    if low // (2 * power) == (low + half) // (2 * power):
                        exchanges.append((low, low + half))
            half //= 2
        power *= 2
    needed, kept = {count // 2}, []
    for low, high in reversed(exchanges):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return kept[::-1]


@functools.cache
def make_median(side: int) -> Any:
    """median(plane, base, height, width, x, y) of side x side pixels, the border repeated.

    The compare-exchanges of `median_network` are written out as a function, so that all values stay in registers.
    """
    reach = side // 2
    lines = ["def median(plane, base, height, width, x, y):"]
    for i in range(side * side):
        row, column = f"clamped(y + {i // side - reach}, height)", f"clamped(x + {i % side - reach}, width)"
        lines.append(f"    v{i} = plane[base + {row} * width + {column}]")
    for low, high in median_network(side * side):
        lines.append(f"    v{low}, v{high} = min(v{low}, v{high}), max(v{low}, v{high})")
    lines.append(f"    return v{side * side // 2}")
    namespace: dict[str, Any] = {"clamped": clamped}
    exec("\n".join(lines), namespace)
    return cuda.jit(device=True)(namespace["median"])


# --- small levels: a block runs all of it ----------------------------------------------------------------------


@functools.cache
def make_refine(variant: Variant, threads: int) -> Kernel:
    """All warps of a level whose state fits shared memory, one block per pair; flow float32[n,2,H,W] in place."""
    across = min(32, threads)
    rows = threads // across
    gradient, masked, edged, median = variant.gradient, variant.masked, variant.edges, variant.median
    interpolate, interpolate_slopes = (
        make_interpolate(variant.mirrored),
        make_interpolate_slopes(variant.mirrored),
    )
    image_gradient, median_at = make_gradient(gradient), make_median(max(median, 3))

    def refine_level(  # type: ignore[no-untyped-def]
        images, targets, first, second, kernels, flow, work, height, width, warps, iterations, tau, step, data_weight,
        edges, epsilon_sum, warp_sum,
    ):  # fmt: skip
        planes = cuda.shared.array(0, types.float32)
        partial = cuda.shared.array(threads, types.int64)
        total = cuda.shared.array(1, types.int64)
        t, pair = cuda.threadIdx.x, cuda.blockIdx.x
        area = height * width
        image, target = first[pair] * area, second[pair] * area
        before, warped = pair * WORK * area, (pair * WORK + 2) * area
        u2, p11, p12, p21, p22 = area, 2 * area, 3 * area, 4 * area, 5 * area
        nx, ny, residual, limit, steps = 6 * area, 7 * area, 8 * area, 9 * area, 10 * area
        own_x, own_y = t % across, t // across
        most = np.float32(4194304.0)
        for y in range(own_y, height, rows):
            for x in range(own_x, width, across):
                i = y * width + x
                planes[i] = flow[2 * pair * area + i]
                planes[u2 + i] = flow[(2 * pair + 1) * area + i]
                planes[p11 + i] = planes[p12 + i] = planes[p21 + i] = planes[p22 + i] = ZERO
                if edged:
                    planes[steps + i] = edge_step(images, image, height, width, x, y, step, edges)
        for _ in range(warps):
            for y in range(own_y, height, rows):
                for x in range(own_x, width, across):
                    i = y * width + x
                    a, b = planes[i], planes[u2 + i]
                    work[before + i], work[before + area + i] = a, b
                    to_x, to_y = np.float32(x) + a, np.float32(y) + b
                    planes[limit + i] = ONE if not masked or inside(to_x, to_y, height, width) else ZERO
                    if gradient == TARGET:
                        value, slope_x, slope_y = interpolate_slopes(
                            targets, target, height, width, to_x, to_y, kernels
                        )
                        planes[nx + i], planes[ny + i] = slope_x, slope_y
                    else:
                        value = interpolate(targets, target, height, width, to_x, to_y, kernels)
                    work[warped + i] = value
            cuda.syncthreads()
            for y in range(own_y, height, rows):
                for x in range(own_x, width, across):
                    i = y * width + x
                    if gradient == TARGET:
                        slope_x, slope_y = planes[nx + i], planes[ny + i]
                    else:
                        slope_x, slope_y = image_gradient(work, warped, images, image, height, width, x, y)
                    squared = slope_x * slope_x + slope_y * slope_y
                    inverse = inverse_gradient(squared)
                    rho = (
                        work[warped + i] - images[image + i] - slope_x * planes[i] - slope_y * planes[u2 + i]
                    )
                    planes[nx + i], planes[ny + i] = slope_x * inverse, slope_y * inverse
                    planes[residual + i] = rho * inverse
                    planes[limit + i] = planes[limit + i] * data_weight * squared * inverse
            for _ in range(iterations):
                change = ZERO
                for y in range(own_y, height, rows):
                    for x in range(own_x, width, across):
                        i = y * width + x
                        a, b = planes[i], planes[u2 + i]
                        normal_x, normal_y = planes[nx + i], planes[ny + i]
                        move = data_step(
                            planes[residual + i] + normal_x * a + normal_y * b, planes[limit + i]
                        )
                        left11 = planes[p11 + i - 1] if x > 0 else ZERO
                        left21 = planes[p21 + i - 1] if x > 0 else ZERO
                        above12 = planes[p12 + i - width] if y > 0 else ZERO
                        above22 = planes[p22 + i - width] if y > 0 else ZERO
                        new_a = a - move * normal_x + (planes[p11 + i] - left11 + planes[p12 + i] - above12)
                        new_b = b - move * normal_y + (planes[p21 + i] - left21 + planes[p22 + i] - above22)
                        change += (new_a - a) * (new_a - a) + (new_b - b) * (new_b - b)
                        planes[i], planes[u2 + i] = new_a, new_b
                partial[t] = fixed(change, most)
                cuda.syncthreads()
                for y in range(own_y, height, rows):
                    for x in range(own_x, width, across):
                        i = y * width + x
                        a, b = planes[i], planes[u2 + i]
                        ax = planes[i + 1] - a if x < width - 1 else ZERO
                        bx = planes[u2 + i + 1] - b if x < width - 1 else ZERO
                        ay = planes[i + width] - a if y < height - 1 else ZERO
                        by = planes[u2 + i + width] - b if y < height - 1 else ZERO
                        own_step = planes[steps + i] if edged else step
                        length_a, length_b = dual_length(own_step, ax, ay), dual_length(own_step, bx, by)
                        both = ONE / (length_a * length_b)
                        inverse_a, inverse_b = both * length_b, both * length_a
                        planes[p11 + i] = dual_step(planes[p11 + i], tau, ax, inverse_a)
                        planes[p12 + i] = dual_step(planes[p12 + i], tau, ay, inverse_a)
                        planes[p21 + i] = dual_step(planes[p21 + i], tau, bx, inverse_b)
                        planes[p22 + i] = dual_step(planes[p22 + i], tau, by, inverse_b)
                fold(partial, t, threads)
                cuda.syncthreads()
                if t == 0:
                    total[0] = folded(partial, threads)
                cuda.syncthreads()
                if total[0] <= epsilon_sum:
                    break
            if warp_sum >= 0:
                change = ZERO
                for y in range(own_y, height, rows):
                    for x in range(own_x, width, across):
                        i = y * width + x
                        a, b = planes[i] - work[before + i], planes[u2 + i] - work[before + area + i]
                        change += a * a + b * b
                cuda.syncthreads()
                partial[t] = fixed(change, most)
                cuda.syncthreads()
                fold(partial, t, threads)
                cuda.syncthreads()
                if t == 0:
                    total[0] = folded(partial, threads)
                cuda.syncthreads()
                if total[0] <= warp_sum:
                    break
        for y in range(own_y, height, rows):
            for x in range(own_x, width, across):
                for plane in range(2):
                    if median > 1:
                        value = median_at(planes, plane * area, height, width, x, y)
                    else:
                        value = planes[plane * area + y * width + x]
                    flow[(2 * pair + plane) * area + y * width + x] = value

    return Kernel(
        refine_level, FLOATS, FLOATS, INTS, INTS, FLOATS, FLOATS, FLOATS, I4, I4, I4, I4, F4, F4, F4, F4, I8, I8,
        registers=128,
    )  # fmt: skip


# --- large levels ----------------------------------------------------------------------------------------------------
# state[(buffer * pairs + pair) * STATE + plane], constants[pair * planes + plane], work[pair * WORK + plane]: planes of
# H*W. current[pair]: the buffer that holds the state. moved[pair * warps + warp]: sum of squared changes by that warp;
# it stays 0 for a warp that is left out, and so all later ones are left out too. changes[pair * iterations + k]: sum of
# squared changes by iteration k.


@cuda.jit(device=True)
def active(moved, pair, warp, warps, warp_sum):  # type: ignore[no-untyped-def]
    """Whether a pair still takes part in this warp."""
    return warp == 0 or moved[pair * warps + warp - 1] > warp_sum


@functools.cache
def make_begin(edged: bool) -> Kernel:
    """Flow from the coarser level into buffer 0, the dual zero, nothing summed yet."""
    planes = 5 if edged else 4

    def begin_level(  # type: ignore[no-untyped-def]
        flow, images, first, state, constants, current, moved, changes, height, width, warps, iterations, step, edges
    ):  # fmt: skip
        pair = cuda.blockIdx.z
        area = height * width
        x0, y0 = (
            cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x,
            cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y,
        )
        across, down = cuda.gridDim.x * cuda.blockDim.x, cuda.gridDim.y * cuda.blockDim.y
        if y0 == 0:
            for k in range(x0, iterations, across):
                changes[pair * iterations + k] = 0
            for k in range(x0, warps, across):
                moved[pair * warps + k] = 0
            if x0 == 0:
                current[pair] = 0
        for y in range(y0, height, down):
            for x in range(x0, width, across):
                i = y * width + x
                for plane in range(2):
                    state[(pair * STATE + plane) * area + i] = flow[(2 * pair + plane) * area + i]
                for plane in range(2, STATE):
                    state[(pair * STATE + plane) * area + i] = ZERO
                if edged:
                    constants[(pair * planes + 4) * area + i] = edge_step(
                        images, first[pair] * area, height, width, x, y, step, edges
                    )

    return Kernel(
        begin_level, FLOATS, FLOATS, INTS, FLOATS, FLOATS, INTS, LONGS, LONGS, I4, I4, I4, I4, F4, F4
    )


@functools.cache
def make_warp(variant: Variant) -> Kernel:
    """Target warped by the flow, which is kept as the flow before this warp; the mask into the limit."""
    gradient, masked, planes = variant.gradient, variant.masked, variant.constants
    interpolate, interpolate_slopes = (
        make_interpolate(variant.mirrored),
        make_interpolate_slopes(variant.mirrored),
    )

    def warp_target(  # type: ignore[no-untyped-def]
        state, targets, second, kernels, constants, work, current, moved, pairs, height, width, warp, warps, warp_sum
    ):  # fmt: skip
        pair = cuda.blockIdx.z
        if not active(moved, pair, warp, warps, warp_sum):
            return
        area = height * width
        u = (current[pair] * pairs + pair) * STATE * area
        for y in range(
            cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y, height, cuda.gridDim.y * cuda.blockDim.y
        ):
            for x in range(
                cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, width, cuda.gridDim.x * cuda.blockDim.x
            ):
                i = y * width + x
                a, b = state[u + i], state[u + area + i]
                work[pair * WORK * area + i], work[(pair * WORK + 1) * area + i] = a, b
                to_x, to_y = np.float32(x) + a, np.float32(y) + b
                here = pair * planes * area + i
                constants[here + 3 * area] = ONE if not masked or inside(to_x, to_y, height, width) else ZERO
                if gradient == TARGET:
                    value, slope_x, slope_y = interpolate_slopes(
                        targets, second[pair] * area, height, width, to_x, to_y, kernels
                    )
                    constants[here], constants[here + area] = slope_x, slope_y
                else:
                    value = interpolate(targets, second[pair] * area, height, width, to_x, to_y, kernels)
                work[(pair * WORK + 2) * area + i] = value

    return Kernel(
        warp_target, FLOATS, FLOATS, INTS, FLOATS, FLOATS, FLOATS, INTS, LONGS, I4, I4, I4, I4, I4, I8
    )


@functools.cache
def make_linearise(variant: Variant) -> Kernel:
    """The constants of `data_step` from the warped image and its gradient."""
    gradient, planes = variant.gradient, variant.constants
    image_gradient = make_gradient(gradient)

    def linearise(  # type: ignore[no-untyped-def]
        images, first, constants, work, moved, height, width, warp, warps, data_weight, warp_sum
    ):  # fmt: skip
        pair = cuda.blockIdx.z
        if not active(moved, pair, warp, warps, warp_sum):
            return
        area = height * width
        before, warped, image = pair * WORK * area, (pair * WORK + 2) * area, first[pair] * area
        for y in range(
            cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y, height, cuda.gridDim.y * cuda.blockDim.y
        ):
            for x in range(
                cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, width, cuda.gridDim.x * cuda.blockDim.x
            ):
                i = y * width + x
                here = pair * planes * area + i
                if gradient == TARGET:
                    slope_x, slope_y = constants[here], constants[here + area]
                else:
                    slope_x, slope_y = image_gradient(work, warped, images, image, height, width, x, y)
                squared = slope_x * slope_x + slope_y * slope_y
                inverse = inverse_gradient(squared)
                rho = (
                    work[warped + i]
                    - images[image + i]
                    - slope_x * work[before + i]
                    - slope_y * work[before + area + i]
                )
                constants[here], constants[here + area] = slope_x * inverse, slope_y * inverse
                constants[here + 2 * area] = rho * inverse
                constants[here + 3 * area] = constants[here + 3 * area] * data_weight * squared * inverse

    return Kernel(linearise, FLOATS, INTS, FLOATS, FLOATS, LONGS, I4, I4, I4, I4, F4, I8)


@functools.cache
def make_iterate(edged: bool, tile: Geometry) -> Kernel:
    """Up to `halo` iterations on overlapping tiles; see the module's text for how pairs stop."""
    tile_width, tile_height, halo, threads = tile.tile_width, tile.tile_height, tile.halo, tile.threads
    size = tile_width * tile_height
    own = size // threads  # pixels of a thread: one column, `down` rows apart
    down = threads // tile_width
    inner_width, inner_height = tile_width - 2 * halo, tile_height - 2 * halo
    lanes = min(LANES, threads)
    slots, step_count = halo * lanes, own if edged else 1
    planes = 5 if edged else 4
    # Unsigned indices are never negative, which spares numba's wrap-around at every access.
    U2, P11, P12, P21, P22 = (np.uint64(k * size) for k in range(1, STATE))
    SIDE, ROW = np.uint64(1), np.uint64(tile_width)

    def iterate(  # type: ignore[no-untyped-def]
        state, constants, current, moved, changes, number, warp, warps, iterations, check, pairs, height, width, tau,
        step, epsilon_sum, warp_sum, most,
    ):  # fmt: skip
        tiles = cuda.shared.array(0, types.float32)
        partial = cuda.shared.array(threads, types.int64)
        by_lane = cuda.shared.array(slots, types.int64)
        stop = cuda.shared.array(1, types.int32)
        t, pair = cuda.threadIdx.x, cuda.blockIdx.z
        if not active(moved, pair, warp, warps, warp_sum):
            return
        begin = number * halo
        end = min(begin + halo, iterations)
        if t == 0:
            stop[0] = NEVER
        cuda.syncthreads()
        for k in range(t, min(begin, iterations), threads):
            if (k + 1) % check == 0 and changes[pair * iterations + k] <= epsilon_sum:
                cuda.atomic.min(stop, 0, k)
        cuda.syncthreads()
        last = stop[0]
        source = (current[pair] + number) % 2
        count = end - begin
        counted = True
        if last < NEVER:
            if last < begin - halo or last + 1 == min(begin, iterations):
                return
            source = 1 - source
            count = last + 1 - (begin - halo)
            counted = False
        elif count <= 0:
            return

        area = height * width
        here = (source * pairs + pair) * STATE * area
        there = ((1 - source) * pairs + pair) * STATE * area
        fixed_here = pair * planes * area
        column, top = t % tile_width, t // tile_width
        x = cuda.blockIdx.x * inner_width - halo + column
        y0 = cuda.blockIdx.y * inner_height - halo + top
        nx = cuda.local.array(own, types.float32)
        ny = cuda.local.array(own, types.float32)
        residual = cuda.local.array(own, types.float32)
        limit = cuda.local.array(own, types.float32)
        steps = cuda.local.array(step_count, types.float32)
        for k in range(own):
            y = y0 + k * down
            i = np.uint64(t + k * threads)
            if x >= 0 and x < width and y >= 0 and y < height:
                pixel = y * width + x
                for plane in range(STATE):
                    tiles[i + np.uint64(plane * size)] = state[here + plane * area + pixel]
                nx[k] = constants[fixed_here + pixel]
                ny[k] = constants[fixed_here + area + pixel]
                residual[k] = constants[fixed_here + 2 * area + pixel]
                limit[k] = constants[fixed_here + 3 * area + pixel]
                if edged:
                    steps[k] = constants[fixed_here + 4 * area + pixel]
            else:
                for plane in range(STATE):
                    tiles[i + np.uint64(plane * size)] = ZERO
                nx[k] = ny[k] = residual[k] = limit[k] = ZERO
                if edged:
                    steps[k] = ZERO
        has_left = column > 0 and x > 0
        has_right = column < tile_width - 1 and x < width - 1
        # Of this thread's rows, k * down below its first: which have a row above and below, which are inner pixels.
        first_below_row = np.int32(-min(top, y0))
        last_above_row = np.int32(min(tile_height - 1 - top, height - 1 - y0))
        first_inner = np.int32(halo - top)
        end_inner = np.int32(min(tile_height - halo - top, height - y0))
        if column < halo or column >= tile_width - halo or x >= width:
            end_inner = np.int32(-tile_height)
        out = there + y0 * width + x
        cuda.syncthreads()

        for iteration in range(count):
            change = ZERO
            for k in range(own):
                i = np.uint64(t + k * threads)
                a, b = tiles[i], tiles[i + U2]
                move = data_step(residual[k] + nx[k] * a + ny[k] * b, limit[k])
                left11, left21, above12, above22 = ZERO, ZERO, ZERO, ZERO
                if has_left:
                    left11, left21 = tiles[i + P11 - SIDE], tiles[i + P21 - SIDE]
                if k * down > first_below_row:
                    above12, above22 = tiles[i + P12 - ROW], tiles[i + P22 - ROW]
                new_a = a - move * nx[k] + (tiles[i + P11] - left11 + tiles[i + P12] - above12)
                new_b = b - move * ny[k] + (tiles[i + P21] - left21 + tiles[i + P22] - above22)
                if k * down >= first_inner and k * down < end_inner:
                    change += (new_a - a) * (new_a - a) + (new_b - b) * (new_b - b)
                tiles[i], tiles[i + U2] = new_a, new_b
            partial[t] = fixed(change, most)
            cuda.syncthreads()
            for k in range(own):
                i = np.uint64(t + k * threads)
                a, b = tiles[i], tiles[i + U2]
                ax, bx, ay, by = ZERO, ZERO, ZERO, ZERO
                if has_right:
                    ax, bx = tiles[i + SIDE] - a, tiles[i + U2 + SIDE] - b
                if k * down < last_above_row:
                    ay, by = tiles[i + ROW] - a, tiles[i + U2 + ROW] - b
                own_step = steps[k] if edged else step
                length_a, length_b = dual_length(own_step, ax, ay), dual_length(own_step, bx, by)
                both = ONE / (length_a * length_b)  # one division serves both components
                inverse_a, inverse_b = both * length_b, both * length_a
                tiles[i + P11] = dual_step(tiles[i + P11], tau, ax, inverse_a)
                tiles[i + P12] = dual_step(tiles[i + P12], tau, ay, inverse_a)
                tiles[i + P21] = dual_step(tiles[i + P21], tau, bx, inverse_b)
                tiles[i + P22] = dual_step(tiles[i + P22], tau, by, inverse_b)
            fold(partial, t, threads)
            if t < lanes:
                by_lane[iteration * lanes + t] = partial[t]
            cuda.syncthreads()

        if counted and t < count:
            total = np.int64(0)
            for k in range(lanes):
                total += by_lane[t * lanes + k]
            cuda.atomic.add(changes, pair * iterations + begin + t, total)
        for k in range(own):
            if k * down >= first_inner and k * down < end_inner:
                i = np.uint64(t + k * threads)
                for plane in range(STATE):
                    state[out + plane * area + k * down * width] = tiles[i + np.uint64(plane * size)]

    return Kernel(
        iterate,
        FLOATS,
        FLOATS,
        INTS,
        LONGS,
        LONGS,
        I4,
        I4,
        I4,
        I4,
        I4,
        I4,
        I4,
        I4,
        F4,
        F4,
        I8,
        I8,
        F4,
        registers=tile.registers,
    )


DECIDE_THREADS = 4 if SIMULATED else 64


@functools.cache
def make_decide(halo: int) -> Kernel:
    """After a warp's iterations: the buffer that they ended in, and their sums zeroed; a block per pair."""

    def decide(  # type: ignore[no-untyped-def]
        current, moved, changes, warp, warps, iterations, check, epsilon_sum, warp_sum
    ):  # fmt: skip
        stop = cuda.shared.array(1, types.int32)
        t, pair = cuda.threadIdx.x, cuda.blockIdx.x
        if not active(moved, pair, warp, warps, warp_sum):
            return
        if t == 0:
            stop[0] = iterations - 1
        cuda.syncthreads()
        for k in range(t, iterations, DECIDE_THREADS):
            if (k + 1) % check == 0 and changes[pair * iterations + k] <= epsilon_sum:
                cuda.atomic.min(stop, 0, k)
        cuda.syncthreads()
        if t == 0:
            current[pair] = (current[pair] + stop[0] // halo + 1) % 2
        for k in range(t, iterations, DECIDE_THREADS):
            changes[pair * iterations + k] = 0

    return Kernel(decide, INTS, LONGS, LONGS, I4, I4, I4, I4, I8, I8)


@functools.cache
def make_filter(side: int) -> Kernel:
    """The median-filtered flow of every pair from the buffer that holds it into flow [n,2,H,W]."""
    median_at = make_median(side)

    def filter_flow(state, current, flow, pairs, height, width):  # type: ignore[no-untyped-def]
        pair = cuda.blockIdx.z
        area = height * width
        u = (current[pair] * pairs + pair) * STATE * area
        for y in range(
            cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y, height, cuda.gridDim.y * cuda.blockDim.y
        ):
            for x in range(
                cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, width, cuda.gridDim.x * cuda.blockDim.x
            ):
                for plane in range(2):
                    here = (2 * pair + plane) * area + y * width + x
                    flow[here] = median_at(state, u + plane * area, height, width, x, y)

    return Kernel(filter_flow, FLOATS, INTS, FLOATS, I4, I4, I4)


MEASURE_THREADS = 4 if SIMULATED else 256


def _measure(  # type: ignore[no-untyped-def]
    state, work, current, moved, pairs, height, width, warp, warps, warp_sum, most
):  # fmt: skip
    """Add up how far the warp moved the flow."""
    partial = cuda.shared.array(MEASURE_THREADS, types.int64)
    t, pair = cuda.threadIdx.x, cuda.blockIdx.y
    if not active(moved, pair, warp, warps, warp_sum):
        return
    area = height * width
    u = (current[pair] * pairs + pair) * STATE * area
    change = ZERO
    for i in range(cuda.blockIdx.x * MEASURE_THREADS + t, area, cuda.gridDim.x * MEASURE_THREADS):
        a = state[u + i] - work[pair * WORK * area + i]
        b = state[u + area + i] - work[(pair * WORK + 1) * area + i]
        change += a * a + b * b
    partial[t] = fixed(change, most)
    cuda.syncthreads()
    fold(partial, t, MEASURE_THREADS)
    cuda.syncthreads()
    if t == 0:
        cuda.atomic.add(moved, pair * warps + warp, folded(partial, MEASURE_THREADS))


measure = Kernel(_measure, FLOATS, FLOATS, INTS, LONGS, I4, I4, I4, I4, I4, I8, F4)


def _take_flow(state, current, flow, pairs, area):  # type: ignore[no-untyped-def]
    """The flow of every pair from the buffer that holds it into flow [n,2,area]."""
    pair = cuda.blockIdx.y
    u = (current[pair] * pairs + pair) * STATE * area
    for i in range(
        cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, 2 * area, cuda.gridDim.x * cuda.blockDim.x
    ):
        flow[2 * pair * area + i] = state[u + i]


take_flow = Kernel(_take_flow, FLOATS, INTS, FLOATS, I4, I4)


def _clear(flow, count):  # type: ignore[no-untyped-def]
    """No flow yet, on the coarsest level."""
    for i in range(
        cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, count, cuda.gridDim.x * cuda.blockDim.x
    ):
        flow[i] = ZERO


clear = Kernel(_clear, FLOATS, I4)


def _still(frames, first, second, pixels, flow):  # type: ignore[no-untyped-def]
    """Flow exactly zero between frames that are the same; a block per pair."""
    differs = cuda.shared.array(1, types.int32)
    t, pair = cuda.threadIdx.x, cuda.blockIdx.x
    if t == 0:
        differs[0] = 0
    cuda.syncthreads()
    for i in range(t, pixels, cuda.blockDim.x):
        if frames[first[pair] * pixels + i] != frames[second[pair] * pixels + i]:
            differs[0] = 1
    cuda.syncthreads()
    if differs[0] == 0:
        for i in range(t, 2 * pixels, cuda.blockDim.x):
            flow[2 * pair * pixels + i] = ZERO


still = Kernel(_still, BYTES, INTS, INTS, I4, FLOATS)


# --- the solver on a stream --------------------------------------------------------------------------------


def bilinear_taps(
    source: int, target: int, ratio: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Taps of `cpu.resize_plane` along one dimension: centres aligned, the border repeated."""
    position = np.clip((np.arange(target) + 0.5) * ratio - 0.5, 0, source - 1)
    if source == 1:
        return np.zeros(target, np.int32), np.ones((target, 1), np.float32)
    first = np.minimum(position.astype(np.int32), source - 2)
    fraction = (position - first).astype(np.float32)
    return first, np.stack([1 - fraction, fraction], axis=1)


def filter_taps(
    size: int, taps: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Taps of `cpu.filter_plane` along one dimension: symmetric, the border mirrored."""
    matrix = np.zeros((size, size))
    place = np.arange(size)
    for k in range(1 - len(taps), len(taps)):
        mirror = [cpu.reflect(int(index), size) for index in place + k]
        np.add.at(matrix, (place, mirror), float(taps[abs(k)]))
    return taps_of(matrix)


class Solver:
    """Device buffers for frames of one size, and the solver that works in them; see `cuda.method.Solver`."""

    def __init__(
        self, parameters: Parameters, blocks: Geometry, height: int, width: int, frames: int, pairs: int
    ) -> None:
        self.parameters, self.blocks = parameters, blocks
        self.levels = solver.pyramid_levels(height, width, parameters.scales, parameters.scale_step)
        spline = parameters.interpolation == "bspline"
        self.variant = Variant(
            GRADIENTS.index(parameters.gradient),
            spline,
            parameters.mask,
            parameters.edges > 0,
            parameters.median,
        )
        self.kernels = cuda.to_device(np.concatenate(KERNELS[parameters.interpolation]))
        self._make_taps()
        area = height * width
        self.images = [floats(frames * level.height * level.width) for level in self.levels]
        self.targets = (
            [floats(frames * level.height * level.width) for level in self.levels] if spline else self.images
        )
        self.flow = [floats(2 * pairs * area) for _ in range(2)]
        self.work = floats(max(WORK * pairs, frames) * area)
        large = any(not blocks.fits(level.height, level.width, self.variant) for level in self.levels)
        self.state = floats(2 * STATE * pairs * area if large else 1)
        self.constants = floats(self.variant.constants * pairs * area if large else 1)
        self.current = cuda.device_array(pairs, np.int32)
        self.moved = cuda.device_array(pairs * parameters.warps, np.int64)
        self.changes = cuda.device_array(pairs * parameters.iterations, np.int64)

    def _make_taps(self) -> None:
        step = self.parameters.scale_step
        taps: dict[tuple[str, int, int], DeviceTaps] = {}

        def table(kind: str, source: int, target: int) -> DeviceTaps:
            if (kind, source, target) not in taps:
                made = {
                    "shrink": lambda: bilinear_taps(source, target, 1 / step),
                    "enlarge": lambda: bilinear_taps(source, target, source / target),
                    "spline": lambda: filter_taps(source, SPLINE_PREFILTER),
                    "blur": lambda: filter_taps(source, gaussian(self.parameters.blur)),
                }[kind]()
                taps[kind, source, target] = upload_taps(*made)
            return taps[kind, source, target]

        def tables(
            kind: str, source: cpu.PyramidLevel, target: cpu.PyramidLevel
        ) -> tuple[DeviceTaps, DeviceTaps]:
            return table(kind, source.height, target.height), table(kind, source.width, target.width)

        steps = list(zip(self.levels, self.levels[1:], strict=False))
        self.shrink = [tables("shrink", fine, coarse) for fine, coarse in steps]
        self.enlarge = [tables("enlarge", coarse, fine) for fine, coarse in steps]
        self.prefilter = [tables("spline", level, level) for level in self.levels]
        self.blur = tables("blur", self.levels[0], self.levels[0]) if self.parameters.blur > 0 else None

    def prepare(self, frames: Any, stream: Any) -> None:
        """Queue the pyramids of device frames uint8[T,H,W], and what the warps interpolate."""
        count = frames.shape[0]
        levels = [
            images[: count * level.height * level.width].reshape(count, level.height, level.width)
            for images, level in zip(self.images, self.levels, strict=True)
        ]
        load_frames(frames, levels[0], 1.0, stream)
        if self.blur is not None:
            resample(levels[0], *self.blur, self.work, levels[0], 1.0, stream)
        for fine, coarse, taps in zip(levels, levels[1:], self.shrink, strict=False):
            resample(fine, *taps, self.work, coarse, 1.0, stream)
        if self.targets is not self.images:
            for images, targets, taps in zip(levels, self.targets, self.prefilter, strict=True):
                resample(images, *taps, self.work, targets[: images.size].reshape(images.shape), 1.0, stream)

    def solve(self, frames: Any, first: Any, second: Any, pairs: int, stream: Any) -> Any:
        """Queue the flow of `pairs` pairs; see `cuda.method.Solver.solve`."""
        self.prepare(frames, stream)
        coarsest = self.levels[-1]
        source, target = self.flow
        values = 2 * pairs * coarsest.height * coarsest.width
        clear.launch((-(-values // MEASURE_THREADS),), (MEASURE_THREADS,), stream, source, values)
        grow = 1 / self.parameters.scale_step
        for number in range(len(self.levels) - 1, -1, -1):
            level = self.levels[number]
            if self.blocks.fits(level.height, level.width, self.variant):
                self._refine_small(number, source, first, second, pairs, stream)
            else:
                self._refine_large(number, source, first, second, pairs, stream)
            if number > 0:
                finer = self.levels[number - 1]
                shapes = [(2 * pairs, size.height, size.width) for size in (level, finer)]
                fields = [
                    flow[: math.prod(shape)].reshape(shape)
                    for flow, shape in zip((source, target), shapes, strict=True)
                ]
                resample(fields[0], *self.enlarge[number - 1], self.work, fields[1], grow, stream)
                source, target = target, source
        height, width = frames.shape[1:]
        pixels = frames.shape[0] * height * width
        still.launch(
            (pairs,),
            (MEASURE_THREADS,),
            stream,
            frames.reshape(pixels),
            first,
            second,
            height * width,
            source,
        )
        return source

    def _refine_small(self, number: int, flow: Any, first: Any, second: Any, pairs: int, stream: Any) -> None:
        options, level, threads = self.parameters, self.levels[number], self.blocks.level_threads
        area = level.height * level.width
        make_refine(self.variant, threads).launch(
            (pairs,), (threads,), stream, self.images[number], self.targets[number], first, second, self.kernels, flow,
            self.work, level.height, level.width, options.warps, options.iterations, options.tau,
            options.tau / options.theta, options.lambda_ * options.theta, options.edges,
            sums.threshold(options.epsilon, area), sums.threshold(options.warp_stop, area),
            shared=4 * (STATE + self.variant.constants) * area,
        )  # fmt: skip

    def _refine_large(self, number: int, flow: Any, first: Any, second: Any, pairs: int, stream: Any) -> None:
        options, level, variant, blocks = self.parameters, self.levels[number], self.variant, self.blocks
        height, width = level.height, level.width
        area = height * width
        pixels = image_launch(height, width, pairs)
        dual_factor = options.tau / options.theta
        epsilon_sum, warp_sum = sums.threshold(options.epsilon, area), sums.threshold(options.warp_stop, area)
        check = cpu.BLOCKED if area > cpu.LARGE else 1
        across, down = blocks.tiles(height, width)
        most = sums.summand_limit(across * down * blocks.threads)
        strips = -(-area // (8 * MEASURE_THREADS))
        make_begin(variant.edges).launch(
            *pixels, stream, flow, self.images[number], first, self.state, self.constants, self.current, self.moved,
            self.changes, height, width, options.warps, options.iterations, dual_factor, options.edges,
        )  # fmt: skip
        for warp in range(options.warps):
            make_warp(variant).launch(
                *pixels, stream, self.state, self.targets[number], second, self.kernels, self.constants, self.work,
                self.current, self.moved, pairs, height, width, warp, options.warps, warp_sum,
            )  # fmt: skip
            make_linearise(variant).launch(
                *pixels, stream, self.images[number], first, self.constants, self.work, self.moved, height, width, warp,
                options.warps, options.lambda_ * options.theta, warp_sum,
            )  # fmt: skip
            # One launch more than the iterations take, for pairs that stop within the last.
            for launch in range(-(-options.iterations // blocks.halo) + 1):
                make_iterate(variant.edges, blocks).launch(
                    (across, down, pairs), (blocks.threads,), stream, self.state, self.constants, self.current,
                    self.moved, self.changes, launch, warp, options.warps, options.iterations, check, pairs, height,
                    width, options.tau, dual_factor, epsilon_sum, warp_sum, most, shared=blocks.tile_bytes,
                )  # fmt: skip
            make_decide(blocks.halo).launch(
                (pairs,), (DECIDE_THREADS,), stream, self.current, self.moved, self.changes, warp, options.warps,
                options.iterations, check, epsilon_sum, warp_sum,
            )  # fmt: skip
            if options.warp_stop > 0:
                measure.launch(
                    (strips, pairs), (MEASURE_THREADS,), stream, self.state, self.work, self.current, self.moved, pairs,
                    height, width, warp, options.warps, warp_sum, sums.summand_limit(strips * MEASURE_THREADS),
                )  # fmt: skip
        if options.median > 1:
            make_filter(options.median).launch(
                *pixels, stream, self.state, self.current, flow, pairs, height, width
            )
        else:
            take_flow.launch(
                (strips, pairs), (MEASURE_THREADS,), stream, self.state, self.current, flow, pairs, area
            )


def floats(count: int) -> Any:
    """Device float32[count]."""
    return cuda.device_array(count, np.float32)


def launches(parameters: Parameters, blocks: Geometry, height: int, width: int) -> int:
    """Kernel launches for a batch; see `Solver.solve`."""
    levels = solver.pyramid_levels(height, width, parameters.scales, parameters.scale_step)
    spline, blurred = parameters.interpolation == "bspline", parameters.blur > 0
    variant = Variant(0, spline, parameters.mask, parameters.edges > 0, parameters.median)
    count = 3 + 2 * blurred + 4 * (len(levels) - 1) + 2 * spline * len(levels)
    per_warp = 4 + -(-parameters.iterations // blocks.halo) + (parameters.warp_stop > 0)
    for level in levels:
        count += 1 if blocks.fits(level.height, level.width, variant) else 2 + parameters.warps * per_warp
    return count


def bytes_per_pair(parameters: Parameters, height: int, width: int) -> int:
    """Device bytes of a pair with a frame of its own: state, constants, work, flow, pyramids and levels."""
    pyramid = sum(
        level.height * level.width
        for level in solver.pyramid_levels(height, width, parameters.scales, parameters.scale_step)
    )
    planes = 2 * STATE + 5 + WORK + 4
    return 4 * (planes * height * width + 2 * pyramid) + 4 * height * width


def create(parameters: Parameters, device_name: str, blocks: Geometry | None = None) -> CudaMethod:
    """TV-L1 on a GPU.

    Args:
        parameters: the method's options.
        device_name: "auto", "cuda" or "cuda:N".
        blocks: how blocks cover levels; follows the GPU's shared memory unless given.

    Raises:
        InputError: there is no usable GPU, or not that one.
    """

    def make(height: int, width: int, frames: int, pairs: int) -> Solver:
        usual = SIMULATED_GEOMETRY if SIMULATED else geometry(device.shared_memory(), parameters.edges > 0)
        return Solver(parameters, blocks or usual, height, width, frames, pairs)

    size: Callable[[int, int], int] = functools.partial(bytes_per_pair, parameters)
    return CudaMethod("tvl1", parameters, device_name, make, size)
