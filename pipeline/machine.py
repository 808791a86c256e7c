"""What this machine gives the process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that this process may use: those it is bound to, at most what SLURM gave its task."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdecimal() and int(given) > 0 else bound


def cores_per_process(processes_here: int) -> int:
    """The share of the usable cores of each of several local processes; at least 1."""
    return max(1, usable_cores() // max(1, processes_here))
