"""The sweeps on an NVIDIA GPU: numba-cuda kernels and the order in which they run for a batch of pairs.

Every launch handles all pairs (or frames) of a batch; nothing returns to the host in between. The linear solver works
on *tiles* in shared memory, nine floats per pixel: u, v, both diffusivities, the five coefficients of the equations.

- A coarse level that fits one tile is solved by one block per pair in one launch, all warps included (`solve_level`).
- On finer levels a launch does a few SOR sweeps on overlapping tiles (`relax_tiles`). A tile is larger than what it
  writes by a halo of 2 sweeps + 1 pixels: wrong values enter from its rim by one pixel per half-sweep and do not reach
  the part that is written. Tiles read the flow of the launch before and write to another buffer. The equations are
  computed anew in every launch from the flow at the start of the inner iteration, which costs less than storing them.

In a tile, even columns of a row lie before odd ones, so that the pixels of one colour are adjacent and a warp's
accesses hit different banks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

from extract_flow.brox import rules, solver
from extract_flow.brox.parameters import Parameters
from extract_flow.cuda import device as devices
from extract_flow.cuda import images
from extract_flow.cuda.kernel import F4, FIELDS, I4, INTS, Kernel, image_launch
from extract_flow.cuda.method import CudaMethod
from extract_flow.resampling import Taps

STACKS = types.Array(types.float32, 4, "C")

CHANNELS = 6
"""Planes of a prepared frame's level: I, Ix, Iy, Ixx, Ixy, Iyy."""

TERMS = 8
"""Planes of the linearised data term: ix, iy, ixx, ixy, iyy and three constants (`rules.linearised`)."""

TILE_FLOATS = 9
"""Floats of shared memory per pixel of a tile."""

# Unsigned, as all positions in a tile: numba adds no wrap-around to an unsigned index.
U, V, SX, SY, STEP_U, STEP_V, COUPLING, RIGHT_U, RIGHT_V = (np.uint32(plane) for plane in range(TILE_FLOATS))

# As many threads as the registers allow; the simulator starts about a thousand a second.
TILE_BLOCK, TILE_REGISTERS = ((4, 2) if devices.SIMULATED else (32, 32)), 64
LEVEL_BLOCK, LEVEL_REGISTERS = ((4, 2) if devices.SIMULATED else (32, 24)), 80

device_function = cuda.jit(device=True, fastmath=True, inline="always")


# ---- frames ----
# A level is float32[6, T, H, W]. Threads of these kernels step over an image (`extract_flow.cuda.kernel.image_launch`).


@device_function
def derivative_x(plane, t, y, x, low):  # type: ignore[no-untyped-def]
    """Derivative of plane[t] along its row."""
    width = plane.shape[2]
    return rules.derivative(
        plane[t, y, rules.reflected(x - 2, width, low)],
        plane[t, y, rules.reflected(x - 1, width, low)],
        plane[t, y, rules.reflected(x + 1, width, low)],
        plane[t, y, rules.reflected(x + 2, width, low)],
    )


@device_function
def derivative_y(plane, t, y, x, low):  # type: ignore[no-untyped-def]
    """Derivative of plane[t] across its rows."""
    height = plane.shape[1]
    return rules.derivative(
        plane[t, rules.reflected(y - 2, height, low), x],
        plane[t, rules.reflected(y - 1, height, low), x],
        plane[t, rules.reflected(y + 1, height, low), x],
        plane[t, rules.reflected(y + 2, height, low), x],
    )


def _derive(source, by_x, by_y, low):  # type: ignore[no-untyped-def]
    """Derivatives of source[T, H, W]; see `rules.reflected` for low."""
    t = cuda.blockIdx.z
    first_x = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    first_y = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    for y in range(first_y, source.shape[1], cuda.gridDim.y * cuda.blockDim.y):
        for x in range(first_x, source.shape[2], cuda.gridDim.x * cuda.blockDim.x):
            by_x[t, y, x] = derivative_x(source, t, y, x, low)
            by_y[t, y, x] = derivative_y(source, t, y, x, low)


