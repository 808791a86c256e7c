"""The shard: one video's flow (and frames) as one group of an HDF5 file. docs/reference/shard-format.md is its format.

Streams of image bytes lie back to back in contiguous datasets, so a reader needs HDF5 only for opening: after that,
L consecutive flows are one `pread`. An open shard therefore holds tables and a plain file descriptor, which is safe to
use after fork.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import hdf5
from pipeline.codec import BLOCK, Floats, Levels, image_size, lowest_level, value_table
from pipeline.decoder import BadStream, Region, StreamBlock, check_crc32, decode_fields, decode_frame
from pipeline.errors import Damaged, InputError, OtherFormat
from pipeline.hdf5 import Foreign, Invalid, SourceFile
from pipeline.text import shortened

FORMAT = "two-stream shard"
VERSION = 1
SUFFIX = ".h5"
DIRECTIONS = ("forward", "backward")
BLOCK_BYTES = 1 << 22
LARGEST_SIDE = 65535
FIELDS_AT_ONCE = 5
MOST_PIXELS = 1 << 27
LARGEST_VALUE = 1e9
"""Of the tables; a product of two of them is still finite."""
HEADER_BYTES = 4096


class ShardAddress(NamedTuple):
    """Where a shard lies: a file, and the group in it ("/" where it has the file to itself)."""

    file: Path
    group: str = "/"

    def __str__(self) -> str:
        return str(self.file) if self.group == "/" else f"{self.file}:{self.group}"


@dataclass(frozen=True)
class Source:
    """The video that a shard was made of: bytes and SHA-256 of the file, its size upright and in pixels."""

    bytes: int
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Streams:
    """Image streams back to back in the file: stream i is bytes start[i]..start[i+1] after `begin`."""

    begin: int
    start: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.crc32)


@dataclass(frozen=True)
class Flow(Streams):
    """The flow of one direction with what reads and describes it."""

    table: Floats
    scale: Floats
    offset: Floats
    mean: Floats
    clipped: Floats
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """Everything of a shard but its image streams."""

    attributes: Mapping[str, Any]
    frames: Streams | None
    frames_quality: int | None
    flow: Mapping[str, Flow]


# --- reading --------------------------------------------------------------------------------------------------------


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


class Shard:
    """A shard, open for reading. Made by `open_shard`."""

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
        self._descriptor: Descriptor | None = None

    @property
    def contents(self) -> Contents:
        """Everything of it but its image streams."""
        return self._contents

    @property
    def fps(self) -> float:
        """Frames per second of those that were kept."""
        return float(self.contents.attributes["fps"])

    @property
    def corrupt(self) -> str:
        """The decoder's error where the frames before it were kept, else ""."""
        return str(self.contents.attributes["corrupt"])

    @property
    def source(self) -> Source:
        """The video that it was made of."""
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
        return f"<shard {self.video} of {self.width}x{self.height} in {self.address}>"

    def close(self) -> None:
        """Close the file, once no thread is reading it; reading opens it again."""
        self._descriptor = None

    def flow_count(self, direction: str = "forward") -> int:
        """Number of flows of a direction."""
        return len(self._flow(direction))

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

    def flows(self, start: int, stop: int, direction: str = "forward", out: Floats | None = None) -> Floats:
        """Flows start..stop-1 in pixels per step at the stored resolution: float32[n,2,H,W].

        Raises:
            IndexError: outside 0..flow_count.
            InputError: the shard has no such direction, or a damaged stream.
        """
        flow = self._flow(direction)
        block = self._block(start, stop, direction)
        out = self._output(out, (stop - start, 2, self.height, self.width), np.float32)
        scale, offset = flow.scale[start:stop], flow.offset[start:stop]
        values = value_table(flow.table)
        # A few fields' levels at a time, so that they are still in the processor's cache when they are looked up.
        levels = np.empty((min(FIELDS_AT_ONCE, stop - start), 2, self.height, self.width), np.uint8)
        for first in range(start, stop, FIELDS_AT_ONCE):
            places = np.arange(min(FIELDS_AT_ONCE, stop - first))
            with self._naming(direction, range(first, stop)):
                decode_fields(block.after(first - start), places, self.height, self.width, levels)
            for i, field in enumerate(levels[: len(places)], first - start):
                values.read_field(field, scale[i], offset[i], out[i])
        return out

    def levels(self, start: int, stop: int, direction: str = "forward", out: Levels | None = None) -> Levels:
        """Levels of flows start..stop-1: uint8[n,2,H,W]; see `table`, `scale` and `offset`. Raises as `flows` does."""
        lowest = lowest_level(self._flow(direction).table)
        block = self._block(start, stop, direction)
        out = self._output(out, (stop - start, 2, self.height, self.width), np.uint8)
        with self._naming(direction, range(start, stop)):
            decode_fields(block, np.arange(stop - start), self.height, self.width, out, lowest=lowest)
        return out

    def frames(self, start: int, stop: int, out: Levels | None = None) -> Levels:
        """RGB frames start..stop-1: uint8[n,H,W,3]. Raises as `flows` does."""
        self.part("frames")
        self._check_range(start, stop, "frames")
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
        if not len(indices):
            return
        wanted, places, edges = indices, targets, [0, len(indices)]
        numbers = indices.tolist()
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
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
        stop = start + len(targets)
        block = self._block(start, stop, part)
        with self._naming(part, range(start, stop)):
            if part == "frames":
                check_crc32(block, len(targets))
                for i, target in enumerate(targets.tolist()):
                    decode_frame(block, i, self.height, self.width, out[target], region)
            else:
                decode_fields(block, targets, self.height, self.width, out, region)

    def streams(self, start: int, stop: int, part: str = "forward") -> list[memoryview]:
        """The image bytes of start..stop-1 of "forward", "backward" or "frames", each compared with its CRC-32.

        Raises:
            IndexError: outside 0..the number of streams.
            InputError: the shard has no such part, or a stream is not what was written.
        """
        block = self._block(start, stop, part)
        with self._naming(part, range(start, stop)):
            check_crc32(block, stop - start)
        return [block.stream(i) for i in range(stop - start)]

    def unchecked_streams(self, start: int, stop: int, part: str) -> list[memoryview]:
        """The image bytes as they lie in the file, by one read of it; for code that reports each bad one itself."""
        block = self._block(start, stop, part)
        return [block.stream(i) for i in range(stop - start)]

    def _block(self, start: int, stop: int, part: str) -> StreamBlock:
        """The bytes of the streams start..stop-1, by one read of the file; raises as `flows` does."""
        streams = self.part(part)
        self._check_range(start, stop, part)
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
            raise hdf5.unreadable(self.address, error) from error
        if len(data) != end - begin:
            raise damaged(self.address, f"{part} {start}..{stop} ends early: the file was cut short")
        return StreamBlock(data, streams.start, streams.crc32, start)

    def _check_range(self, start: int, stop: int, part: str) -> None:
        count = len(self.part(part))
        if not 0 <= start <= stop <= count:
            raise IndexError(f"{self.address}: {part} {start}..{stop} asked, 0..{count} are there")

    @contextlib.contextmanager
    def _naming(self, part: str, indices: Any) -> Iterator[None]:
        """Name the flow or frame in errors of its decoding; `indices` of the streams that are decoded."""
        try:
            yield
        except BadStream as error:
            raise damaged(self.address, f"{part} {int(indices[error.index])} {error}") from error

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


