"""Frames to float32 and separable linear resampling, for all frames or pairs of a batch at once.

A resampling of one dimension is a table of taps, as `extract_flow.resampling.Taps`: output i is the sum over k of
weights[i, k] * input[first[i] + k]. The host makes the tables, so any border rule is possible; the kernels have none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda, types

from extract_flow.cuda.kernel import F4, FIELDS, FLOATS, INTS, Kernel, image_launch


class DeviceTaps(NamedTuple):
    """A table of taps on the device: first int32[outputs], weights float32[outputs * taps], taps per output."""

    first: Any
    weights: Any
    outputs: int


def upload_taps(first: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> DeviceTaps:
    """Copy a table first int32[outputs], weights float32[outputs, taps] to the device."""
    flat = np.ascontiguousarray(weights, np.float32).ravel()
    return DeviceTaps(cuda.to_device(np.ascontiguousarray(first, np.int32)), cuda.to_device(flat), len(first))


def _load_frames(frames, scale, images):  # type: ignore[no-untyped-def]
    """images[n,H,W] = frames * scale; both [n,H,W]."""
    number = cuda.blockIdx.z
    for y in range(
        cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y,
        images.shape[1],
        cuda.gridDim.y * cuda.blockDim.y,
    ):
        for x in range(
            cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x,
            images.shape[2],
            cuda.gridDim.x * cuda.blockDim.x,
        ):
            images[number, y, x] = np.float32(frames[number, y, x]) * scale


def _resample_down(source, first, weights, target):  # type: ignore[no-untyped-def]
    """target[n,H',W] from source[n,H,W]."""
    number = cuda.blockIdx.z
    taps = weights.size // first.size
    for y in range(
        cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y,
        target.shape[1],
        cuda.gridDim.y * cuda.blockDim.y,
    ):
        start = first[y]
        for x in range(
            cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x,
            target.shape[2],
            cuda.gridDim.x * cuda.blockDim.x,
        ):
            total = np.float32(0)
            for k in range(taps):
                total += weights[y * taps + k] * source[number, start + k, x]
            target[number, y, x] = total


def _resample_across(source, first, weights, factor, target):  # type: ignore[no-untyped-def]
    """target[n,H,W'] from source[n,H,W], times factor."""
    number = cuda.blockIdx.z
    taps = weights.size // first.size
    for y in range(
        cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y,
        target.shape[1],
        cuda.gridDim.y * cuda.blockDim.y,
    ):
        for x in range(
            cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x,
            target.shape[2],
            cuda.gridDim.x * cuda.blockDim.x,
        ):
            start = first[x]
            total = np.float32(0)
            for k in range(taps):
                total += weights[x * taps + k] * source[number, y, start + k]
            target[number, y, x] = factor * total


load_kernel = Kernel(_load_frames, types.Array(types.uint8, 3, "C"), F4, FIELDS)
down_kernel = Kernel(_resample_down, FIELDS, INTS, FLOATS, FIELDS)
across_kernel = Kernel(_resample_across, FIELDS, INTS, FLOATS, F4, FIELDS)


def load_frames(frames: Any, images: Any, scale: float, stream: Any) -> None:
    """Device uint8[n,H,W] to device float32[n,H,W], times scale."""
    count, height, width = images.shape
    load_kernel.launch(*image_launch(height, width, count), stream, frames, scale, images)


def resample(
    source: Any, down: DeviceTaps, across: DeviceTaps, scratch: Any, target: Any, factor: float, stream: Any
) -> None:
    """Resample device float32[n,H,W] to [n,H',W'], times factor: columns first, then rows.

    Args:
        source: [n,H,W].
        down, across: tables with H' and W' outputs.
        scratch: flat float32, at least n*H'*W long.
        target: [n,H',W'], may be `source` where the sizes are the same.
        factor: what every value is multiplied by.
        stream: a numba stream.
    """
    count, _, width = source.shape
    rows = scratch[: count * down.outputs * width].reshape(count, down.outputs, width)
    down_kernel.launch(
        *image_launch(down.outputs, width, count), stream, source, down.first, down.weights, rows
    )
    across_kernel.launch(
        *image_launch(down.outputs, across.outputs, count),
        stream,
        rows,
        across.first,
        across.weights,
        factor,
        target,
    )
