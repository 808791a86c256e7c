"""Progress of work on videos: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.text import duration, printable

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_of(console: Console, label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show how many of `total` videos are done; the block gets a function to call with each video's name."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    shown = bar.add_task(printable(label), total=total)
    begun = printed = time.monotonic()
    done = 0

    def advance(video: str) -> None:
        nonlocal done, printed
        done += 1
        bar.advance(shown)
        if not console.is_terminal and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            left = duration((printed - begun) * (total - done) / done)
            console.print(f"  {done} of {total}, {left} left, {video}", highlight=False, markup=False)

    with bar:
        yield advance
