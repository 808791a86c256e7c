"""The bytes of training and test samples: from shards and image files to uint8 arrays.

Pixels are not computed with here: fields and frames are decoded, cropped and passed on as they are stored;
`train.volume` turns them into the network's input on the device.
"""

from __future__ import annotations

import math
import mmap
import signal
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from pipeline.codec import decode_image, split_components
from pipeline.errors import InputError
from pipeline.shard import Shard, damaged, decode_frame
from train.augment import Box, centre_box, lighting_noise, random_box
from train.recipe import Recipe
from train.sampler import Key, choose, choose_positions, class_pools, generator
from train.volume import (
    RawFlow,
    RawFrames,
    VolumeSpec,
    cut,
    cut_side,
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
        """Its name in messages."""
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


def pack(batch: Batch, slot: Slot) -> Batch:
    """A batch as a worker sends it: pixels by their place in the ring, the rest as arrays.

    A tensor would go through a file of shared memory of its own, which costs more than sending so few bytes.
    """
    arrays: list[Any] = [part.numpy() for part in batch.raw[1:]]
    rest: list[Any] = [part.numpy() for part in batch[1:]]
    raw: Any = type(batch.raw)
    return Batch(raw(slot, *arrays), *rest)


def unpack(batch: Batch) -> Batch:
    """A batch of tensors from what a loader gives; its pixels are valid until the batch after the next is taken."""
    slot: Any = batch.raw[0]
    if isinstance(batch.boxes, Tensor):
        return batch
    pixels = slot.tensor() if isinstance(slot, Slot) else slot
    raw: Any = type(batch.raw)
    parts = [torch.from_numpy(part) for part in batch.raw[1:]]
    return Batch(raw(pixels, *parts), *(torch.from_numpy(part) for part in batch[1:]))


def network_input(batch: Batch, spec: VolumeSpec, device: torch.device | str) -> Tensor:
    """The network's input on the device: float32[B,K,C,crop,crop], cropped, resized and flipped."""
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
    shard: Shard, spec: VolumeSpec, positions: Sequence[int] | npt.NDArray[np.int64], box: Box | None = None
) -> RawFlow | RawFrames:
    """The bytes of some positions of a shard, as CPU tensors with leading shape [len(positions)].

    Every flow or frame is read and decoded once, however many of the volumes it is part of.

    Args:
        shard: open for reading.
        spec: what a volume holds.
        positions: 0 .. shard_positions - 1.
        box: top, left, height, width of the part to keep; None keeps whole fields, as trajectories need them.

    Raises:
        InputError: damaged streams, or flow that the shard lacks.
        ValueError: positions out of range.
    """
    box = box or (0, 0, shard.height, shard.width)
    raw = _empty(spec, (len(positions),), box[2:], _bytes)
    _fill(shard, spec, positions, box, [part.numpy() for part in raw])
    return raw


