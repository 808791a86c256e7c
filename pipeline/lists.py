"""Reading lists of videos, classes and splits, in the formats of other projects:

- UCF-101: `classInd.txt`, `trainlist01.txt` with `Class/name.avi label`, `testlist01.txt` with `Class/name.avi`
- HMDB-51: `<class>_test_split<N>.txt` with `name.avi tag`; 1 is for training, 2 for testing, 0 unused
- mmaction2, TSN: text files named after their side with `path label` or `path frames label`
- Kinetics: CSV with `label,youtube_id,time_start,time_end,split`, or with `label` and `path` columns

A line that cannot be understood is an InputError that names the file and the line.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.catalog import Facts, Split, check_inside
from pipeline.errors import InputError, reading
from pipeline.groups import GroupRule, hmdb_group, ucf_group
from pipeline.paths import fault_of_part
from pipeline.text import many, quoted, typed
from pipeline.video import VIDEO_SUFFIXES, stem_of

SIDES = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation", "validate"},
    "test": {"test", "testing"},
}
LISTED_FILE = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))((?:[\s,]+[0-9]{{1,9}})*)",
    re.IGNORECASE,
)
LISTED_FOLDER = re.compile(r"(.+?)((?:[\s,]+[0-9]{1,9}){1,2})")
QUOTED_PATH = re.compile(r'"([^"]+)"((?:\s*,\s*"?[0-9]{1,9}"?)+)\s*')
"""A path in the quotes of CSV, and the numbers after it."""
UCF_LIST = re.compile(r"(train|test)list([0-9]{1,4})\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split([0-9]{1,4})\.txt")
NUMBER_BEHIND = re.compile(r"(?<=[^\s,])[\s,]+[0-9]{1,9}$")
LONGEST_LINE = 8192
"""Most characters of a line that may be a path with numbers; no system opens a longer path."""
FEWEST_FRAMES = 10
"""Below it, the first of two numbers after a video file is taken for a label rather than a count of frames."""
SHOWN = 20
"""Contradicting rows that a message lists; the rest are counted."""
Row = tuple[str, str | int, str, str | None]
"""(path, label as listed, file and line, side if the line names one)"""


def key_of(path: str) -> tuple[str, str]:
    """(folder, stem) under which two spellings of one video's path are the same.

    Unicode is composed (macOS stores names decomposed), and UCF-101's two spellings of HandstandPushups are folded.
    """
    parts = PurePosixPath(unicodedata.normalize("NFC", path)).parts
    label = parts[-2] if len(parts) > 1 else ""
    return canonical_class(label), canonical_stem(stem_of(parts[-1] if parts else ""))


def canonical_class(label: str) -> str:
    """UCF-101's class list has HandstandPushups, some of its copies name the folder HandStandPushups."""
    return "HandstandPushups" if label == "HandStandPushups" else label


def canonical_stem(stem: str) -> str:
    """UCF-101's lists have v_HandStandPushups_..., some copies name the files v_HandstandPushups_..."""
    return re.sub(r"^v_HandstandPushups_", "v_HandStandPushups_", stem)


@dataclass(frozen=True)
class Lists:
    """The contents of a dataset's lists.

    Attributes:
        classes: in the order of the labels.
        paths: id -> path as listed, relative to the videos' folder; those in no split too.
        splits: by number.
        notes: what was ignored, and why.
        group: the rule by which such lists hold groups out: (class, stem) -> group.
    """

    classes: tuple[str, ...]
    paths: Mapping[str, str]
    splits: Mapping[int, Split]
    notes: tuple[str, ...] = ()
    group: GroupRule = ucf_group


@dataclass(frozen=True)
class VideosFolder:
    """The folder that the paths of lists lead into, as far as it is known.

    Attributes:
        root: the folder; absolute paths below it are made relative to it.
        found: by key, the videos that lie there.
    """

    root: Path | None = None
    found: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, videos: Iterable[str]) -> VideosFolder:
        """The folder with the videos that were found there, as paths relative to it."""
        return cls(root, {key_of(path): path for path in videos})

    def path(self, listed: str, where: str) -> str:
        """A listed path, relative to the folder.

        Raises:
            InputError: it leads out of the folder, or separates folders with backslashes.
        """
        path = listed
        if self.root is not None and listed.startswith("/") and "\0" not in listed:
            inside = relative_path(listed, self.root)
            if inside is None:
                raise InputError(
                    f"{where}: the path {quoted(listed)} leaves the folder of the videos, {self.root}: paths in lists "
                    "are relative to that folder, or absolute and below it"
                )
            path = inside
        check_inside(path, where)
        if "\\" in path and key_of(path) not in self.found:
            found = self.found.get(key_of(path.replace("\\", "/")))
            if found:
                raise InputError(
                    f"{where}: wanted {quoted(listed)}, found {quoted(found)}: write / between folders"
                )
        return path


