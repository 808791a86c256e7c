"""What this machine gives the process: cores, and more processes."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.resource_tracker
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.errors import InputError

OBJECTS_THAT_STAY = 50_000
"""Objects made between two searches for reference cycles, while what is made is there to stay; Python's own is 700."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def usable_cores() -> int:
    """CPU cores that this process may use: those it is bound to, at most what SLURM gave its task."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdecimal() and int(given) > 0 else bound


def cores_per_process(processes_here: int) -> int:
    """The share of the usable cores of each of several local processes; at least 1."""
    return max(1, usable_cores() // max(1, processes_here))


@contextlib.contextmanager
def making_what_stays() -> Iterator[None]:
    """While millions of objects are made that stay, search for reference cycles less often: a quarter of the time."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], OBJECTS_THAT_STAY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def in_processes(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], jobs: int
) -> Iterator[Result]:
    """The function's results in order, computed by several processes; by this one if `jobs` is 1.

    InputError if the system ends one of them, as it does where memory runs out.

    The processes start with SIGINT blocked: Ctrl-C, which a terminal sends to all of them, is this one's to handle.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.backend import resource_tracker

    # An interruption cancels what is in progress, which joblib would warn about.
    warnings.filterwarnings("ignore", ".*tasks which were still being processed")
    if jobs != 1:
        for tracker in (resource_tracker, multiprocessing.resource_tracker):
            tracker.ensure_running()  # its start ends with SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        results: Iterator[Result] = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(function)(argument) for argument in arguments
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _until_one_ends(results)


def _until_one_ends(results: Iterator[Result]) -> Iterator[Result]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield from results
    except BrokenProcessPool as error:
        raise InputError(
            "one of the processes that work for this command was ended from outside; if memory ran out, give fewer "
            "with --jobs, where there is such an option, and run the same command again"
        ) from error