def damaged(address: ShardAddress, what: str) -> Damaged:
    return Damaged(
        f"{address}: damaged shard: {shortened(what)}; run `python -m pipeline verify --repair` on it, which sets it "
        "aside, and extract the video again"
    )


# --- the file -------------------------------------------------------------------------------------------------------
# Opening goes through h5py's low-level calls: a run over thousands of finished shards opens each, and the
# high-level ones take ten times as long.

ROOT_ATTRIBUTES = {
    "video": str,
    "source_bytes": int,
    "source_sha256": str,
    "source_width": int,
    "source_height": int,
    "fps": float,
    "frames": int,
    "width": int,
    "height": int,
    "size": str,
    "every": int,
    "start": float,
    "end": float | None,
    "corrupt": str,
}
FLOW_ATTRIBUTES = {
    "method": str,
    "parameters": str,
    "step": int,
    "quantiser": str,
    "image": str,
    "quality": int | None,
    "device": str,
}
BOUNDS = {
    "source_bytes": (0, 2**62),
    "source_width": (0, 2**31),
    "source_height": (0, 2**31),
    "fps": (0, 1e6),
    "frames": (0, 2**31),
    "every": (1, 2**31),
    "start": (0, 1e9),
    "end": (0, 1e9),
    "step": (1, 2**31),
    "quality": (1, 100),
}
STREAM_TABLES = {"start": "<i8", "crc32": "<u4"}
FLOW_TABLES = dict.fromkeys(("table", "scale", "offset", "mean", "clipped"), "<f4")