def relative_path(path: str, root: Path) -> str | None:
    """An absolute path relative to a folder, also if links lead to one of them; None if it lies outside."""
    pure = PurePosixPath("/" + path.lstrip("/"))
    absolute, real = (PurePosixPath(folder) for folder in _spellings(root))
    for folder in (absolute, real):
        if pure.is_relative_to(folder):
            return str(pure.relative_to(folder))
    parent = PurePosixPath(_real(str(pure.parent)))
    return str(parent.relative_to(real) / pure.name) if parent.is_relative_to(real) else None


@functools.lru_cache(maxsize=8)
def _spellings(root: Path) -> tuple[str, str]:
    return str(root.absolute()), os.path.realpath(root)


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a list that are not blank, without white space, CR or a byte order mark around them.

    Lines end as on Unix, on Windows or on an old Macintosh.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return [
        (number, line.rstrip())
        for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1)
        if line.strip()
    ]


def identity(label: str, path: str, where: str, keep_suffix: bool = False) -> str:
    """The id of a listed video; InputError for a path that leaves the folder or a name that cannot be one."""
    check_inside(path, where)
    name = PurePosixPath(path).name if keep_suffix else key_of(path)[1]
    video_id = f"{label}/{name}"
    for part in (label, name):
        if fault := fault_of_part(part):
            raise InputError(f"{where}: {quoted(part)} cannot be the name of a class or video: {fault}")
    return video_id


class Builder:
    """Gathers entries of lists, and which of them repeat or contradict an earlier one.

    Args:
        keep_suffix: a video's name is its file's whole name, so that a.avi and a.mp4 are two.
    """

    def __init__(self, keep_suffix: bool = False) -> None:
        self.keep_suffix = keep_suffix
        self.paths: dict[str, str] = {}
        self.sides: dict[int, dict[str, dict[str, tuple[str, str]]]] = defaultdict(
            lambda: {"train": {}, "test": {}}
        )
        self.notes: list[str] = []
        self.conflicts: list[str] = []
        self.repeated: list[str] = []

    def add(self, label: str, path: str, where: str, number: int = 1, side: str | None = None) -> None:
        """One entry; `side` is "train", "test", or None for a video that the split leaves out."""
        video_id = identity(label, path, where, self.keep_suffix)
        before = self.paths.setdefault(video_id, path)
        if key_of(before) != key_of(path):
            self.conflicts.append(
                f"{where}: {quoted(path)} and {quoted(before)} would both be the video {quoted(video_id)}"
            )
            return
        if side is None:
            return
        for other, entries in self.sides[number].items():
            if video_id not in entries:
                continue
            first, listed = entries[video_id]
            if other == side and listed == path:
                self.repeated.append(where)
                return
            problem = "is listed twice" if other == side else f"is in both sides of split {number}"
            self.conflicts.append(f"{where}: {quoted(path)} {problem} (first at {first})")
            return
        self.sides[number][side][video_id] = (where, path)

    def lists(self, classes: Sequence[str]) -> Lists:
        """Everything that was added.

        Raises:
            InputError: entries contradict each other; it names all of them.
        """
        if self.conflicts:
            more = len(self.conflicts) - SHOWN
            raise InputError(*self.conflicts[:SHOWN], *([f"and {more:,} more"] if more > 0 else []))
        if self.repeated:
            count = many(len(self.repeated), "row")
            self.notes.append(
                f"duplicates: {count} the same as an earlier one, for example {self.repeated[0]}"
            )
        return Lists(
            tuple(classes),
            self.paths,
            {
                number: Split(number, tuple(sides["train"]), tuple(sides["test"]))
                for number, sides in sorted(self.sides.items())
            },
            tuple(self.notes),
        )


