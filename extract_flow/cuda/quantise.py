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
from pipeline.field_range import LADDER

THREADS, STRIP = 512, 8192
"""As in `quantise.cu`."""

PROGRAM = Program("quantise", (SHARED / "common.cuh", SHARED / "quantise.cu"), {}, fast=False)
"""IEEE arithmetic: a level must not depend on how the device divides."""


COUNTS = np.dtype([("outside", np.int32), ("broken", np.int32), ("beyond", np.int32, 11)])
"""`struct Counts` of a pair."""
TOTALS = 16
"""Bytes of a pair's two sums, int64."""


class Tables:
    """What a quantiser needs on the device; uploaded once."""

    def __init__(self, quantiser: Quantiser) -> None:
        self.quantiser = quantiser
        self.edges = upload(np.asarray(quantiser.edges, np.float32))
        self.limits = upload(np.asarray(quantiser.limits, np.float32)) if quantiser.ladder else None
        self.ladder = upload(np.asarray(LADDER, np.float32)) if quantiser.ladder else None


class Levels(NamedTuple):
    """Room for the levels of `pairs` pairs, on the device and in pinned host memory.

    The totals are the int64 sums of x and y of every pair, then every pair's `COUNTS`.
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
    pixels, totals = size.height * size.width, pairs * (TOTALS + COUNTS.itemsize)
    return Levels(
        Buffer(pairs * 2 * pixels), Buffer(totals), floats(pairs * 4), Pinned((pairs * 2 * pixels,), np.uint8),
        Pinned((totals,), np.uint8), Pinned((pairs * 4,), np.float32), pairs,
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
    quantiser, pixels = tables.quantiser, size.height * size.width
    sums, counts, units = room.totals, Part(room.totals, TOTALS * room.pairs), 1 / MEAN_UNIT
    strips, threads, layout = (-(-pixels // STRIP), count, 1), (THREADS, 1, 1), (*size, size.pitch)
    stream.clear(room.totals, room.totals.size)
    kernels.launch("sum_flow", strips, threads, stream, flow, units, MEAN_LIMIT, sums, counts, *layout)
    ranged = quantiser.per_field or quantiser.ladder
    if quantiser.per_field:
        kernels.launch("find_ranges", (2 * count, 1, 1), threads, stream, flow, room.ranges, *layout)
    elif quantiser.ladder:
        kernels.launch(
            "count_beyond", strips, threads, stream, flow, sums, tables.limits, units, counts, *layout
        )
        kernels.launch(
            "choose_rungs", (-(-count // 32), 1, 1), (32, 1, 1), stream, sums, counts, tables.ladder, units, count,
            pixels, room.ranges,
        )  # fmt: skip
    kernels.launch(
        "quantise", strips, threads, stream, flow, tables.edges, float(quantiser.table[0]),
        float(quantiser.table[255]), room.ranges if ranged else None, room.levels, counts, *layout,
    )  # fmt: skip
    if ranged:
        stream.download(room.host_ranges.array[: 4 * count], room.ranges)
    stream.download(room.host_levels.array[: count * 2 * pixels], room.levels)
    stream.download(room.host_totals.array, room.totals)


def collect(count: int, size: Size, quantiser: Quantiser, room: Levels) -> Quantised:
    """What `Quantiser.quantise` returns, once the stream is done; its levels lie in memory that is used again.

    Raises:
        ValueError: a field holds values that are not finite.
    """
    area = size.height * size.width
    totals = room.host_totals.array
    sums = totals[: TOTALS * count].view(np.int64).reshape(count, 2)
    counts = totals[TOTALS * room.pairs :].view(COUNTS)[:count]
    if counts["broken"].any():
        raise ValueError(f"flow field {int(counts['broken'].argmax())} holds values that are not finite")
    levels = room.host_levels.array[: count * 2 * area].reshape(count, 2, size.height, size.width)
    scale, offset = np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32)
    if quantiser.per_field or quantiser.ladder:
        ranges = room.host_ranges.array[: 4 * count].reshape(count, 2, 2)
        scale, offset = ranges[:, :, 0].copy(), ranges[:, :, 1].copy()
    mean: npt.NDArray[np.float32] = (sums * (MEAN_UNIT / area)).astype(np.float32)
    clipped = np.zeros(count) if quantiser.per_field else counts["outside"] / area
    return Quantised(levels, scale, offset, mean, clipped.astype(np.float32))
