"""Level sizes and the tap tables of every resampling: pyramid, prolongation and blur are separable and linear."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from extract_flow.brox.parameters import Parameters
from extract_flow.resampling import Taps, taps_of


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
    return taps_of(matrix, normalise=True)


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
    return taps_of(matrix, normalise=True)


def _area(source: int, target: int) -> Taps:
    """Mean over the source interval that each target pixel covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return taps_of(np.maximum(covered, 0), normalise=True)


def _linear(source: int, target: int) -> Taps:
    """Linear interpolation with shared centres; clamped at the border."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return taps_of(np.maximum(1 - np.abs(position[:, None] - np.arange(source)), 0), normalise=True)


def _catmull_rom(source: int, target: int, step: float) -> Taps:
    """OpenCV's nppStBicubic: Catmull-Rom at step * i, taps outside the source dropped (resizeBicubic there)."""
    position = (np.float32(step) * np.arange(target, dtype=np.float32)).astype(np.float64)
    distance = np.abs(position[:, None] - np.arange(source))
    near = distance**2 * (1.5 * distance - 2.5) + 1
    far = distance * (distance * (2.5 - 0.5 * distance) - 4) + 2
    return taps_of(np.where(distance <= 1, near, np.where(distance < 2, far, 0)), normalise=True)