def read_ucf_lists(files: Sequence[Path], folder: VideosFolder) -> Lists:
    """UCF-101's lists: trainlistNN.txt, testlistNN.txt and classInd.txt, for which the train labels can stand."""
    index: dict[str, int] = {}
    for path in files:
        if path.name != "classInd.txt":
            continue
        for number, line in read_lines(path):
            entry = re.fullmatch(r"([0-9]{1,9})\s+(.+)", line)
            if entry is None or canonical_class(entry[2]) in index or int(entry[1]) in index.values():
                raise InputError(
                    f"{path}:{number}: expected a new number and a new class name, found {quoted(line)}"
                )
            index[canonical_class(entry[2])] = int(entry[1])
    builder = Builder()
    learned: dict[str, int] = {}
    for path in sorted(files):
        kind = UCF_LIST.fullmatch(path.name)
        if kind is None:
            continue
        side, split = kind[1], int(kind[2])
        for number, line in read_lines(path):
            where = f"{path}:{number}"
            name, labels = split_labels(line)
            check_count(name, labels, 1, where, folder)
            name = folder.path(name, where)
            label = canonical_class(PurePosixPath(name).parent.name)
            if not label:
                raise InputError(f"{where}: expected Class/name.avi, found {quoted(line)}")
            if index and label not in index:
                raise InputError(f"{where}: class {quoted(label)} is not in classInd.txt")
            if labels and labels[-1] != (index or learned).setdefault(label, labels[-1]):
                source = "in classInd.txt" if index else "on an earlier line"
                expected = (index or learned)[label]
                raise InputError(
                    f"{where}: expected label {expected} of {label} {source}, found {labels[-1]}"
                )
            builder.add(label, name, where, split, side)
    classes = index.keys() or {video_id.split("/")[0] for video_id in builder.paths}
    order = index or learned
    return builder.lists(sorted(classes, key=lambda label: (order.get(label, len(order) + 1), label)))


def read_hmdb_lists(files: Sequence[Path], folder: VideosFolder) -> Lists:
    """HMDB-51's lists: one file per class and split, tag 1 for training, 2 for testing, 0 for neither."""
    builder = Builder()
    classes = set()
    for path in sorted(files):
        kind = HMDB_LIST.fullmatch(path.name)
        if kind is None:
            continue
        label, split = kind[1], int(kind[2])
        classes.add(label)
        for number, line in read_lines(path):
            where = f"{path}:{number}"
            name, _, tag = line.rpartition(" ")
            name = name.rstrip()
            if tag not in ("0", "1", "2") or not name or len(split_labels(line)[1]) > 1:
                raise InputError(f"{where}: expected a name and the tag 0, 1 or 2, found {quoted(line)}")
            side = {"0": None, "1": "train", "2": "test"}[tag]
            listed = folder.path(name if name.startswith("/") else f"{label}/{name}", where)
            builder.add(label, listed, where, split, side)
    return dataclasses.replace(builder.lists(sorted(classes)), group=hmdb_group)


def split_labels(line: str) -> tuple[str, list[int]]:
    """`path [frames] [label]` -> path and the numbers after it.

    The path may hold spaces: it ends at its video suffix, or, without one (a folder of frames), at two numbers.
    """
    if len(line) > LONGEST_LINE:
        return line, []
    found = LISTED_FILE.fullmatch(line) or LISTED_FOLDER.fullmatch(line)
    return (found[1], [int(number) for number in re.findall("[0-9]+", found[2])]) if found else (line, [])


def check_count(name: str, numbers: Sequence[int], most: int, where: str, folder: VideosFolder) -> None:
    """Raise InputError where more numbers follow a path than its format has.

    A folder's name may end in a number: the existing folders show which it is.
    """
    count, shorter = len(numbers), name
    while shorter and key_of(shorter) not in folder.found and NUMBER_BEHIND.search(shorter):
        shorter = NUMBER_BEHIND.sub("", shorter)
        if key_of(shorter) in folder.found:
            count += len(re.findall("[0-9]+", name[len(shorter) :]))
            name = shorter
    if count > most:
        form = "`path label`" if most == 1 else "`path label` or `path frames label`"
        raise InputError(
            f"{where}: expected {form}, found {count} numbers after {quoted(name)}: videos with several labels, and "
            "lists of parts of videos (start, frames, label), cannot be imported"
        )


def side_of(name: str) -> str | None:
    """ "train", "validation" or "test" if one of the words for it is in a name, else None."""
    words = set(re.findall(r"[a-z]+", name.lower().replace("list", " ")))
    return next((side for side, names in SIDES.items() if names & words), None)


def split_of(name: str) -> int:
    """The number after `split`, `list` or `fold` in a list's name, else 1."""
    number = re.search(r"(?:split|list|fold)_?0*([0-9]{1,4})", name.lower())
    return int(number[1]) if number else 1


