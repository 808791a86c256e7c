"""Signals that end a run: recorded when they arrive, acted on once a checkpoint is saved."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

RESUME_LATER = 75
"""Exit status after SIGTERM or SIGUSR1: a checkpoint was saved, and the same command resumes (EX_TEMPFAIL)."""


@dataclass
class Interrupt:
    """The signal that asked the run to stop, or 0."""

    number: int = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Record SIGTERM, SIGUSR1 and SIGINT inside the block instead of ending; a second Ctrl-C ends at once."""
    interrupt = Interrupt()

    def record(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupt.number:
            os._exit(128 + number)  # an exception may be swallowed where a module is being imported
        interrupt.number = number

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, record) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(number: int) -> int:
    """Exit status of a run that a signal stopped: 130 for Ctrl-C, as shells have it, else `RESUME_LATER`."""
    return 128 + number if number == signal.SIGINT else RESUME_LATER
