"""One video into a shard: decode, flow, encode, write; in pieces, so that a long video needs no more memory.

The stages are separate so that a worker can run them one after the other (CPU) or overlapped (GPU, see `worker.py`);
the bytes in the shard are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from extract_flow.flow_method import FlowMethod
from extract_flow.settings import ExtractionSettings
from pipeline.codec import Quantised, Quantiser
from pipeline.errors import Damaged, InputError
from pipeline.manifest import Facts, Stamp
from pipeline.outcome import Outcome
from pipeline.paths import fault_of_part
from pipeline.request import Request, Standing, check
from pipeline.shard import Shard, ShardAddress, Source, open_shard
from pipeline.shard_writer import ShardWriter, encode_frame
from pipeline.text import many, shortened
from pipeline.video import VideoError, VideoReader, source_bytes, source_digest

CHUNK_BYTES = 1 << 28
BYTES_PER_PIXEL = 16
"""Memory of a frame and its pair in progress: gray 1, RGB 3, flow 8, levels 2 and what encoding takes."""
LEAST_FRAMES_KEPT = 2


class VideoTask(NamedTuple):
    """A video to extract.

    Attributes:
        video: its identity, "class/stem" in a dataset.
        path: the file, or the folder of pictures.
        shard: where its shard goes.
        packed: where its shard is now if a pack holds it.
    """

    video: str
    path: Path
    shard: Path
    packed: ShardAddress | None = None

    def existing(self) -> ShardAddress | None:
        """Where its shard is now, if anywhere; a loose one takes precedence over a packed one."""
        return ShardAddress(self.shard) if self.shard.exists() else self.packed


class Piece(NamedTuple):
    """Consecutive frames of a clip with the pairs that end in them.

    Attributes:
        gray: uint8[T,H,W], the new frames after the `step` before them.
        rgb: uint8[n,H,W,3], new frames only, or None.
        pairs: direction -> int[n,2], indices into `gray`.
    """

    clip: Clip
    gray: npt.NDArray[np.uint8]
    rgb: npt.NDArray[np.uint8] | None
    pairs: Mapping[str, npt.NDArray[np.int64]]


def check_source(task: VideoTask) -> int:
    """Size of a video in bytes, if it is there and its name can be stored; nothing is decoded.

    Raises:
        InputError: a name that cannot be stored.
        VideoError: no such file or folder.
    """
    for part in task.video.split("/"):
        if fault := fault_of_part(part):
            raise InputError(f"{str(task.path)!r}: the name {part!r} cannot be stored: {fault}; rename it")
    return source_bytes(task.path)


def other_settings(standing: Standing, settings: ExtractionSettings) -> str:
    """Why an existing shard that differs from what is asked for is neither done nor replaced; does not name the
    video.
    """
    preset = settings.preset_of(standing.made)
    same = f"the same ({preset})" if preset else "the same"
    return (
        f"its shard was made with other settings ({'; '.join(standing.differences)}): ask for {same}, use another "
        "--shards or --output, or replace it with --overwrite"
    )


class Clip:
    """One video in progress; a context manager that leaves nothing behind unless `finish` was reached.

    Attributes:
        task: the video and where its shard goes.
        settings: what to make of it.
        error: what ended it; its remaining pieces are dropped.
        written: what the set's manifest records of the shard, once it is there.
    """

    def __init__(self, task: VideoTask, settings: ExtractionSettings, device: str) -> None:
        """Prepare; nothing is opened yet.

        Args:
            task: the video.
            settings: what to make of it.
            device: what computes the flow, recorded in the shard.
        """
        self.task = task
        self.settings = settings
        self.error: Exception | None = None
        self.written: tuple[Stamp, Facts] | None = None
        self._device = device
        self._started = time.perf_counter()
        self._stages = {"decode": 0.0, "flow": 0.0, "encode": 0.0, "write": 0.0}
        self._notes: list[str] = []
        self._reader: VideoReader | None = None
        self._writer: ShardWriter | None = None
        self._keep: Shard | None = None
        self._source_bytes = self._frames = self._flows = 0
        self._missing: tuple[str, ...] = ()
        self._corrupt = ""

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the video and the old shard, and drop what was spooled for the new one."""
        for held in (self._reader, self._keep):
            if held is not None:
                held.close()
        if self._writer is not None:
            self._writer.__exit__(None, None, None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.count(name, time.perf_counter() - before)

    def count(self, name: str, seconds: float) -> None:
        """Add to the time of a stage; each stage is counted by one thread."""
        self._stages[name] = self._stages.get(name, 0.0) + seconds

    def open(self, on_frame: Callable[[], None] | None = None) -> bool:
        """Check the existing shard, and open the video; False if there is nothing to do.

        Raises:
            VideoError: no frame can be decoded.
            InputError: the existing shard was made with other settings, or a name that cannot be stored.
        """
        self._source_bytes = check_source(self.task)
        request = self.settings.request(self._source_bytes)
        self._missing = self._missing_parts(request)
        if not self._missing:
            return False
        with self.stage("decode"):
            self._reader = VideoReader(
                self.task.path, self.settings.selection, rgb="frames" in self._missing, on_frame=on_frame
            )
        if not self.settings.size_was_asked and self._reader.height > self._reader.source_height:
            self._notes.append(
                f"smaller than {self.settings.selection.short_side} pixels, and scaled up to that, so that all can be "
                "trained on alike: --short-side none keeps each video's own size"
            )
        self._writer = ShardWriter(self.task.shard, request, self.settings.codec, self._keep)
        for part in self._missing:  # a video of one frame has no flow, but its shard records that
            self._writer.begin(part)
        return True

    def _missing_parts(self, request: Request) -> tuple[str, ...]:
        """The parts to make; keeps the existing shard open if its other parts will be copied.

        Raises:
            InputError: the existing shard was made with other settings, and is not to be replaced.
        """
        everything = ("frames",) * request.frames + request.directions
        address = self.task.existing()
        if address is None:
            return everything
        try:
            standing = check(address, request)
        except Damaged as error:
            self._notes.append(f"recreated, because it was damaged: {error}")
            return everything
        if standing.differences:
            if self.settings.overwrite:
                return everything
            raise InputError(other_settings(standing, self.settings))
        if standing.missing:
            self._keep = open_shard(address)
        return standing.missing

    def pieces(self, batch_pairs: int) -> Iterator[Piece]:
        """Decode the whole video, at most `batch_pairs` pairs and a bounded number of bytes at a time.

        Raises:
            VideoError: the video is corrupt, and the policy is to fail.
        """
        reader, step = self._reader, self.settings.step
        assert reader is not None
        directions = [part for part in self._missing if part != "frames"]
        fitting = CHUNK_BYTES // (BYTES_PER_PIXEL * reader.width * reader.height)
        count = max(1, min(batch_pairs // max(1, len(directions)), fitting))
        held = np.empty((0, reader.height, reader.width), np.uint8)
        while True:
            try:
                with self.stage("decode"):
                    frames = reader.read(count)
            except VideoError as error:
                if self.settings.on_corrupt == "fail" or self._frames < LEAST_FRAMES_KEPT:
                    raise
                self._corrupt = error.reason
                self._notes.append(f"{error.reason}: the {self._frames} frames before were kept")
                break
            if not len(frames.gray):
                break
            self._frames += len(frames.gray)
            gray = np.concatenate([held, frames.gray])
            later = np.arange(max(step, len(held)), len(gray))
            forward = np.stack([later - step, later], axis=1)
            pairs = {d: forward if d == "forward" else forward[:, ::-1] for d in directions}
            held = gray[-step:]
            yield Piece(self, gray, frames.rgb, pairs)
        self._check_count(reader)

    def _check_count(self, reader: VideoReader) -> None:
        """Compare the frames with what the old shard and the header say."""
        if self._keep is not None and self._keep.frame_count != self._frames:
            raise InputError(
                f"{self.task.shard}: holds {self._keep.frame_count} frames, but {self.task.path} now decodes to "
                f"{self._frames}: the video or the decoder changed; delete the shard and extract it again"
            )
        if self._frames <= self.settings.step:
            self._notes.append(f"{many(self._frames, 'frame')} at step {self.settings.step}: it has no flow")

    def store(self, piece: Piece, flows: Mapping[str, Quantised], pool: Executor | None = None) -> None:
        """Encode a piece's frames and flow, on the pool's threads if there is one, and append them to the shard."""
        assert self._writer is not None
        spread = map if pool is None else pool.map
        with self.stage("encode"):
            streams: dict[str, list[bytes]] = {}
            if piece.rgb is not None:
                encode = functools.partial(encode_frame, quality=self.settings.rgb_quality)
                streams["frames"] = list(spread(encode, piece.rgb))
            for direction, flow in flows.items():
                streams[direction] = list(spread(self.settings.codec.encode, flow.levels))
        with self.stage("write"):
            if piece.rgb is not None:
                self._writer.add_streams("frames", streams["frames"])
            for direction, flow in flows.items():
                self._writer.add_flows(direction, flow, streams[direction])
                self._flows += len(flow.levels)

    def finish(self) -> None:
        """Write the shard, flush it, read it back and rename it into its place."""
        assert self._writer is not None
        assert self._reader is not None
        reader = self._reader
        with self.stage("write"):
            self.written = self._writer.finish(
                video=self.task.video,
                source=Source(
                    self._source_bytes,
                    source_digest(self.task.path),
                    reader.source_width,
                    reader.source_height,
                ),
                fps=reader.fps,
                frames=self._frames,
                width=reader.width,
                height=reader.height,
                device=self._device,
                corrupt=self._corrupt,
            )

    def progress(self) -> tuple[int, float]:
        """Flows so far, and about what share of the video they are (0 if its header does not say)."""
        expected = self._reader.header_frames if self._reader is not None else None
        done = min(1.0, self._reader.decoded / expected) if self._reader is not None and expected else 0.0
        return self._flows, done

    def outcome(self, status: Literal["done", "skipped", "failed"], reason: str = "") -> Outcome:
        """The record of how it ended, or of its failure with a reason."""
        return Outcome(
            video=self.task.video,
            status=status,
            reason=shortened(reason),
            notes=(*(self._reader.notes if self._reader is not None else ()), *self._notes),
            frames=self._frames if status == "done" else 0,
            flows=self._flows if status == "done" else 0,
            bytes=self.task.shard.stat().st_size if status == "done" else 0,
            seconds=time.perf_counter() - self._started,
            stages=dict(self._stages),
            method=f"{self.settings.method} on {self._device}",
        )


def compute(pieces: list[Piece], method: FlowMethod, quantiser: Quantiser) -> list[dict[str, Quantised]]:
    """Quantised flow of pieces of one frame size in one call: a dictionary by direction for each piece."""
    return begin(pieces, method, quantiser)()


def begin(
    pieces: list[Piece], method: FlowMethod, quantiser: Quantiser
) -> Callable[[], list[dict[str, Quantised]]]:
    """Start `compute`, on a device that works by itself; what is returned waits for the result."""
    frames = pieces[0].gray if len(pieces) == 1 else np.concatenate([piece.gray for piece in pieces])
    offsets = np.cumsum([0] + [len(piece.gray) for piece in pieces[:-1]])
    parts = [
        (i, direction, pairs + offset)
        for i, (piece, offset) in enumerate(zip(pieces, offsets, strict=True))
        for direction, pairs in piece.pairs.items()
    ]
    if not parts:
        return lambda: [{} for _ in pieces]
    collect = method.begin(frames, np.concatenate([pairs for _, _, pairs in parts]), quantiser)

    def results() -> list[dict[str, Quantised]]:
        everything = collect()
        by_piece: list[dict[str, Quantised]] = [{} for _ in pieces]
        at = 0
        for i, direction, pairs in parts:
            part = slice(at, at + len(pairs))
            by_piece[i][direction] = Quantised(
                *(getattr(everything, field.name)[part] for field in dataclasses.fields(Quantised))
            )
            at += len(pairs)
        return by_piece

    return results
