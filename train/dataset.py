"""The bytes of training and test samples: from shards and image files to uint8 arrays.

Nothing here computes with pixels: fields and frames are decoded, cut and handed over as they are stored, and
`train.volume` makes the network's input of them on the device.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from pipeline.errors import InputError
from pipeline.shard import Shard
from train.augment import Box, centre_box, lighting_noise, random_box
from train.recipe import Recipe
from train.sampler import Key, choose, choose_positions, class_pools, generator
from train.volume import (
    RawFlow,
    RawFrames,
    VolumeSpec,
    cut,
    flow_indices,
    mirror_where,
    position_count,
    volume,
    zoom,
)

OPEN_FILES = 128


class Item(NamedTuple):
    """One labelled video or image: its bytes, its class (a column of the last layer), its head, and its group."""

    source: Shard | Path
    label: int
    head: int
    group: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source.video if isinstance(self.source, Shard) else str(self.source)


class Batch(NamedTuple):
    """B samples of K snippets each, as bytes.

    Attributes:
        raw: flow or frames with leading shape [B,K].
        boxes: int64[B,4] on the host, the region of each sample that the network sees.
        flip: bool[B], samples to mirror.
        noise: float32[B,3], added to every pixel of a frame.
        label, head: int64[B].
        key: int64[B], what the sample's dropout masks follow from.
    """

    raw: RawFlow | RawFrames
    boxes: Tensor
    flip: Tensor
    noise: Tensor
    label: Tensor
    head: Tensor
    key: Tensor


def network_input(batch: Batch, spec: VolumeSpec, device: torch.device | str) -> Tensor:
    """The network's input on the device: float32[B,K,C,crop,crop], cut, resized and mirrored."""
    raw = batch.raw.to(device)
    noise = batch.noise.to(device)[:, None] if isinstance(raw, RawFrames) else None
    volumes = volume(raw, spec, noise)
    count, snippets = volumes.shape[:2]
    boxes = batch.boxes.repeat_interleave(snippets, dim=0)
    inputs = cut(volumes.flatten(0, 1), boxes, spec.crop)
    inputs = mirror_where(inputs, batch.flip.repeat_interleave(snippets), spec)
    return inputs.unflatten(0, (count, snippets))


# --- reading ----------------------------------------------------------------------------------------------------


