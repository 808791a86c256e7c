"""TV-L1 optical flow, coarse to fine: the algorithm, apart from the sweeps that carry it out.

Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007), in the discretisation of
OpenCV's CUDA version, which the field trained on. `rules.py` holds what happens at a pixel, `cpu.py` the sweeps.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from extract_flow.methods import FlowMethod
from extract_flow.tvl1 import cpu
from pipeline.errors import InputError

Plane = npt.NDArray[np.float32]

SMALLEST_SIDE = 16
"""The pyramid ends before its smaller side would fall under this."""

GRADIENTS = ("target", "warped", "blended")
"""Names of `cpu.TARGET`, `cpu.WARPED_IMAGE` and `cpu.BLENDED`, in this order."""


def option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of `Parameters` with what the command line needs."""
    return field(default=default, metadata={"help": text, **({"choices": choices} if choices else {})})


@dataclass(frozen=True)
class Parameters:
    """Options of TV-L1; the defaults are the preset "default". Names that OpenCV has mean what they mean there."""

    tau: float = option(0.25, "time step of the dual update; above 0.25 it no longer converges")
    lambda_: float = option(0.15, "weight of the data term; smaller is smoother")
    theta: float = option(0.3, "coupling of the flow to its auxiliary copy")
    scales: int = option(
        0, "most pyramid levels; 0 goes on until the smaller side would fall under 16 pixels"
    )
    scale_step: float = option(0.8, "size of a level relative to the next finer one")
    warps: int = option(5, "most warps per level")
    epsilon: float = option(
        0.01, "iterations end when the RMS update of the flow falls below this, in pixels"
    )
    iterations: int = option(30, "most iterations per warp")
    warp_stop: float = option(
        0.1, "a level ends when a warp changed the flow by less RMS, in pixels; 0 never"
    )
    interpolation: str = option(
        "bspline", "how the target is interpolated: bspline, or cubic as in cv2.remap", ("bspline", "cubic")
    )
    gradient: str = option(
        "blended",
        "gradient of the warped image (warped), blended with the first frame's (blended), or the target's gradient, "
        "warped, as OpenCV (target)",
        GRADIENTS,
    )
    mask: bool = option(True, "drop the data term where the target lies outside the frame")
    blur: float = option(0.0, "sigma of the Gaussian that both frames are smoothed with first, in pixels")
    edges: float = option(
        0.0,
        "how far image edges loosen the smoothness, which weighs exp(-edges |image gradient|); 0 not at all",
    )
    median: int = option(1, "side of the median filter on the flow of each level: 1 (none), 3 or 5")

    def __post_init__(self) -> None:
        """Refuse values outside the method's range (ValueError)."""
        positive = {"tau": self.tau, "lambda": self.lambda_, "theta": self.theta, "warps": self.warps,
                    "iterations": self.iterations}  # fmt: skip
        for name, value in positive.items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, found {value}")
        for name, value in {"epsilon": self.epsilon, "warp-stop": self.warp_stop, "scales": self.scales,
                            "blur": self.blur, "edges": self.edges}.items():  # fmt: skip
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, found {value}")
        if self.tau > 0.25:
            raise ValueError(f"tau must be at most 0.25, or the iterations do not converge, found {self.tau}")
        if self.blur > 10:
            raise ValueError(f"blur must be at most 10 pixels, found {self.blur}")
        if not 0.2 <= self.scale_step <= 0.95:
            raise ValueError(f"scale-step must be between 0.2 and 0.95, found {self.scale_step}")
        if self.interpolation not in ("bspline", "cubic"):
            raise ValueError(f"interpolation must be bspline or cubic, found {self.interpolation!r}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, found {self.gradient!r}")
        if self.median not in (1, 3, 5):
            raise ValueError(f"median must be 1, 3 or 5, found {self.median}")


PRESETS = {
    "default": Parameters(),
    "field": Parameters(scales=5, iterations=300, warp_stop=0.0, interpolation="cubic", gradient="target", mask=False),
    "accurate": Parameters(
        lambda_=0.4, theta=0.35, warps=3, warp_stop=0.05, blur=0.5, edges=0.045, median=5
    ),
}  # fmt: skip


