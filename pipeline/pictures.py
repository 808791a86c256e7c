"""Folders of numbered pictures: which of them are the frames of a video, and in what order.

Pictures are grouped by the name before their number. One group is a video; so is the one that is left when flow in the
layout of TSN and mmaction2 (`img_`, `flow_x_`, `flow_y_`) and copies ("img_3 (1).jpg") are put aside. Which number of a
name counts is decided by all names together: it is the one that differs from picture to picture, most evenly.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError
from pipeline.text import typed

PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
FLOW_NAME = re.compile(r"flow[_-]?(?:[xyuv]|h|v)?[_-]?|(?P<component>[xyuv])[_-]?", re.IGNORECASE)
COPY = re.compile(
    r"(?: ?\(\d+\)|~\d*|(?: - |[ _-])(?:copy|kopie|copie|copia)(?: ?\(?\d+\)?)?)$", re.IGNORECASE
)
COPY_OF = re.compile(r"^(?:copy of|copie de|copia de|kopie von) ", re.IGNORECASE)
DIGIT = re.compile("[0-9]")
CLOCK = re.compile(r"(?<![0-9])([0-9]{1,2})([-_.:])([0-5][0-9])\2([0-5][0-9])(?:[.,]([0-9]{1,6}))?(?![0-9])")
DECIMAL = re.compile(r"(?<![0-9.])([0-9]+)[.]([0-9]{1,6})(?![0-9.])")
WORD = re.compile(r"[^\W\d_]*[\W_]*$")
NUMBERS_TRIED = 6
"""Numbers of a name that may be the frame's, counted from either end."""
UNEVEN = 0.25
"""Share of differences beyond the usual one from which on the numbers are times or the like, whose gaps say nothing."""


class Numbered(NamedTuple):
    """A picture's name, the name before the number that counts, and that number."""

    name: str
    prefix: str
    number: int


class Group(NamedTuple):
    """Pictures that belong together, in order."""

    prefix: str
    pictures: tuple[Numbered, ...]


