"""The table that benchmarks/gpu.py prints, and how rates are taken."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 5.0
"""For how long a rate is taken."""


SECTION_SECONDS = 240
"""How long a section may take."""


class LeftOut(Exception):
    """A section cannot run; the message is the reason."""


@dataclasses.dataclass
class Report:
    """Rows of the table, (section, what, value, judgement), and whether a result is wrong."""

    file: Path | None = None
    rows: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    wrong: bool = False

    def add(self, section: str, what: str, value: str, good: bool | None = None, judgement: str = "") -> None:
        """Add a row; `good` False makes the run fail."""
        if good is not None:
            judgement = ("ok" if good else "WRONG") + (f" ({judgement})" if judgement else "")
            self.wrong |= not good
        self.rows.append((section, what, value, judgement))
        print(f"{section}: {what}: {value} {judgement}", flush=True)

    def write(self) -> None:
        """Write the rows so far to the file, if there is one."""
        if self.file is not None:
            self.file.write_text(json.dumps(self.rows, indent=1) + "\n")


def section(report: Report, name: str, run: Callable[[], None], seconds: int = SECTION_SECONDS) -> None:
    """Run a section; what it lacks, a failure or `seconds` that are over (0: no limit) cost only the rest of it."""

    def overran(*_: object) -> None:
        raise LeftOut(f"the rest was cut off after {seconds} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, overran)
    signal.alarm(seconds)
    try:
        run()
    except LeftOut as reason:
        report.add(name, "left out", "", None, str(reason))
    except Exception as error:  # noqa: BLE001  the other sections are still worth their minutes
        report.add(name, type(error).__name__, str(error)[:300], False)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    report.write()
    print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)


def rate(call: Callable[[], None], items: int, wait: Callable[[], None]) -> float:
    """Items per second of a call, after a warm-up."""
    for _ in range(5):
        call()
    wait()
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < SECONDS:
        for _ in range(5):
            call()
        wait()
        count += 5
    return items * count / (time.perf_counter() - began)