def _bytes(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def _empty(
    spec: VolumeSpec,
    leading: tuple[int, ...],
    size: tuple[int, int],
    allocate: Callable[[tuple[int, ...]], Tensor],
) -> RawFlow | RawFrames:
    """Room for volumes of a size; `allocate` gives that of the pixels."""
    sizes = torch.empty((*leading, 2), dtype=torch.int64)
    if spec.stream == "spatial":
        return RawFrames(allocate((*leading, *size, 3)), sizes)
    fields = (*leading, spec.length)
    scale, offset, mean = (torch.empty((*fields, 2)) for _ in range(3))
    levels = allocate((*fields, 2, *size))
    tables = spec.length if spec.direction == "both" else 1
    return RawFlow(
        levels, torch.empty((*leading, tables, 256)), scale, offset, mean, sizes, torch.empty(leading)
    )


def _fill(
    shard: Shard,
    spec: VolumeSpec,
    positions: Sequence[int] | npt.NDArray[np.int64],
    box: Box,
    raw: Sequence[npt.NDArray[Any]],
) -> None:
    """Read volumes into the arrays of a raw batch, from the upper left; arguments as in `read_volumes`."""
    positions = [int(position) for position in positions]
    if spec.stream == "spatial":
        pixels, size = raw
        size[:] = box[2:]
        _decode(shard, "frames", positions, list(pixels), box)
        return
    levels, table, scale, offset, mean, size, zooms = raw
    size[:], zooms[:] = box[2:], zoom(spec, shard.height, shard.width)
    flows = min(shard.flow_count(direction) for direction in spec.directions)
    step = shard.step(spec.directions[0])
    pairs = [flow_indices(spec, position, flows, step) for position in positions]
    done = 0
    for side, direction in enumerate(("forward", "backward")):
        length = len(pairs[0][side])
        if not length:
            continue
        fields = slice(done, done + length)
        done += length
        table[:, fields if table.shape[1] > 1 else slice(None)] = shard.table(direction)
        wanted: list[int] = []
        targets: list[npt.NDArray[np.uint8]] = []
        for k, pair in enumerate(pairs):
            indices = pair[side]
            scale[k, fields] = shard.scale(direction)[indices]
            offset[k, fields] = shard.offset(direction)[indices]
            mean[k, fields] = shard.mean(direction)[indices]
            wanted += indices.tolist()
            targets += list(levels[k, fields])
        _decode(shard, direction, wanted, targets, box)


def _decode(
    shard: Shard, part: str, indices: list[int], targets: list[npt.NDArray[np.uint8]], box: Box
) -> None:
    """The flows or frames at indices, cropped to the box, each into its target [2,H,W] or [H,W,3]."""
    top, left, height, width = box
    before = () if part == "frames" else (slice(None),)
    region = (*before, slice(top, top + height), slice(left, left + width))
    room = (*before, slice(height), slice(width))
    places: dict[int, list[npt.NDArray[np.uint8]]] = {}
    for index, target in zip(indices, targets, strict=True):
        places.setdefault(index, []).append(target)
    frame = np.empty((shard.height, shard.width, 3), np.uint8) if part == "frames" else None
    for start, stop in runs(sorted(places)):
        for index, stream in enumerate(shard.streams(start, stop, part), start):
            try:
                image = _decoded(stream, shard.height, shard.width, frame)
            except ValueError as error:
                raise damaged(shard.address, f"{part} {index} is {error}") from error
            # Each image is cropped at once, while it is in the processor's cache.
            for target in places[index]:
                target[room] = image[region]


def _decoded(
    stream: bytes | memoryview, height: int, width: int, frame: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    """A frame [H,W,3], decoded into `frame`, or without it the levels of a flow [2,H,W]; ValueError if damaged."""
    if frame is not None:
        decode_frame(stream, height, width, frame)
        return frame
    # Levels as decoded: where level 0 stands for 1, the table holds the same value for both.
    return split_components(decode_image(stream, height, width), height)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as (start, stop) of neighbours, each of which is one read of the file."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


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


# --- memory that workers and the main process share ---------------------------------------------------------------


class Ring:
    """Room for batches of pixels, allocated before the workers are forked, and reused.

    Fresh shared memory costs more than half as much as decoding what is written to it, since every page has to be
    mapped and cleared first. Worker w writes its n-th batch to slot n modulo `slots`. A DataLoader asks a worker for
    another batch when one is taken from it, so at most `prefetch` batches of a worker are made and not taken; with two
    slots more, the batch that was taken last stays valid until the next but one is taken.
    """

    def __init__(self, workers: int, prefetch: int, size: int) -> None:
        """Room for `prefetch` + 2 batches of `size` bytes for each worker."""
        self.slots = prefetch + 2
        # Anonymous memory: the size of /dev/shm, which is small in containers, does not limit it.
        memory = mmap.mmap(-1, max(workers * self.slots * size, 1))
        self.memory = torch.frombuffer(memory, dtype=torch.uint8)[: workers * self.slots * size]
        self.memory = self.memory.view(workers, self.slots, size)

    def view(self, worker: int, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A slot as a tensor of some shape."""
        return self.memory[worker, slot, : math.prod(shape)].view(shape)


class Slot:
    """A tensor in the ring, as a worker sends it; the main process sees the same memory."""

    def __init__(self, owner: int, worker: int, slot: int, shape: tuple[int, ...]) -> None:
        self.owner, self.worker, self.slot, self.shape = owner, worker, slot, shape

    def tensor(self) -> Tensor:
        """The pixels, without a copy."""
        return _rings[self.owner].view(self.worker, self.slot, self.shape)

    def pin_memory(self) -> Tensor:
        """A copy in pinned memory; the DataLoader's own thread calls this when there is a GPU."""
        return self.tensor().pin_memory()


_rings: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()


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


class SampleReader(TorchDataset[Batch]):
    """Reads batches for a DataLoader whose batch sampler gives lists of keys: it reads each list as one batch.

    Attributes:
        items: videos or images to draw from.
        spec: what a volume holds.
        snippets: K, positions per sample.
    """

    snippets: int
    _slot: Slot | None = None

    def __init__(self, items: Sequence[Item], spec: VolumeSpec) -> None:
        keep_opencv_to_one_thread()
        self.items, self.spec = list(items), spec
        self.ring: Ring | None = None
        self._turn = 0
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def share_memory(self, workers: int, prefetch: int, samples: int) -> None:
        """Make room for batches of `samples` that workers, forked after this, hand over without copying."""
        height, width = self.largest_region()
        spec = self.spec
        pixels = height * width * (3 if spec.stream == "spatial" else 2 * spec.length)
        self.ring = Ring(workers, prefetch, samples * self.snippets * pixels)
        self._turn = 0
        _rings[id(self)] = self.ring

    @property
    def whole(self) -> bool:
        """Whether batches hold whole fields, since trajectories leave the crop."""
        return self.spec.stream == "temporal" and self.spec.stacking == "trajectory"

    def largest_region(self) -> tuple[int, int]:
        """Rows and columns that suffice for any video of a batch (images as stored may be larger)."""
        sizes = {
            (item.source.height, item.source.width) for item in self.items if isinstance(item.source, Shard)
        }
        if self.whole:
            return max(size[0] for size in sizes), max(size[1] for size in sizes)
        sides = {self.largest_side(*size) for size in sizes or {(self.spec.short_side, self.spec.short_side)}}
        return max(sides), max(sides)

    def largest_side(self, height: int, width: int) -> int:
        """Side of the largest region that is cut from a stored frame."""
        return cut_side(self.spec, height, width)

    def _allocate(self, shape: tuple[int, ...]) -> Tensor:
        worker = get_worker_info()
        size = math.prod(shape)
        if worker is None or self.ring is None or size > self.ring.memory.shape[2]:
            self._slot = None
            return _bytes(shape)
        slot = self._turn % self.ring.slots
        self._turn += 1
        self._slot = Slot(id(self), worker.id, slot, shape)
        return self.ring.view(worker.id, slot, shape)

    def sample(self, key: Key) -> Sample:
        raise NotImplementedError

    def __getitems__(self, keys: list[Key]) -> Batch:
        return self._batch([self.sample(key) for key in keys])

    def _batch(self, samples: list[Sample]) -> Batch:
        spec = self.spec
        whole = self.whole
        regions = [self._size(sample) if whole else sample.box[2:] for sample in samples]
        height, width = max(size[0] for size in regions), max(size[1] for size in regions)
        raw = _empty(spec, (len(samples), len(samples[0].positions)), (height, width), self._allocate)
        arrays = [part.numpy() for part in raw]
        for i, sample in enumerate(samples):
            self._read(sample, whole, [array[i] for array in arrays])
        batch = Batch(
            raw,
            boxes=torch.tensor([sample.box if whole else (0, 0, *sample.box[2:]) for sample in samples]),
            flip=torch.tensor([sample.flip for sample in samples]),
            noise=torch.from_numpy(np.stack([sample.noise for sample in samples])),
            label=torch.tensor([sample.item.label for sample in samples]),
            head=torch.tensor([sample.item.head for sample in samples]),
            key=torch.tensor([sample.key for sample in samples]),
        )
        return batch if self._slot is None else pack(batch, self._slot)

    def _size(self, sample: Sample) -> tuple[int, int]:
        assert isinstance(sample.item.source, Shard)
        return sample.item.source.height, sample.item.source.width

    def _read(self, sample: Sample, whole: bool, raw: list[npt.NDArray[Any]]) -> None:
        source, box = sample.item.source, sample.box
        if isinstance(source, Shard):
            _fill(source, self.spec, sample.positions, (0, 0, *self._size(sample)) if whole else box, raw)
            self._opened(source)
            return
        assert sample.image is not None
        top, left, height, width = box
        raw[0][:, :height, :width] = sample.image[top : top + height, left : left + width]
        raw[1][:] = height, width

    def _opened(self, shard: Shard) -> None:
        """Keep the most recently read files open, but not so many that descriptors run out."""
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
    """Random samples, determined by the recipe's seed and the key (iteration, index)."""

    def __init__(self, items: Sequence[Item], spec: VolumeSpec, recipe: Recipe) -> None:
        super().__init__(items, spec)
        self.recipe, self.snippets = recipe, recipe.segments
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

    def largest_side(self, height: int, width: int) -> int:
        """As the scale jitter draws it."""
        if self.recipe.scales:
            return round(min(height, width) * max(self.recipe.scales))
        return cut_side(self.spec, height, width)

    def head_counts(self, iteration: int, heads: int) -> list[int]:
        """How many samples of an iteration's whole batch each head has; the same in every process."""
        if heads == 1:
            return [self.recipe.batch]
        drawn = [self.item((iteration, index))[0].head for index in range(self.recipe.batch)]
        return np.bincount(drawn, minlength=heads).tolist()


class ValidationReader(SampleReader):
    """Fixed samples: key (_, index) is item `index`, its centre crop at a few equally spaced positions, not flipped."""

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


def ignore_signals(worker: int) -> None:
    """Leave the signals that end a run to the main process, which saves first (the loader's worker_init_fn)."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    keep_opencv_to_one_thread()
    torch.set_num_threads(1)


def keep_opencv_to_one_thread() -> None:
    """Keep OpenCV to the calling thread from now on.

    To be called before workers are forked: a thread pool does not survive the fork, and a worker that used one would
    wait for its threads for ever.
    """
    import cv2

    cv2.setNumThreads(1)
