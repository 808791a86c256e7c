"""A progress bar on a terminal, and nothing in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a bar on standard error; `total` where they have no length."""
    from rich.progress import track

    from pipeline.console import make_console

    return track(
        items, label, total=total, console=make_console(stderr=True), disable=not sys.stderr.isatty()
    )