# ---- the data term ----


@device_function
def linearise_pixel(level, first, second, x, y, u, v, mirror, data, pair):  # type: ignore[no-untyped-def]
    """Warp the second frame to one pixel by (u, v) and write the data term linearised there."""
    height, width = level.shape[2], level.shape[3]
    target_x, target_y = np.float32(x) + u, np.float32(y) + v
    if mirror == 0 and not rules.in_frame(target_x, target_y, width, height):
        for term in range(TERMS):
            data[pair, term, y, x] = np.float32(0)
        return
    target_x, target_y = rules.near_frame(target_x, width), rules.near_frame(target_y, height)
    # Conversion truncates: shifted into the positive range it is the floor.
    left, top = int(target_x + np.float32(width)) - width, int(target_y + np.float32(height)) - height
    a, b, c, d = rules.bilinear(target_x - np.float32(left), target_y - np.float32(top))
    right, bottom = rules.reflected(left + 1, width, 0), rules.reflected(top + 1, height, 0)
    left, top = rules.reflected(left, width, 0), rules.reflected(top, height, 0)
    value = blended(level, 0, second, top, bottom, left, right, a, b, c, d)
    ix = blended(level, 1, second, top, bottom, left, right, a, b, c, d)
    iy = blended(level, 2, second, top, bottom, left, right, a, b, c, d)
    ixx = blended(level, 3, second, top, bottom, left, right, a, b, c, d)
    ixy = blended(level, 4, second, top, bottom, left, right, a, b, c, d)
    iyy = blended(level, 5, second, top, bottom, left, right, a, b, c, d)
    data[pair, 0, y, x] = ix
    data[pair, 1, y, x] = iy
    data[pair, 2, y, x] = ixx
    data[pair, 3, y, x] = ixy
    data[pair, 4, y, x] = iyy
    data[pair, 5, y, x] = rules.linearised(value - level[0, first, y, x], ix, iy, u, v)
    data[pair, 6, y, x] = rules.linearised(ix - level[1, first, y, x], ixx, ixy, u, v)
    data[pair, 7, y, x] = rules.linearised(iy - level[2, first, y, x], ixy, iyy, u, v)


@device_function
def blended(level, channel, t, top, bottom, left, right, a, b, c, d):  # type: ignore[no-untyped-def]
    """Weighted mean of four pixels of a plane."""
    upper = a * level[channel, t, top, left] + b * level[channel, t, top, right]
    return upper + c * level[channel, t, bottom, left] + d * level[channel, t, bottom, right]


def _linearise(level, first, second, flow, mirror, data):  # type: ignore[no-untyped-def]
    """The data term of every pixel: level float32[6, T, H, W], flow [2, n, H, W], data [n, 8, H, W]."""
    pair = cuda.blockIdx.z
    start_x = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    start_y = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    for y in range(start_y, flow.shape[2], cuda.gridDim.y * cuda.blockDim.y):
        for x in range(start_x, flow.shape[3], cuda.gridDim.x * cuda.blockDim.x):
            u, v = flow[0, pair, y, x], flow[1, pair, y, x]
            linearise_pixel(level, first[pair], second[pair], x, y, u, v, mirror, data, pair)


# ---- tiles ----
# A tile of tile_width (even) x tile_height pixels has its corner at (x0, y0) of the frame and may reach beyond it.
# Threads (columns, rows) take pixels in turn; every function below is called by all threads of the block.


@device_function
def place(tx, ty, tile_width):  # type: ignore[no-untyped-def]
    """Where pixel (tx, ty) of a tile lies within each of its planes."""
    return np.uint32(ty * tile_width + (tx & 1) * (tile_width >> 1) + (tx >> 1))


