"""Flow to levels and means on the device (`quantise.cu`), bit for bit as `pipeline.codec.Quantiser.quantise` defines
them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from extract_flow.cuda.device import Buffer, Memory, Part, Pinned, Stream, floats, upload
from extract_flow.cuda.images import Size
from extract_flow.cuda.kernels import SHARED, Kernels, Program
from pipeline.codec import MEAN_LIMIT, MEAN_UNIT, Quantised, Quantiser

THREADS, STRIP = 512, 8192
"""As in `quantise.cu`."""

PROGRAM = Program("quantise", (SHARED / "common.cuh", SHARED / "quantise.cu"), {}, fast=False)
"""IEEE arithmetic: a level must not depend on how the device divides."""


class Tables:
    """What a quantiser needs on the device; uploaded once."""

    def __init__(self, quantiser: Quantiser) -> None:
        self.quantiser = quantiser
        self.edges = upload(np.asarray(quantiser.edges, np.float32))


class Levels(NamedTuple):
    """Room for the levels of `pairs` pairs, on the device and in pinned host memory.

    The totals of a pair are int64 sums of x and y, then int32 counts of clipped pixels and of values that are not
    finite; all sums lie before all counts.
    """

    levels: Buffer
    totals: Buffer
    ranges: Buffer
    host_levels: Pinned
    host_totals: Pinned
    host_ranges: Pinned
    pairs: int


def allocate(pairs: int, size: Size) -> Levels:
    """Room for `quantise` and `collect`."""
    pixels = size.height * size.width
    return Levels(
        Buffer(pairs * 2 * pixels), Buffer(pairs * 24), floats(pairs * 4), Pinned((pairs * 2 * pixels,), np.uint8),
        Pinned((pairs * 24,), np.uint8), Pinned((pairs * 4,), np.float32), pairs,
    )  # fmt: skip


def quantise(
    kernels: Kernels, stream: Stream, flow: Memory, count: int, size: Size, tables: Tables, room: Levels
) -> None:
    """Queue the quantisation of flow [count, 2, height, pitch], and the copies to the host.

    Raises:
        ValueError: more pairs than there is room for.
    """
    if count > room.pairs:
        raise ValueError(f"{count} pairs, but room for {room.pairs}")
    quantiser, counts = tables.quantiser, Part(room.totals, 16 * room.pairs)
    if quantiser.per_field:
        kernels.launch(
            "find_ranges", (2 * count, 1, 1), (THREADS, 1, 1), stream, flow, room.ranges, *size, size.pitch
        )
        stream.download(room.host_ranges.array[: 4 * count], room.ranges)
    stream.clear(room.totals, room.totals.size)
    kernels.launch(
        "quantise", (-(-size.height * size.width // STRIP), count, 1), (THREADS, 1, 1), stream, flow, tables.edges,
        float(quantiser.table[0]), float(quantiser.table[255]), 1 / MEAN_UNIT, MEAN_LIMIT,
        room.ranges if quantiser.per_field else None, room.levels, room.totals, counts, *size, size.pitch,
    )  # fmt: skip
    stream.download(room.host_levels.array[: count * 2 * size.height * size.width], room.levels)
    stream.download(room.host_totals.array, room.totals)


def collect(count: int, size: Size, quantiser: Quantiser, room: Levels) -> Quantised:
    """What `Quantiser.quantise` returns, once the stream is done; its levels lie in memory that is used again.

    Raises:
        ValueError: a field holds values that are not finite.
    """
    area = size.height * size.width
    totals = room.host_totals.array
    sums = totals[: 16 * count].view(np.int64).reshape(count, 2)
    counts = totals[16 * room.pairs : 16 * room.pairs + 8 * count].view(np.int32).reshape(count, 2)
    if counts[:, 1].any():
        raise ValueError(f"flow field {int(counts[:, 1].argmax())} holds values that are not finite")
    levels = room.host_levels.array[: count * 2 * area].reshape(count, 2, size.height, size.width)
    mean: npt.NDArray[np.float32] = (sums * (MEAN_UNIT / area)).astype(np.float32)
    if quantiser.per_field:
        ranges = room.host_ranges.array[: 4 * count].reshape(count, 2, 2).copy()
        return Quantised(levels, ranges[:, :, 0], ranges[:, :, 1], mean, np.zeros(count, np.float32))
    clipped = (counts[:, 0] / area).astype(np.float32)
    return Quantised(levels, np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32), mean, clipped)