def pyramid_levels(height: int, width: int, scales: int, step: float) -> list[cpu.Level]:
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


# --- kernels: polynomials of the fraction, one per lane (see cpu.TAPS) ------------------------------------------------


def kernel(taps: list[list[float]]) -> tuple[Plane, Plane]:
    """Polynomials of the fraction (constant first) for value and derivative: [power, lane] each, flattened.

    `taps` has those of the four weights; the derivative is the centred difference of what they interpolate.
    It is OpenCV's, which warps centred differences of the image, and on Middlebury it is more accurate than the
    spline's own derivative.
    """
    value = np.zeros((4, cpu.TAPS))
    value[:, 1:5] = np.transpose(taps)
    slope = np.zeros((4, cpu.TAPS))
    slope[:, 1:] += value[:, :-1] / 2
    slope[:, :-1] -= value[:, 1:] / 2
    return value.astype(np.float32).ravel(), slope.astype(np.float32).ravel()


A = -0.75
"""Keys' parameter, that of cv2.remap; OpenCV's CUDA code has -0.5, which is less accurate (see docs)."""
CUBIC = [[0, A, -2 * A, A], [1, 0, -A - 3, A + 2], [0, -A, 2 * A + 3, -A - 2], [0, 0, A, -A]]
SPLINE = [
    [1 / 6, -1 / 2, 1 / 2, -1 / 6],
    [2 / 3, 0, -1, 1 / 2],
    [1 / 6, 1 / 2, 1 / 2, -1 / 2],
    [0, 0, 0, 1 / 6],
]
KERNELS = {"cubic": kernel(CUBIC), "bspline": kernel(SPLINE)}


def spline_prefilter() -> Plane:
    """Taps of the filter that turns pixels into cubic B-spline coefficients, cut where they fall below 1e-4."""
    pole = np.sqrt(3) - 2
    taps = -6 * pole / (1 - pole**2) * pole ** np.arange(8)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


def gaussian(sigma: float) -> Plane:
    """Taps of a normalised Gaussian, from the centre outwards."""
    radius = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


SPLINE_PREFILTER = spline_prefilter()


# --- the solver on one CPU thread ------------------------------------------------------------------------------------


class FrameFeatures:
    """Per frame: its pyramid, and what the warps interpolate (the spline's coefficients, or the pyramid itself)."""

    def __init__(self, levels: list[cpu.Level], interpolation: str) -> None:
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
            cpu.filter_plane(source, images[0], finest, gaussian(self.parameters.blur), self.scratch)
        step = 1 / self.parameters.scale_step
        for image, coarser, fine, coarse in zip(
            images, images[1:], self.levels, self.levels[1:], strict=False
        ):
            cpu.resize_plane(
                image, 0, fine, coarser, coarse, step, step, np.float32(1), self.scratch, self.index
            )
        for image, target, level in zip(images, features.targets, self.levels, strict=True):
            cpu.extend_border(image, level, False)
            if target is not image:
                cpu.filter_plane(image, target, level, SPLINE_PREFILTER, self.scratch)
                cpu.extend_border(target, level, True)
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
        coarser: cpu.Level | None = None
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


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """TV-L1 on the asked device; "auto" takes a usable GPU, else the CPU.

    Raises:
        InputError: an unknown device, or a GPU that was asked for by name and cannot be used.
    """
    if device == "cpu":
        return TVL1(parameters, threads)
    if device != "auto" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise InputError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:N")
    try:
        cuda = importlib.import_module("extract_flow.tvl1.cuda")
    except ImportError as error:
        if device == "auto":
            return TVL1(parameters, threads)
        raise InputError(
            f"tvl1 on {device}: the CUDA version cannot be loaded ({error}); "
            "install it with `pip install -e .[cuda]`, or use --device cpu"
        ) from error
    if device == "auto" and not cuda.available():
        return TVL1(parameters, threads)
    return cuda.create(parameters, device)
