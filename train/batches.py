"""The bytes of training and test samples: from shards and image files to uint8 arrays.

`train.sampler` decides what a batch holds; then each sample's streams are read and decoded straight into the batch, cut
to the region that is wanted. Readers may be used by several threads. Nothing is computed on pixels here: they are
passed on as stored, and `train.volume` turns them into the network's input on the device.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.decoder import Region
from pipeline.errors import InputError
from pipeline.manifest import RecordedShard
from pipeline.shard import Shard
from train.volume import (
    Memory,
    RawFlow,
    RawFrames,
    VolumeSpec,
    flow_index_table,
    plain_memory,
    position_count,
    zoom,
)

Box = Region
Key = tuple[int, int]
"""(iteration, index in the batch)"""

OPEN_FILES = 128
KEPT_TABLES = 1 << 17
"""Shards whose tables are kept in memory, about 15 kB each; others are opened again."""


AnyShard = TypeVar("AnyShard", bound=Shard)


class Item(NamedTuple):
    """One labelled video or image: its bytes, its class (a column of the last layer), its head, and its group."""

    source: Shard | Path
    label: int
    head: int
    group: str

    @property
    def name(self) -> str:
        """The name that messages give it."""
        return self.source.video if isinstance(self.source, Shard) else str(self.source)


class Batch(NamedTuple):
    """B samples of K snippets each, as bytes.

    Attributes:
        raw: flow or frames with leading shape [B,K].
        boxes: int64[B,4] on the host, the region of each sample that the network sees.
        flip: bool[B], samples to flip horizontally.
        noise: float32[B,3], added to every pixel of a frame.
        label, head: int64[B].
        key: int64[B], seed of each sample's dropout masks.
    """

    raw: RawFlow | RawFrames
    boxes: Tensor
    flip: Tensor
    noise: Tensor
    label: Tensor
    head: Tensor
    key: Tensor


# --- reading ----------------------------------------------------------------------------------------------------


def shard_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers (`train.volume.position_count`); 0 if it lacks frames or a direction."""
    if spec.stream == "spatial":
        return shard.frame_count if shard.has_frames else 0
    if not set(spec.directions) <= set(shard.directions):
        return 0
    flows = min(shard.flow_counts[direction] for direction in spec.directions)
    return position_count(spec, shard.frame_count, flows, shard.step(spec.directions[0]))


def read_volumes(
    shard: Shard,
    spec: VolumeSpec,
    positions: Sequence[int] | npt.NDArray[np.int64],
    box: Box | None = None,
    memory: Memory | None = None,
) -> RawFlow | RawFrames:
    """The bytes of some positions of a shard, as CPU tensors with leading shape [len(positions)].

    Every flow or frame is read and decoded once, however many of the volumes it is part of.

    Args:
        shard: open for reading.
        spec: what a volume holds.
        positions: 0 .. shard_positions - 1.
        box: top, left, height, width of the part to keep; None keeps whole fields, as trajectories need them.
        memory: for the pixels; newly allocated unless given.

    Raises:
        InputError: damaged streams, or flow that the shard lacks.
        ValueError: positions out of range.
    """
    places = np.asarray(positions, np.int64)
    available = shard_positions(shard, spec)
    if len(places) and not 0 <= places.min() <= places.max() < available:
        raise ValueError(f"{shard.address}: positions {places} of {available}")
    box = box or (0, 0, shard.height, shard.width)
    raw = empty(spec, (len(places),), box[2:], memory or plain_memory)
    arrays = [part.numpy() for part in raw]
    if spec.stream == "spatial":
        _fill_frames(shard, places, box, arrays)
    else:
        _fill_flow(shard, spec, _pairs(shard, spec, places), box, arrays)
    return raw


