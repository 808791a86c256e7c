"""A shard as a file: its format, and reading everything but its image streams, without trusting it.

docs/reference/shard-format.md is the format; `pipeline.shard` reads the streams.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import hdf5
from pipeline.codec import BLOCK, Floats, image_size
from pipeline.errors import Damaged, InputError, OtherFormat, Unreadable
from pipeline.hdf5 import Foreign, Invalid, SourceFile
from pipeline.text import shortened, typed

FORMAT = "two-stream shard"
VERSION = 1
SUFFIX = ".h5"
DIRECTIONS = ("forward", "backward")
LARGEST_SIDE = 65535
MOST_PIXELS = 1 << 27
LARGEST_VALUE = 1e9
"""Largest value in the tables; a product of two is still finite."""
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


def damaged(address: ShardAddress, what: str) -> Damaged:
    return Damaged(
        f"{address}: damaged shard: {shortened(what)}; run `{typed('pipeline')} verify --repair` on it, which sets it "
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
            f"{address.file}: no such shard; extract the video first ({typed('extract_flow')})"
        ) from error
    except Unreadable as error:
        if not address.file.is_dir():
            raise
        raise InputError(
            f"{address.file}: expected a shard, found a folder; pipeline.shard_index.index_shards lists those in it"
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
    """Whether a video's name, or a part of it, cannot name a file or folder below another one."""
    return "\0" in video or any(part in ("", ".", "..") for part in video.split("/"))
