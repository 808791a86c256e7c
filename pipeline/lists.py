"""Reading lists of videos, classes and splits, in the forms that others have them:

- UCF-101: `classInd.txt`, `trainlist01.txt` with `Class/name.avi label`, `testlist01.txt` with `Class/name.avi`
- HMDB-51: `<class>_test_split<N>.txt` with `name.avi tag`; 1 is for training, 2 for testing, 0 unused
- mmaction2, TSN: text files named after their side with `path label` or `path frames label`
- Kinetics: CSV with `label,youtube_id,time_start,time_end,split`, or with `label` and `path` columns

A line that cannot be understood is an InputError that names the file and the line.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.catalog import Facts, Split, check_inside
from pipeline.errors import InputError
from pipeline.paths import fault_of_part
from pipeline.video import VIDEO_SUFFIXES

SIDES = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation", "validate"},
    "test": {"test", "testing"},
}
LISTED_FILE = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))((?:[\s,]+[0-9]{{1,9}}){{0,2}})",
    re.IGNORECASE,
)
LISTED_FOLDER = re.compile(r"(.+?)((?:[\s,]+[0-9]{1,9}){1,2})")
UCF_GROUP = re.compile(r"_(g\d+)_c\d+$")
UCF_LIST = re.compile(r"(train|test)list([0-9]{1,4})\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split([0-9]{1,4})\.txt")
# <source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>
HMDB_PROPERTIES = r"_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+$"
GroupRule = Callable[[str, str], str]
"""(class, stem) -> group"""
Row = tuple[str, str | int, str, str | None]
"""(path, label as listed, file and line, side if the line names one)"""


def stem_of(name: str) -> str:
    """A file name without its video suffix; other dots stay, so a.b.avi is a.b and the folder a.b is itself."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else name


def key_of(path: str) -> tuple[str, str]:
    """(folder, stem) under which two spellings of one video's path are the same.

    Unicode is composed (macOS stores names decomposed), and UCF-101's two spellings of HandstandPushups are folded.
    """
    parts = PurePosixPath(unicodedata.normalize("NFC", path)).parts
    label = parts[-2] if len(parts) > 1 else ""
    return canonical_class(label), canonical_stem(stem_of(parts[-1]))


def canonical_class(label: str) -> str:
    """UCF-101's class list has HandstandPushups, some of its copies name the folder HandStandPushups."""
    return "HandstandPushups" if label == "HandStandPushups" else label


def canonical_stem(stem: str) -> str:
    """UCF-101's lists have v_HandStandPushups_..., some copies name the files v_HandstandPushups_..."""
    return re.sub(r"^v_HandstandPushups_", "v_HandStandPushups_", stem)


def ucf_group(label: str, stem: str) -> str:
    """v_Archery_g01_c02 -> Archery/g01; a stem of another form is its own group. Groups number within their class."""
    found = UCF_GROUP.search(stem)
    return f"{label}/{found[1] if found else stem}"


def hmdb_group(label: str, stem: str) -> str:
    """The source video, within its class: what precedes `_<class>_<properties>` in the stem.

    The three official splits keep all clips of a source on one side within each class, though not across classes.
    """
    found = re.search(f"^(.*)_{re.escape(label)}{HMDB_PROPERTIES}", stem)
    return f"{label}/{found[1] if found else stem}"


def pattern_group(pattern: str) -> GroupRule:
    """A rule that takes the group from the stem: the pattern's first group, else its whole match, else the stem."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group-pattern {pattern!r} is not a valid regular expression: {error}") from error

    def group(label: str, stem: str) -> str:
        found = compiled.search(stem)
        if not found:
            return f"{label}/{stem}"
        return (found[1] if compiled.groups else found[0]) or f"{label}/{stem}"

    return group


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


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a list that are not blank, without white space, CR or a byte order mark around them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return [(number, line.rstrip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def identity(label: str, path: str, where: str) -> str:
    """The id of a listed video; InputError for a path that leaves the folder or a name that cannot be one."""
    check_inside(path, where)
    video_id = f"{label}/{key_of(path)[1]}"
    for part in (label, key_of(path)[1]):
        if fault := fault_of_part(part):
            raise InputError(f"{where}: {part!r} cannot be the name of a class or video: {fault}")
    return video_id


class Builder:
    """Gathers entries of lists and refuses those that contradict each other."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.sides: dict[int, dict[str, dict[str, str]]] = defaultdict(lambda: {"train": {}, "test": {}})
        self.notes: list[str] = []

    def add(self, label: str, path: str, where: str, number: int = 1, side: str | None = None) -> None:
        """One entry; `side` is "train", "test", or None for a video that the split leaves out."""
        video_id = identity(label, path, where)
        before = self.paths.setdefault(video_id, path)
        if key_of(before) != key_of(path):
            raise InputError(f"{where}: {path!r} and {before!r} would both be the video {video_id!r}")
        both_sides = self.sides[number]
        for other, entries in both_sides.items():
            if side is not None and video_id in entries:
                problem = "is listed twice" if other == side else f"is in both sides of split {number}"
                raise InputError(f"{where}: {path!r} {problem} (first at {entries[video_id]})")
        if side is not None:
            both_sides[side][video_id] = where

    def lists(self, classes: Sequence[str]) -> Lists:
        return Lists(
            tuple(classes),
            self.paths,
            {
                number: Split(number, tuple(sides["train"]), tuple(sides["test"]))
                for number, sides in sorted(self.sides.items())
            },
            tuple(self.notes),
        )


