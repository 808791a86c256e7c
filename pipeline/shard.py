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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import atomic
from pipeline.codec import Floats, Levels, lowest_level, value_table
from pipeline.decoder import BadStream, Region, StreamBlock, check_crc32, decode_fields, decode_frame
from pipeline.errors import InputError
from pipeline.text import first_line

FORMAT = "two-stream shard"
VERSION = 1
PACK_FORMAT = "two-stream pack"
SUFFIX = ".h5"
PACK_SUFFIX = ".h5pack"
DEEPEST_GROUP = 8
DIRECTIONS = ("forward", "backward")
BLOCK_BYTES = 1 << 22
LARGEST_SIDE = 65535


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
        self.contents = contents
        attributes = contents.attributes
        self.video: str = attributes["video"]
        self.frame_count: int = attributes["frames"]
        self.fps: float = attributes["fps"]
        self.width: int = attributes["width"]
        self.height: int = attributes["height"]
        self.corrupt: str = attributes["corrupt"]
        self.has_frames: bool = contents.frames is not None
        self.directions: tuple[str, ...] = tuple(contents.flow)
        self.source = Source(
            attributes["source_bytes"],
            attributes["source_sha256"],
            attributes["source_width"],
            attributes["source_height"],
        )
        self._descriptor: Descriptor | None = None

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
        count = stop - start
        out = self._output(out, (count, 2, self.height, self.width), np.float32)
        scale, offset = flow.scale[start:stop], flow.offset[start:stop]
        usual = value_table(flow.table, 1, 0) if (scale == 1).all() and (offset == 0).all() else None
        # One field's levels at a time, so that they are still in the processor's cache when they are looked up.
        levels, place = np.empty((1, 2, self.height, self.width), np.uint8), np.zeros(1, np.int64)
        for i in range(count):
            with self._naming(direction, [start + i]):
                decode_fields(block.after(i), place, self.height, self.width, levels)
            if usual is not None:
                usual.read(levels[0], out[i])
                continue
            for component in range(2):
                value_table(flow.table, scale[i, component], offset[i, component]).read(
                    levels[0, component], out[i, component]
                )
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
        if (indices != np.arange(indices[0], indices[0] + len(indices))).any():
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
        """The image bytes of start..stop-1 of "forward", "backward" or "frames", by one read of the file."""
        block = self._block(start, stop, part)
        return [block.stream(i) for i in range(stop - start)]

    def _block(self, start: int, stop: int, part: str) -> StreamBlock:
        """The bytes of the streams start..stop-1, by one read of the file; raises as `flows` does."""
        streams = self.part(part)
        self._check_range(start, stop, part)
        begin, end = int(streams.start[start]), int(streams.start[stop])
        # Kept until the read is done: another thread may close the shard meanwhile.
        file = self._descriptor
        if file is None and begin < end:
            file = self._descriptor = Descriptor(self.address.file)
        data = os.pread(file.number, end - begin, streams.begin + begin) if file and begin < end else b""
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