@device_function
def place_west(tx, ty, tile_width):  # type: ignore[no-untyped-def]
    """The place of pixel (tx - 1, ty); that of (tx + 1, ty) is one further."""
    odd = tx & 1
    return np.uint32(ty * tile_width + (1 - odd) * (tile_width >> 1) + (tx >> 1) + odd - 1)


@device_function
def load_flow(tile, area, flow, pair, x0, y0, tile_width, tile_height):  # type: ignore[no-untyped-def]
    """Fill planes U and V of the tile; beyond the frame with the nearest pixel."""
    height, width = flow.shape[2], flow.shape[3]
    for ty in range(cuda.threadIdx.y, tile_height, cuda.blockDim.y):
        y = min(max(y0 + ty, 0), height - 1)
        for tx in range(cuda.threadIdx.x, tile_width, cuda.blockDim.x):
            x = min(max(x0 + tx, 0), width - 1)
            n = place(tx, ty, tile_width)
            tile[U * area + n] = flow[0, pair, y, x]
            tile[V * area + n] = flow[1, pair, y, x]


@device_function
def mirror_rim(tile, area, x0, y0, tile_width, tile_height, width, height):  # type: ignore[no-untyped-def]
    """Refresh U and V beyond the frame from the frame's edge (`load_flow` without the load)."""
    for ty in range(cuda.threadIdx.y, tile_height, cuda.blockDim.y):
        y = min(max(y0 + ty, 0), height - 1)
        for tx in range(cuda.threadIdx.x, tile_width, cuda.blockDim.x):
            x = min(max(x0 + tx, 0), width - 1)
            if x != x0 + tx or y != y0 + ty:
                n, edge = place(tx, ty, tile_width), place(x - x0, y - y0, tile_width)
                tile[U * area + n] = tile[U * area + edge]
                tile[V * area + n] = tile[V * area + edge]


@device_function
def diffusivities(tile, area, x0, y0, tile_width, tile_height, width, height):  # type: ignore[no-untyped-def]
    """Planes SX and SY from U and V, everywhere but on the tile's outermost pixels; 0 across the frame's border."""
    quarter = np.float32(0.25)
    for ty in range(1 + cuda.threadIdx.y, tile_height - 1, cuda.blockDim.y):
        y = y0 + ty
        for tx in range(1 + cuda.threadIdx.x, tile_width - 1, cuda.blockDim.x):
            x = x0 + tx
            here, west = place(tx, ty, tile_width), place_west(tx, ty, tile_width)
            east = west + np.uint32(1)
            row = np.uint32(tile_width)
            across_x = tile[U * area + here] - tile[U * area + west]
            across_y = tile[V * area + here] - tile[V * area + west]
            along_x = (
                tile[U * area + here + row] + tile[U * area + west + row]
                - tile[U * area + here - row] - tile[U * area + west - row]
            )  # fmt: skip
            along_y = (
                tile[V * area + here + row] + tile[V * area + west + row]
                - tile[V * area + here - row] - tile[V * area + west - row]
            )  # fmt: skip
            value = rules.diffusivity(across_x, quarter * along_x, across_y, quarter * along_y)
            inside = y >= 0 and y < height and x > 0 and x < width
            tile[SX * area + here] = value if inside else np.float32(0)
            across_x = tile[U * area + here] - tile[U * area + here - row]
            across_y = tile[V * area + here] - tile[V * area + here - row]
            along_x = (
                tile[U * area + east] + tile[U * area + east - row]
                - tile[U * area + west] - tile[U * area + west - row]
            )  # fmt: skip
            along_y = (
                tile[V * area + east] + tile[V * area + east - row]
                - tile[V * area + west] - tile[V * area + west - row]
            )  # fmt: skip
            value = rules.diffusivity(across_x, quarter * along_x, across_y, quarter * along_y)
            inside = x >= 0 and x < width and y > 0 and y < height
            tile[SY * area + here] = value if inside else np.float32(0)


