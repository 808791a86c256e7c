"""Which videos, and which of their positions, make a batch: a function of (seed, iteration, index) alone.

So a resumed run, and any number of processes, see the same samples, whichever process reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Key = tuple[int, int]
"""(iteration, index in the batch)"""


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