def shard_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers (`train.volume.position_count`); 0 if it lacks frames or a direction."""
    if spec.stream == "spatial":
        return shard.frame_count if shard.has_frames else 0
    if not set(spec.directions) <= set(shard.directions):
        return 0
    flows = min(shard.flow_count(direction) for direction in spec.directions)
    return position_count(spec, shard.frame_count, flows, shard.step(spec.directions[0]))


def read_volumes(
    shard: Shard,
    spec: VolumeSpec,
    positions: Sequence[int] | npt.NDArray[np.int64],
    box: Box | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> RawFlow | RawFrames:
    """The bytes of some positions of a shard, as CPU tensors with leading shape [len(positions)].

    Every flow or frame is read and decoded once, however many of the volumes it is part of.

    Args:
        shard: open for reading.
        spec: what a volume is.
        positions: 0 .. shard_positions - 1.
        box: top, left, height, width of the part to keep; None keeps whole fields, as trajectories need them.
        out: uint8[len(positions),L,2,>=height,>=width] (frames: [len(positions),>=height,>=width,3]) to fill from the
            upper left.

    Raises:
        InputError: damaged streams, or flow that the shard lacks.
        ValueError: positions that are not there.
    """
    count = len(positions)
    box = box or (0, 0, shard.height, shard.width)
    size = torch.tensor(box[2:]).expand(count, 2).clone()
    if spec.stream == "spatial":
        pixels = np.empty((count, *box[2:], 3), np.uint8) if out is None else out
        _read(shard, "frames", np.asarray(positions), box, pixels)
        return RawFrames(torch.from_numpy(pixels), size)
    levels = np.empty((count, spec.length, 2, *box[2:]), np.uint8) if out is None else out
    flows = min(shard.flow_count(direction) for direction in spec.directions)
    step = shard.step(spec.directions[0])
    pairs = [flow_indices(spec, int(position), flows, step) for position in positions]
    parts = []
    done = 0
    for side, direction in enumerate(("forward", "backward")):
        indices = np.array([pair[side] for pair in pairs])
        if not indices.size:
            continue
        length = indices.shape[1]
        _read(shard, direction, indices.reshape(-1), box, levels[:, done : done + length])
        done += length
        tables = np.broadcast_to(shard.table(direction), (*indices.shape, 256))
        parts.append((tables, *(of(direction)[indices] for of in (shard.scale, shard.offset, shard.mean))))
    table, scale, offset, mean = (
        torch.from_numpy(np.concatenate(part, axis=1)) for part in zip(*parts, strict=True)
    )
    zooms = torch.full((count,), zoom(spec, shard.height, shard.width))
    return RawFlow(torch.from_numpy(levels), table, scale, offset, mean, size, zooms)


def _read(
    shard: Shard, part: str, indices: npt.NDArray[np.int64], box: Box, out: npt.NDArray[np.uint8]
) -> None:
    """Flows or frames at indices [n], cut to the box, into out [*,2,H,W] or [*,H,W,3], where * counts to n."""
    top, left, height, width = box
    rows, columns = slice(top, top + height), slice(left, left + width)
    unique = np.unique(indices)
    # Runs of neighbours are one read of the file.
    for run in np.split(unique, np.flatnonzero(np.diff(unique) != 1) + 1):
        start, stop = int(run[0]), int(run[-1]) + 1
        if part == "frames":
            images = shard.frames(start, stop, out=_scratch((stop - start, shard.height, shard.width, 3)))
            images = images[:, rows, columns]
        else:
            images = shard.levels(
                start, stop, part, out=_scratch((stop - start, 2, shard.height, shard.width))
            )
            images = images[:, :, rows, columns]
        for place, index in zip(np.ndindex(*out.shape[:-3]), indices.tolist(), strict=True):
            if start <= index < stop:
                if part == "frames":
                    out[place][:height, :width] = images[index - start]
                else:
                    out[place][:, :height, :width] = images[index - start]


_buffers = threading.local()


def _scratch(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Memory that every read of a thread uses again: fresh pages cost as much as decoding half an image."""
    size = int(np.prod(shape))
    if getattr(_buffers, "bytes", np.empty(0)).size < size:
        _buffers.bytes = np.empty(size, np.uint8)
    buffer: npt.NDArray[np.uint8] = _buffers.bytes[:size].reshape(shape)
    return buffer