def read_rows(path: Path, folder: VideosFolder) -> list[Row]:
    """Rows of one list as (path, label, where, side if the row names one); labels are names or numbers."""
    lines = read_lines(path)
    header = [name.strip().lower() for name in lines[0][1].split(",")] if lines else []
    if path.suffix.lower() == ".csv" and len(header) > 1 and {"label", "class"} & set(header):
        return read_csv_rows(path, folder)
    if header and "youtube_id" in header:
        return []
    parsed: list[tuple[str, list[int], str]] = []
    for number, line in lines:
        if in_quotes := QUOTED_PATH.fullmatch(line):
            line = in_quotes[1] + in_quotes[2].replace('"', "")
        name, numbers = split_labels(line)
        where = f"{path}:{number}"
        if not numbers:
            raise InputError(f"{where}: expected `path label` or `path frames label`, found {quoted(line)}")
        check_count(name, numbers, 2, where, folder)
        parsed.append((name, numbers, where))
    for is_file in (True, False):
        check_columns([row for row in parsed if (stem_of(row[0]) != row[0]) == is_file], is_file)
    return [(folder.path(name, where), numbers[-1], where, None) for name, numbers, where in parsed]


def check_columns(rows: Sequence[tuple[str, list[int], str]], files: bool) -> None:
    """Raise InputError where the numbers after the paths of a list cannot be `label` or `frames label` throughout.

    A video file with several labels looks like `path frames label`, too: its first number is one of the labels, or
    too small for a count of frames.
    """
    several = "or are these videos with several labels, which cannot be imported?"
    for name, numbers, where in rows:
        if len(numbers) != len(rows[0][1]):
            raise InputError(
                f"{where}: {many(len(numbers), 'number')} after {quoted(name)}, but {len(rows[0][1])} at {rows[0][2]}: "
                f"expected `path label` or `path frames label` in every line; {several}"
            )
        if len(numbers) == 2 and numbers[0] < (FEWEST_FRAMES if files else 1):
            raise InputError(
                f"{where}: expected `path frames label`, found {numbers[0]} as the frames of {quoted(name)}; write "
                f"`path label`; {several}"
            )
    if files and rows and len(rows[0][1]) == 2:
        frames, labels = zip(*(numbers for _, numbers, _ in rows), strict=True)
        if max(frames) <= max(labels):
            raise InputError(
                f"{rows[0][2]}: the first numbers after the paths may all be labels; write `path label`, without "
                f"frames; {several}"
            )


def read_csv_rows(path: Path, folder: VideosFolder) -> list[Row]:
    """Rows of a CSV with a header: label or class, youtube_id with times or path, and perhaps split."""
    with reading(path):
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    rows: list[Row] = []
    try:
        content = [(f"{path}:{reader.line_num}", raw) for raw in reader]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: is not valid CSV: {error}") from error
    for where, raw in content:
        if raw.get(None):
            raise InputError(
                f"{where}: expected {len(reader.fieldnames or ())} fields as in the first line, found more: "
                f"{quoted(', '.join(map(str, raw.values())))}"
            )
        row = {
            (key or "").strip().lower(): (value or "").strip()
            for key, value in raw.items()
            if isinstance(value, str)
        }
        label = row.get("label") or row.get("class")
        name = next((row[key] for key in ("path", "video_path", "filename", "video") if row.get(key)), None)
        try:
            if name is None and row.get("youtube_id"):
                start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
                name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        except (KeyError, ValueError, OverflowError):
            name = None
        if not label or not name:
            raise InputError(
                f"{where}: expected a label and a path, or a youtube_id with time_start and time_end, found "
                f"{quoted(', '.join(map(str, raw.values())))}"
            )
        listed = int(label) if re.fullmatch("[0-9]{1,9}", label) else label
        rows.append((folder.path(name, where), listed, where, row.get("split") or None))
    return rows


