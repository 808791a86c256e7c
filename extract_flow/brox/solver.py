"""The method without its sweeps: parameters, level sizes, and the tap tables of every resampling.

Resampling (pyramid, prolongation, blur) is separable and linear, so each is two tables of taps; the sweeps in
`cpu.py` and `cuda.py` only apply them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from extract_flow.methods import option


@dataclass(frozen=True)
class Parameters:
    """Options of the method; the first six carry OpenCV's names (cv::cuda::BroxOpticalFlow).

    Raises:
        ValueError: a value outside its range.
    """

    alpha: float = option(0.197, "weight of the smoothness")
    gamma: float = option(50.0, "weight of gradient constancy against brightness constancy")
    scale: float = option(0.8, "size of a pyramid level relative to the next finer one")
    inner_iterations: int = option(3, "updates of the robust weights for each warp")
    outer_iterations: int = option(
        77, "most pyramid levels; fewer where a level's smaller side reaches 15 pixels"
    )
    solver_iterations: int = option(
        7, "sweeps of the linear solver (red-black SOR) for each update of the weights"
    )
    relaxation: float = option(1.95, "over-relaxation of the linear solver")
    warps: int = option(3, "warps of the second frame on each level")
    blur: float = option(0.6, "standard deviation in pixels of the blur before the pyramid; 0 for none")
    pyramid: str = option(
        "centred",
        "'centred': levels share their centre, area means down, linear up; 'opencv': OpenCV's resampling",
        ("centred", "opencv"),
    )
    border: str = option(
        "mask",
        "where the flow leads out of the frame: 'mask' drops the data term, 'mirror' reflects the frame (OpenCV)",
        ("mask", "mirror"),
    )

    def __post_init__(self) -> None:
        """Refuse values for which the method is not defined."""
        for name in ("alpha", "gamma", "scale", "relaxation", "blur"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, found {getattr(self, name)}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, found {self.alpha}")
        if self.gamma < 0:
            raise ValueError(f"gamma must be 0 or more, found {self.gamma}")
        if not 0.1 <= self.scale <= 0.95:
            raise ValueError(f"scale must be between 0.1 and 0.95, found {self.scale}")
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation must be between 0 and 2 (exclusive), found {self.relaxation}")
        if not 0 <= self.blur <= 10:
            raise ValueError(f"blur must be between 0 and 10 pixels, found {self.blur}")
        for name in ("inner_iterations", "outer_iterations", "solver_iterations", "warps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name, choices in (("pyramid", ("centred", "opencv")), ("border", ("mask", "mirror"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")


PRESETS = {
    "default": Parameters(),
    "accurate": Parameters(warps=6),
    "opencv": Parameters(
        inner_iterations=10,
        solver_iterations=10,
        relaxation=1.99,
        warps=1,
        blur=0.0,
        pyramid="opencv",
        border="mirror",
    ),
}
"""`opencv` reproduces cv::cuda::BroxOpticalFlow(0.197, 50, 0.8, 10, 77, 10); `accurate` takes about twice the time."""


class Taps(NamedTuple):
    """One dimension of a linear resampling: output i is the sum over k of weights[i, k] * input[first[i] + k].

    Attributes:
        first: int32[outputs]; first[i] + k stays inside the input for every k.
        weights: float32[outputs, taps], rows summing to 1.
    """

    first: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


def level_sizes(width: int, height: int, scale: float, most: int) -> list[tuple[int, int]]:
    """(width, height) of every level from the full size down, as OpenCV counts them.

    Level l is ceil(size * scale^l) in float32; a further one is added while both sides of the last exceed 15 pixels and
    there are fewer than `most`.
    """
    sizes = [(width, height)]
    factor = step = np.float32(scale)
    while min(sizes[-1]) > 15 and len(sizes) < most:
        sizes.append((math.ceil(np.float32(width) * factor), math.ceil(np.float32(height) * factor)))
        factor = factor * step
    return sizes


@lru_cache(maxsize=512)
def shrink(source: int, target: int, parameters: Parameters) -> Taps:
    """Taps that take one pyramid level to the next coarser one."""
    if parameters.pyramid == "opencv":
        return _supersample(source, target, parameters.scale)
    return _area(source, target)


@lru_cache(maxsize=512)
def enlarge(source: int, target: int, parameters: Parameters) -> tuple[Taps, float]:
    """Taps that take the flow to the next finer level, and the factor from coarse to fine pixels."""
    if parameters.pyramid == "opencv":
        ratio = float(np.float32(1) / np.float32(parameters.scale))
        return _catmull_rom(source, target, 1 / ratio), ratio
    return _linear(source, target), target / source


@lru_cache(maxsize=64)
def blur(size: int, sigma: float) -> Taps:
    """Taps of a Gaussian (cut at three standard deviations); the border reflects, edge pixels repeated."""
    radius = max(1, math.ceil(3 * sigma)) if sigma > 0 else 0
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        np.add.at(matrix, (np.arange(size), _mirror(np.arange(size) + offset, size)), weight)
    return _taps(matrix)


def _mirror(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Reflect indices into 0..size-1, edge pixels repeated."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def _supersample(source: int, target: int, scale: float) -> Taps:
    """OpenCV's nppStSupersample: the mean of a box of two source steps, corner-aligned.

    The last tap's weight is ceil(end) - end where end - floor(end) would be the covered part; kept, since the
    field's results were made with it (NPP_staging.cu, resizeSuperSample_32f).
    """
    step = np.float32(1) / np.float32(scale)
    position = step * np.arange(target, dtype=np.float32)
    begin = np.clip(position - step, 0, source - 1).astype(np.float32)
    end = np.clip(position + step, 0, source - 1).astype(np.float32)
    matrix = np.zeros((target, source))
    for row, (low, high) in enumerate(zip(begin, end, strict=True)):
        first, last = math.floor(low), math.ceil(high)
        matrix[row, first] = 1 - (low - first)
        matrix[row, first + 1 : last] = 1
        if last > first:
            matrix[row, last] = last - high
    return _taps(matrix)


def _area(source: int, target: int) -> Taps:
    """Mean over the source interval that each target pixel covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return _taps(np.maximum(covered, 0))


def _linear(source: int, target: int) -> Taps:
    """Linear interpolation with shared centres; clamped at the border."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return _taps(np.maximum(1 - np.abs(position[:, None] - np.arange(source)), 0))


def _catmull_rom(source: int, target: int, step: float) -> Taps:
    """OpenCV's nppStBicubic: Catmull-Rom at step * i, taps outside the source dropped (resizeBicubic there)."""
    position = (np.float32(step) * np.arange(target, dtype=np.float32)).astype(np.float64)
    distance = np.abs(position[:, None] - np.arange(source))
    near = distance**2 * (1.5 * distance - 2.5) + 1
    far = distance * (distance * (2.5 - 0.5 * distance) - 4) + 2
    return _taps(np.where(distance <= 1, near, np.where(distance < 2, far, 0)))


def _taps(matrix: npt.NDArray[np.float64]) -> Taps:
    """The non-zero window of every row of a resampling matrix, normalised to sum 1."""
    used = matrix != 0
    width = int((matrix.shape[1] - used[:, ::-1].argmax(1) - used.argmax(1)).max())
    first = np.minimum(used.argmax(1), matrix.shape[1] - width)
    weights = np.take_along_axis(matrix, first[:, None] + np.arange(width), axis=1)
    return Taps(first.astype(np.int32), (weights / weights.sum(1, keepdims=True)).astype(np.float32))