@device_function
def equations(tile, area, data, pair, x0, y0, tile_width, tile_height, gamma, half_inverse_alpha, relaxation):  # type: ignore[no-untyped-def]
    """The five coefficient planes at the flow in U and V; beyond the frame nothing moves."""
    height, width = data.shape[2], data.shape[3]
    row = np.uint32(tile_width)
    for ty in range(1 + cuda.threadIdx.y, tile_height - 2, cuda.blockDim.y):
        y = y0 + ty
        for tx in range(1 + cuda.threadIdx.x, tile_width - 2, cuda.blockDim.x):
            x = x0 + tx
            here = place(tx, ty, tile_width)
            step_u, step_v, coupling = np.float32(0), np.float32(0), np.float32(0)
            right_u, right_v = np.float32(0), np.float32(0)
            if x >= 0 and x < width and y >= 0 and y < height:
                smoothness = (
                    tile[SX * area + here] + tile[SX * area + place_west(tx, ty, tile_width) + np.uint32(1)]
                    + tile[SY * area + here] + tile[SY * area + here + row]
                )  # fmt: skip
                diagonal_u, diagonal_v, coupling, right_u, right_v = rules.data_equations(
                    data[pair, 0, y, x], data[pair, 1, y, x], data[pair, 5, y, x],
                    data[pair, 2, y, x], data[pair, 3, y, x], data[pair, 4, y, x],
                    data[pair, 6, y, x], data[pair, 7, y, x],
                    tile[U * area + here], tile[V * area + here], gamma, half_inverse_alpha,
                )  # fmt: skip
                step_u, step_v = rules.step_sizes(diagonal_u, diagonal_v, smoothness, relaxation)
            tile[STEP_U * area + here] = step_u
            tile[STEP_V * area + here] = step_v
            tile[COUPLING * area + here] = coupling
            tile[RIGHT_U * area + here] = right_u
            tile[RIGHT_V * area + here] = right_v


@device_function
def relax(tile, area, sweeps, x0, y0, tile_width, tile_height, relaxation):  # type: ignore[no-untyped-def]
    """Red-black SOR sweeps on U and V; the tile's outermost pixels keep their values."""
    keep = np.float32(1) - relaxation
    half_width = tile_width >> 1
    row = np.uint32(tile_width)
    for half in range(2 * sweeps):
        for ty in range(1 + cuda.threadIdx.y, tile_height - 2, cuda.blockDim.y):
            odd = (half + x0 + y0 + ty) & 1
            for k in range(cuda.threadIdx.x, half_width, cuda.blockDim.x):
                tx = 2 * k + odd
                if tx >= 1 and tx < tile_width - 2:
                    here, west = place(tx, ty, tile_width), place_west(tx, ty, tile_width)
                    east, north, south = west + np.uint32(1), here - row, here + row
                    s_west, s_east = tile[SX * area + here], tile[SX * area + east]
                    s_north, s_south = tile[SY * area + here], tile[SY * area + south]
                    around_u = (
                        s_west * tile[U * area + west] + s_east * tile[U * area + east]
                        + s_north * tile[U * area + north] + s_south * tile[U * area + south]
                    )  # fmt: skip
                    around_v = (
                        s_west * tile[V * area + west] + s_east * tile[V * area + east]
                        + s_north * tile[V * area + north] + s_south * tile[V * area + south]
                    )  # fmt: skip
                    u, v, coupling = (
                        tile[U * area + here],
                        tile[V * area + here],
                        tile[COUPLING * area + here],
                    )
                    u = rules.relaxed(
                        u,
                        keep,
                        tile[STEP_U * area + here],
                        around_u,
                        tile[RIGHT_U * area + here],
                        coupling,
                        v,
                    )
                    v = rules.relaxed(
                        v,
                        keep,
                        tile[STEP_V * area + here],
                        around_v,
                        tile[RIGHT_V * area + here],
                        coupling,
                        u,
                    )
                    tile[U * area + here] = u
                    tile[V * area + here] = v
        cuda.syncthreads()


