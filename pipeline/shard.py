"""The shard: one video's flow (and frames) as one group of an HDF5 file. docs/reference/shard-format.md is its format.

Streams of image bytes lie back to back in contiguous datasets, so a reader needs HDF5 only for opening: after that,
L consecutive flows are one `pread`. An open shard therefore holds tables and a plain file descriptor, which is safe to
use after fork.
"""

from __future__ import annotations

import itertools
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from pipeline.codec import Floats, Levels, lowest_level, value_table
from pipeline.decoder import BadStream, Region, StreamBlock, check_crc32, decode_fields, decode_frames
from pipeline.errors import InputError, unreadable
from pipeline.shard_file import (
    DIRECTIONS,
    Contents,
    Flow,
    ShardAddress,
    Source,
    Streams,
    damaged,
    read_contents,
)

BLOCK_BYTES = 1 << 22
FIELDS_AT_ONCE = 5


def open_shard(address: str | Path | ShardAddress, group: str = "/") -> Shard:
    """Open a shard for reading; usable as a context manager, in forked processes, and picklable.

    Args:
        address: its file, or file and group.
        group: the group in the file, for a pack.

    Raises:
        InputError: no such file, not a valid shard of a known version, or tables that fail their checksum.
    """
    if not isinstance(address, ShardAddress):
        address = ShardAddress(Path(address), group)
    return Shard(address, read_contents(address))


class Descriptor:
    """A file open for reading, which is closed when nothing refers to it any more: a reader keeps a reference."""

    _close = staticmethod(os.close)  # kept here, since `os` may be gone when the interpreter ends

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if (number := getattr(self, "number", None)) is not None:
            self._close(number)


class FlowCount(int):
    """`Shard.flow_count`, which could be called until version 0.2; the call will be removed in version 0.3."""

    shard: Shard

    def __call__(self, direction: str = "forward") -> int:
        """The number of flows of a direction, with a DeprecationWarning."""
        warnings.warn(
            "flow_count is an attribute: write shard.flow_count, or shard.flow_counts[direction]",
            DeprecationWarning,
            stacklevel=2,
        )
        return len(self.shard.part(direction))


