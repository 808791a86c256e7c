"""Image streams to pixels: fields of flow by our own decoder, everything else by OpenCV.

Flow is decoded by `pipeline.decoder_kernels`, many streams in one call that checks their CRC-32, cuts the region that
is wanted and leaves other threads free to run. Streams of another kind (PNG, for one) are
decoded by `cv2.imdecode`; both give the same levels.
"""

from __future__ import annotations

import functools
import threading
import zlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.codec import Levels, decode_levels, image_size

LONGEST = 1 << 15
"""Bytes of a stream for which room is made at first."""
SHORT_HEADER = 192
"""Bytes of a JPEG that hold the size where an encoder writes nothing but tables before it."""


Region = tuple[int, int, int, int]
"""Part of a field or frame in pixels: top, left, height, width."""


class BadStream(ValueError):
    """Why a stream cannot be decoded, and which of the given ones it is."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


class StreamBlock(NamedTuple):
    """Image streams that lie back to back.

    Attributes:
        data: the bytes from stream `first` on.
        start: int64[n+1], where each stream of the whole part begins.
        crc32: uint32[n] of each.
        first: which of them data begins with.
    """

    data: bytes | memoryview
    start: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    first: int = 0

    def stream(self, i: int) -> memoryview:
        """The i-th stream after `first`."""
        base = self.start[self.first]
        begin, end = self.start[self.first + i] - base, self.start[self.first + i + 1] - base
        return memoryview(self.data)[begin:end]

    def after(self, i: int) -> StreamBlock:
        """The same without the first i block."""
        begin = self.start[self.first + i] - self.start[self.first]
        return self._replace(data=memoryview(self.data)[begin:], first=self.first + i)


def decode_fields(
    block: StreamBlock,
    targets: npt.NDArray[np.int64],
    height: int,
    width: int,
    out: Levels,
    region: Region | None = None,
    lowest: int = 0,
) -> None:
    """Decode consecutive streams of flow, each cut to a region, each into its place.

    Args:
        block: the first len(targets) of its streams are decoded.
        targets: int64[n], stream i goes into the upper left of out[targets[i]].
        height, width: of the stored fields.
        out: contiguous uint8[m,2,h,w], h and w at least those of the region.
        region: which part of the fields; all of them unless given.
        lowest: levels below it are read as this one (`pipeline.codec.lowest_level`).

    Raises:
        BadStream: one that fails its CRC-32, or is not an image of such a field.
        ValueError: a region outside the field, or arrays that do not fit together.
    """
    top, left, rows, columns = region = region or (0, 0, height, width)
    _check_arrays(block, targets, out)
    _check_region(region, height, width, out.shape[2:])
    kernels, done = _kernels(), 0
    if kernels is None:
        check_crc32(block, len(targets))
    while done < len(targets):
        if kernels is not None:
            status = kernels.decode_streams(
                _read_only(np.frombuffer(block.data, np.uint8)), _read_only(block.start), _read_only(block.crc32),
                block.first, done, targets, height, width, lowest, top, left, rows, columns, out,
                _scratch(len(block.data), width),
            )  # fmt: skip
            if status == kernels.OK:
                return
            done = status >> 8
            if status & 255 == kernels.CHECKSUM:
                raise BadStream(done, "fails its checksum")
        try:
            levels = decode_levels(block.stream(done), height, width, lowest)
        except ValueError as error:
            raise BadStream(done, f"is {error}") from error
        out[targets[done], :, :rows, :columns] = levels[:, top : top + rows, left : left + columns]
        done += 1


def decode_frames(
    block: StreamBlock,
    targets: npt.NDArray[np.int64],
    height: int,
    width: int,
    out: Levels,
    region: Region | None = None,
) -> None:
    """Decode consecutive RGB frames, each cut to a region, each into its place.

    OpenCV decodes whole rows; those below the region are left out, and colours are put in order within it only.

    Args:
        block: the first len(targets) of its streams are decoded, JPEGs.
        targets: int64[n], frame i goes into the upper left of out[targets[i]].
        height, width: of the stored frames.
        out: contiguous uint8[m,h,w,3], h and w at least those of the region.
        region: which part of the frames; all of it unless given.

    Raises:
        BadStream: one that fails its CRC-32, or is not a JPEG of that size.
        ValueError: a region outside the frame.
    """
    import cv2

    top, left, rows, columns = region = region or (0, 0, height, width)
    _check_region(region, height, width, out.shape[1:3])
    bottom, right = top + rows, left + columns
    data, count = np.frombuffer(block.data, np.uint8), len(targets)
    edges = (block.start[block.first : block.first + count + 1] - block.start[block.first]).tolist()
    expected = block.crc32[block.first : block.first + count].tolist()
    for i, target in enumerate(targets.tolist()):
        stream = data[edges[i] : edges[i + 1]]
        if zlib.crc32(stream.data) != expected[i]:
            raise BadStream(i, "fails its checksum")
        image = cv2.imdecode(_ending_at(stream, i, height, width, bottom), _AS_STORED)
        if image is None or image.shape[0] < bottom or image.shape[1:] != (width, 3):
            raise BadStream(i, "is an image that cannot be decoded")
        cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_BGR2RGB, dst=out[target, :rows, :columns])


_AS_STORED = 1 | 128
"""cv2.IMREAD_COLOR and IMREAD_IGNORE_ORIENTATION; cv2 is imported where it is used."""


def _ending_at(stream: Levels, i: int, height: int, width: int, bottom: int) -> Levels:
    """A JPEG whose header says that it ends a little below a row, where that is possible: the rest is not decoded.

    libjpeg decodes 8 or 16 rows at a time, and a row of colours is mixed with the next one.

    Raises:
        BadStream: not a JPEG of that size.
    """
    rows, columns, place = _baseline_size(stream[:SHORT_HEADER].tobytes())
    if not place:
        try:
            rows, columns = image_size(stream.data)
        except ValueError as error:
            raise BadStream(i, f"is {error}") from error
    if (rows, columns) != (height, width):
        raise BadStream(i, f"is an image of another size than {width}x{height}")
    enough = (bottom + 16) & ~15
    if not place or enough >= height:
        return stream
    # Without the marker of its end, what remains behind the last row is no fault to libjpeg.
    shorter = stream[:-2].copy()
    shorter[place : place + 2] = enough >> 8, enough & 255
    return shorter


@functools.lru_cache(maxsize=256)
def _baseline_size(head: bytes) -> tuple[int, int, int]:
    """Rows, columns, and where the rows stand in a baseline JPEG that begins so; 0 there if that is not seen."""
    at = 2
    while head[:2] == b"\xff\xd8" and at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] == 0xC0:
            rows, columns = head[at + 5 : at + 7], head[at + 7 : at + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big"), at + 5
        if 0xC1 <= head[at + 1] <= 0xCF and head[at + 1] != 0xC4:
            break
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return 0, 0, 0


def check_crc32(block: StreamBlock, count: int) -> None:
    """BadStream for the first of `count` streams that is not what was written."""
    expected = block.crc32[block.first : block.first + count].tolist()
    for i, crc in enumerate(expected):
        if zlib.crc32(block.stream(i)) != crc:
            raise BadStream(i, "fails its checksum")


def _check_region(region: Region, height: int, width: int, room: tuple[int, ...]) -> None:
    top, left, rows, columns = region
    inside = 0 <= top <= height - rows and 0 <= left <= width - columns
    if not inside or not (0 < rows <= room[0] and 0 < columns <= room[1]):
        raise ValueError(
            f"a region of {columns}x{rows} at {left}, {top} of {width}x{height} does not fit, or into {room}"
        )


def _check_arrays(block: StreamBlock, targets: npt.NDArray[np.int64], out: Levels) -> None:
    """What the kernels assume; ValueError if anything of it is wrong."""
    if out.dtype != np.uint8 or out.ndim != 4 or out.shape[1] != 2 or not out.flags.c_contiguous:
        raise ValueError(f"out: expected contiguous uint8[m,2,h,w], found {out.dtype}{list(out.shape)}")
    places = targets.tolist()
    if targets.dtype != np.int64 or (places and not 0 <= min(places) <= max(places) < len(out)):
        raise ValueError(f"targets: expected int64 below {len(out)}, found {targets.dtype} {targets}")
    if not 0 <= block.first <= block.first + len(targets) <= len(block.crc32) == len(block.start) - 1:
        raise ValueError(f"streams {block.first} and {len(targets)} more of {len(block.crc32)}")


def _read_only(values: Any) -> npt.NDArray[Any]:
    """As an array of one type to numba: the kernels are compiled once."""
    view = values.view()
    view.flags.writeable = False
    return view


_room = threading.local()


def _scratch(longest: int, width: int) -> Any:
    """The calling thread's scratch memory for decoding, which grows as needed."""
    kernels, have = _kernels(), getattr(_room, "size", (0, 0))
    assert kernels is not None
    if have[0] < longest or have[1] < width:
        _room.size = max(have[0], longest, LONGEST), max(have[1], width)
        _room.arrays = kernels.scratch(*_room.size)
    return _room.arrays


@functools.cache
def _kernels() -> ModuleType | None:
    """The compiled decoder; None where numba is not installed."""
    try:
        from pipeline import decoder_kernels
    except ImportError:
        return None
    return decoder_kernels