@functools.cache
def make_relax_tiles(capacity: int) -> Kernel:
    """The kernel for tiles of at most `capacity` pixels; a constant, so that planes lie at constant offsets."""
    area = np.uint32(capacity)

    def relax_tiles(  # type: ignore[no-untyped-def]
        data,
        start,
        current,
        target,
        halo,
        tile_width,
        tile_height,
        sweeps,
        gamma,
        half_inverse_alpha,
        relaxation,
    ):
        """`sweeps` SOR sweeps of one inner iteration on overlapping tiles, one block each; blockIdx.z is the pair.

        data float32[n, 8, H, W]; start, current, target float32[2, n, H, W]: the flow at the start of the inner
        iteration (for the equations), after the sweeps so far (the same array at first), and after these (another).
        """
        tile = cuda.shared.array(0, types.float32)
        pair = cuda.blockIdx.z
        height, width = target.shape[2], target.shape[3]
        x0 = cuda.blockIdx.x * (tile_width - 2 * halo) - halo
        y0 = cuda.blockIdx.y * (tile_height - 2 * halo) - halo
        load_flow(tile, area, start, pair, x0, y0, tile_width, tile_height)
        cuda.syncthreads()
        diffusivities(tile, area, x0, y0, tile_width, tile_height, width, height)
        cuda.syncthreads()
        equations(
            tile, area, data, pair, x0, y0, tile_width, tile_height, gamma, half_inverse_alpha, relaxation
        )
        cuda.syncthreads()
        load_flow(tile, area, current, pair, x0, y0, tile_width, tile_height)
        cuda.syncthreads()
        relax(tile, area, sweeps, x0, y0, tile_width, tile_height, relaxation)
        for ty in range(halo + cuda.threadIdx.y, tile_height - halo, cuda.blockDim.y):
            y = y0 + ty
            for tx in range(halo + cuda.threadIdx.x, tile_width - halo, cuda.blockDim.x):
                x = x0 + tx
                if x < width and y < height:
                    n = place(tx, ty, tile_width)
                    target[0, pair, y, x] = tile[U * area + n]
                    target[1, pair, y, x] = tile[V * area + n]

    return Kernel(
        relax_tiles, STACKS, STACKS, STACKS, STACKS, I4, I4, I4, I4, F4, F4, F4, registers=TILE_REGISTERS
    )


@functools.cache
def make_solve_level(capacity: int) -> Kernel:
    """The kernel for levels whose tile has at most `capacity` pixels; see `make_relax_tiles`."""
    area = np.uint32(capacity)

    def solve_level(  # type: ignore[no-untyped-def]
        level, first, second, flow, data, tile_width, tile_height, warps, inner, sweeps, mirror,
        gamma, half_inverse_alpha, relaxation,
    ):  # fmt: skip
        """All of a level that fits one tile, one block per pair: flow float32[2, n, H, W] is start and result."""
        tile = cuda.shared.array(0, types.float32)
        pair = cuda.blockIdx.x
        height, width = flow.shape[2], flow.shape[3]
        load_flow(tile, area, flow, pair, -1, -1, tile_width, tile_height)
        cuda.syncthreads()
        for _ in range(warps):
            for y in range(cuda.threadIdx.y, height, cuda.blockDim.y):
                for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                    n = place(x + 1, y + 1, tile_width)
                    u, v = tile[U * area + n], tile[V * area + n]
                    linearise_pixel(level, first[pair], second[pair], x, y, u, v, mirror, data, pair)
            for _ in range(inner):
                mirror_rim(tile, area, -1, -1, tile_width, tile_height, width, height)
                cuda.syncthreads()
                diffusivities(tile, area, -1, -1, tile_width, tile_height, width, height)
                cuda.syncthreads()
                equations(
                    tile,
                    area,
                    data,
                    pair,
                    -1,
                    -1,
                    tile_width,
                    tile_height,
                    gamma,
                    half_inverse_alpha,
                    relaxation,
                )
                cuda.syncthreads()
                relax(tile, area, sweeps, -1, -1, tile_width, tile_height, relaxation)
        for y in range(cuda.threadIdx.y, height, cuda.blockDim.y):
            for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                n = place(x + 1, y + 1, tile_width)
                flow[0, pair, y, x] = tile[U * area + n]
                flow[1, pair, y, x] = tile[V * area + n]

    return Kernel(
        solve_level, STACKS, INTS, INTS, STACKS, STACKS, I4, I4, I4, I4, I4, I4, F4, F4, F4,
        registers=LEVEL_REGISTERS,
    )  # fmt: skip


