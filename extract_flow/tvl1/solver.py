"""TV-L1 optical flow, coarse to fine: the algorithm, apart from the sweeps that carry it out.

Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007), in the discretisation of
OpenCV's CUDA version, which the field trained on. `rules.py` holds what happens at a pixel, `cpu.py` the sweeps.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from extract_flow.flow_method import FlowMethod
from extract_flow.tvl1 import cpu
from extract_flow.tvl1.interpolation import KERNELS, SPLINE_PREFILTER, gaussian
from extract_flow.tvl1.parameters import GRADIENTS, Parameters

Plane = npt.NDArray[np.float32]

NO_TAPS = np.zeros(0, np.float32)

SMALLEST_SIDE = 16
"""The pyramid ends before its smaller side would fall under this."""


def pyramid_levels(height: int, width: int, scales: int, step: float) -> list[cpu.PyramidLevel]:
    """Levels from fine to coarse; sizes are rounded as cv2.resize rounds them."""
    levels = [cpu.layout(height, width)]
    while scales == 0 or len(levels) < scales:
        height, width = round(height * step), round(width * step)
        if min(height, width) < SMALLEST_SIDE:
            break
        levels.append(cpu.layout(height, width))
    return levels


def visiting_order(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order in which consecutive pairs share frames: both directions together, chains of one step in a row."""
    first = pairs.min(axis=1)
    step = np.maximum(pairs.max(axis=1) - first, 1)
    return np.lexsort((first, first % step, step))


# --- the solver on one CPU thread ------------------------------------------------------------------------------------


class FrameFeatures:
    """Per frame: its pyramid, and what the warps interpolate (the spline's coefficients, or the pyramid itself)."""

    def __init__(self, levels: list[cpu.PyramidLevel], interpolation: str) -> None:
        self.images = [cpu.aligned(level.size) for level in levels]
        self.targets = (
            [cpu.aligned(level.size) for level in levels] if interpolation == "bspline" else self.images
        )
        self.frame = -1


class Solver:
    """Buffers for frames of one size, and the solver that works in them."""

    def __init__(self, parameters: Parameters, height: int, width: int) -> None:
        self.parameters = parameters
        self.levels = pyramid_levels(height, width, parameters.scales, parameters.scale_step)
        self.settings = cpu.Settings(
            np.float32(parameters.tau), np.float32(parameters.tau / parameters.theta),
            np.float32(parameters.lambda_ * parameters.theta), np.float32(parameters.edges), int(parameters.warps),
            float(parameters.warp_stop), float(parameters.epsilon), int(parameters.iterations), bool(parameters.mask),
            GRADIENTS.index(parameters.gradient), int(parameters.median),
        )  # fmt: skip
        self.planes = cpu.STEPS + 1 if parameters.edges > 0 else cpu.STEPS
        self.workspace = cpu.aligned(self.planes * max(level.size for level in self.levels))
        row = max(level.pitch for level in self.levels) + cpu.LANES
        self.scratch = cpu.aligned(cpu.SCRATCH_ROWS * row)
        self.index = np.zeros(row, np.int32)
        self.changes = np.zeros(cpu.BLOCKED)
        self.work = np.zeros(2)  # pixel-iterations and warped pixels so far, for benchmarks
        self.features = [FrameFeatures(self.levels, parameters.interpolation) for _ in range(2)]

    def forget_frames(self) -> None:
        """Frame numbers will mean other frames from now on."""
        for features in self.features:
            features.frame = -1

    def prepare(self, frames: npt.NDArray[np.uint8], number: int, keep: int) -> FrameFeatures:
        """Features of a frame, in the buffer that does not hold frame `keep`."""
        for features in self.features:
            if features.frame == number:
                return features
        features = self.features[1] if self.features[0].frame == keep else self.features[0]
        features.frame = number
        images, finest = features.images, self.levels[0]
        cpu.pixels(images[0], finest)[:] = frames[number]
        if self.parameters.blur > 0:
            source = self.workspace[: finest.size]
            source[:] = images[0]
            cpu.blur_image(source, images[0], finest, gaussian(self.parameters.blur), self.scratch)
        step = 1 / self.parameters.scale_step
        for image, coarser, fine, coarse in zip(
            images, images[1:], self.levels, self.levels[1:], strict=False
        ):
            cpu.shrink_image(image, fine, coarser, coarse, step, self.scratch, self.index)
        taps = SPLINE_PREFILTER if self.parameters.interpolation == "bspline" else NO_TAPS
        for image, target, level in zip(images, features.targets, self.levels, strict=True):
            cpu.make_target(image, target, level, taps, self.scratch)
        return features

    def solve(
        self, frames: npt.NDArray[np.uint8], first: int, second: int, flow: npt.NDArray[np.float32]
    ) -> None:
        """Flow between two of the frames into flow float32[2,H,W]; exactly zero where they are the same."""
        if np.array_equal(frames[first], frames[second]):
            flow[:] = 0
            return
        source, target = self.prepare(frames, first, second), self.prepare(frames, second, first)
        kernels = KERNELS[self.parameters.interpolation]
        coarser: cpu.PyramidLevel | None = None
        for number in range(len(self.levels) - 1, -1, -1):
            level = self.levels[number]
            planes = self.workspace[: self.planes * level.size].reshape(self.planes, level.size)
            if coarser is None:
                planes[:] = 0
            else:
                grow = np.float32(1 / self.parameters.scale_step)
                cpu.start_level(self.workspace, coarser, planes, level, grow, self.scratch, self.index)
            cpu.refine_level(
                planes, source.images[number], target.targets[number], level, *kernels, self.settings,
                self.scratch, self.index, self.changes, self.work,
            )  # fmt: skip
            coarser = level
        for component in (cpu.U1, cpu.U2):
            flow[component] = cpu.pixels(planes[component], level)


CHAIN = 4
"""Fewest pairs that a thread takes at once, so that they share frames."""


class TVL1(FlowMethod):
    """TV-L1 on the CPU; see `FlowMethod`."""

    name = "tvl1"
    device = "cpu"

    def __init__(self, parameters: Parameters, threads: int) -> None:
        self.settings = parameters
        self.parameters = dataclasses.asdict(parameters)
        self.threads = max(1, threads)
        self.solvers: list[Solver] = []

    def flow(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Flow of each pair: frames uint8[T,H,W], pairs int[n,2] of (from, to) -> float32[n,2,H,W] in pixels."""
        height, width = frames.shape[1:]
        flow = np.empty((len(pairs), 2, height, width), np.float32)
        if len(pairs) == 0:
            return flow
        if not self.solvers or self.solvers[0].levels[0][:2] != (height, width):
            self.solvers = []
        order = visiting_order(pairs)
        run = max(CHAIN, -(-len(order) // (8 * self.threads)))
        chains = iter([order[start : start + run] for start in range(0, len(order), run)])
        workers = min(self.threads, -(-len(order) // run))
        while len(self.solvers) < workers:
            self.solvers.append(Solver(self.settings, height, width))

        def work(solver: Solver) -> None:
            solver.forget_frames()
            for chain in chains:
                for pair in chain:
                    solver.solve(frames, int(pairs[pair, 0]), int(pairs[pair, 1]), flow[pair])

        if workers == 1:
            work(self.solvers[0])
        else:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(work, self.solvers[:workers]):
                    pass
        return flow
