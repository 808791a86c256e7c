"""How far an extraction is: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from pipeline.text import duration

LINE_EVERY = 10.0
"""Seconds between plain lines at first; the gap grows with the time taken, so that a long log stays short."""
LINE_GAP = 0.02
"""The gap as a share of the time taken so far."""
REFRESH = 0.1
"""Seconds between updates of the bar."""


class ProgressDisplay:
    """Shows on stderr how far an extraction is, each video weighted by its bytes.

    Args:
        weights: of each video, by its number.
        plain: lines instead of a bar; None: unless stderr is a terminal.
    """

    def __init__(self, weights: Mapping[int, int], plain: bool | None = None) -> None:
        self._weights = {number: max(1, weight) for number, weight in weights.items()}
        self._total = sum(self._weights.values())
        self._parts: dict[int, float] = {}
        self._flows_of: dict[int, int] = {}
        self._finished_weight = 0
        self._finished = 0
        self._finished_flows = 0
        self._started = self._shown = time.monotonic()
        self._plain = not sys.stderr.isatty() if plain is None else plain
        self._bar = None if self._plain else _bar()

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
            self._row = self._bar.add_task("", total=1.0, text="starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self) -> float:
        """Start the clock now: what came before, so many seconds (returned), does not count towards the speed."""
        before, self._started = self._started, time.monotonic()
        self._shown = self._started
        return self._started - before

    def progress(self, number: int, flows: int, part: float) -> None:
        """A video has that many flows so far, and about that part (0..1) of it is done."""
        self._flows_of[number], self._parts[number] = flows, part
        self._show()

    def finish(self, number: int, flows: int) -> None:
        """A video ended, whatever its outcome, with that many flows in its shard."""
        self._parts.pop(number, None)
        self._finished += 1
        self._finished_weight += self._weights[number]
        self._flows_of.pop(number, None)
        self._finished_flows += flows
        self._show(last=self._finished == len(self._weights))

    def line(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def describe(self) -> str:
        """For example `12/72 videos, 912 pairs, 403.1 pairs/s, 1 min 3 s left`."""
        seconds = time.monotonic() - self._started
        flows = self._finished_flows + sum(self._flows_of.values())
        rate = flows / max(seconds, 1e-3)
        text = f"{self._finished}/{len(self._weights)} videos, {flows:,} pairs, {rate:,.1f} pairs/s"
        done = self._done()
        if 0 < done < 1:
            text += f", {duration(seconds * (1 - done) / done)} left"
        return text

    def _done(self) -> float:
        running = sum(self._weights[number] * part for number, part in self._parts.items())
        return (self._finished_weight + running) / max(1, self._total)

    def _show(self, last: bool = False) -> None:
        now = time.monotonic()
        if self._bar is not None:
            if last or now - self._shown >= REFRESH:
                self._shown = now
                self._bar.update(self._row, completed=self._done(), text=self.describe(), refresh=True)
        elif last or now - self._shown >= max(LINE_EVERY, LINE_GAP * (now - self._started)):
            self._shown = now
            self.line(self.describe())


def _bar():  # type: ignore[no-untyped-def]
    from rich.progress import BarColumn, Progress, TextColumn

    from pipeline.console import make_console

    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}", markup=False),
        console=make_console(stderr=True),
        auto_refresh=False,
    )
