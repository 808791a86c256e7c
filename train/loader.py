"""Batches from readers in worker processes: how torch's DataLoader is set up and shut down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader

from train.batches import Batch, SampleReader, ignore_signals
from train.sampler import Key

PREFETCH = 2
"""Batches that each worker reads ahead."""


def as_it_is(batch: Batch) -> Batch:
    """Collate function for readers, whose items are whole batches."""
    return batch


@contextlib.contextmanager
def loading(
    reader: SampleReader, schedule: Iterable[list[Key]], samples: int, workers: int, pin_memory: bool
) -> Iterator[Iterator[Batch]]:
    """Batches in the schedule's order, read ahead by worker processes that end with the block.

    Args:
        reader: what is read.
        schedule: batch sampler; gives the keys of each read.
        samples: of the largest read.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy to pinned memory, for a GPU.
    """
    if workers:
        reader.share_memory(workers, PREFETCH, samples)
    loader = DataLoader(
        reader,
        batch_sampler=schedule,
        num_workers=workers,
        collate_fn=as_it_is,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        if workers:
            # They ignore SIGTERM, with which Python would end them later on.
            batches._shutdown_workers()  # type: ignore[attr-defined]
            for worker in batches._workers:  # type: ignore[attr-defined]
                worker.kill()
