"""Making a dataset known: what its lists say, what its folder holds, and whether the two agree.

Lists are read into `Lists`, the folder into `Found`, and `match` compares the two. All problems are gathered before
anything is said, so that a user sees everything that is wrong at once. Formats of lists that are read:

- UCF-101: `classInd.txt`, `trainlist01.txt` with `Class/name.avi label`, `testlist01.txt` with `Class/name.avi`
- HMDB-51: `<class>_test_split<N>.txt` with `name.avi tag`; 1 is for training, 2 for testing, 0 unused
- mmaction2, TSN: text files named after their side with `path label` or `path frames label`
- Kinetics: CSV with `label,youtube_id,time_start,time_end,split`, or with `label` and `path` columns
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import click

from pipeline import catalog
from pipeline.catalog import FACTS, Dataset, Facts, Split, Video, check_inside, shared_groups, some
from pipeline.errors import InputError, command_errors
from pipeline.paths import check_name, fault_of_part
from pipeline.video import PICTURE_SUFFIXES, VIDEO_SUFFIXES, list_pictures

DEPTH = 4
"""Folders below the videos' folder that are looked into: side, class, video, and one to spare."""
FOLDS = 3
SIDES = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation", "validate"},
    "test": {"test", "testing"},
}
LISTED_FILE = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))((?:[\s,]+[0-9]+){{0,2}})", re.IGNORECASE
)
LISTED_FOLDER = re.compile(r"(.+?)((?:[\s,]+[0-9]+){1,2})")
UCF_GROUP = re.compile(r"_(g\d+)_c\d+$")
UCF_LIST = re.compile(r"(train|test)list(\d+)\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")
# <source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>
HMDB_PROPERTIES = r"_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+$"
GroupRule = Callable[[str, str], str]


# --- names ---------------------------------------------------------------------------------------------------------


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
    """UCF-101's class list says HandstandPushups, some of its copies name the folder HandStandPushups."""
    return "HandstandPushups" if label == "HandStandPushups" else label


def canonical_stem(stem: str) -> str:
    """UCF-101's lists say v_HandStandPushups_..., some copies name the files v_HandstandPushups_..."""
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
        raise InputError(f"--group-pattern {pattern!r} is no regular expression: {error}") from error

    def group(label: str, stem: str) -> str:
        found = compiled.search(stem)
        if not found:
            return f"{label}/{stem}"
        return (found[1] if compiled.groups else found[0]) or f"{label}/{stem}"

    return group


@dataclass(frozen=True)
class Lists:
    """What a dataset's lists say.

    Attributes:
        classes: in the order of the labels.
        paths: id -> path as listed, relative to the videos' folder; those in no split too.
        splits: by number.
        notes: what was passed over, and why.
        group: the rule by which such lists hold groups out: (class, stem) -> group.
    """

    classes: tuple[str, ...]
    paths: Mapping[str, str]
    splits: Mapping[int, Split]
    notes: tuple[str, ...] = ()
    group: GroupRule = ucf_group