def read_image(path: Path, short_side: int) -> npt.NDArray[np.uint8]:
    """An image file as RGB uint8[H,W,3], its smaller side resized to `short_side` (0: as it is).

    Raises:
        InputError: no readable image.
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
    """What is to be read, decided before anything is."""

    item: Item
    image: npt.NDArray[np.uint8] | None
    positions: npt.NDArray[np.int64]
    box: Box
    flip: bool
    noise: npt.NDArray[np.float32]
    key: int


class SampleReader(TorchDataset[Batch]):
    """Reads batches for a DataLoader: each of its items is a whole (micro-)batch, so use batch_size=None or `keys`.

    Attributes:
        items: what is drawn from.
        spec: what a volume is.
    """

    def __init__(self, items: Sequence[Item], spec: VolumeSpec) -> None:
        self.items, self.spec = list(items), spec
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def sample(self, key: Key) -> Sample:
        raise NotImplementedError

    def __getitems__(self, keys: list[Key]) -> Batch:
        return self._batch([self.sample(key) for key in keys])

    def _batch(self, samples: list[Sample]) -> Batch:
        spec = self.spec
        whole = spec.stream == "temporal" and spec.stacking == "trajectory"
        regions = [self._size(sample) if whole else sample.box[2:] for sample in samples]
        height, width = max(size[0] for size in regions), max(size[1] for size in regions)
        snippets = len(samples[0].positions)
        shape = (height, width, 3) if spec.stream == "spatial" else (spec.length, 2, height, width)
        pixels = shared_empty((len(samples), snippets, *shape))
        raws = [
            self._fill(sample, None if whole else sample.box, pixels[i].numpy())
            for i, sample in enumerate(samples)
        ]
        rest = [torch.stack(parts) for parts in list(zip(*raws, strict=True))[1:]]
        raw = RawFrames(pixels, *rest) if spec.stream == "spatial" else RawFlow(pixels, *rest)
        return Batch(
            raw,
            boxes=torch.tensor([sample.box if whole else (0, 0, *sample.box[2:]) for sample in samples]),
            flip=torch.tensor([sample.flip for sample in samples]),
            noise=torch.from_numpy(np.stack([sample.noise for sample in samples])),
            label=torch.tensor([sample.item.label for sample in samples]),
            head=torch.tensor([sample.item.head for sample in samples]),
            key=torch.tensor([sample.key for sample in samples]),
        )

    def _size(self, sample: Sample) -> tuple[int, int]:
        assert isinstance(sample.item.source, Shard)
        return sample.item.source.height, sample.item.source.width

    def _fill(self, sample: Sample, box: Box | None, out: npt.NDArray[np.uint8]) -> RawFlow | RawFrames:
        source = sample.item.source
        if isinstance(source, Shard):
            raw = read_volumes(source, self.spec, sample.positions, box, out)
            self._opened(source)
            return raw
        assert sample.image is not None
        assert box is not None
        top, left, height, width = box
        out[:, :height, :width] = sample.image[top : top + height, left : left + width]
        return RawFrames(torch.from_numpy(out), torch.tensor([[height, width]]))

    def _opened(self, shard: Shard) -> None:
        """Keep the files read last open, but not so many that descriptors run out."""
        self._open[id(shard)] = shard
        self._open.move_to_end(id(shard))
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()

    def stored_size(self, item: Item, image: npt.NDArray[np.uint8] | None) -> tuple[int, int]:
        """Rows and columns of a video or image as stored."""
        if image is not None:
            return image.shape[0], image.shape[1]
        assert isinstance(item.source, Shard)
        return item.source.height, item.source.width

    def load_image(self, item: Item) -> npt.NDArray[np.uint8] | None:
        """The pixels of an image file; None for a shard, which is read once the region is known."""
        return read_image(item.source, self.spec.short_side) if isinstance(item.source, Path) else None


class TrainingReader(SampleReader):
    """Random samples: key (iteration, index) says which, together with the recipe's seed."""

    def __init__(self, items: Sequence[Item], spec: VolumeSpec, recipe: Recipe) -> None:
        super().__init__(items, spec)
        self.recipe = recipe
        self.pools = class_pools([item.label for item in items])

    def item(self, key: Key) -> tuple[Item, np.random.Generator]:
        """The video of a key, and the generator that decides the rest of the sample."""
        random = generator(self.recipe.seed, *key)
        return self.items[choose(random, self.pools)], random

    def sample(self, key: Key) -> Sample:
        recipe = self.recipe
        item, random = self.item(key)
        image = self.load_image(item)
        height, width = self.stored_size(item, image)
        available = shard_positions(item.source, self.spec) if isinstance(item.source, Shard) else 1
        return Sample(
            item,
            image,
            positions=choose_positions(random, available, recipe.segments),
            box=random_box(random, height, width, self.spec, recipe.cut, recipe.scales),
            flip=bool(random.integers(2)) and recipe.flip,
            noise=lighting_noise(random, recipe.lighting if self.spec.stream == "spatial" else 0),
            key=int(random.integers(-(2**63), 2**63 - 1)),
        )

    def head_counts(self, iteration: int, heads: int) -> list[int]:
        """How many samples of an iteration's whole batch each head has; the same in every process."""
        if heads == 1:
            return [self.recipe.batch]
        drawn = [self.item((iteration, index))[0].head for index in range(self.recipe.batch)]
        return np.bincount(drawn, minlength=heads).tolist()


class ValidationReader(SampleReader):
    """Fixed samples: key (_, index) is item `index`, its centre at a few equally spaced positions, not mirrored."""

    def __init__(self, items: Sequence[Item], spec: VolumeSpec, snippets: int) -> None:
        super().__init__(items, spec)
        self.snippets = snippets

    def sample(self, key: Key) -> Sample:
        item = self.items[key[1]]
        image = self.load_image(item)
        height, width = self.stored_size(item, image)
        available = shard_positions(item.source, self.spec) if isinstance(item.source, Shard) else 1
        # The middles of equal parts of the video.
        positions = (2 * np.arange(self.snippets) + 1) * available // (2 * self.snippets)
        box = centre_box(height, width, self.spec)
        return Sample(item, image, positions, box, False, np.zeros(3, np.float32), 0)


def shared_empty(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised uint8 tensor; in a loader's worker in shared memory, so that handing it over copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def ignore_signals(worker: int) -> None:
    """Workers leave the signals that end a run to the main process, which saves first (worker_init_fn)."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def default_workers(processes_here: int = 1) -> int:
    """Loader workers per process: the cores that this process may use, shared by the processes of the node."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // processes_here))
