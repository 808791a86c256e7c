"""What a batch is made of, videos, positions, crops, flips, colour noise: a function of (seed, iteration, index) alone.

So a resumed run, and any number of processes, see the same samples, whichever process reads them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.shard import Shard
from train.batches import Box, Item, Key, Sample, SampleReader, shard_positions
from train.recipe import Recipe
from train.volume import cut_side
from train.volume_spec import VolumeSpec

# Principal components of ImageNet's colours in 0..1 (Krizhevsky et al. 2012, section 4.1; values as published with
# fb.resnet.torch): spread along each, and its direction in RGB.
_SPREAD = np.array([0.2175, 0.0188, 0.0045])
_DIRECTION = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_DIRECTION_OF_BYTES = 255 * _DIRECTION


def generator(seed: int, iteration: int, index: int) -> np.random.Generator:
    """The random numbers of one sample: Philox (Salmon et al. 2011), a function of key and counter."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, iteration]))


def choose(random: np.random.Generator, pools: Sequence[npt.NDArray[np.int64]]) -> int:
    """A video: uniform over classes, then uniform over the class's videos (paper, section 4)."""
    pool = pools[int(random.integers(len(pools)))]
    return int(pool[int(random.integers(len(pool)))])


def class_pools(labels: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Indices of each class's videos, for the classes that have any."""
    array = np.asarray(labels)
    return [np.flatnonzero(array == label) for label in np.unique(array)]


def choose_positions(random: np.random.Generator, available: int, segments: int) -> npt.NDArray[np.int64]:
    """One random position in each of `segments` equal parts of the video (TSN), in rising order; int64[segments].

    A video with fewer positions than segments gives random ones, some of them more than once.
    """
    if available < segments:
        return np.sort(random.integers(available, size=segments))
    edges = np.arange(segments + 1) * available // segments
    return random.integers(edges[:-1], edges[1:])


class Draws:
    """What the generators of several samples give, all at once: row i as `generator(seed, *keys[i])` would.

    NumPy's numbers are rebuilt from the words of its Philox, as long as no draw is rejected: `integers` takes the
    upper half of a 32-bit word times the bound (Lemire 2019), two words out of each of Philox's 64 bits, and `normal`
    a layer of the ziggurat and a place in it (Marsaglia and Tsang 2000). Rows where a rejection is possible are not
    `sure`, and must be drawn by their generator: one in thirty with normal draws, almost none without.

    Attributes:
        sure: bool[n], rows whose numbers are right.
    """

    def __init__(self, seed: int, keys: Sequence[Key], integers: int) -> None:
        """For at most `integers` calls of `below` and then a few of the others."""
        bits = np.random.Philox(key=seed)
        state = bits.state
        counter, count = state["state"]["counter"], integers // 2 + 8
        words = np.empty((len(keys), count), np.uint64)
        for row, (iteration, index) in zip(words, keys, strict=True):
            counter[2], counter[3] = index, iteration
            bits.state = state
            row[:] = bits.random_raw(count)
        self._words, self._halves = words, words.astype("<u8", copy=False).view("<u4")
        self._rows = np.arange(len(keys))
        self._used = np.zeros(len(keys), np.int64)  # halves of words
        self.sure = np.ones(len(keys), bool)

    def below(self, bounds: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
        """As `integers(bound)`: int64[n] of 0..bound-1, bounds up to 2^32 - 1; a bound of 1 takes no number."""
        bounds = np.broadcast_to(bounds, self._rows.shape).astype(np.uint64)
        product = self._halves[self._rows, self._used].astype(np.uint64) * bounds
        drawn = bounds > 1
        self.sure &= ~drawn | ((product & np.uint64(0xFFFFFFFF)) >= bounds)
        self._used += drawn
        return np.where(drawn, product >> np.uint64(32), 0).astype(np.int64)

    def normal(self) -> npt.NDArray[np.float64]:
        """As `normal(0, 1)`: float64[n]."""
        widths, limits = ziggurat()
        word = self._word()
        layer = (word & np.uint64(0xFF)).astype(np.int64)
        place = ((word >> np.uint64(9)) & np.uint64(0x000FFFFFFFFFFFFF)).astype(np.float64)
        self.sure &= place < limits[layer]
        value = place * widths[layer]
        return np.where(word & np.uint64(0x100), -value, value)

    def word(self) -> npt.NDArray[np.int64]:
        """As `integers(-(2**63), 2**63 - 1)`: int64[n]."""
        word = self._word()
        self.sure &= word > 0
        return (word - np.uint64(1) + np.uint64(1 << 63)).view(np.int64)

    def _word(self) -> npt.NDArray[np.uint64]:
        """The next whole word; half a word that is left stays for `below`, which is not called any more."""
        at = (self._used + 1) // 2
        self._used = 2 * at + 2
        return self._words[self._rows, at]


@functools.cache
def ziggurat() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each layer of NumPy's normal distribution, the width of a place, and below which place none is rejected.

    The widths are read from NumPy by giving it words of our own: place 1 of a layer. The limits follow from them, a
    little lower than NumPy's own. float64[256] each.
    """
    bits = np.random.Philox(0)
    state, widths = bits.state, np.empty(256)
    for layer in range(256):
        state["buffer"][:] = layer | 1 << 9
        state["buffer_pos"] = 0
        bits.state = state
        widths[layer] = np.random.Generator(bits).standard_normal()
    limits = np.zeros(256)
    limits[2:] = widths[1:-1] / widths[2:]
    limits[0] = widths[255] / widths[0]
    return widths, limits * 2.0**52 * (1 - 1e-9)


# --- crops and colour noise -----------------------------------------------------------------------------------------


def random_box(
    random: np.random.Generator,
    height: int,
    width: int,
    spec: VolumeSpec,
    cut: str = "random",
    scales: Sequence[float] = (),
) -> Box:
    """Region of a stored frame to train on: (top, left, height, width) in stored pixels.

    Args:
        random: source of random numbers; how many are drawn does not depend on the frame's size.
        height, width: of the stored frame.
        spec: its crop and short_side give the region's side if there is no scale jitter.
        cut: "random" for anywhere in the frame, "corner" for one of the four corners or the centre.
        scales: sides as shares of the frame's smaller side; both sides of the region are drawn, at most one entry
            apart (Wang et al. 2015, "Towards good practices for very deep two-stream ConvNets").
    """
    sides = region_sides(height, width, spec, scales)
    rows = columns = sides[0]
    if scales:
        first = int(random.integers(len(scales)))
        second = min(max(first + int(random.integers(-1, 2)), 0), len(scales) - 1)
        rows, columns = sides[first], sides[second]
    if cut == "corner":
        corner = int(random.integers(5))
        if corner == 4:
            return (height - rows) // 2, (width - columns) // 2, rows, columns
        return (height - rows) * (corner // 2), (width - columns) * (corner % 2), rows, columns
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    return int(top), int(left), rows, columns


def region_sides(height: int, width: int, spec: VolumeSpec, scales: Sequence[float] = ()) -> list[int]:
    """Sides in stored pixels that a region may have: one for each scale, else that of the network's crop."""
    if not scales:
        return [cut_side(spec, height, width)]
    return [max(round(min(height, width) * scale), 1) for scale in scales]


def centre_box(height: int, width: int, spec: VolumeSpec) -> Box:
    """The centre crop of a stored frame, as validation uses it."""
    side = cut_side(spec, height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def lighting_noise(random: np.random.Generator, deviation: float) -> npt.NDArray[np.float32]:
    """Colour noise to add to every pixel of a frame: RGB float32[3], in units of 0..255."""
    return lighting_shifts(random.normal(0, 1, (1, 3)), deviation)[0]


def lighting_shifts(normals: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float32]:
    """The colour noise that rows of three normal numbers mean: RGB float32[n,3]."""
    amounts = normals * deviation * _SPREAD
    return np.array([_DIRECTION_OF_BYTES @ amount for amount in amounts]).astype(np.float32)


# --- readers ---------------------------------------------------------------------------------------------------------


class Videos(NamedTuple):
    """What drawing samples needs of every video.

    Attributes:
        available: positions, int64[videos].
        height, width: of the stored fields, int64[videos].
        sides: int64[videos,scales], sides that regions may have.
    """

    available: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]
    sides: npt.NDArray[np.int64]


class TrainingReader(SampleReader):
    """Random samples, determined by the recipe's seed and the key (iteration, index)."""

    def __init__(self, items: Sequence[Item], spec: VolumeSpec, recipe: Recipe) -> None:
        super().__init__(items, spec)
        self.recipe, self.snippets = recipe, recipe.segments
        self.pools = class_pools([item.label for item in items])
        # The same as arrays: items class by class, the number of each class, and where it begins.
        self._by_class, self._sizes = np.concatenate(self.pools), np.array([len(pool) for pool in self.pools])
        self._begins = np.cumsum(self._sizes) - self._sizes

    def item(self, key: Key) -> tuple[Item, np.random.Generator]:
        """The video of a key, and the generator that decides the rest of the sample."""
        random = generator(self.recipe.seed, *key)
        return self.items[choose(random, self.pools)], random

    def sample(self, key: Key) -> Sample:
        """The sample that a key stands for; `samples` draws many at once, with the same result."""
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
            noise=lighting_noise(random, self.lighting),
            key=int(random.integers(-(2**63), 2**63 - 1)),
        )

    def samples(self, keys: Sequence[Key]) -> list[Sample]:
        """`sample` of each key, drawn together where the items are videos."""
        if not all(isinstance(item.source, Shard) for item in self.items[:1]):
            return super().samples(keys)
        recipe, videos = self.recipe, self.videos
        draws = Draws(recipe.seed, keys, 8 + recipe.segments)
        chosen = self.choose_many(draws)
        positions = draw_positions(draws, videos.available[chosen], recipe.segments)
        boxes = map(tuple, self._draw_boxes(draws, chosen).tolist())
        flips = ((draws.below(2) == 1) & recipe.flip).tolist()
        normals = np.stack([draws.normal() for _ in range(3)], axis=1)
        noise = (
            lighting_shifts(normals, self.lighting) if self.lighting else np.zeros((len(keys), 3), np.float32)
        )
        drawn = zip(
            [self.items[video] for video in chosen.tolist()], itertools.repeat(None), positions, boxes, flips, noise,
            draws.word().tolist(),
        )  # fmt: skip
        return [
            Sample(*of) if sure else self.sample(key)
            for key, of, sure in zip(keys, drawn, draws.sure.tolist(), strict=True)
        ]

    def choose_many(self, draws: Draws) -> npt.NDArray[np.int64]:
        """The videos of several keys, as `choose` takes them."""
        of = draws.below(len(self._sizes))
        return self._by_class[self._begins[of] + draws.below(self._sizes[of])]

    def _draw_boxes(self, draws: Draws, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The regions of videos as `random_box` takes them: int64[n,4]."""
        videos, scales = self.videos, len(self.recipe.scales)
        height, width, sides = videos.height[chosen], videos.width[chosen], videos.sides[chosen]
        rows = columns = sides[:, 0]
        if scales:
            first = draws.below(scales)
            second = np.clip(first + draws.below(3) - 1, 0, scales - 1)
            each = np.arange(len(chosen))
            rows, columns = sides[each, first], sides[each, second]
        if self.recipe.cut == "corner":
            corner = draws.below(5)
            top = np.where(corner == 4, (height - rows) // 2, (height - rows) * (corner // 2))
            left = np.where(corner == 4, (width - columns) // 2, (width - columns) * (corner % 2))
        else:
            top = draws.below(height - rows + 1)
            left = draws.below(width - columns + 1)
        return np.stack([top, left, rows, columns], axis=1)

    @functools.cached_property
    def videos(self) -> Videos:
        """The videos as arrays."""
        shards = [item.source for item in self.items if isinstance(item.source, Shard)]
        sizes = {(shard.height, shard.width) for shard in shards}
        sides = {size: region_sides(*size, self.spec, self.recipe.scales) for size in sizes}
        return Videos(
            np.array([shard_positions(shard, self.spec) for shard in shards]),
            np.array([shard.height for shard in shards]),
            np.array([shard.width for shard in shards]),
            np.array([sides[shard.height, shard.width] for shard in shards]),
        )

    @property
    def lighting(self) -> float:
        """Deviation of the colour noise; flow has no colour."""
        return self.recipe.lighting if self.spec.stream == "spatial" else 0

    def head_counts(self, iteration: int, heads: int) -> list[int]:
        """How many samples of an iteration's whole batch each head has; the same in every process."""
        if heads == 1:
            return [self.recipe.batch]
        keys = [(iteration, index) for index in range(self.recipe.batch)]
        draws = Draws(self.recipe.seed, keys, 2)
        drawn = [
            (self.items[item] if sure else self.item(key)[0]).head
            for key, item, sure in zip(
                keys, self.choose_many(draws).tolist(), draws.sure.tolist(), strict=True
            )
        ]
        return np.bincount(drawn, minlength=heads).tolist()


NO_NOISE = np.zeros(3, np.float32)


def draw_positions(draws: Draws, available: npt.NDArray[np.int64], segments: int) -> npt.NDArray[np.int64]:
    """The positions of several samples as `choose_positions` takes them: int64[n,segments]."""
    few = available < segments
    drawn = np.empty((len(available), segments), np.int64)
    for k in range(segments):
        begin = np.where(few, 0, k * available // segments)
        end = np.where(few, available, (k + 1) * available // segments)
        drawn[:, k] = begin + draws.below(end - begin)
    drawn[few] = np.sort(drawn[few], axis=1)
    return drawn


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
        return Sample(item, image, positions, box, False, NO_NOISE, 0)


# --- the order of reading ------------------------------------------------------------------------------------------


def share(batch: int, rank: int, size: int) -> range:
    """The indices of a batch that a rank works on: contiguous, and equal in number to within one."""
    return range(batch * rank // size, batch * (rank + 1) // size)


class Schedule:
    """Batch sampler for a DataLoader: the keys of every read of a rank, from one iteration to the last.

    Attributes:
        micro_batches: for each micro-batch of an iteration, the indices of its reads; a read has at most `read`
            samples, so that the first ones arrive early and workers need little memory.
    """

    def __init__(self, indices: range, micro_batch: int, start: int, stop: int, read: int = 32) -> None:
        micro_batches = [indices[i : i + micro_batch] for i in range(0, len(indices), micro_batch)]
        self.micro_batches = [
            [part[i : i + read] for i in range(0, len(part), read)] for part in micro_batches
        ]
        self.start, self.stop = start, stop

    @property
    def largest(self) -> int:
        """Samples of the largest read."""
        return max(len(read) for reads in self.micro_batches for read in reads)

    def __len__(self) -> int:
        return sum(map(len, self.micro_batches)) * (self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        for iteration in range(self.start, self.stop):
            for reads in self.micro_batches:
                for read in reads:
                    yield [(iteration, index) for index in read]