def read_ucf_lists(files: Sequence[Path]) -> Lists:
    """UCF-101's lists: trainlistNN.txt, testlistNN.txt and classInd.txt, for which the train labels can stand."""
    index: dict[str, int] = {}
    for path in files:
        if path.name != "classInd.txt":
            continue
        for number, line in read_lines(path):
            entry = re.fullmatch(r"([0-9]{1,9})\s+(.+)", line)
            if entry is None or canonical_class(entry[2]) in index or int(entry[1]) in index.values():
                raise InputError(
                    f"{path}:{number}: expected a new number and a new class name, found {line!r}"
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
            check_inside(name, where)
            label = canonical_class(PurePosixPath(name).parent.name)
            if not label:
                raise InputError(f"{where}: expected Class/name.avi, found {line!r}")
            if index and label not in index:
                raise InputError(f"{where}: class {label!r} is not in classInd.txt")
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


def read_hmdb_lists(files: Sequence[Path]) -> Lists:
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
            name, _, tag = line.rpartition(" ")
            if tag not in ("0", "1", "2") or not name.rstrip():
                raise InputError(f"{path}:{number}: expected a name and the tag 0, 1 or 2, found {line!r}")
            side = {"0": None, "1": "train", "2": "test"}[tag]
            builder.add(label, f"{label}/{name.rstrip()}", f"{path}:{number}", split, side)
    return dataclasses.replace(builder.lists(sorted(classes)), group=hmdb_group)


def split_labels(line: str) -> tuple[str, list[int]]:
    """`path [frames] [label]` -> path and up to two numbers after it.

    The path may hold spaces: it ends at its video suffix, or, without one (a folder of frames), at two numbers.
    """
    found = LISTED_FILE.fullmatch(line) or LISTED_FOLDER.fullmatch(line)
    return (found[1], [int(number) for number in re.findall("[0-9]+", found[2])]) if found else (line, [])


def side_of(name: str) -> str | None:
    """ "train", "validation" or "test" if one of the words for it is in a name, else None."""
    words = set(re.findall(r"[a-z]+", name.lower().replace("list", " ")))
    return next((side for side, names in SIDES.items() if names & words), None)


def split_of(name: str) -> int:
    """The number after `split`, `list` or `fold` in a list's name, else 1."""
    number = re.search(r"(?:split|list|fold)_?0*([0-9]{1,4})", name.lower())
    return int(number[1]) if number else 1


def read_rows(path: Path) -> list[Row]:
    """Rows of one list as (path, label, where, side if the row names one); labels are names or numbers."""
    lines = read_lines(path)
    header = [name.strip().lower() for name in lines[0][1].split(",")] if lines else []
    if path.suffix.lower() == ".csv" and len(header) > 1 and {"label", "class"} & set(header):
        return read_csv_rows(path)
    if header and "youtube_id" in header:
        return []
    rows: list[Row] = []
    for number, line in lines:
        name, numbers = split_labels(line)
        if not numbers:
            raise InputError(f"{path}:{number}: expected `path label` or `path frames label`, found {line!r}")
        rows.append((name, numbers[-1], f"{path}:{number}", None))
    return rows


def read_csv_rows(path: Path) -> list[Row]:
    """Rows of a CSV with a header: label or class, youtube_id with times or path, and perhaps split."""
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    rows: list[Row] = []
    try:
        content = [(f"{path}:{reader.line_num}", raw) for raw in reader]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: is not valid CSV: {error}") from error
    for where, raw in content:
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
                f"{where}: expected a label and a path, or a youtube_id with time_start and time_end, found {dict(raw)}"
            )
        rows.append((name, label, where, row.get("split") or None))
    return rows


def read_path_lists(files: Sequence[Path], class_names: Sequence[str] | None = None) -> Lists:
    """Lists named after their side (train, val, test; split_2 ...), as mmaction2, TSN and Kinetics have them.

    Numbers as labels take their names from `class_names`, else from the folder of their videos if each number has one,
    else they are their own names. If there are both validation and test lists, the split tests on the test
    list and leaves the validation list out.
    """
    builder = Builder()
    rows: list[tuple[str, str | int, str, str, int]] = []
    for path in sorted(files):
        file_side = side_of(path.stem)
        content = read_rows(path) if file_side or path.suffix.lower() == ".csv" else []
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
    for name, label, where, side, split in rows:
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


def read_lists(source: Path, class_names: Sequence[str] | None = None) -> Lists:
    """The lists in a folder (or one file), in whichever of the known formats they are.

    Raises:
        InputError: none there, several formats at once, or a line that cannot be understood (with file and number).
    """
    if not source.exists():
        raise InputError(f"{source}: no such folder of lists")
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
        lists = read_ucf_lists(ucf + index)
    elif hmdb:
        lists = read_hmdb_lists(hmdb)
    else:
        lists = read_path_lists([path for path in files if path not in index], class_names)
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
            f"{source}: these are not the official lists of {facts.title}; "
            + "; ".join(wrong)
            + "\nput the official lists there; for other lists: python -m pipeline import folder --lists DIR"
        )
