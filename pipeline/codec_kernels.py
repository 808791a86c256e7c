"""The codec's loops over pixels, compiled by numba; imported when first used, since numba takes a while to load."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

LARGEST_FINITE = np.finfo(np.float32).max


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def limited(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """The value within low..high, and low for NaN, so that what is computed from it is a valid index."""
    raised = value if value > low else low
    return raised if raised < high else high


@njit(cache=True, nogil=True, error_model="numpy")
def quantise_field(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    edges: npt.NDArray[np.float32],
    bins: npt.NDArray[np.uint8],
    lowest: np.float32,
    highest: np.float32,
    bins_per_unit: np.float32,
    unit: np.float32,
    limit: np.float32,
    x_levels: npt.NDArray[np.uint8],
    y_levels: npt.NDArray[np.uint8],
    sums: npt.NDArray[np.int64],
) -> int:
    """Levels and fixed-point sums of one field in one pass; returns the clipped pixels, or -1 if a value is not finite.

    A value's bin tells its level but for the one edge that may lie in that bin, so one comparison decides. Exact:
    binning is monotone, hence edges in lower bins are below the value and edges in higher bins above it.
    """
    clipped = 0
    finite = True
    x_sum = np.int64(0)
    y_sum = np.int64(0)
    for pixel in range(x.size):
        value = x[pixel]
        finite &= abs(value) <= LARGEST_FINITE
        x_sum += np.int64(np.rint(limited(value, -limit, limit) * unit))
        value = (value - offset[0]) / scale[0]
        inside = limited(value, lowest, highest)
        outside = inside != value
        level = bins[np.uint32((inside - lowest) * bins_per_unit)]
        x_levels[pixel] = level + (inside >= edges[level])

        value = y[pixel]
        finite &= abs(value) <= LARGEST_FINITE
        y_sum += np.int64(np.rint(limited(value, -limit, limit) * unit))
        value = (value - offset[1]) / scale[1]
        inside = limited(value, lowest, highest)
        outside |= inside != value
        level = bins[np.uint32((inside - lowest) * bins_per_unit)]
        y_levels[pixel] = level + (inside >= edges[level])
        clipped += outside
    sums[0] = x_sum
    sums[1] = y_sum
    return clipped if finite else -1


@njit(cache=True, nogil=True, error_model="numpy")
def look_up(
    levels: npt.NDArray[np.uint8], table: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """out[i] = table[levels[i]] over flat arrays."""
    for i in range(levels.size):
        out[i] = table[levels[i]]


@njit(cache=True, nogil=True, error_model="numpy")
def look_up_pairs(
    levels: npt.NDArray[np.uint16], table: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]
) -> None:
    """The same, two neighbouring levels at a time: `table` holds both values' bits for each pair of levels."""
    for i in range(levels.size):
        out[i] = table[levels[i]]
