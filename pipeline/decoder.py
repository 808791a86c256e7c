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
"""Bytes of a stream for which memory is allocated at first."""


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


def decode_frame(
    block: StreamBlock, i: int, height: int, width: int, out: Levels, region: Region | None = None
) -> None:
    """One RGB frame, cut to a region, into the upper left of `out`.

    Args:
        block, i: its i-th stream, a JPEG.
        height, width: of the stored frame.
        out: contiguous uint8[h,w,3], h and w at least those of the region.
        region: which part of the frame; all of it unless given.

    Raises:
        BadStream: not a JPEG of that size.
        ValueError: a region outside the frame.
    """
    import cv2

    top, left, rows, columns = region = region or (0, 0, height, width)
    _check_region(region, height, width, out.shape[:2])
    stream = block.stream(i)
    try:
        size = image_size(stream)
    except ValueError as error:
        raise BadStream(i, f"is {error}") from error
    if size != (height, width):
        raise BadStream(i, f"is an image of another size than {width}x{height}")
    # OpenCV decodes whole images; the order of colours is changed in the region only.
    image = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape != (height, width, 3):
        raise BadStream(i, "is an image that cannot be decoded")
    cv2.cvtColor(image[top : top + rows, left : left + columns], cv2.COLOR_BGR2RGB, dst=out[:rows, :columns])


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