def read_contents(address: ShardAddress) -> Contents:
    """Attributes and tables of a shard, checked; InputError if anything is wrong with the file."""
    with opened(address) as (file, source):
        contents = _read_group(hdf5.subgroup(file_root(file), address.group), source, address.group == "/")
        if address.group != "/" and contents.attributes["video"] != address.group.strip("/"):
            raise Invalid(f"it is the shard of {contents.attributes['video']!r} under another name")
        return contents


def file_root(file: Any) -> Any:
    return h5py.h5g.open(file, b"/")


@contextlib.contextmanager
def opened(address: ShardAddress) -> Iterator[tuple[Any, SourceFile]]:
    """A file open in HDF5 with the file object below it; whatever is wrong with it becomes an InputError."""
    try:
        with hdf5.reading(address.file) as found:
            yield found
    except FileNotFoundError as error:
        raise InputError(
            f"{address.file}: no such shard; extract the video first (python -m extract_flow)"
        ) from error
    except Foreign as error:
        raise OtherFormat(f"{address}: {error}; it was left as it is") from error
    except Invalid as error:
        raise damaged(address, str(error)) from error


def _checked_attributes(owner: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a group, each of its kind and within its bounds."""
    values = {name: hdf5.attribute(owner, name, kind) for name, kind in kinds.items()}
    for name in BOUNDS.keys() & values.keys():
        low, high = BOUNDS[name]
        if values[name] is not None and not low <= values[name] <= high:  # NaN is outside as well
            raise Invalid(f"its {name} is {values[name]}, expected {low} to {high}")
    return values


def _read_streams(
    group: Any, tables: Mapping[str, str], source: SourceFile
) -> tuple[int, dict[str, npt.NDArray[Any]]]:
    """Where the streams begin in the file, and the tables beside them, checked."""
    values = {
        name: hdf5.array(hdf5.child(group, name, h5py.h5d.open), name, dtype, source)
        for name, dtype in tables.items()
    }
    if tables_crc32(values) != hdf5.attribute(group, "tables_crc32", int):
        raise Invalid("its tables fail their checksum")
    count = values["crc32"].size
    expected = {"start": (count + 1,), "table": (256,)} | dict.fromkeys(
        ("scale", "offset", "mean"), (count, 2)
    )
    for name, table in values.items():
        if table.shape != expected.get(name, (count,)):
            raise Invalid(f"{name!r} has shape {table.shape}, expected {expected.get(name, (count,))}")
        if table.dtype.kind == "f" and not (np.abs(table) <= LARGEST_VALUE).all():
            raise Invalid(f"{name!r} holds values that are not finite or beyond {LARGEST_VALUE:g}")
    begin, shape = hdf5.place(hdf5.child(group, "jpeg", h5py.h5d.open), "jpeg", "|u1", source)
    start = values["start"]
    if len(shape) != 1 or start[0] != 0 or start[-1] != shape[0] or (start[1:] <= start[:-1]).any():
        raise Invalid("the starts of its streams do not ascend from 0 to their end")
    return begin, values


def tables_crc32(tables: Mapping[str, npt.NDArray[Any]]) -> int:
    """CRC-32 over the bytes of the tables, little-endian, in the order of STREAM_TABLES and then FLOW_TABLES."""
    crc = 0
    for values in tables.values():
        crc = zlib.crc32(values.tobytes(), crc)
    return crc


def _read_group(group: Any, source: SourceFile, own_file: bool) -> Contents:
    if not h5py.h5a.exists(group, b"format") or hdf5.attribute(group, "format", str) != FORMAT:
        # In a pack there is nothing else; a file may be another program's.
        raise (Foreign if own_file else Invalid)(f"it is not a {FORMAT}")
    version = hdf5.attribute(group, "version", int)
    if version != VERSION:
        raise Foreign(f"it has version {version} of the format, and this program reads version {VERSION}")
    attributes = _checked_attributes(group, ROOT_ATTRIBUTES)
    width, height = attributes["width"], attributes["height"]
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and width * height <= MOST_PIXELS):
        raise Invalid(f"it claims a size of {width}x{height}")
    if leads_elsewhere(attributes["video"]):
        raise Invalid(f"its video {attributes['video']!r} would lead out of a folder")
    frames, quality = None, None
    if b"rgb" in group:
        rgb = hdf5.child(group, "rgb", h5py.h5g.open)
        begin, tables = _read_streams(rgb, STREAM_TABLES, source)
        frames, quality = Streams(begin, **tables), _checked_attributes(rgb, {"quality": int})["quality"]
        if len(frames) != attributes["frames"]:
            raise Invalid(f"it holds {len(frames)} of {attributes['frames']} frames")
        _check_first_image(frames, "frames", height, width, source)
    flow = {}
    parent = hdf5.child(group, "flow", h5py.h5g.open) if b"flow" in group else None
    for direction in DIRECTIONS:
        if parent is not None and direction.encode() in parent:
            found = _read_flow(hdf5.child(parent, direction, h5py.h5g.open), source)
            step = found.attributes["step"]
            if not max(attributes["frames"] - step, 0) <= len(found) <= attributes["frames"]:
                raise Invalid(
                    f"it holds {len(found)} {direction} flows of {attributes['frames']} frames at step {step}"
                )
            _check_first_image(found, direction, height, width, source)
            flow[direction] = found
    if frames is None and not flow:
        raise Invalid("it holds neither frames nor flow")
    return Contents(attributes, frames, quality, flow)


def _read_flow(group: Any, source: SourceFile) -> Flow:
    begin, tables = _read_streams(group, STREAM_TABLES | FLOW_TABLES, source)
    attributes = _checked_attributes(group, FLOW_ATTRIBUTES)
    attributes["parameters"] = json.loads(attributes["parameters"])
    if not isinstance(attributes["parameters"], dict):
        raise Invalid("its method's parameters are not a JSON object")
    return Flow(begin, **tables, attributes=attributes)


def _check_first_image(streams: Streams, part: str, height: int, width: int, source: SourceFile) -> None:
    """Refuse a size that its images do not have, before a reader allocates memory for it."""
    if not len(streams):
        return
    stop = int(streams.start[1])
    try:
        rows, columns = image_size(source.bytes_at(streams.begin, min(stop, HEADER_BYTES)))
    except ValueError:
        return  # reading it will say so
    fits = rows == height if part == "frames" else 2 * height <= rows < 2 * height + BLOCK
    if fits and columns == width:
        return
    if (
        zlib.crc32(source.bytes_at(streams.begin, stop)) == streams.crc32[0]
    ):  # else the image is what is damaged
        raise Invalid(f"{part} 0 is an image of {columns}x{rows}, which does not fit its {width}x{height}")


def leads_elsewhere(video: str) -> bool:
    """Whether a video's name, or a part of it, is no name of a file or folder below another one."""
    return "\0" in video or any(part in ("", ".", "..") for part in video.split("/"))


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