def _interleave(planes, flow):  # type: ignore[no-untyped-def]
    """flow[n, 2, H, W] from planes[2, n, H, W]."""
    pair = cuda.blockIdx.z
    start_x = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    start_y = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    for y in range(start_y, flow.shape[2], cuda.gridDim.y * cuda.blockDim.y):
        for x in range(start_x, flow.shape[3], cuda.gridDim.x * cuda.blockDim.x):
            flow[pair, 0, y, x] = planes[0, pair, y, x]
            flow[pair, 1, y, x] = planes[1, pair, y, x]


derive_kernel = Kernel(_derive, FIELDS, FIELDS, FIELDS, I4)
linearise_kernel = Kernel(_linearise, STACKS, INTS, INTS, STACKS, I4, STACKS)
interleave_kernel = Kernel(_interleave, STACKS, STACKS)


def kernels(shared_memory: int) -> dict[str, Kernel]:
    """Every kernel of this module by name, for devices with so many bytes of shared memory for a block."""
    capacity = tile_capacity(shared_memory)
    return {
        "derive": derive_kernel,
        "linearise": linearise_kernel,
        "relax_tiles": make_relax_tiles(capacity),
        "solve_level": make_solve_level(capacity),
        "interleave": interleave_kernel,
    }


# ---- the plan: tiles and launches of a level ----


