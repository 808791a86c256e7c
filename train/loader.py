"""Batches from readers in threads, which decode without holding Python's lock."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train.batches import Batch, Memory, SampleReader, keep_opencv_to_one_thread
from train.sampler import Key

Argument = TypeVar("Argument")
Result = TypeVar("Result")

AHEAD = 2
"""Results that are computed or wait beyond one for each thread."""


@contextlib.contextmanager
def loading(
    reader: SampleReader, schedule: Iterable[Sequence[Key]], threads: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Batches in the schedule's order, read ahead by threads that end with the block.

    Args:
        reader: what is read.
        schedule: the keys of each read.
        threads: see `ahead`.
        device: where batches go: into pinned memory for a GPU.
    """
    memory = memory_for(device)
    with ahead(lambda keys: reader.read(keys, memory), schedule, threads) as batches:
        yield batches


@contextlib.contextmanager
def ahead(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], threads: int
) -> Iterator[Iterator[Result]]:
    """The function's results in the order of the arguments, computed ahead by threads that end with the block.

    At most threads + AHEAD results exist besides those that the caller still refers to. What the function raises is
    raised where its result would have been.

    Args:
        function: called in any of the threads.
        arguments: of its calls; iterated in the caller's thread.
        threads: how many; 0 calls the function in the caller's thread.
    """
    keep_opencv_to_one_thread()
    if not threads:
        yield map(function, arguments)
        return
    pool = ThreadPoolExecutor(threads, "loader")

    def results() -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) >= threads + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


def memory_for(device: torch.device) -> Memory:
    """Room for what is going to a device."""
    return pinned_memory if device.type == "cuda" else ReusedMemory()


def pinned_memory(shape: tuple[int, ...]) -> Tensor:
    """Pinned memory, which torch uses again once nothing refers to it and the copies from it are done."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class ReusedMemory:
    """Room for pixels that is used again once nothing refers to it.

    Fresh memory costs a third as much as decoding what is written to it, since every page is mapped and cleared first.
    """

    def __init__(self) -> None:
        self._largest = 0
        self._free: list[npt.NDArray[np.uint8]] = []

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor uint8[shape]; any view of it keeps its memory."""
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(0, np.uint8)
        if block.size < size:
            block = np.empty(self._largest, np.uint8)
        lent = block[:size]  # an array of its own, to which the tensor's storage refers until it ends
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(shape)
