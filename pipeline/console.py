"""rich, with names as data: no markup, no emoji codes, and control characters shown escaped."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.start import drawing_stream
from pipeline.text import printable_lines


class PlainConsole(Console):
    """A console that takes strings as they are, wherever they stand: printed, or in a table."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable_lines(text), **{**settings, "markup": False, "emoji": False})


def make_console(stderr: bool = False, width: int | None = None) -> Console:
    """Output to the terminal; `width` where it is a file or a job's log."""
    stream = drawing_stream(stderr)
    return PlainConsole(file=stream, width=None if stream.isatty() else width, markup=False, emoji=False)
