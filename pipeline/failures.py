"""What failed and why, for people: grouped by reason, ten reasons shown, the rest in a file."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePath

from pipeline import atomic
from pipeline.errors import InputError
from pipeline.text import many, printable, some

SHOWN = 10
"""Reasons that are shown, each with some of the names it applies to."""
NAMED = 5
"""Names shown of those that share a reason."""
EVERY = sys.maxsize
"""Names in a file that holds what the lines do not."""

Reasons = Collection[tuple[str, str]]
"""(name, reason) of each failure."""


def by_reason(failed: Reasons) -> dict[str, list[tuple[str, str]]]:
    """The failures that share a reason, in order; a video's own path at the beginning of a reason is ignored."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for name, reason in failed:
        alike.setdefault(_without_path(name, reason), []).append((name, reason))
    return alike


def _without_path(name: str, reason: str) -> str:
    path, colon, rest = reason.partition(": ")
    stem = PurePath(name).name
    return rest if colon and stem and stem in PurePath(path).name else reason


def reason_lines(failed: Reasons, noun: str = "video", word: str = "failed", most: int = SHOWN) -> list[str]:
    """A line for each of the first reasons: `failed: 13,000 videos (a, b and 12,998 more): reason`."""
    lines = []
    prefix = f"{word}: " if word else ""
    for shared, failures in list(by_reason(failed).items())[:most]:
        names = [printable(name) for name, _ in failures]
        if len(names) == 1:
            name, reason = failures[0]
            lines.append(f"{prefix}{names[0]}: {reason.removeprefix(f'{name}: ')}")
        else:
            lines.append(f"{prefix}{many(len(names), noun)} ({some(names, NAMED, quoted=False)}): {shared}")
    return lines


def file_beside(path: Path) -> Path:
    """Where `report_failures` writes what failed of a command whose results, or whose shards, are at `path`."""
    path = path.absolute()
    return path.with_name(f"{path.name}.failed.txt") if path.name else path / "failed.txt"


def report_failures(failed: Reasons, file: Path, noun: str = "video", word: str = "failed") -> list[str]:
    """`reason_lines`, and where they do not name every failure, all of them in a file that the last line names.

    Args:
        failed: names and reasons.
        file: where they are written, a name and its reason on a line; in the folder for temporary files where this
            one cannot be written.
        noun: what the names are of.
        word: what happened to them, at the beginning of each line; "" to leave it out.
    """
    lines = reason_lines(failed, noun, word)
    alike = by_reason(failed)
    if len(alike) <= SHOWN and all(len(failures) <= NAMED for failures in alike.values()):
        return lines
    text = "".join(f"{printable(name)}: {printable(reason)}\n" for name, reason in failed)
    return [*lines, f"all {many(len(failed), noun)} with their reasons: {_saved(text, file)}"]


def named(names: Iterable[str], most: int, quoted: bool = True) -> str:
    """`some` names for a line; all of them, one a line, where `most` is `EVERY`."""
    if most < EVERY:
        return some(names, most, quoted)
    return "".join(f"\n    {repr(name) if quoted else printable(name)}" for name in names) + "\n  "


def limited(lines_of: Callable[[int], Sequence[str]], most: int, file: Path | None) -> list[str]:
    """Lines that name at most so many each, and where that leaves names out, the file that holds all of them.

    Args:
        lines_of: the lines for a number of names; it names them by `named`.
        most: names shown in a line.
        file: as in `report_failures`; None: none is written.
    """
    lines = list(lines_of(most))
    if file is None or lines == list(lines_of(EVERY - 1)):
        return lines
    text = "".join(f"{line.rstrip()}\n" for line in "\n".join(lines_of(EVERY)).split("\n"))
    return [*lines, f"all of them, by name: {_saved(text, file)}"]


def _saved(text: str, file: Path) -> Path:
    """The file once it holds the text; one in the folder for temporary files where it cannot be written."""
    try:
        with atomic.writing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except InputError:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=f"{file.stem}-", suffix=file.suffix, delete=False
        ) as other:
            other.write(text)
        return Path(other.name)
    return file
