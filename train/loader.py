"""Batches from readers in threads, which decode without holding Python's lock."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from train.batches import Batch, SampleReader, keep_opencv_to_one_thread
from train.memory import memory_for
from train.sampler import Key

Argument = TypeVar("Argument")
Result = TypeVar("Result")

AHEAD = 2
"""Results computed ahead, or waiting, beyond one for each thread."""


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