class Shard:
    """A shard, open for reading. Made by `open_shard`.

    As a sequence it is its flows, float32[2,H,W] in pixels, forward ones where it has them: `len(shard)`, `shard[3]`,
    `shard[-1]`, `shard[10:20]` and `shard[::5]` (float32[n,2,H,W]), `for flow in shard`.

    Attributes:
        video: the video's identity, class/stem.
        frame_count: frames of the video, whether or not the shard holds them.
        flow_count: flows of the first of `directions`; 0 where it holds frames only.
        flow_counts: flows of each direction that it holds, by its name.
        width, height: of flow and frames, in pixels.
        has_frames: whether it holds RGB frames.
        directions: which of "forward" and "backward" it holds, in this order.
        method: how the flow of the first direction was computed; "" where it holds frames only.
        address: where the shard lies.
    """

    def __init__(self, address: ShardAddress, contents: Contents) -> None:
        self.address = address
        self._contents = contents
        attributes = contents.attributes
        self.video: str = attributes["video"]
        self.frame_count: int = attributes["frames"]
        self.width: int = attributes["width"]
        self.height: int = attributes["height"]
        self.has_frames: bool = contents.frames is not None
        self.directions: tuple[str, ...] = tuple(contents.flow)
        first = contents.flow[self.directions[0]] if self.directions else None
        self.method: str = first.attributes["method"] if first else ""
        self.flow_counts: Mapping[str, int] = {name: len(flow) for name, flow in contents.flow.items()}
        self._descriptor: Descriptor | None = None

    @property
    def contents(self) -> Contents:
        """Everything of it but its image streams."""
        return self._contents

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.contents.attributes["fps"])

    @property
    def corrupt(self) -> str:
        """What was found damaged in the video, "" if nothing was."""
        return str(self.contents.attributes["corrupt"])

    @property
    def source(self) -> Source:
        """Bytes, SHA-256 and size of the video."""
        return Source(*(self.contents.attributes[f"source_{name}"] for name in Source.__annotations__))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __repr__(self) -> str:
        held = [f"{count} {name} flows" for name, count in self.flow_counts.items()]
        held += [f"{self.frame_count} RGB frames"] * self.has_frames
        made = f" by {self.method}" if self.method else ""
        return f"<Shard {self.video!r}: {', '.join(held)}{made}, {self.width}x{self.height}, {str(self.address)!r}>"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.flow_count

    def __getitem__(self, index: SupportsIndex | slice) -> Floats:
        """Flows of the first direction: float32[2,H,W] of one, float32[n,2,H,W] of a slice. Raises as `flows` does."""
        direction = self.directions[0] if self.directions else "forward"
        if not isinstance(index, slice):
            try:
                place = range(len(self))[index]
            except IndexError:
                raise IndexError(f"{self.address}: asked for flow {index} of {len(self)}") from None
            except TypeError:
                kind = type(index).__name__
                raise TypeError(f"flows of a shard: expected an integer or a slice, found {kind}") from None
            return self.flows(place, place + 1, direction)[0]
        places = range(len(self))[index]
        if places.step == 1:
            return self.flows(places.start, max(places.start, places.stop), direction)
        out = np.empty((len(places), 2, self.height, self.width), np.float32)
        for i, place in enumerate(places):
            self.flows(place, place + 1, direction, out=out[i : i + 1])
        return out

    def __iter__(self) -> Iterator[Floats]:
        """The flows of the first direction one by one, float32[2,H,W] each."""
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the file, once no thread is reading it; reading opens it again."""
        self._descriptor = None

    @property
    def flow_count(self) -> FlowCount:
        """Number of flows of the first of `directions`; 0 where it holds frames only."""
        count = FlowCount(next(iter(self.flow_counts.values()), 0))
        count.shard = self
        return count

    def step(self, direction: str = "forward") -> int:
        """Frames between the two of a pair."""
        return int(self._flow(direction).attributes["step"])

    def table(self, direction: str = "forward") -> Floats:
        """The quantiser's values, float32[256]."""
        return self._flow(direction).table

    def scale(self, direction: str = "forward") -> Floats:
        """float32[flows,2]; flow = table[levels] * scale + offset."""
        return self._flow(direction).scale

    def offset(self, direction: str = "forward") -> Floats:
        """float32[flows,2], in pixels."""
        return self._flow(direction).offset

    def mean(self, direction: str = "forward") -> Floats:
        """Mean vector of each flow before quantisation, float32[flows,2], in pixels."""
        return self._flow(direction).mean

    def clipped(self, direction: str = "forward") -> Floats:
        """Fraction of pixels beyond the quantiser's range, float32[flows]."""
        return self._flow(direction).clipped

    def flows(
        self, start: int = 0, stop: int | None = None, direction: str = "forward", out: Floats | None = None
    ) -> Floats:
        """Flows start..stop-1, all of them by default, in pixels per step at the stored size: float32[n,2,H,W].

        Args:
            start: the first, counted from 0.
            stop: the one after the last; None is the end.
            direction: "forward" or "backward".
            out: a contiguous array of that shape to fill; a new one unless given.

        Raises:
            IndexError: outside 0..the number of flows.
            ValueError: a direction that does not exist.
            InputError: the shard has no such direction, or a damaged stream.
        """
        flow = self._flow(direction)
        stop = len(flow) if stop is None else stop
        block = self._block(start, stop, direction)
        out = self._output(out, (stop - start, 2, self.height, self.width), np.float32)
        scale, offset = flow.scale[start:stop], flow.offset[start:stop]
        values = value_table(flow.table)
        # A few fields' levels at a time, so that they are still in the processor's cache when they are looked up.
        levels = np.empty((min(FIELDS_AT_ONCE, stop - start), 2, self.height, self.width), np.uint8)
        for first in range(start, stop, FIELDS_AT_ONCE):
            places = np.arange(min(FIELDS_AT_ONCE, stop - first))
            with self._naming(direction, first):
                decode_fields(block.after(first - start), places, self.height, self.width, levels)
            for i, field in enumerate(levels[: len(places)], first - start):
                values.read_field(field, scale[i], offset[i], out[i])
        return out

    def levels(
        self, start: int = 0, stop: int | None = None, direction: str = "forward", out: Levels | None = None
    ) -> Levels:
        """Levels of flows start..stop-1, all by default: uint8[n,2,H,W]; see `table`, `scale` and `offset`.

        Arguments and errors are those of `flows`.
        """
        flow = self._flow(direction)
        stop = len(flow) if stop is None else stop
        lowest = lowest_level(flow.table)
        block = self._block(start, stop, direction)
        out = self._output(out, (stop - start, 2, self.height, self.width), np.uint8)
        with self._naming(direction, start):
            decode_fields(block, np.arange(stop - start), self.height, self.width, out, lowest=lowest)
        return out

    def frames(self, start: int = 0, stop: int | None = None, out: Levels | None = None) -> Levels:
        """RGB frames start..stop-1, all by default: uint8[n,H,W,3]. Arguments and errors are those of `flows`."""
        count = len(self.part("frames"))
        stop = count if stop is None else stop
        self._check_range(start, stop, count, "frames")
        out = self._output(out, (stop - start, self.height, self.width, 3), np.uint8)
        self.read_into("frames", np.arange(start, stop), np.arange(stop - start), out)
        return out

    def read_into(
        self,
        part: str,
        indices: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        out: Levels,
        region: Region | None = None,
    ) -> None:
        """Flows or frames at `indices`, in any order, cut to a region: indices[i] goes into out[targets[i]].

        Neighbours are read at once, and each flow or frame is decoded once, however often it is wanted. Levels of
        flow are as stored: one may be below the table's lowest.

        Args:
            part: "forward", "backward" or "frames".
            indices, targets: int64[n].
            out: contiguous uint8[m,2,h,w], or uint8[m,h,w,3] for frames; the region goes into the upper left.
            region: top, left, height, width; all of the field unless given.

        Raises:
            IndexError, InputError: as `flows`.
        """
        numbers = indices.tolist()
        if not numbers:
            return
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            self._read_run(part, numbers[0], targets, out, region)
            return
        wanted, first = np.unique(indices, return_index=True)
        places = targets[first]
        edges = [0, *(np.flatnonzero(np.diff(wanted) != 1) + 1).tolist(), len(wanted)]
        for a, b in itertools.pairwise(edges):
            self._read_run(part, int(wanted[a]), places[a:b], out, region)
        if len(wanted) < len(indices):
            copies = places[np.searchsorted(wanted, indices)]
            for i in np.flatnonzero(copies != targets):
                out[targets[i]] = out[copies[i]]

    def _read_run(
        self, part: str, start: int, targets: npt.NDArray[np.int64], out: Levels, region: Region | None
    ) -> None:
        """Consecutive flows or frames from `start` on; arguments as in `read_into`."""
        block = self._block(start, start + len(targets), part)
        decode = decode_frames if part == "frames" else decode_fields
        with self._naming(part, start):
            decode(block, targets, self.height, self.width, out, region)

    def streams(self, start: int, stop: int, part: str = "forward") -> list[memoryview]:
        """The image bytes of start..stop-1 of "forward", "backward" or "frames", each compared with its CRC-32.

        Raises:
            IndexError: outside 0..the number of streams.
            InputError: the shard has no such part, or a stream is not what was written.
        """
        block = self._block(start, stop, part)
        with self._naming(part, start):
            check_crc32(block, stop - start)
        return [block.stream(i) for i in range(stop - start)]

    def unchecked_streams(self, start: int, stop: int, part: str) -> list[memoryview]:
        """The image bytes as they lie in the file, by one read of it; for code that reports each bad one itself."""
        block = self._block(start, stop, part)
        return [block.stream(i) for i in range(stop - start)]

    def _block(self, start: int, stop: int, part: str) -> StreamBlock:
        """The bytes of the streams start..stop-1, by one read of the file; raises as `flows` does."""
        streams = self.part(part)
        self._check_range(start, stop, len(streams), part)
        begin, end = int(streams.start[start]), int(streams.start[stop])
        if begin == end:
            return StreamBlock(b"", streams.start, streams.crc32, start)
        try:
            # Kept until the read is done: another thread may close the shard meanwhile.
            file = self._descriptor
            if file is None:
                file = self._descriptor = Descriptor(self.address.file)
            data = os.pread(file.number, end - begin, streams.begin + begin)
        except OSError as error:
            raise unreadable(self.address, error) from error
        if len(data) != end - begin:
            raise damaged(self.address, f"{part} {start}..{stop} ends early: the file was cut short")
        return StreamBlock(data, streams.start, streams.crc32, start)

    def _check_range(self, start: int, stop: int, count: int, part: str) -> None:
        if not 0 <= start <= stop <= count:
            raise IndexError(f"{self.address}: asked for {part} {start}..{stop}, but it has 0..{count}")

    def _naming(self, part: str, first: int) -> _Naming:
        """Name the flow or frame in errors of decoding streams from the `first` on."""
        return _Naming(self.address, part, first)

    def part(self, part: str) -> Streams:
        """Where the streams of "frames", "forward" or "backward" lie; InputError if the shard has none."""
        if part == "frames":
            if self.contents.frames is None:
                raise InputError(
                    f"{self.address}: has no RGB frames; extract again with --rgb, which keeps the flow"
                )
            return self.contents.frames
        return self._flow(part)

    def _flow(self, direction: str) -> Flow:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected {' or '.join(DIRECTIONS)}, found {direction!r}")
        if direction not in self.contents.flow:
            raise InputError(
                f"{self.address}: has no {direction} flow (it has {', '.join(self.directions) or 'none'}); "
                f"extract again with --direction {direction}, which keeps the rest"
            )
        return self.contents.flow[direction]

    def _output(self, out: Any, shape: tuple[int, ...], dtype: type) -> Any:
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out: expected contiguous {np.dtype(dtype)}{list(shape)}, found {out.dtype}{list(out.shape)}"
            )
        return out