def is_picture(name: str) -> bool:
    """Whether a file of that name may be a frame: a picture, not hidden, with a number in its name."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - Path is slow for millions of frames
    return suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".") and DIGIT.search(stem) is not None


def holds_only_flow(names: Sequence[str]) -> bool:
    """Whether all pictures of a folder, given by name, are flow that is named as such, so that none is a frame."""
    return all(
        (found := FLOW_NAME.match(name)) is not None
        and found["component"] is None
        and DIGIT.match(name, found.end()) is not None
        for name in names
    )


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that are the frames of a video, in order; none if it holds no numbered picture.

    Raises:
        InputError: several sequences, two pictures of one number, or a picture that is a link to nothing.
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        pictures = [entry for entry in entries if is_picture(entry.name)]
    names = [entry.name for entry in pictures if entry.is_file()]
    if len(names) < len(pictures):
        for entry in pictures:
            if entry.is_symlink() and not (folder / entry.name).exists():
                raise InputError(f"{folder}: {entry.name} is a link that leads nowhere")
    return [folder / picture.name for picture in frames_of(names, folder)]


def frames_of(names: Sequence[str], folder: Path) -> tuple[Numbered, ...]:
    """The frames among the names of pictures in a folder, in order.

    Raises:
        InputError: several sequences, or two pictures of one number.
    """
    if not names:
        return ()
    names = without_copies(names)
    sequences = sequences_of(names)
    if sequences is None:
        raise InputError(f"{folder}: {_same_number(names)}")
    frames = [sequence for sequence in sequences if not _is_flow(sequence.prefix, sequences)]
    if len(frames) == 1:
        return frames[0].pictures
    if not frames:
        raise InputError(
            f"{folder}: holds flow ({_examples(sequences)}) but no frames; `{typed('pipeline')} import-flow` takes it"
        )
    raise InputError(
        f"{folder}: holds {len(frames)} sequences of pictures ({_examples(frames)}): expected one a folder; "
        "move each into a folder of its own"
    )


def _examples(sequences: Sequence[Group], most: int = 3) -> str:
    names = [repr(sequence.pictures[0].name) for sequence in sequences]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_flow(prefix: str, sequences: Sequence[Group]) -> bool:
    """Whether a sequence is flow: so named, and for a bare `x_` with its `y_` and frames beside it."""
    found = FLOW_NAME.fullmatch(prefix)
    if found is None:
        return False
    if found["component"] is None:
        return True
    components = {"x": "y", "y": "x", "u": "v", "v": "u"}
    partner = components[found["component"].lower()]
    return (
        any(other.prefix.lower() == partner + prefix[1:].lower() for other in sequences)
        and len(sequences) > 2
    )


def without_copies(names: Sequence[str]) -> list[str]:
    """The names without those that a file manager gave to a copy of one that is there, or of its neighbours."""
    shapes = {re.sub("[0-9]+", "0", Path(name).stem) for name in names}

    def is_copy(name: str) -> bool:
        stem = Path(name).stem
        original = COPY_OF.sub("", COPY.sub("", stem), count=1)
        if original == stem:
            return False
        return DIGIT.search(original) is not None and re.sub("[0-9]+", "0", original) in shapes

    return [name for name in names if not is_copy(name)]


def sequences_of(names: Sequence[str]) -> list[Group] | None:
    """The pictures in groups, by the choice of number that gives the fewest groups and, of those, the most even ones.

    None if with any choice two pictures of a group have one number.
    """
    stems = [Path(name).stem for name in names]
    groups = _best(names, stems)
    if groups is None or len(groups) > 1:  # perhaps the number is a time: 12-05-33, or 33.25 seconds
        timed = [DECIMAL.sub(_decimal, CLOCK.sub(_clock, stem)) for stem in stems]
        other = _best(names, timed) if timed != stems else None
        if other is not None and (groups is None or len(other) < len(groups)):
            groups = other
    return None if groups is None else _ordered(groups)


def _clock(found: re.Match[str]) -> str:
    """A time of day as one number: microseconds."""
    hours, _, minutes, seconds, fraction = found.groups()
    whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
    return f"{whole}{fraction or '':0<6}"


def _decimal(found: re.Match[str]) -> str:
    """A decimal number as one whole number: millionths."""
    return f"{found[1]}{found[2]:0<6}"


def _best(names: Sequence[str], stems: Sequence[str]) -> dict[str, list[Numbered]] | None:
    """The grouping with the fewest groups and, of those, the most even one; None if there is none."""
    split = [re.split("([0-9]+)", stem) for stem in stems]
    counts = {len(parts) // 2 for parts in split}
    best: tuple[tuple[int, float], dict[str, list[Numbered]]] | None = None
    for number_of in _choices(min(counts), same=len(counts) == 1):
        for prefix_of in (_text_before, _all_before, _all_but, _word_before):
            for by_suffix in (False, True):
                groups = _grouped(names, split, number_of, prefix_of, by_suffix)
                if groups is None:
                    continue
                rank = (-len(groups), min(_evenness(group) for group in groups.values()))
                if best is None or rank > best[0]:
                    best = (rank, groups)
                if rank == (-1, 1.0) or counts == {1}:  # no other choice gives fewer
                    return groups
    return None if best is None else best[1]


def _choices(least: int, same: bool) -> Iterator[Callable[[list[str]], int]]:
    """Ways to choose a number of a split name: the first from the left, the first from the right, the second, ..."""

    def from_left(place: int) -> Callable[[list[str]], int]:
        return lambda parts: 2 * place + 1

    def from_right(place: int) -> Callable[[list[str]], int]:
        return lambda parts: len(parts) - 2 - 2 * place

    for place in range(min(least, NUMBERS_TRIED)):
        yield from_left(place)
        if not same:
            yield from_right(place)


def _text_before(parts: list[str], index: int) -> str:
    return parts[index - 1]


def _all_before(parts: list[str], index: int) -> str:
    return "".join(parts[:index])


def _all_but(parts: list[str], index: int) -> str:
    return "".join(parts[:index]) + "#" + "".join(parts[index + 1 :])


def _word_before(parts: list[str], index: int) -> str:
    """The word directly before, for names that begin with a hash."""
    return WORD.search(parts[index - 1])[0]  # type: ignore[index]  # matches any text


def _grouped(
    names: Sequence[str],
    split: Sequence[list[str]],
    number_of: Callable[[list[str]], int],
    prefix_of: Callable[[list[str], int], str],
    by_suffix: bool,
) -> dict[str, list[Numbered]] | None:
    """The pictures by prefix; None if two of a group have the same number."""
    groups: dict[str, list[Numbered]] = defaultdict(list)
    for name, parts in zip(names, split, strict=True):
        index = number_of(parts)
        prefix = prefix_of(parts, index)
        key = prefix + Path(name).suffix.lower() if by_suffix else prefix
        groups[key].append(Numbered(name, prefix, int(parts[index])))
    if any(len({picture.number for picture in group}) < len(group) for group in groups.values()):
        return None
    return groups


def _evenness(group: Sequence[Numbered]) -> float:
    """Share of neighbours whose numbers differ by the most usual difference; 1 for a regular count."""
    numbers = sorted(picture.number for picture in group)
    if len(numbers) < 3:
        return 1.0
    differences = np.diff(np.array(numbers, dtype=object)).tolist()
    return Counter(differences).most_common(1)[0][1] / len(differences)


def _ordered(groups: dict[str, list[Numbered]]) -> list[Group]:
    return [
        Group(group[0].prefix, tuple(sorted(group, key=lambda picture: picture.number)))
        for _, group in sorted(groups.items())
    ]


def _same_number(names: Sequence[str]) -> str:
    """Names two pictures that cannot be put in order."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        plain = re.sub(r"[0-9]+", lambda found: str(int(found[0])), Path(name).stem)
        if plain in seen:
            return f"{seen[plain]!r} and {name!r} have the same number; remove one of them"
        seen[plain] = name
    return f"the order of {names[0]!r}, {names[-1]!r} and the others cannot be told from their names; number them"


def number_gaps(pictures: Sequence[Path]) -> tuple[str, ...]:
    """Numbers that are missing between pictures, for example `frames 12 to 14 are missing`.

    A regular stride (each fifth frame kept) is no gap: the usual difference of neighbours is the stride.
    """
    sequences = sequences_of([path.name for path in pictures]) if len(pictures) > 1 else None
    if not sequences or len(sequences) > 1:
        return ()
    numbers = [picture.number for picture in sequences[0].pictures]
    differences = [after - before for before, after in itertools.pairwise(numbers)]
    stride = sorted(differences)[len(differences) // 2]
    gaps = []
    for before, difference in zip(numbers, differences, strict=False):
        if difference > stride:
            first, last = before + stride, before + difference - 1
            gaps.append(
                f"frame {first} is missing" if first == last else f"frames {first} to {last} are missing"
            )
    return tuple(gaps) if len(gaps) <= max(1, UNEVEN * len(differences)) else ()
