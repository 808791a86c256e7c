"""Which videos, and which of their positions, make a batch: a function of (seed, iteration, index) alone.

So a resumed run, and any number of processes, see the same samples, whichever process reads them.
"""

from __future__ import annotations

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