def read_path_lists(files: Sequence[Path], class_names: Sequence[str] | None, folder: VideosFolder) -> Lists:
    """Lists named after their side (train, val, test; split_2 ...), as mmaction2, TSN and Kinetics have them.

    Numbers as labels take their names from `class_names`, else from the folder of their videos if each number has one,
    else they are their own names. If there are both validation and test lists, the split tests on the test
    list and leaves the validation list out.
    """
    builder = Builder()
    rows: list[tuple[str, str | int, str, str, int]] = []
    for path in sorted(files):
        file_side = side_of(path.stem)
        content = read_rows(path, folder) if file_side or path.suffix.lower() == ".csv" else []
        if not content:
            builder.notes.append(f"{path.name}: no list with labels, ignored")
        for name, label, where, row_side in content:
            side = (row_side and side_of(row_side)) or file_side
            if side is None:
                raise InputError(
                    f"{where}: neither the file's name nor a split column says train, val or test"
                )
            rows.append((name, label, where, side, split_of(path.stem)))
    names = class_names_of(rows, class_names)
    tested = {split for *_, side, split in rows if side == "test"}
    left_out = 0
    labelled: dict[str, tuple[str | int, str]] = {}
    for name, label, where, side, split in rows:
        before, first = labelled.setdefault(name, (label, where))
        if "/" in name and before != label:
            builder.conflicts.append(
                f"{where}: {quoted(name)} has label {quoted(str(label))}, but {quoted(str(before))} at {first}; videos "
                "with several labels cannot be imported"
            )
            continue
        if isinstance(label, int) and label not in names:
            raise InputError(f"{where}: label {label}, but --classes names {len(names)} classes, from 0")
        if side == "validation" and split in tested:
            left_out += 1
        placed = {"train": "train", "test": "test", "validation": None if split in tested else "test"}[side]
        builder.add(names[label], name, where, split, placed)
    if left_out:
        builder.notes.append(
            f"{left_out:,} videos of validation lists are in no split, since there are test lists too"
        )
    ordered = sorted(names, key=lambda label: (isinstance(label, str), label))
    return builder.lists(list(dict.fromkeys(names[label] for label in ordered)))


def class_names_of(
    rows: Iterable[tuple[str, str | int, str, str, int]], class_names: Sequence[str] | None
) -> dict[str | int, str]:
    """Label as listed -> class name; see `read_path_lists`."""
    labels: dict[str | int, set[str]] = defaultdict(set)
    for name, label, *_ in rows:
        labels[label].add(PurePosixPath(name).parent.name)
    if class_names is not None:
        for label in labels:
            if isinstance(label, str) and label not in class_names:
                raise InputError(f"class {label!r} of the lists is not named by --classes")
        return {**{name: name for name in labels if isinstance(name, str)}, **dict(enumerate(class_names))}
    folders = [next(iter(names)) for names in labels.values()]
    by_folder = all(len(names) == 1 for names in labels.values()) and "" not in folders
    if by_folder and len(set(folders)) == len(folders):
        return {
            label: label if isinstance(label, str) else next(iter(names)) for label, names in labels.items()
        }
    return {label: str(label) for label in labels}


def read_lists(
    source: Path, class_names: Sequence[str] | None = None, folder: VideosFolder | None = None
) -> Lists:
    """The lists in a folder (or one file), in whichever of the known formats they are.

    Args:
        source: the folder or the file.
        class_names: names of the labels of lists that number them.
        folder: the folder of the videos; without it no path may be absolute.

    Raises:
        InputError: no lists, several formats at once, or a line that cannot be understood (with file and number).
    """
    if not source.exists():
        raise InputError(f"{source}: no such folder of lists")
    folder = folder or VideosFolder()
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if path.suffix.lower() in (".txt", ".csv") and path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    ucf = [path for path in files if UCF_LIST.fullmatch(path.name)]
    hmdb = [path for path in files if HMDB_LIST.fullmatch(path.name)]
    if ucf and hmdb:
        raise InputError(
            f"{source}: lists of two datasets, for example {ucf[0].name} and {hmdb[0].name}: put them in two folders"
        )
    index = [path for path in files if path.name == "classInd.txt"]
    if ucf:
        lists = read_ucf_lists(ucf + index, folder)
    elif hmdb:
        lists = read_hmdb_lists(hmdb, folder)
    else:
        lists = read_path_lists([path for path in files if path not in index], class_names, folder)
    if not lists.paths:
        raise InputError(
            f"{source}: no lists found; expected trainlist01.txt and testlist01.txt (as UCF-101), "
            "<class>_test_split1.txt (as HMDB-51), or .txt or .csv files with train, val or test in their names"
        )
    return lists


def check_facts(lists: Lists, facts: Facts, source: Path) -> None:
    """Raise InputError that names each figure in which lists differ from the published ones."""
    pairs = [
        ("classes", facts.classes, len(lists.classes)),
        ("videos", facts.videos, len(lists.paths)),
        ("splits", len(facts.splits), len(lists.splits)),
    ]
    for number, (train, test) in facts.splits.items():
        split = lists.splits.get(number, Split(number, (), ()))
        pairs.append((f"videos to train on in split {number}", train, len(split.train)))
        pairs.append((f"videos to test on in split {number}", test, len(split.test)))
    wrong = [f"{what}: expected {want:,}, found {found:,}" for what, want, found in pairs if want != found]
    if wrong:
        raise InputError(
            f"{source}: these are not the official lists of {facts.title}; {'; '.join(wrong)}",
            f"put the official lists there; for other lists: {typed('pipeline')} import folder --lists DIR",
        )