@dataclass(frozen=True)
class Found:
    """What a folder of videos holds, as paths relative to it.

    Attributes:
        videos: video files, and folders of numbered pictures.
        outside: links that lead outside the folder, or nowhere.
        unusable: names that cannot be an identity, with the reason.
        empty: videos of zero bytes.
    """

    videos: tuple[str, ...]
    outside: tuple[str, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matching:
    """Lists against a folder: id -> path for each listed video that is there, and where the two differ."""

    paths: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    duplicates: tuple[str, ...]


# --- lists ---------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a list that are not blank, without white space around them; CRLF and a byte order mark too."""
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
            label, _, name = line.partition(" ")
            if not label.isdigit() or not name or name in index or int(label) in index.values():
                raise InputError(
                    f"{path}:{number}: expected a new number and a new class name, found {line!r}"
                )
            index[canonical_class(name.strip())] = int(label)
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
    number = re.search(r"(?:split|list|fold)_?0*([0-9]+)", name.lower())
    return int(number[1]) if number else 1


def read_rows(path: Path) -> list[tuple[str, str | int, str, str | None]]:
    """Rows of one list as (path, label, where, side if the row says it); labels are names or numbers."""
    lines = read_lines(path)
    header = [name.strip().lower() for name in lines[0][1].split(",")] if lines else []
    if path.suffix.lower() == ".csv" and len(header) > 1 and {"label", "class"} & set(header):
        return read_csv_rows(path)
    if header and "youtube_id" in header:
        return []
    rows: list[tuple[str, str | int, str, str | None]] = []
    for number, line in lines:
        name, numbers = split_labels(line)
        if not numbers:
            raise InputError(f"{path}:{number}: expected `path label` or `path frames label`, found {line!r}")
        rows.append((name, numbers[-1], f"{path}:{number}", None))
    return rows


def read_csv_rows(path: Path) -> list[tuple[str, str | int, str, str | None]]:
    """Rows of a CSV with a header: label or class, youtube_id with times or path, and perhaps split."""
    text = path.read_text(encoding="utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[tuple[str, str | int, str, str | None]] = []
    for raw in reader:
        where = f"{path}:{reader.line_num}"
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
        except (KeyError, ValueError):
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
            builder.notes.append(f"{path.name}: no list with labels, passed over")
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
    ucf = [path for path in files if UCF_LIST.fullmatch(path.name) or path.name == "classInd.txt"]
    hmdb = [path for path in files if HMDB_LIST.fullmatch(path.name)]
    if any(UCF_LIST.fullmatch(path.name) for path in ucf):
        lists = read_ucf_lists(ucf)
    elif hmdb:
        lists = read_hmdb_lists(hmdb)
    else:
        lists = read_path_lists([path for path in files if path.name != "classInd.txt"], class_names)
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


# --- folder --------------------------------------------------------------------------------------------------------


def scan(root: Path, follow_links: bool = False) -> Found:
    """Every video below a folder: files with a video suffix, and folders of nothing but numbered pictures.

    Hidden files and folders are passed over. Links that lead outside are listed apart unless `follow_links`.

    Raises:
        InputError: the folder cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of videos")
    real = root.resolve()
    videos: list[str] = []
    outside: list[str] = []
    unusable: dict[str, str] = {}
    empty: list[str] = []

    def leads_outside(entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return False
        target = Path(os.path.realpath(entry.path))  # Path.resolve raises for a link that leads to itself
        return not target.exists() or (not follow_links and not target.is_relative_to(real))

    def visit(folder: str, relative: str, depth: int) -> bool:
        """Look into a folder; True if it is itself a video: numbered pictures and nothing else to look into."""
        pictures = others = 0
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name, below = entry.name, f"{relative}{entry.name}"
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - Path is slow for millions of frames
                if name.startswith("."):
                    continue
                if suffix in PICTURE_SUFFIXES:
                    pictures += any(character.isdigit() for character in name)
                    continue
                # DirEntry.is_dir raises for a link that leads to itself.
                is_folder = Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()
                if not is_folder and suffix not in VIDEO_SUFFIXES:
                    continue
                others += 1
                if fault := fault_of_part(stem_of(name)):
                    unusable[below] = fault
                elif leads_outside(entry):
                    outside.append(below)
                elif not is_folder:
                    videos.append(below)
                    if entry.stat().st_size == 0:
                        empty.append(below)
                elif depth < DEPTH and visit(entry.path, f"{below}/", depth + 1):
                    videos.append(below)
        return pictures > 0 and others == 0

    try:
        visit(os.fspath(root), "", 0)
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror}") from error
    return Found(tuple(videos), tuple(outside), unusable, tuple(empty))


def match(lists: Lists, found: Found) -> Matching:
    """Which found path is which listed video.

    A listed path fits a found one if both have the same class folder and stem, whatever lies above and whatever the
    suffix; if the found one lies directly in the videos' folder; or, for lists that name no folder, by its stem.
    """
    by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in found.videos:
        key = key_of(path)
        by_key[key].append(path)
        by_stem[key[1]].append(path)
    paths: dict[str, str] = {}
    missing: list[str] = []
    duplicates: list[str] = []
    used: set[str] = set()
    for video_id, listed in lists.paths.items():
        folder, stem = key_of(listed)
        label = video_id.split("/")[0]
        fitting = (
            by_key.get((folder, stem))
            or by_key.get(("", stem))
            or by_key.get((label, stem))
            or by_key.get((label.replace(" ", "_"), stem))
            or ([] if folder else by_stem.get(stem, []))
        )
        if not fitting:
            missing.append(video_id)
            continue
        used.update(fitting)
        if len(fitting) > 1:
            duplicates.append(f"{video_id}: {' and '.join(fitting)}")
        else:
            paths[video_id] = fitting[0]
    extra = tuple(path for path in found.videos if path not in used)
    return Matching(paths, tuple(missing), extra, tuple(duplicates))


def lists_of_folder(found: Found, group: GroupRule) -> tuple[Lists, tuple[str, ...]]:
    """Lists for a folder without any, and the paths that are in no class folder.

    `train/class/name` with `val/` or `test/` beside it is one split. Of `class/name` three splits are made, each of
    which holds out every third group of each class.
    """
    tops = {path.split("/")[0]: side_of_folder(path.split("/")[0]) for path in found.videos if "/" in path}
    by_side = "train" in tops.values() and None not in tops.values()
    builder = Builder()
    loose = []
    for path in found.videos:
        parts = path.split("/")
        if len(parts) != (3 if by_side else 2):
            loose.append(path)
            continue
        side = tops[parts[0]] if by_side else None
        if side == "validation":
            side = None if "test" in tops.values() else "test"
        # A second file of the same identity is left to `match` to report.
        if f"{parts[-2]}/{key_of(path)[1]}" not in builder.paths:
            builder.add(parts[-2], path, path, 1, side)
    lists = builder.lists(sorted({video_id.split("/")[0] for video_id in builder.paths}))
    if not by_side:
        lists = dataclasses.replace(lists, splits=fold_splits(lists.paths, group))
    return lists, tuple(loose)


def side_of_folder(name: str) -> str | None:
    """The side whose word is a folder's whole name: `test` holds a side, `test tube` is a class."""
    return next((side for side, names in SIDES.items() if name.lower() in names), None)


def fold_splits(ids: Iterable[str], group: GroupRule) -> dict[int, Split]:
    """Three splits; split k tests on each class's groups number k, k+3, ... in the order of their names.

    A class with a single group is trained on in all splits: its videos cannot be held out.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for video_id in sorted(ids):
        label, stem = video_id.split("/")
        groups[label][group(label, stem)].append(video_id)
    splits = {}
    for fold in range(FOLDS):
        sides: dict[bool, list[str]] = {False: [], True: []}
        for members in groups.values():
            for index, name in enumerate(sorted(members)):
                sides[len(members) > 1 and index % FOLDS == fold].extend(members[name])
        splits[fold + 1] = Split(fold + 1, tuple(sorted(sides[False])), tuple(sorted(sides[True])))
    return splits


# --- headers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a video's header says, None where it says nothing; `fault` is why it could not be read."""

    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fault: str = ""


def probe(path: Path) -> Header:
    """Frames and size from the header, without decoding; good enough to balance work, not to rely on."""
    import av
    from av.error import FFmpegError

    try:
        pictures = list_pictures(path) if path.is_dir() else []
        source = pictures[0] if pictures else path
        if source.stat().st_size == 0:
            return Header(fault="the file is empty")
        with av.open(f"file:{source.absolute()}", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                return Header(fault="holds no video stream")
            stream = container.streams.video[0]
            frames = len(pictures) or max(stream.frames, 0)
            if not frames and stream.duration and stream.time_base and stream.average_rate:
                frames = max(round(stream.duration * stream.time_base * stream.average_rate), 0)
            if not frames:
                frames = sum(packet.size > 0 for packet in container.demux(stream))
            return Header(frames or None, stream.width or None, stream.height or None)
    except (FFmpegError, OSError, ValueError) as error:
        return Header(fault=getattr(error, "strerror", None) or str(error))


def probe_all(paths: Sequence[Path], jobs: int = -1) -> list[Header]:
    """`probe` of each path, over processes if there are many, with a progress bar on a terminal."""
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    jobs = jobs if len(paths) > 100 else 1  # starting processes takes longer than a hundred headers
    headers: Iterable[Header] = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(probe)(path) for path in paths
    )
    try:
        if not sys.stderr.isatty():
            return list(headers)
        with click.progressbar(headers, len(paths), "reading headers", file=sys.stderr) as bar:
            return list(bar)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that read headers died, because of a damaged video or for want of memory: import with "
            "--no-probe, and the extraction will tell which video it is"
        ) from error


def read_counts(path: Path) -> dict[str, int]:
    """Known frames per video from a table of tab- or comma-separated `video` and `flows` or `frames`; by stem or id."""
    lines = read_lines(path)
    header = re.split(r"[\t,]", lines[0][1].lower()) if lines else []
    if header not in (["video", "flows"], ["video", "frames"]):
        raise InputError(f"{path}: expected a first line of `video` and `flows` or `frames`, found {header}")
    more = 1 if header[1] == "flows" else 0  # n flows lie between n + 1 frames
    counts = {}
    for number, line in lines[1:]:
        name, separator, count = line.rpartition("\t" if "\t" in line else ",")
        if not separator or not count.isdigit():
            raise InputError(f"{path}:{number}: expected a video and a count, found {line!r}")
        counts[name] = int(count) + more
    return counts


# --- import --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """A dataset that may be recorded, and what its user should know about it."""

    dataset: Dataset
    notes: tuple[str, ...]


def import_dataset(
    kind: str,
    name: str,
    videos: Path,
    lists_source: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    group: GroupRule | None = None,
    counts: Mapping[str, int] | None = None,
    allow_missing: bool = False,
    follow_links: bool = False,
    headers: bool = True,
    jobs: int = -1,
    limit: int = 5,
) -> Imported:
    """Check a folder of videos against lists and make it a dataset; nothing is written.

    Args:
        kind: "ucf101" or "hmdb51", whose lists must be the official ones, or "folder".
        name: what the dataset will be called.
        videos: the folder of the videos.
        lists_source: folder or file of lists; only "folder" can do without.
        class_names: names of the labels of lists that number them.
        group: (class, stem) -> group; by default the rule of the kind.
        counts: known frames by stem or id; they go before what headers say.
        allow_missing: leave out listed videos that are not there.
        follow_links: accept links that lead outside the folder.
        headers: read frames and sizes from the videos' headers.
        jobs: processes for that.
        limit: names shown per problem.

    Raises:
        InputError: everything that is wrong, one line each.
    """
    facts = FACTS.get(kind)
    if lists_source is None and facts:
        raise InputError(f"{facts.title} needs its official lists: --lists DIR")
    found = scan(videos, follow_links)
    loose: tuple[str, ...] = ()
    if lists_source is None:
        lists, loose = lists_of_folder(found, group or ucf_group)
    else:
        lists = read_lists(lists_source, class_names)
        if facts:
            check_facts(lists, facts, lists_source)
    rule: GroupRule = group or lists.group
    matching = match(lists, found)
    problems = problems_of(videos, lists, found, matching, allow_missing, limit)
    if problems:
        raise InputError(
            f"{name} cannot be imported from {videos}\n" + "\n".join(f"  {line}" for line in problems)
        )

    ids = sorted(matching.paths)
    paths = {video_id: videos.absolute() / matching.paths[video_id] for video_id in ids}
    read = (
        dict(zip(ids, probe_all([paths[video_id] for video_id in ids], jobs), strict=True)) if headers else {}
    )
    counts = {canonical_stem(key): count for key, count in (counts or {}).items()}
    records = {}
    for video_id in ids:
        label, stem = video_id.split("/")
        header = read.get(video_id, Header())
        frames = counts.get(video_id, counts.get(stem, header.frames))
        records[video_id] = Video(
            video_id, paths[video_id], label, rule(label, stem), frames, header.width, header.height
        )
    origin: dict[str, str | int] = {"kind": kind, "listed": len(lists.paths)}
    if lists_source is not None:
        origin["lists"] = str(lists_source.absolute())
    dataset = Dataset(
        name=name,
        classes=lists.classes,
        videos=records,
        splits={
            number: Split(
                number, *(tuple(i for i in ids if i in records) for ids in (split.train, split.test))
            )
            for number, split in lists.splits.items()
        },
        missing=matching.missing,
        origin=origin,
    )
    faults = {video_id: header.fault for video_id, header in read.items() if header.fault}
    return Imported(dataset, notes_of(dataset, lists, found, matching, loose, faults, counts, limit))


def problems_of(
    videos: Path, lists: Lists, found: Found, matching: Matching, allow_missing: bool, limit: int
) -> list[str]:
    """A line for each thing that keeps the dataset from being imported."""
    lines = []
    if not found.videos and not found.outside:
        inner = [
            path.name for path in sorted(videos.iterdir()) if path.is_dir() and not path.name.startswith(".")
        ]
        hint = f"; is it {videos / inner[0]}?" if len(inner) == 1 else ""
        lines.append(
            f"no videos found: expected folders of classes with video files or folders of frames in them{hint}"
        )
    elif not matching.paths and lists.paths:
        lines.append(
            f"none of the {len(lists.paths):,} listed videos is there, but {many(found.videos, 'other video')}"
        )
    elif matching.missing and not allow_missing:
        lines.append(
            f"missing: {len(matching.missing):,} of {len(lists.paths):,} listed videos: "
            f"{some(matching.missing, limit)} (--allow-missing imports the others)"
        )
    if matching.duplicates:
        lines.append(
            f"duplicates: {many(matching.duplicates, 'video')} in more than one file: "
            f"{some(matching.duplicates, limit, quoted=False)}; keep one of each"
        )
    if found.outside:
        lines.append(
            f"links: {many(found.outside, 'link')} that lead outside {videos} or nowhere: {some(found.outside, limit)} "
            "(--follow-links accepts those that lead outside)"
        )
    if found.unusable:
        shown = [f"{path!a} ({fault})" for path, fault in found.unusable.items()]
        lines.append(f"names: {many(shown, 'name')} that cannot be used: {some(shown, limit, quoted=False)}")
    return lines


def notes_of(
    dataset: Dataset,
    lists: Lists,
    found: Found,
    matching: Matching,
    loose: Sequence[str],
    faults: Mapping[str, str],
    counts: Mapping[str, int],
    limit: int,
) -> tuple[str, ...]:
    """A line for each thing that a user should know although the dataset can be imported."""
    notes = list(lists.notes)
    if matching.missing:
        notes.append(
            f"missing: {len(matching.missing):,} of {len(lists.paths):,} listed videos are left out of the dataset "
            f"and its splits: {some(matching.missing, limit)}"
        )
    if extra := [path for path in matching.extra if path not in set(loose)]:
        notes.append(f"extra: {many(extra, 'video')} not in the lists, left out: {some(extra, limit)}")
    if loose:
        notes.append(f"extra: {many(loose, 'video')} in no folder of a class, left out: {some(loose, limit)}")
    if found.empty:
        notes.append(f"empty: {many(found.empty, 'file')} of zero bytes: {some(found.empty, limit)}")
    if bad := {video_id: fault for video_id, fault in faults.items() if fault != "the file is empty"}:
        shown = [f"{video_id}: {fault}" for video_id, fault in bad.items()]
        notes.append(
            f"headers: {many(shown, 'video')} whose header cannot be read: {some(shown, limit, quoted=False)}"
        )
    if counts and (
        unknown := [i for i, video in dataset.videos.items() if not {i, i.split("/")[1]} & counts.keys()]
    ):
        notes.append(f"counts: {many(unknown, 'video')} without a known count: {some(unknown, limit)}")
    if empty := [
        label for label in dataset.classes if label not in {video.label for video in dataset.videos.values()}
    ]:
        notes.append(f"classes: {many(empty, 'class')} without any video: {some(empty, limit)}")
    for number, split in dataset.splits.items():
        if shared := shared_groups(dataset, number):
            notes.append(f"split {number}: {many(shared, 'group')} on both sides: {some(shared, limit)}")
        if not split.train or not split.test:
            notes.append(
                f"split {number}: {len(split.train):,} videos to train and {len(split.test):,} to test on"
            )
    return tuple(notes)


def many(things: Sequence[object], noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(things):,} {noun if len(things) == 1 else plural}"


def describe(dataset: Dataset) -> list[str]:
    """Lines that say what a dataset holds."""
    groups = {video.group for video in dataset.videos.values()}
    frames = [video.frames for video in dataset.videos.values() if video.frames]
    lines = [
        f"{dataset.name}: {many(tuple(dataset.videos), 'video')} of {many(dataset.classes, 'class')} in "
        f"{many(tuple(groups), 'group')}"
        + (f", {sum(frames):,} frames" if len(frames) == len(dataset.videos) else "")
    ]
    lines += [
        f"  split {number}: {len(split.train):,} to train on, {len(split.test):,} to test on"
        for number, split in dataset.splits.items()
    ]
    return lines


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("kind", type=click.Choice([*FACTS, "folder"]))
@click.option(
    "--videos", type=FOLDER, required=True, help="Folder of the videos, in folders of their classes."
)
@click.option(
    "--lists",
    "lists_source",
    type=click.Path(exists=True, path_type=Path),
    help="Folder (or one file) of lists.",
)
@click.option("--name", help="What to call the dataset (default: the kind; needed for a folder).")
@click.option("--classes", type=FILE, help="Class names, one a line, for lists that number them from 0.")
@click.option(
    "--group-pattern", help="Regular expression that finds the group (person, source) in a video's stem."
)
@click.option("--counts", type=FILE, help="Known counts: a table with `video` and `flows` or `frames`.")
@click.option(
    "--allow-missing", is_flag=True, help="Import although listed videos are missing; they are left out."
)
@click.option("--follow-links", is_flag=True, help="Accept links that lead outside the folder of the videos.")
@click.option(
    "--probe/--no-probe", "headers", default=True, help="Read frames and sizes from the videos' headers."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes that read headers (default: one per core).")
@click.option("--show", type=click.IntRange(1), default=5, show_default=True, help="Names shown per problem.")
@click.option("--data", metavar="DIR", help="The data root (default: $TWO_STREAM_DATA, else ./data).")
@command_errors
def command(
    kind: str,
    videos: Path,
    lists_source: Path | None,
    name: str | None,
    classes: Path | None,
    group_pattern: str | None,
    counts: Path | None,
    allow_missing: bool,
    follow_links: bool,
    headers: bool,
    jobs: int | None,
    show: int,
    data: str | None,
) -> None:
    """Check a dataset's videos against its lists and record it, so that other commands know it.

    KIND is ucf101 or hmdb51 with their official lists, or folder for one's own videos: with lists as UCF-101, HMDB-51,
    mmaction2 or Kinetics have them, or without any.
    """
    if name is None and kind == "folder":
        raise click.UsageError("a folder needs a name: --name NAME")
    if kind in FACTS and lists_source is None:
        raise click.UsageError(f"{kind} needs its official lists: --lists DIR")
    imported = import_dataset(
        kind,
        check_name(name or kind, "dataset"),
        videos,
        lists_source,
        class_names=[line for _, line in read_lines(classes)] if classes else None,
        group=pattern_group(group_pattern) if group_pattern else None,
        counts=read_counts(counts) if counts else None,
        allow_missing=allow_missing,
        follow_links=follow_links,
        headers=headers,
        jobs=jobs or -1,
        limit=show,
    )
    record = catalog.save(imported.dataset, videos.absolute(), data)
    for line in describe(imported.dataset):
        click.echo(line)
    for note in imported.notes:
        click.echo(f"note: {note}")
    click.echo(f"recorded in {record}")
