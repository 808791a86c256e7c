"""Flow to levels and means on the device, bit for bit as `pipeline.codec.Quantiser.quantise` defines them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda, types

from extract_flow.cuda.device import SIMULATED
from extract_flow.cuda.kernel import BYTES, F4, FLOATS, INTS, LONGS, Kernel
from pipeline.codec import MEAN_LIMIT, MEAN_UNIT, Quantised, Quantiser

THREADS = 4 if SIMULATED else 512
LARGEST = np.float32(np.finfo(np.float32).max)
UNITS = np.float32(1 / MEAN_UNIT)
LIMIT = np.float32(MEAN_LIMIT)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


def _find_ranges(flow, pixels, ranges):  # type: ignore[no-untyped-def]
    """ranges[4 pair + 2 component] and the next are scale and offset of a component's own range; a block for each."""
    low = cuda.shared.array(THREADS, types.float32)
    high = cuda.shared.array(THREADS, types.float32)
    t, field = cuda.threadIdx.x, cuda.blockIdx.x
    smallest, largest = LARGEST, -LARGEST
    for i in range(t, pixels, THREADS):
        smallest = min(smallest, flow[field * pixels + i])
        largest = max(largest, flow[field * pixels + i])
    low[t] = smallest
    high[t] = largest
    cuda.syncthreads()
    if t == 0:
        for k in range(THREADS):
            smallest = min(smallest, low[k])
            largest = max(largest, high[k])
        scale = (largest - smallest) * HALF
        ranges[2 * field] = scale if scale != ZERO else ONE
        ranges[2 * field + 1] = (largest + smallest) * HALF


def _quantise(flow, pixels, edges, lowest, highest, ranges, levels, sums, counts):  # type: ignore[no-untyped-def]
    """Levels of a pair, its fixed-point sums[2] and counts[2] of clipped and of not finite pixels; a block for each."""
    ladder = cuda.shared.array(255, types.float32)
    x_sums = cuda.shared.array(THREADS, types.int64)
    y_sums = cuda.shared.array(THREADS, types.int64)
    clipped = cuda.shared.array(THREADS, types.int32)
    broken = cuda.shared.array(THREADS, types.int32)
    t, pair = cuda.threadIdx.x, cuda.blockIdx.x
    for i in range(t, 255, THREADS):
        ladder[i] = edges[i]
    cuda.syncthreads()
    x_sum, y_sum = np.int64(0), np.int64(0)
    outside_count, broken_count = np.int32(0), np.int32(0)
    for i in range(t, pixels, THREADS):
        outside = np.int32(0)
        for component in range(2):
            field = 2 * pair + component
            value = flow[field * pixels + i]
            if not abs(value) <= LARGEST:
                broken_count += np.int32(1)
                value = ZERO
            total = np.int64(round(min(max(value, -LIMIT), LIMIT) * UNITS))
            if component == 0:
                x_sum += total
            else:
                y_sum += total
            value = (value - ranges[2 * field + 1]) / ranges[2 * field]
            inside = min(max(value, lowest), highest)
            if inside != value:
                outside = np.int32(1)
            level, step = 0, 128
            while step > 0:
                if ladder[level + step - 1] <= inside:
                    level += step
                step //= 2
            levels[field * pixels + i] = np.uint8(level)
        outside_count += outside
    x_sums[t], y_sums[t] = x_sum, y_sum
    clipped[t], broken[t] = outside_count, broken_count
    cuda.syncthreads()
    if t == 0:
        for k in range(1, THREADS):
            x_sum += x_sums[k]
            y_sum += y_sums[k]
            outside_count += clipped[k]
            broken_count += broken[k]
        sums[2 * pair], sums[2 * pair + 1] = x_sum, y_sum
        counts[2 * pair], counts[2 * pair + 1] = outside_count, broken_count


# IEEE arithmetic: a level must not depend on how the device divides.
ranges_kernel = Kernel(_find_ranges, FLOATS, types.int32, FLOATS, fastmath=False)
quantise_kernel = Kernel(
    _quantise, FLOATS, types.int32, FLOATS, F4, F4, FLOATS, BYTES, LONGS, INTS, fastmath=False
)


class DeviceLevels(NamedTuple):
    """Device buffers for the levels of `pairs` pairs of `pixels` pixels."""

    levels: Any
    sums: Any
    counts: Any
    ranges: Any
    edges: Any


def allocate(pairs: int, pixels: int) -> DeviceLevels:
    """Buffers for `quantise`."""
    return DeviceLevels(
        cuda.device_array(pairs * 2 * pixels, np.uint8),
        cuda.device_array(pairs * 2, np.int64),
        cuda.device_array(pairs * 2, np.int32),
        cuda.device_array(pairs * 4, np.float32),
        cuda.device_array(255, np.float32),
    )


def quantise(
    flow: Any, pairs: int, pixels: int, quantiser: Quantiser, buffers: DeviceLevels, stream: Any
) -> None:
    """Queue the quantisation of device flow float32[pairs*2*pixels] into the buffers."""
    buffers.edges.copy_to_device(quantiser.edges, stream=stream)
    if quantiser.per_field:
        ranges_kernel.launch((2 * pairs,), (THREADS,), stream, flow, pixels, buffers.ranges)
    else:
        unchanged = np.tile(np.array([1, 0], np.float32), buffers.ranges.size // 2)
        buffers.ranges.copy_to_device(unchanged, stream=stream)
    quantise_kernel.launch(
        (pairs,), (THREADS,), stream, flow, pixels, buffers.edges, quantiser.table[0], quantiser.table[255],
        buffers.ranges, buffers.levels, buffers.sums, buffers.counts,
    )  # fmt: skip


def collect(
    levels: npt.NDArray[np.uint8], quantiser: Quantiser, buffers: DeviceLevels, stream: Any
) -> Quantised:
    """What `Quantiser.quantise` returns, for levels uint8[n,2,H,W] that have come back from the buffers.

    Raises:
        ValueError: a field holds values that are not finite.
    """
    count, _, height, width = levels.shape
    sums, counts = (
        buffer.copy_to_host(stream=stream)[: 2 * count].reshape(count, 2)
        for buffer in (buffers.sums, buffers.counts)
    )
    ranges = buffers.ranges.copy_to_host(stream=stream)[: 4 * count].reshape(count, 2, 2)
    stream_wait(stream)
    if counts[:, 1].any():
        raise ValueError(f"flow field {int(counts[:, 1].argmax())} holds values that are not finite")
    area = height * width
    clipped = np.zeros(count, np.float32) if quantiser.per_field else (counts[:, 0] / area).astype(np.float32)
    mean = (sums * (MEAN_UNIT / area)).astype(np.float32)
    return Quantised(levels, ranges[:, :, 0].copy(), ranges[:, :, 1].copy(), mean, clipped)


def stream_wait(stream: Any) -> None:
    """Wait for a stream; the simulator's is 0 and has nothing to wait for."""
    if not SIMULATED:
        stream.synchronize()