class LevelPlan(NamedTuple):
    """How a level is solved; `launches` are the sweeps of each launch of an inner iteration, none for `solve_level`."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    launches: tuple[int, ...]

    def grid(self, sweeps: int) -> tuple[int, int]:
        """Tiles in x and y of a launch of so many sweeps."""
        halo = halo_of(sweeps)
        return (
            -(-self.width // (self.tile_width - 2 * halo)),
            -(-self.height // (self.tile_height - 2 * halo)),
        )


def tile_capacity(shared_memory: int) -> int:
    """Pixels of a tile that fit so many bytes."""
    return shared_memory // (4 * TILE_FLOATS)


def halo_of(sweeps: int) -> int:
    """Pixels that a tile needs beyond what it writes: one per half-sweep, and one for the diffusivities."""
    return 2 * sweeps + 1


LAUNCH_COST = 3.0
"""Loading a tile and computing its equations, in sweeps over it (a count of operations, see docs)."""


def plan_level(width: int, height: int, sweeps: int, shared_memory: int) -> LevelPlan:
    """The tile and the launches that cost least on a device with so many bytes of shared memory for one block."""
    pixels = tile_capacity(shared_memory)
    whole_width, whole_height = width + 3 + (width + 3) % 2, height + 3
    if whole_width * whole_height <= pixels:
        return LevelPlan(width, height, whole_width, whole_height, ())
    best: tuple[float, LevelPlan] | None = None
    for tile_width in (32, 64, 96, 128):
        tile_height = min(pixels // tile_width, height + 2 * halo_of(sweeps))
        for most in range(1, sweeps + 1):
            halo = halo_of(most)
            if tile_width <= 2 * halo or tile_height <= 2 * halo:
                break
            count = -(-sweeps // most)
            launches = tuple(sweeps // count + (index < sweeps % count) for index in range(count))
            plan = LevelPlan(width, height, tile_width, tile_height, launches)
            cost = sum(plan.grid(part)[0] * plan.grid(part)[1] * (LAUNCH_COST + part) for part in launches)
            cost *= tile_width * tile_height
            if best is None or cost < best[0]:
                best = cost, plan
    if best is None:
        raise ValueError(f"{shared_memory} bytes of shared memory hold no tile")
    return best[1]


# ---- batches ----


class BroxSolver:
    """Device buffers for batches of one size of frame, and the launches (`extract_flow.cuda.method.Solver`).

    Args:
        parameters: options of the method.
        height, width: of the frames.
        frames, pairs: most of each in a batch.
        shared_memory: bytes of shared memory for a block; None for what the current GPU has.
    """

    def __init__(
        self,
        parameters: Parameters,
        height: int,
        width: int,
        frames: int,
        pairs: int,
        shared_memory: int | None = None,
    ) -> None:
        self.parameters = parameters
        self.sizes = solver.level_sizes(width, height, parameters.scale, parameters.outer_iterations)
        memory = devices.shared_memory() if shared_memory is None else shared_memory
        self.plans = [plan_level(*size, parameters.solver_iterations, memory) for size in self.sizes]
        self._capacity = tile_capacity(memory)
        area = height * width
        self._levels = [cuda.device_array(CHANNELS * frames * w * h, np.float32) for w, h in self.sizes]
        self._flows = [cuda.device_array(2 * pairs * area, np.float32) for _ in range(3)]
        self._data = cuda.device_array(TERMS * pairs * area, np.float32)
        self._rows = cuda.device_array(max(frames, pairs) * area, np.float32)
        self._zero = cuda.to_device(np.zeros(2 * pairs * self.sizes[-1][0] * self.sizes[-1][1], np.float32))
        # Tables of all resamplings, so that solving waits for no upload.
        whole, shrunk = self.sizes[0], list(zip(self.sizes, self.sizes[1:], strict=False))
        self._blur = [_upload(solver.blur(size, parameters.blur)) for size in whole]
        self._shrink = [
            [_upload(solver.shrink(fine[axis], coarse[axis], parameters)) for axis in range(2)]
            for fine, coarse in shrunk
        ]
        enlarged = [
            [solver.enlarge(coarse[axis], fine[axis], parameters) for axis in range(2)]
            for fine, coarse in shrunk
        ]
        self._enlarge = [[_upload(taps) for taps, _ in axes] for axes in enlarged]
        self._ratios = [[ratio for _, ratio in axes] for axes in enlarged]

    def solve(self, frames: Any, first: Any, second: Any, pairs: int, stream: Any) -> Any:
        """Queue the flow of pairs (`extract_flow.cuda.method.Solver.solve`)."""
        parameters = self.parameters
        levels = self._prepare(frames, stream)
        half_inverse_alpha = np.float32(0.5 / parameters.alpha)
        weights = parameters.gamma, half_inverse_alpha, parameters.relaxation
        mirror = parameters.border == "mirror"
        tile_bytes = 4 * TILE_FLOATS * self._capacity
        current = 0
        for index in reversed(range(len(self.sizes))):
            (width, height), plan, level = self.sizes[index], self.plans[index], levels[index]
            flows = [_view(flow, (2, pairs, height, width)) for flow in self._flows]
            data = _view(self._data, (pairs, TERMS, height, width))
            if index + 1 == len(self.sizes):
                flows[current].copy_to_device(_view(self._zero, flows[current].shape), stream=stream)
            else:
                coarse_width, coarse_height = self.sizes[index + 1]
                coarse = _view(self._flows[current], (2, pairs, coarse_height, coarse_width))
                current = (current + 1) % 3
                across, down = self._enlarge[index]
                for component, ratio in enumerate(self._ratios[index]):
                    images.resample(
                        coarse[component], down, across, self._rows, flows[current][component], ratio, stream
                    )
            if not plan.launches:
                make_solve_level(self._capacity).launch(
                    (pairs,), LEVEL_BLOCK, stream, level, first, second, flows[current], data,
                    plan.tile_width, plan.tile_height, parameters.warps, parameters.inner_iterations,
                    parameters.solver_iterations, mirror, *weights, shared=tile_bytes,
                )  # fmt: skip
                continue
            for _ in range(parameters.warps):
                linearise_kernel.launch(
                    *image_launch(height, width, pairs),
                    stream,
                    level,
                    first,
                    second,
                    flows[current],
                    mirror,
                    data,
                )
                for _ in range(parameters.inner_iterations):
                    start = current
                    for sweeps in plan.launches:
                        target = next(free for free in range(3) if free not in (start, current))
                        make_relax_tiles(self._capacity).launch(
                            (*plan.grid(sweeps), pairs), TILE_BLOCK, stream,
                            data, flows[start], flows[current], flows[target],
                            halo_of(sweeps), plan.tile_width, plan.tile_height, sweeps, *weights,
                            shared=tile_bytes,
                        )  # fmt: skip
                        current = target
        width, height = self.sizes[0]
        result = self._flows[(current + 1) % 3]
        interleave_kernel.launch(
            *image_launch(height, width, pairs), stream,
            _view(self._flows[current], (2, pairs, height, width)), _view(result, (pairs, 2, height, width)),
        )  # fmt: skip
        return result

    def _prepare(self, frames: Any, stream: Any) -> list[Any]:
        """Levels of device frames uint8[T, H, W], each float32[6, T, H, W] of I (0..1), Ix, Iy, Ixx, Ixy, Iyy."""
        count = frames.shape[0]
        low = 2 if self.parameters.pyramid == "opencv" else 0
        levels: list[Any] = []
        for index, (width, height) in enumerate(self.sizes):
            level = _view(self._levels[index], (CHANNELS, count, height, width))
            if index:
                across, down = self._shrink[index - 1]
                images.resample(levels[-1][0], down, across, self._rows, level[0], 1.0, stream)
            else:
                images.load_frames(frames, level[0], 1 / 255, stream)
                if self.parameters.blur > 0:
                    across, down = self._blur
                    images.resample(level[0], down, across, self._rows, level[0], 1.0, stream)
            launch = image_launch(height, width, count)
            # Derivatives of Ix and Iy; that of Ix across rows would be Ixy once more and is overwritten by that of Iy.
            derive_kernel.launch(*launch, stream, level[0], level[1], level[2], low)
            derive_kernel.launch(*launch, stream, level[1], level[3], level[4], low)
            derive_kernel.launch(*launch, stream, level[2], level[4], level[5], low)
            levels.append(level)
        return levels


def _view(buffer: Any, shape: tuple[int, ...]) -> Any:
    """The start of a flat device buffer as an array of this shape."""
    return buffer[: int(np.prod(shape))].reshape(shape)


def _upload(taps: Taps) -> images.DeviceTaps:
    return images.upload_taps(taps.first, taps.weights)


def bytes_per_pair(parameters: Parameters, height: int, width: int) -> int:
    """Device memory for a pair whose frames are in no other pair."""
    sizes = solver.level_sizes(width, height, parameters.scale, parameters.outer_iterations)
    frame = CHANNELS * sum(w * h for w, h in sizes) + height * width
    return 4 * (2 * frame + (TERMS + 3 * 2) * height * width)


def create(parameters: Parameters, device: str) -> CudaMethod:
    """The method on a GPU ("cuda", "cuda:N").

    Raises:
        InputError: no usable GPU, or not that one.
    """
    return CudaMethod(
        "brox",
        parameters,
        device,
        functools.partial(BroxSolver, parameters),
        functools.partial(bytes_per_pair, parameters),
    )
