"""Buffers of Brox on the device, and the order of its launches for a batch of pairs."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

from extract_flow.brox import rules, solver
from extract_flow.brox.parameters import Parameters
from extract_flow.cuda.device import Memory, Part, Stream, floats
from extract_flow.cuda.images import Resampling, Size, load_frames, resample, upload_taps
from extract_flow.cuda.kernels import SHARED, Kernels, Program, pixel_launch
from extract_flow.cuda.method import CudaMethod
from extract_flow.resampling import Taps

HERE = Path(__file__).parent
FILES = (
    *(SHARED / name for name in ("common.cuh", "images.cu", "tile.cuh")),
    *(HERE / name for name in ("data.cu", "relax.cu", "level.cu")),
)
TILE, WARPS = 64, 16
"""Side of a tile in pixels and warps that share it, as in `tile.cuh`."""
TILE_THREADS = 32 * WARPS
CHANNELS, TERMS, EQUATIONS = 6, 8, 7
"""Planes of a frame's level, of a pair's data term and of its equations, as in `data.cu` and `relax.cu`."""
SYSTEM_BLOCK, SYSTEM_THREADS = (64, 16), 256
"""Pixels and threads of a block that makes equations, as in `relax.cu`."""
LOAD_COST, SWEEP_COST = 60, 22
"""Instructions per pixel of a tile to load and store it, and of one sweep; counted by benchmarks/gpu_counts.py."""


def program(parameters: Parameters) -> Program:
    """The kernels for these parameters."""
    definitions = {
        "MIRROR": str(int(parameters.border == "mirror")),
        "EPSILON2": f"{float(rules.EPSILON2)!r}f",
        "TINY": f"{float(rules.TINY)!r}f",
    }
    return Program("brox", FILES, definitions)


def fits(size: Size) -> bool:
    """Whether one tile covers a level, so that a single block solves it."""
    return max(size) <= TILE


def halo(sweeps: int) -> int:
    """Pixels that a tile computes beyond those it writes: wrong values enter by one pixel in each half-sweep."""
    return 2 * sweeps


@functools.cache
def launches_of(sweeps: int) -> tuple[int, ...]:
    """The sweeps of each launch that together cost least per pixel that is written."""

    def cost(parts: tuple[int, ...]) -> float:
        return sum((LOAD_COST + SWEEP_COST * part) * (TILE / (TILE - 2 * halo(part))) ** 2 for part in parts)

    most = (TILE - 2) // 4  # sweeps that leave something to write
    choices = []
    for count in range(-(-sweeps // most), sweeps + 1):
        choices.append(tuple(sweeps // count + (index < sweeps % count) for index in range(count)))
    return min(choices, key=cost)


class BroxSolver:
    """Device buffers for batches of one size of frame, and the launches (`extract_flow.cuda.method.Solver`)."""

    def __init__(self, parameters: Parameters, kernels: Kernels, size: Size, frames: int, pairs: int) -> None:
        self.parameters, self.kernels = parameters, kernels
        self.sizes = level_sizes(parameters, size)
        self._levels = [floats(CHANNELS * frames * level.area) for level in self.sizes]
        self._flows = [floats(2 * pairs * size.area) for _ in range(2)]
        self._data = floats(TERMS * pairs * size.area)
        self._equations = floats(EQUATIONS * pairs * size.area)
        self._scratch = floats(max(frames, 2 * pairs) * size.height * self.sizes[0].pitch)
        steps = list(itertools.pairwise(self.sizes))
        self._blur = _resampling(
            size, size, solver.blur(size.height, parameters.blur), solver.blur(size.width, parameters.blur)
        )
        self._shrink = [
            _resampling(
                fine,
                coarse,
                solver.shrink(fine.height, coarse.height, parameters),
                solver.shrink(fine.width, coarse.width, parameters),
            )
            for fine, coarse in steps
        ]
        self._enlarge: list[tuple[Resampling, float, float]] = []
        for fine, coarse in steps:
            down, ratio_y = solver.enlarge(coarse.height, fine.height, parameters)
            across, ratio_x = solver.enlarge(coarse.width, fine.width, parameters)
            self._enlarge.append((_resampling(coarse, fine, down, across), ratio_x, ratio_y))

    def solve(
        self, frames: Memory, count: int, first: Memory, second: Memory, pairs: int, stream: Stream
    ) -> Memory:
        """Queue the flow of pairs (`extract_flow.cuda.method.Solver.solve`)."""
        options, kernels = self.parameters, self.kernels
        weights = options.gamma, 0.5 / options.alpha, options.relaxation
        self._prepare(frames, count, stream)
        flow, spare = self._flows
        for index in reversed(range(len(self.sizes))):
            size, level = self.sizes[index], self._levels[index]
            if index + 1 == len(self.sizes):
                stream.clear(flow, 8 * pairs * size.area)
            else:
                enlarge, ratio_x, ratio_y = self._enlarge[index]
                resample(kernels, stream, enlarge, flow, spare, self._scratch, 2 * pairs, ratio_x, ratio_y)
                flow, spare = spare, flow
            if fits(size):
                kernels.launch(
                    "solve_level", (pairs, 1, 1), (TILE_THREADS, 1, 1), stream, level, count, first, second, flow,
                    self._data, self._equations, options.warps, options.inner_iterations, options.solver_iterations,
                    *size, size.pitch, *weights,
                )  # fmt: skip
                continue
            for _ in range(options.warps):
                kernels.launch(
                    "linearise", *pixel_launch(*size, pairs), stream, level, count, first, second, flow, self._data,
                    *size, size.pitch,
                )  # fmt: skip
                for _ in range(options.inner_iterations):
                    kernels.launch(
                        "make_equations", system_blocks(size, pairs), (SYSTEM_THREADS, 1, 1), stream, flow, self._data,
                        self._equations, *size, size.pitch, *weights,
                    )  # fmt: skip
                    for sweeps in launches_of(options.solver_iterations):
                        kernels.launch(
                            "relax", (*tiles(size, sweeps), pairs), (TILE_THREADS, 1, 1), stream, self._equations, flow,
                            spare, sweeps, *size, size.pitch, options.relaxation,
                        )  # fmt: skip
                        flow, spare = spare, flow
        return flow

    def _prepare(self, frames: Memory, count: int, stream: Stream) -> None:
        """Queue the levels of the frames, each float32[6, count, height, pitch] of I (0..1), Ix, Iy, Ixx, Ixy, Iyy."""
        low = 2 if self.parameters.pyramid == "opencv" else 0
        for index, (size, level) in enumerate(zip(self.sizes, self._levels, strict=True)):
            if index:
                resample(
                    self.kernels, stream, self._shrink[index - 1], self._levels[index - 1], level, self._scratch, count
                )  # fmt: skip
            else:
                load_frames(self.kernels, stream, frames, level, size, count, 1 / 255)
                if self.parameters.blur > 0:
                    resample(self.kernels, stream, self._blur, level, level, self._scratch, count)
            channels = [Part(level, 4 * channel * count * size.area) for channel in range(CHANNELS)]
            # Derivatives of Ix and Iy; that of Ix across rows would be Ixy once more and is overwritten by that of Iy.
            for source, by_x, by_y in ((0, 1, 2), (1, 3, 4), (2, 4, 5)):
                self.kernels.launch(
                    "derive", *pixel_launch(*size, count), stream, channels[source], channels[by_x], channels[by_y],
                    low, *size, size.pitch,
                )  # fmt: skip


def tiles(size: Size, sweeps: int) -> tuple[int, int]:
    """Tiles in x and y of a launch of so many sweeps."""
    inner = TILE - 2 * halo(sweeps)
    return -(-size.width // inner), -(-size.height // inner)


def system_blocks(size: Size, count: int) -> tuple[int, int, int]:
    """Blocks of `SYSTEM_BLOCK` pixels that cover `count` images."""
    return -(-size.width // SYSTEM_BLOCK[0]), -(-size.height // SYSTEM_BLOCK[1]), count


def level_sizes(parameters: Parameters, size: Size) -> list[Size]:
    """The sizes of the pyramid, from fine to coarse."""
    levels = solver.level_sizes(size.width, size.height, parameters.scale, parameters.outer_iterations)
    return [Size(height, width) for width, height in levels]


def _resampling(source: Size, target: Size, down: Taps, across: Taps) -> Resampling:
    return Resampling(source, target, upload_taps(down), upload_taps(across))


def bytes_per_pair(parameters: Parameters, size: Size) -> int:
    """Device memory for a pair whose frames are in no other pair."""
    frame = 4 * CHANNELS * sum(level.area for level in level_sizes(parameters, size))
    planes = TERMS + EQUATIONS + 3 * 2
    return 2 * (frame + size.area) + (4 * planes + 2) * size.area


def create(parameters: Parameters, device: str) -> CudaMethod:
    """The method on a GPU ("cuda", "cuda:N").

    Raises:
        InputError: no usable GPU, or not that one; or the kernels cannot be compiled.
    """
    return CudaMethod(
        "brox",
        parameters,
        device,
        program(parameters),
        functools.partial(BroxSolver, parameters),
        functools.partial(bytes_per_pair, parameters),
    )