class _Naming:
    """A block in which a stream that cannot be decoded is reported as damage of a shard.

    No generator of contextlib, which takes a while: each sample of training comes through here.
    """

    def __init__(self, address: ShardAddress, part: str, first: int) -> None:
        self._where = address, part, first

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, BadStream):
            address, part, first = self._where
            raise damaged(address, f"{part} {first + error.index} {error}") from error


def faults(shard: Shard) -> Iterator[str]:
    """What is wrong inside an open shard: streams that fail their checksum."""
    for part, index in bad_streams(shard):
        yield f"{part} {index} fails its checksum"


def parts(shard: Shard) -> list[str]:
    """Which of "frames", "forward" and "backward" a shard holds."""
    return ["frames"] * shard.has_frames + list(shard.directions)


def bad_streams(shard: Shard) -> Iterator[tuple[str, int]]:
    """Streams that fail their CRC-32, as (part, index); read a block at a time."""
    for part in parts(shard):
        streams = shard.part(part)
        start = 0
        while start < len(streams):
            stop = max(
                int(np.searchsorted(streams.start, streams.start[start] + BLOCK_BYTES, "right")) - 1,
                start + 1,
            )
            for index, stream in enumerate(shard.unchecked_streams(start, stop, part), start):
                if zlib.crc32(stream) != streams.crc32[index]:
                    yield part, index
            start = stop
