"""Writing shards: streams are spooled as they come, then the file is written in one go, verified and renamed."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import atomic
from pipeline.codec import Codec, Levels, Quantised
from pipeline.errors import InputError, reading
from pipeline.hdf5 import new_file, write_array, write_attributes, write_bytes
from pipeline.manifest import Facts, Stamp, facts_of, stamp_of
from pipeline.request import Request
from pipeline.shard import BLOCK_BYTES, Flow, Shard, Source, faults, open_shard, parts
from pipeline.shard_file import DIRECTIONS, FLOW_ATTRIBUTES, FORMAT, VERSION, tables_crc32

SPOOLED_BYTES = 1 << 20
"""Bytes of a part that are kept in memory until its shard is written; more go to a file."""


def encode_frame(frame: Levels, quality: int) -> bytes:
    """RGB uint8[H,W,3] as a JPEG of the given quality, 1..100."""
    import cv2

    done, stream = cv2.imencode(
        ".jpg",
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    )
    if not done:
        raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} cannot be coded as JPEG")
    return stream.tobytes()


class Spool:
    """Streams on their way into a shard: in memory while they are few, else in a nameless file, which no crash
    leaves behind.
    """

    def __init__(self, folder: Path) -> None:
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOLED_BYTES, dir=str(folder))  # noqa: SIM115  by close()
        self.start = [0]
        self.crc32: list[int] = []

    def add(self, stream: bytes | memoryview) -> None:
        self.file.write(stream)
        self.start.append(self.start[-1] + len(stream))
        self.crc32.append(zlib.crc32(stream))

    def tables(self) -> dict[str, npt.NDArray[Any]]:
        return {"start": np.array(self.start, np.int64), "crc32": np.array(self.crc32, np.uint32)}

    def blocks(self) -> Iterator[bytes]:
        """The streams' bytes back to back, a block at a time."""
        self.file.seek(0)
        while block := self.file.read(BLOCK_BYTES):
            yield block

    def close(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # a full disk, where the buffer cannot be flushed: it is not wanted any more
            self.file.close()


class ShardWriter:
    """Writes one shard: add frames and flows as they come, then `finish`. Leaving the block without it leaves nothing.

    Example:
        with ShardWriter(path, request, codec) as writer:
            writer.add_frames(rgb)
            writer.add_flows("forward", quantised)
            writer.finish(video="Class/stem", source=source, fps=25.0, frames=100, width=340, height=256, device="cpu")
    """

    def __init__(
        self, path: str | Path, request: Request, codec: Codec | None = None, keep: Shard | None = None
    ) -> None:
        """Start a shard that will be renamed to `path`.

        Args:
            path: its final name; the folder is made.
            request: what it answers; recorded for later runs to compare.
            codec: of the flow, if any will be added.
            keep: an existing shard of the same request except for directions and frames, whose streams are copied.
        """
        self.path, self.request, self.codec, self.keep = Path(path), request, codec, keep
        self._spools: dict[str, Spool] = {}
        self._quantised: dict[str, list[Quantised]] = {}
        with atomic.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spool in self._spools.values():
            spool.close()

    def begin(self, part: str) -> None:
        """Announce "frames", "forward" or "backward"; a part without any stream needs this."""
        if part not in self._spools:
            with atomic.disk_errors(self.path):
                self._spools[part] = Spool(self.path.parent)

    def add_frames(self, frames: Levels) -> None:
        """Append RGB frames uint8[n,H,W,3], coded with the request's `frames_quality`."""
        self.add_streams(
            "frames", (encode_frame(frame, self.request.frames_quality or 95) for frame in frames)
        )

    def add_flows(
        self, direction: str, flows: Quantised, streams: Iterable[bytes | memoryview] | None = None
    ) -> None:
        """Append flows of a direction as the quantiser gave them; `streams` if they are coded already."""
        if self.codec is None:
            raise ValueError("flows need a codec")
        if streams is None:
            streams = (self.codec.encode(levels) for levels in flows.levels)
        self.add_streams(direction, streams)
        self._quantised.setdefault(direction, []).append(
            Quantised(np.empty((0, 2, 0, 0), np.uint8), flows.scale, flows.offset, flows.mean, flows.clipped)
        )

    def add_streams(self, part: str, streams: Iterable[bytes | memoryview]) -> None:
        """Append coded images to "frames", "forward" or "backward"."""
        self.begin(part)
        with atomic.disk_errors(self.path):
            for stream in streams:
                self._spools[part].add(stream)

    def finish(
        self,
        *,
        video: str,
        source: Source,
        fps: float,
        frames: int,
        width: int,
        height: int,
        device: str = "",
        corrupt: str = "",
    ) -> tuple[Stamp, Facts]:
        """Write the file under a temporary name, verify what was written, and rename it.

        Args:
            video: its identity, "class/stem".
            source: the file that it was made of.
            fps: frames per second of the frames that were kept.
            frames: how many were.
            width, height: of frames and flow, in pixels.
            device: that computed the flow; recorded, never compared.
            corrupt: the decoder's error where the frames before it were kept.

        Returns:
            What a manifest records of it.

        Raises:
            InputError: it cannot be written, or what is on the disk is not what was written.
        """
        written: list[tuple[Stamp, Facts]] = []
        attributes = {
            "format": FORMAT,
            "version": VERSION,
            "video": video,
            **{f"source_{name}": value for name, value in vars(source).items()},
            "fps": float(fps),
            "frames": frames,
            "width": width,
            "height": height,
            "size": self.request.size_in_words,
            "every": self.request.every,
            "start": float(self.request.start),
            "end": None if self.request.end is None else float(self.request.end),
            "corrupt": corrupt,
        }
        with (
            atomic.writing(self.path, verify=lambda path: written.append(verify_written(path))) as temporary,
            new_file(temporary) as file,
        ):
            write_attributes(file, attributes)
            for part in ("frames", *DIRECTIONS):
                self._write_part(file, part, device)
        return written[0]

    def _write_part(self, root: h5py.Group, part: str, device: str) -> None:
        if part in self._spools:
            tables = self._spools[part].tables()
            described: dict[str, Any] = {"quality": self.request.frames_quality or 95}
            if part != "frames":
                tables |= self._flow_tables(part)
                described = {key: getattr(self.request, key) for key in FLOW_ATTRIBUTES if key != "device"}
                described["device"] = device
            write_part(root.create_group(group_name(part)), tables, described, self._spools[part].blocks())
        elif self.keep is not None and part in (
            "frames" if self.keep.has_frames else "",
            *self.keep.directions,
        ):
            copy_part(self.keep, part, root.create_group(group_name(part)))

    def _flow_tables(self, direction: str) -> dict[str, npt.NDArray[Any]]:
        assert self.codec is not None
        added = self._quantised.get(direction, [])
        empty = {
            "scale": np.empty((0, 2)),
            "offset": np.empty((0, 2)),
            "mean": np.empty((0, 2)),
            "clipped": np.empty(0),
        }
        columns = {
            name: np.concatenate([none, *(getattr(flows, name) for flows in added)]).astype(np.float32)
            for name, none in empty.items()
        }
        return {"table": self.codec.quantiser.table} | columns


def copy_shard(shard: Shard, group: h5py.Group) -> None:
    """Copy a whole shard into an empty group, the streams unchanged."""
    write_attributes(group, {"format": FORMAT, "version": VERSION, **shard.contents.attributes})
    for part in parts(shard):
        copy_part(shard, part, group.create_group(group_name(part)))


def group_name(part: str) -> str:
    """Where a part lies in its shard's group."""
    return "rgb" if part == "frames" else f"flow/{part}"


def copy_part(shard: Shard, part: str, group: h5py.Group) -> None:
    """Copy "frames" or the flow of a direction into a new group, the streams in blocks and unchanged."""
    streams = shard.part(part)
    tables: dict[str, npt.NDArray[Any]] = {"start": streams.start, "crc32": streams.crc32}
    described: Mapping[str, Any] = {"quality": shard.contents.frames_quality}
    if isinstance(streams, Flow):
        tables |= {"table": streams.table, "scale": streams.scale, "offset": streams.offset}
        tables |= {"mean": streams.mean, "clipped": streams.clipped}
        described = streams.attributes
    with reading(shard.address), shard.address.file.open("rb") as file:
        file.seek(streams.begin)
        total = int(streams.start[-1])
        sizes = (min(BLOCK_BYTES, total - at) for at in range(0, total, BLOCK_BYTES))
        write_part(group, tables, described, map(file.read, sizes))


def write_part(
    group: h5py.Group,
    tables: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, Any],
    blocks: Iterable[bytes],
) -> None:
    """Tables and attributes of one part into its new group, and the streams' bytes back to back, a block at a time."""
    for name, values in tables.items():
        write_array(group, name, values)
    write_attributes(group, {**attributes, "tables_crc32": tables_crc32(tables)})
    write_bytes(group, "jpeg", int(tables["start"][-1]), blocks)


def verify_written(path: Path) -> tuple[Stamp, Facts]:
    """What a manifest records of a shard; InputError unless its streams are complete and match their checksums."""
    stamp = stamp_of(path)
    with open_shard(path) as shard:
        for fault in faults(shard):
            raise InputError(f"{path.parent}: the shard of {shard.video} is damaged as written: {fault}")
        return stamp, facts_of(shard)