def damaged(address: ShardAddress, what: str) -> InputError:
    return InputError(
        f"{address}: damaged shard: {what}; run `python -m pipeline verify --repair` on it, which deletes it, "
        "and extract the video again"
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
STREAM_TABLES = {"start": np.int64, "crc32": np.uint32}
FLOW_TABLES = {
    "table": np.float32,
    "scale": np.float32,
    "offset": np.float32,
    "mean": np.float32,
    "clipped": np.float32,
}


class Invalid(Exception):
    """What is wrong with a shard, before its address is put in front."""


def read_contents(address: ShardAddress) -> Contents:
    """Attributes and tables of a shard, checked; InputError if anything is wrong with the file."""
    with _opened(address) as (file, descriptor):
        return _read_group(_open_group(file, address.group), descriptor)


@contextlib.contextmanager
def _opened(address: ShardAddress) -> Iterator[tuple[Any, int]]:
    """A file open in HDF5 and as a plain descriptor; whatever is wrong with it becomes an InputError."""
    try:
        with address.file.open("rb", buffering=0) as raw:
            file = h5py.h5f.open(os.fsencode(address.file), h5py.h5f.ACC_RDONLY, fapl=_access())
            try:
                yield file, raw.fileno()
            finally:
                file.close()
    except FileNotFoundError as error:
        raise InputError(
            f"{address.file}: no such shard; extract the video first (python -m extract_flow)"
        ) from error
    except PermissionError as error:
        raise InputError(f"{address.file}: may not be read; ask its owner for permission") from error
    except (Invalid, KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise damaged(address, first_line(error)) from error


def _access() -> h5py.h5p.PropFAID:
    """Finished shards never change, so that no lock is needed, which some network file systems do not have."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)
    return access


def _open_group(file: Any, path: str) -> Any:
    group = h5py.h5g.open(file, b"/")
    for name in path.strip("/").split("/"):
        if name:
            group = _child(group, name, h5py.h5g.open)
    return group


def _child(group: Any, name: str, opened: Callable[[Any, bytes], Any]) -> Any:
    """A group or dataset below a group, reached by a hard link only."""
    key = name.encode()
    try:
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise Invalid(f"{name!r} is a link to elsewhere, which is not allowed")
        return opened(group, key)
    except (KeyError, RuntimeError) as error:
        fault = (
            f"its {name!r} cannot be opened ({first_line(error)})" if key in group else f"it has no {name!r}"
        )
        raise Invalid(fault) from error


def _attribute(owner: Any, name: str, kind: Any) -> Any:
    """A scalar attribute as str, int or float; None if it is absent and may be."""
    try:
        attribute = h5py.h5a.open(owner, name.encode())
    except KeyError as error:
        if kind in (int | None, float | None):
            return None
        raise Invalid(f"it has no attribute {name!r}") from error
    if kind is not str:
        real = kind in (float, float | None)
        value = np.empty((), np.float64 if real else np.int64)
        attribute.read(value, mtype=h5py.h5t.NATIVE_DOUBLE if real else h5py.h5t.NATIVE_INT64)
        return value.item()
    stored = attribute.get_type()
    if not isinstance(stored, h5py.h5t.TypeStringID) or stored.is_variable_str():
        raise Invalid(f"attribute {name!r} is not text of a fixed length")
    text = np.empty((), f"S{stored.get_size()}")
    attribute.read(text, mtype=stored)
    return text.item().decode()


def _bytes_in_file(dataset: Any, name: str, dtype: Any, descriptor: int) -> tuple[int, int]:
    """Offset and number of the bytes of a dataset, which must lie in the file as they are, and whole."""
    if dataset.dtype != dtype:
        raise Invalid(f"{name!r} is {dataset.dtype}, expected {np.dtype(dtype)}")
    offset, size = dataset.get_offset(), dataset.get_storage_size()
    if size == 0:
        return 0, 0
    if offset is None:
        raise Invalid(f"{name!r} is not stored contiguously in the file")
    if offset + size > os.fstat(descriptor).st_size:
        raise Invalid(f"{name!r} reaches beyond the end of the file, which was cut short")
    return int(offset), int(size)


def _table(group: Any, name: str, dtype: Any, descriptor: int) -> npt.NDArray[Any]:
    """A table, read from where it lies; its bytes are little-endian."""
    dataset = _child(group, name, h5py.h5d.open)
    offset, size = _bytes_in_file(dataset, name, dtype, descriptor)
    return np.frombuffer(os.pread(descriptor, size, offset), dtype)


def _read_streams(
    group: Any, tables: Mapping[str, Any], descriptor: int
) -> tuple[int, int, dict[str, npt.NDArray[Any]]]:
    """Where the streams begin in the file, their number, and the tables beside them, checked."""
    values = {name: _table(group, name, dtype, descriptor) for name, dtype in tables.items()}
    if tables_crc32(values) != _attribute(group, "tables_crc32", int):
        raise Invalid("its tables fail their checksum")
    count = len(values["crc32"])
    expected = {"start": count + 1, "table": 256, "scale": 2 * count, "offset": 2 * count, "mean": 2 * count}
    for name, table in values.items():
        if len(table) != expected.get(name, count):
            raise Invalid(f"{name!r} holds {len(table)} values, expected {expected.get(name, count)}")
    begin, size = _bytes_in_file(_child(group, "jpeg", h5py.h5d.open), "jpeg", np.uint8, descriptor)
    start = values["start"]
    if start[0] != 0 or start[-1] != size or (start[1:] <= start[:-1]).any():
        raise Invalid("the starts of its streams do not ascend from 0 to their end")
    return begin, count, values


def tables_crc32(tables: Mapping[str, npt.NDArray[Any]]) -> int:
    """CRC-32 over the bytes of the tables, little-endian, in the order of STREAM_TABLES and then FLOW_TABLES."""
    crc = 0
    for values in tables.values():
        crc = zlib.crc32(values.tobytes(), crc)
    return crc


def _read_group(group: Any, descriptor: int) -> Contents:
    if not h5py.h5a.exists(group, b"format") or _attribute(group, "format", str) != FORMAT:
        raise Invalid(f"it is not a {FORMAT}")
    version = _attribute(group, "version", int)
    if version != VERSION:
        raise Invalid(f"it has version {version} of the format, and this program reads version {VERSION}")
    attributes = {name: _attribute(group, name, kind) for name, kind in ROOT_ATTRIBUTES.items()}
    for side in (attributes["width"], attributes["height"]):
        if not 0 < side <= LARGEST_SIDE:
            raise Invalid(f"it claims a size of {attributes['width']}x{attributes['height']}")
    frames, quality = None, None
    if b"rgb" in group:
        rgb = _child(group, "rgb", h5py.h5g.open)
        begin, _, tables = _read_streams(rgb, STREAM_TABLES, descriptor)
        frames, quality = Streams(begin, **tables), _attribute(rgb, "quality", int)
    flow = {}
    parent = _child(group, "flow", h5py.h5g.open) if b"flow" in group else None
    for direction in DIRECTIONS:
        if parent is not None and direction.encode() in parent:
            flow[direction] = _read_flow(_child(parent, direction, h5py.h5g.open), descriptor)
    if frames is None and not flow:
        raise Invalid("it holds neither frames nor flow")
    return Contents(attributes, frames, quality, flow)


def _read_flow(group: Any, descriptor: int) -> Flow:
    begin, count, tables = _read_streams(group, STREAM_TABLES | FLOW_TABLES, descriptor)
    attributes = {name: _attribute(group, name, kind) for name, kind in FLOW_ATTRIBUTES.items()}
    attributes["parameters"] = json.loads(attributes["parameters"])
    if not isinstance(attributes["parameters"], dict):
        raise Invalid("its method's parameters are not a JSON object")
    for name in ("scale", "offset", "mean"):
        tables[name] = tables[name].reshape(count, 2)
    return Flow(begin, **tables, attributes=attributes)


def faults(shard: Shard) -> Iterator[str]:
    """What is wrong inside an open shard: too few streams, or streams that fail their checksum."""
    if shard.has_frames and len(shard.part("frames")) != shard.frame_count:
        yield f"it holds {len(shard.part('frames'))} of {shard.frame_count} frames"
    for direction in shard.directions:
        least, flows = max(shard.frame_count - shard.step(direction), 0), shard.flow_count(direction)
        if not least <= flows <= shard.frame_count:
            yield f"it holds {flows} {direction} flows of {shard.frame_count} frames at step {shard.step(direction)}"
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
            for index, stream in enumerate(shard.streams(start, stop, part), start):
                if zlib.crc32(stream) != streams.crc32[index]:
                    yield part, index
            start = stop


# --- folders of shards ----------------------------------------------------------------------------------------------


def index_shards(folder: str | Path, unreadable: list[ShardAddress] | None = None) -> dict[str, ShardAddress]:
    """Shards below a folder by video id, loose files (`<class>/<stem>.h5`) and packs alike, in order of their ids.

    Loose files are listed, not opened. Where a video is both loose and packed, the loose file counts.

    Args:
        folder: a set of shards.
        unreadable: gets the packs that cannot be read, instead of an exception.

    Raises:
        InputError: a pack that cannot be read, if there is no list for it.
    """
    folder = Path(folder)
    loose: dict[str, ShardAddress] = {}
    packs: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not atomic.is_temporary(name))
        for path in (Path(parent, name) for name in sorted(names) if not atomic.is_temporary(name)):
            if path.name.endswith(SUFFIX):
                loose[path.relative_to(folder).as_posix().removesuffix(SUFFIX)] = ShardAddress(path)
            elif path.name.endswith(PACK_SUFFIX):
                packs.append(path)
    packed: dict[str, ShardAddress] = {}
    for path in packs:
        try:
            packed.update(index_pack(path))
        except InputError:
            if unreadable is None:
                raise
            unreadable.append(ShardAddress(path))
    return dict(sorted((packed | loose).items()))


def index_pack(path: Path) -> dict[str, ShardAddress]:
    """Shards of one pack by video id, which is the group's path. InputError if it is not one, or damaged."""
    with _opened(ShardAddress(path)) as (file, _):
        root = h5py.h5g.open(file, b"/")
        if not h5py.h5a.exists(root, b"format") or _attribute(root, "format", str) != PACK_FORMAT:
            raise Invalid(f"it is not a {PACK_FORMAT}")
        names = [name.decode() for name in _groups_of_shards(root)]
    return {name: ShardAddress(path, f"/{name}") for name in names}


def _groups_of_shards(group: Any, depth: int = 0) -> Iterator[bytes]:
    for name in list(group):
        child = _child(group, name.decode(), h5py.h5g.open)
        if h5py.h5a.exists(child, b"format"):
            yield name
        elif depth < DEEPEST_GROUP:
            yield from (name + b"/" + below for below in _groups_of_shards(child, depth + 1))