def _pairs(
    shard: Shard, spec: VolumeSpec, positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`flow_index_table` of positions of one shard."""
    flows, step = _flows_and_step(shard, spec)
    return flow_index_table(spec, positions, np.array(flows), np.array(step))


class DistinctFields(NamedTuple):
    """The volumes of some positions of a video, in which each field or frame is there once.

    Attributes:
        raw: fields, as volumes of one field each with leading shape [F]; volumes as they are where they are followed
            along trajectories, since no two share a field then.
        spec: what `train.volume.volume` is to make of raw: float32[F,c,H,W].
        rows: int64[P,k]; the volume of position p is raw's rows[p], channels of one after those of the other.
    """

    raw: RawFlow | RawFrames
    spec: VolumeSpec
    rows: npt.NDArray[np.int64]

    def part(self, start: int, stop: int) -> DistinctFields:
        """The same of positions start..stop-1 only; raw is a view where these use neighbours."""
        used, rows = np.unique(self.rows[start:stop], return_inverse=True)
        wanted: Any = used
        if len(used) == used[-1] - used[0] + 1:
            wanted = slice(used[0], used[-1] + 1)
        raw: Any = type(self.raw)(*(tensor[wanted] for tensor in self.raw))
        return self._replace(raw=raw, rows=rows.reshape(stop - start, -1))


def read_distinct(
    shard: Shard, spec: VolumeSpec, positions: npt.NDArray[np.int64], memory: Memory = plain_memory
) -> DistinctFields:
    """The bytes of some positions of a shard at whole size, of which each flow or frame is read once.

    Raises:
        InputError: damaged streams.
    """
    size = (shard.height, shard.width)
    if spec.stream == "spatial" or spec.stacking == "trajectory":
        volumes = read_volumes(shard, spec, positions, memory=memory)
        return DistinctFields(volumes, spec, np.arange(len(positions))[:, None])
    one = dataclasses.replace(spec, length=1, direction="forward")
    pairs = _pairs(shard, spec, positions)
    distinct = [np.unique(indices) for indices in pairs]
    counts = [len(indices) for indices in distinct]
    raw = empty(one, (sum(counts),), size, memory)
    none = np.empty((sum(counts), 0), np.int64)
    for side, wanted in enumerate(distinct):
        if len(wanted):
            place = slice(sum(counts[:side]), sum(counts[: side + 1]))
            arrays = [tensor[place].numpy() for tensor in raw]
            used = (wanted[:, None], none) if side == 0 else (none, wanted[:, None])
            _fill_flow(shard, one, used, (0, 0, *size), arrays)
    rows = [np.searchsorted(wanted, indices) for wanted, indices in zip(distinct, pairs, strict=True)]
    return DistinctFields(raw, one, np.concatenate([rows[0], rows[1] + counts[0]], axis=1))


def empty(
    spec: VolumeSpec, leading: tuple[int, ...], size: tuple[int, int], memory: Memory
) -> RawFlow | RawFrames:
    """Room for volumes of a size."""
    sizes = torch.empty((*leading, 2), dtype=torch.int64)
    if spec.stream == "spatial":
        return RawFrames(memory((*leading, *size, 3)), sizes)
    fields = (*leading, spec.length)
    scale, offset, mean = (torch.empty((*fields, 2)) for _ in range(3))
    tables = spec.length if spec.direction == "both" else 1
    return RawFlow(
        memory((*fields, 2, *size)), torch.empty((*leading, tables, 256)), scale, offset, mean, sizes,
        torch.empty(leading),
    )  # fmt: skip


def _flows_and_step(shard: Shard, spec: VolumeSpec) -> tuple[int, int]:
    """Flows that each direction has, and frames between the two of a pair."""
    flows = min(len(shard.part(direction)) for direction in spec.directions)
    return flows, shard.step(spec.directions[0])


def _fill_frames(
    shard: Shard, positions: npt.NDArray[np.int64], box: Box, raw: Sequence[npt.NDArray[Any]]
) -> None:
    """Read frames into the arrays of a `RawFrames` with leading shape [K], from the upper left.

    Args:
        shard: as in `read_volumes`.
        positions: int64[K].
        box: the part to keep.
        raw: the arrays.
    """
    pixels, size = raw
    size[:, 0], size[:, 1] = box[2], box[3]
    shard.read_into("frames", positions, np.arange(len(positions)), pixels, box)


def _fill_flow(
    shard: Shard,
    spec: VolumeSpec,
    pairs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    box: Box,
    raw: Sequence[npt.NDArray[Any]],
) -> None:
    """Read flow into the arrays of a `RawFlow` with leading shape [K], from the upper left.

    Args:
        shard, spec: as in `read_volumes`.
        pairs: `flow_index_table` of the positions, int64[K,...].
        box: the part to keep.
        raw: the arrays.
    """
    levels, table, scale, offset, mean, size, zooms = raw
    size[:, 0], size[:, 1] = box[2], box[3]
    zooms[:] = zoom(spec, shard.height, shard.width)
    places = np.arange(len(levels) * spec.length).reshape(len(levels), spec.length)
    levels = levels.reshape(-1, *levels.shape[2:])
    first = 0
    for direction, indices in zip(("forward", "backward"), pairs, strict=True):
        if not indices.shape[-1]:
            continue
        fields = slice(first, first + indices.shape[-1])
        first = fields.stop
        flow = shard.contents.flow[direction]
        table[:, fields if table.shape[1] > 1 else slice(None)] = flow.table
        scale[:, fields], offset[:, fields], mean[:, fields] = (
            flow.scale[indices], flow.offset[indices], flow.mean[indices],
        )  # fmt: skip
        shard.read_into(direction, indices.reshape(-1), places[:, fields].reshape(-1), levels, box)


def read_image(path: Path, short_side: int) -> npt.NDArray[np.uint8]:
    """An image file as RGB uint8[H,W,3], its smaller side resized to `short_side` (0: as it is).

    Raises:
        InputError: not a readable image.
    """
    import cv2

    try:
        stream = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    image = cv2.imdecode(stream, cv2.IMREAD_COLOR) if stream.size else None
    if image is None:
        raise InputError(f"{path}: expected an image, found {stream.size} bytes that cannot be decoded")
    height, width = image.shape[:2]
    if short_side and min(height, width) != short_side:
        ratio = short_side / min(height, width)
        size = max(round(width * ratio), short_side), max(round(height * ratio), short_side)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    rgb: npt.NDArray[np.uint8] = np.ascontiguousarray(image[:, :, ::-1])
    return rgb


# --- samples and batches ------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What to read for one sample, decided before anything is read."""

    item: Item
    image: npt.NDArray[np.uint8] | None
    positions: npt.NDArray[np.int64]
    box: Box
    flip: bool
    noise: npt.NDArray[np.float32]
    key: int


class SampleReader:
    """Reads batches, each given by the keys of its samples.

    Attributes:
        items: videos or images to draw from.
        spec: what a volume holds.
        snippets: K, positions per sample.
    """

    snippets: int

    def __init__(self, items: Sequence[Item], spec: VolumeSpec) -> None:
        self.items, self.spec = list(items), spec
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._read: OrderedDict[int, RecordedShard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def whole(self) -> bool:
        """Whether batches hold whole fields, since trajectories leave the crop."""
        return self.spec.stream == "temporal" and self.spec.stacking == "trajectory"

    def sample(self, key: Key) -> Sample:
        raise NotImplementedError

    def samples(self, keys: Sequence[Key]) -> list[Sample]:
        """`sample` of each key."""
        return [self.sample(key) for key in keys]

    def __getitems__(self, keys: list[Key]) -> Batch:
        return self.read(keys)

    def read(self, keys: Sequence[Key], memory: Memory = plain_memory) -> Batch:
        """The batch of the samples that the keys stand for, its pixels in `memory`; may be called from any thread."""
        samples, spec = self.samples(keys), self.spec
        regions = [(0, 0, *self._size(sample)) if self.whole else sample.box for sample in samples]
        size = max(region[2] for region in regions), max(region[3] for region in regions)
        raw = empty(spec, (len(samples), self.snippets), size, memory)
        arrays = [part.numpy() for part in raw]
        positions = np.stack([sample.positions for sample in samples])
        pairs = self._flow_pairs(samples, positions) if spec.stream == "temporal" else None
        for i, (sample, region) in enumerate(zip(samples, regions, strict=True)):
            of_sample, source = [array[i] for array in arrays], sample.item.source
            if isinstance(source, Shard):
                if pairs is None:
                    _fill_frames(source, positions[i], region, of_sample)
                else:
                    _fill_flow(source, spec, (pairs[0][i], pairs[1][i]), region, of_sample)
                self._opened(source)
            else:
                self._copy_image(sample, of_sample)
        boxes = [sample.box if self.whole else (0, 0, *sample.box[2:]) for sample in samples]
        return Batch(
            raw,
            boxes=torch.tensor(boxes),
            flip=torch.tensor([sample.flip for sample in samples]),
            noise=torch.from_numpy(np.stack([sample.noise for sample in samples])),
            label=torch.tensor([sample.item.label for sample in samples]),
            head=torch.tensor([sample.item.head for sample in samples]),
            key=torch.tensor([sample.key for sample in samples]),
        )

    def _flow_pairs(
        self, samples: Sequence[Sample], positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`flow_index_table` of the positions of all samples, int64[n,K]."""
        shards = [sample.item.source for sample in samples]
        known = [_flows_and_step(shard, self.spec) for shard in shards if isinstance(shard, Shard)]
        flows, steps = np.array(known, np.int64).reshape(-1, 2, 1).swapaxes(0, 1)
        return flow_index_table(self.spec, positions, flows, steps)

    def _size(self, sample: Sample) -> tuple[int, int]:
        assert isinstance(sample.item.source, Shard)
        return sample.item.source.height, sample.item.source.width

    def _copy_image(self, sample: Sample, raw: list[npt.NDArray[Any]]) -> None:
        assert sample.image is not None
        top, left, height, width = sample.box
        raw[0][:, :height, :width] = sample.image[top : top + height, left : left + width]
        raw[1][:] = height, width

    def _opened(self, shard: Shard) -> None:
        """Keep the most recently read files open, but not so many that descriptors run out; likewise their tables."""
        with self._lock:
            if (closed := _least_recent(self._open, shard, OPEN_FILES)) is not None:
                closed.close()
            if isinstance(shard, RecordedShard):
                forgotten = _least_recent(self._read, shard, KEPT_TABLES)
                if forgotten is not None:
                    forgotten.forget()

    def stored_size(self, item: Item, image: npt.NDArray[np.uint8] | None) -> tuple[int, int]:
        """Height and width of a video or image as stored."""
        if image is not None:
            return image.shape[0], image.shape[1]
        assert isinstance(item.source, Shard)
        return item.source.height, item.source.width

    def load_image(self, item: Item) -> npt.NDArray[np.uint8] | None:
        """The pixels of an image file; None for a shard, which is read once the region is known."""
        return read_image(item.source, self.spec.short_side) if isinstance(item.source, Path) else None


def _least_recent(recent: OrderedDict[int, AnyShard], shard: AnyShard, most: int) -> AnyShard | None:
    """Mark a shard as the most recently used; returns the least recently used one if there are too many."""
    recent[id(shard)] = shard
    recent.move_to_end(id(shard))
    return recent.popitem(last=False)[1] if len(recent) > most else None


def keep_opencv_to_one_thread() -> None:
    """Keep OpenCV to the calling thread: readers' threads share the cores already, and forks do not copy its pool."""
    import cv2

    cv2.setNumThreads(1)
