"""Progress of work: a bar on a terminal, plain lines now and then elsewhere; the same in every command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import TypeVar

from pipeline.text import duration, many, printable

Item = TypeVar("Item")

FIRST_LINE = 3.0
"""Seconds until the first plain line."""
LINE_EVERY = 10.0
"""Seconds between plain lines after that; the gap grows with the time taken, so that a long log stays short."""
LINE_GAP = 0.02
"""The gap as a share of the time taken so far."""
REFRESH = 0.1
"""Seconds between updates of the bar."""
COMPILING = "compiling once, for this run and later ones (usually less than 20 s)"
"""What a command prints when it begins to compile kernels, those of the CPU by numba or a GPU's by NVRTC."""

clock = time.monotonic
"""The clock, in seconds; tests replace it."""


_noted: set[str] = set()
"""Notes that this process has given."""
_receivers: list[Callable[[str], None]] = []
"""Who gets notes instead of stderr; the last one counts."""


def note(text: str) -> None:
    """Say something that a command says once at most, for example `COMPILING`: on stderr, or to `notes_to`."""
    if text not in _noted:
        _noted.add(text)
        (_receivers[-1] if _receivers else _print)(printable(text))


@contextmanager
def notes_to(receiver: Callable[[str], None]) -> Iterator[None]:
    """What the block notes goes there, for example from a worker to its parent, which notes it."""
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.remove(receiver)


class Progress:
    """Shows on stderr how far some work has got, its rate and the time left; a context manager.

    Args:
        label: what is being done, for example "verify"; "" for a command's only work.
        total: number of items.
        noun: what one item is called.
        weights: of each item by its number, where they differ, for example bytes.
        amount: what is counted within items and gives the rate, for example "pair"; "": the items themselves.
        done: how many items were done before; they do not count towards the rate.
        plain: lines instead of a bar; None: unless stderr is a terminal.
        say: called with the lines where there is no bar; None: they are printed on stderr.
    """

    def __init__(
        self,
        label: str,
        total: int,
        noun: str = "video",
        *,
        weights: Mapping[int, int] | None = None,
        amount: str = "",
        done: int = 0,
        plain: bool | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._label, self._total, self._noun, self._amount = label, total, noun, amount
        self._weights = {number: max(1, weight) for number, weight in (weights or {}).items()}
        self._whole = sum(self._weights.values()) if self._weights else total
        self._parts: dict[int, float] = {}
        self._amounts: dict[int, int] = {}
        self._finished = self._finished_weight = self._before = done
        self._failed = self._finished_amount = 0
        self._detail = ""
        self._started = self._shown = clock()
        self._gap = FIRST_LINE
        self._said = done
        self._say = say or _print
        plain = not sys.stderr.isatty() if plain is None else plain
        self._bar = None if plain else _bar()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._row = self._bar.add_task("", total=1.0, text=printable(self._label) or "starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._finished > self._said and clock() - self._started >= FIRST_LINE:
            self._line_of_progress()

    def start(self) -> None:
        """Start the clock now: loading libraries and compiling does not count towards rate and time left."""
        self._started = self._shown = clock()

    @property
    def seconds(self) -> float:
        """Time of the work so far."""
        return clock() - self._started

    def leave_out(self, seconds: float) -> None:
        """Some seconds that just passed do not count towards rate and time left."""
        self._started += seconds
        self._shown += seconds

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Report once that kernels are compiled inside the block, if they are, and leave the time out."""
        from pipeline.compiled import reporting  # numba, which takes a while to load

        self.start()
        with notes_to(self.line), reporting(lambda: note(COMPILING), self.leave_out):
            yield

    def report(self, number: int, amount: int, part: float) -> None:
        """About this part (0..1) of an item is done, with so much of what is counted."""
        self._amounts[number], self._parts[number] = amount, part
        self._show()

    def finish(self, number: int, amount: int = 0, failed: bool = False) -> None:
        """An item ended, whatever its outcome, with so much of what is counted."""
        self._parts.pop(number, None)
        self._amounts.pop(number, None)
        self._finished += 1
        self._failed += failed
        self._finished_weight += self._weights.get(number, 1)
        self._finished_amount += amount
        self._show()

    def advance(self, failed: bool = False) -> None:
        """The next item ended, where items have no numbers."""
        self.finish(self._finished, failed=failed)

    def set_detail(self, text: str) -> None:
        """What else is shown from now on, for example the loss."""
        self._detail = text

    def line(self, text: str) -> None:
        """Print a line on stderr without disturbing the bar."""
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._say(printable(text))

    def note(self, text: str) -> None:
        """`note` without disturbing the bar."""
        with notes_to(self.line):
            note(text)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while the block prints on standard output."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def describe(self) -> str:
        """For example `12/72 videos, 912 pairs, 403.1 pairs/s, 1 min 3 s left`."""
        seconds = max(self.seconds, 1e-3)
        text = f"{self._label}: " if self._label else ""
        text += f"{self._finished:,}/{many(self._total, self._noun)}"
        if self._failed:
            text += f", {many(self._failed, 'failure')}"
        count = self._finished - self._before
        if self._amount:
            count = self._finished_amount + sum(self._amounts.values())
            text += f", {many(count, self._amount)}"
        if count:  # before the first thing is done, only the time left is known
            text += f", {rate(count / seconds)} {many(2, self._amount or self._noun).partition(' ')[2]}/s"
        begun, done = self._before / max(1, self._whole), self._part_done()
        if begun < done < 1:
            text += f", {duration(seconds * (1 - done) / (done - begun))} left"
        return printable(f"{text}; {self._detail}" if self._detail else text)

    def _part_done(self) -> float:
        running = sum(self._weights.get(number, 1) * part for number, part in self._parts.items())
        return (self._finished_weight + running) / max(1, self._whole)

    def _show(self) -> None:
        now = clock()
        if now - self._shown < (REFRESH if self._bar is not None else self._gap):
            return
        self._shown = now
        if self._bar is not None:
            self._bar.update(self._row, completed=self._part_done(), text=self.describe(), refresh=True)
        else:
            self._gap = max(LINE_EVERY, LINE_GAP * (now - self._started))
            self._line_of_progress()

    def _line_of_progress(self) -> None:
        self._said = self._finished
        self.line(self.describe())


@contextmanager
def reporting_compilation() -> Iterator[None]:
    """Say once that kernels are compiled inside the block, if they are, where nothing else is shown."""
    from pipeline.compiled import reporting

    with reporting(lambda: note(COMPILING)):
        yield


def progress(
    items: Iterable[Item],
    label: str,
    total: int | None = None,
    noun: str = "video",
    *,
    compiles: bool = False,
) -> Iterator[Item]:
    """The items, with the progress on stderr; `total` where they have no length, `compiles` if work on them may."""
    count = len(items) if total is None else total  # type: ignore[arg-type]  # then they have one
    with Progress(label, count, noun) as shown, shown.compiling() if compiles else nullcontext():
        for item in items:
            yield item
            shown.advance()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def rate(value: float) -> str:
    """A number per second: two digits where it is small, so that slow work does not read 0.0."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _bar():  # type: ignore[no-untyped-def]
    from rich.progress import BarColumn, Progress, TextColumn

    from pipeline.console import make_console

    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}", markup=False),
        console=make_console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
