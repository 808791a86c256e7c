"""Sums that do not depend on the order of threads: int64 multiples of a small unit.

A sum of float32 values depends on the order in which threads arrive; one of integers does not, so the same frames give
the same flow on every run. A block sums in three steps, each after a barrier (`cuda.syncthreads`): every thread writes
its value to `partial[thread]`, the first LANES threads call `fold`, and whoever wants the total calls `folded`.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

UNIT = 2.0**30
"""Units per squared pixel."""
LANES = 32


def summand_limit(summands: int) -> np.float32:
    """Largest value of one of `summands` values whose sum still fits an int64."""
    return np.float32(2.0**32 / max(1, summands))


def threshold(rms: float, pixels: int) -> np.int64:
    """The sum of squares, in units, at which the root mean square over the pixels is `rms`; -1 (never) for 0."""
    return np.int64(min(rms * rms * pixels, 2.0**32) * UNIT) if rms > 0 else np.int64(-1)


@cuda.jit(device=True)
def fixed(value, limit):  # type: ignore[no-untyped-def]
    """A value of 0 or more in units, at most `limit`."""
    return np.int64(min(value, limit) * np.float32(UNIT))


@cuda.jit(device=True)
def fold(partial, thread, threads):  # type: ignore[no-untyped-def]
    """The first LANES threads each add up every LANES-th value, in place."""
    if thread < LANES:
        total = np.int64(0)
        for k in range(thread, threads, LANES):
            total += partial[k]
        partial[thread] = total


@cuda.jit(device=True)
def folded(partial, threads):  # type: ignore[no-untyped-def]
    """The total of folded values."""
    total = np.int64(0)
    for k in range(min(LANES, threads)):
        total += partial[k]
    return total
