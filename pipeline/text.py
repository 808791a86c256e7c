"""Text for people: what the messages and tables of every command share."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

LONGEST_REASON = 300
"""Characters of the reason why something failed: a name in it may be thousands long."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where there is none; at most `LONGEST_REASON` long."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return shortened(message.splitlines()[0]) if message else type(error).__name__


def system_reason(error: OSError) -> str:
    """The system's message for an error, for example "Permission denied"."""
    return error.strerror or first_line(error)


def some(names: Iterable[str], most: int = 5, quoted: bool = True) -> str:
    """A few of many names for a message, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) if quoted else name for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def many(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: `many(1, "class")` is "1 class", `many(2, "class")` "2 classes"."""
    plural = plural or noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def typed(package: str) -> str:
    """How a package's command is typed, in the form in which this process was started: `two-stream extract-flow`, or
    `python -m extract_flow`, which a file of that name in the user's folder would hide."""
    if PurePath(sys.argv[0]).name == "two-stream":
        return f"two-stream {package.replace('_', '-')}"
    return f"python -m {package}"


def duration(seconds: float) -> str:
    """For example 75.2 -> "1 min 15 s", 7384 -> "2 h 3 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size_in_bytes(count: float) -> str:
    """For example 2130 -> "2.1 kB" (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def printable(text: str) -> str:
    """The text with control characters and lone surrogates escaped, so that a name cannot move a terminal's cursor."""
    return "".join(
        ascii(character)[1:-1]  # which needs no codec, that is, no other file
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
        for character in text
    )


def printable_lines(text: str) -> str:
    """The same for text of several lines, which may hold tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(part if part in "\n\t" else printable(part) for part in re.split(r"([\n\t])", text))


def shortened(text: str, most: int = LONGEST_REASON) -> str:
    """The text, or its beginning and end where it is longer than a reason may be."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def spreadsheet_cell(text: str) -> str:
    """A name for a cell of a CSV file: what a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def quoted(text: str, most: int = 200) -> str:
    """Text from a user's file for a message: quoted, with control characters escaped, and shortened."""
    return f"'{shortened(printable(text), most)}'"
