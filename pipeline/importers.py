"""Making a dataset known: whether its folder holds what its lists say, told exactly, and then recorded.

`pipeline.lists` reads the lists, `scan` the folder, and `match` compares the two. All problems are gathered before
anything is said, so that a user sees everything that is wrong at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from pipeline import catalog
from pipeline.catalog import FACTS, Dataset, Split, Video, shared_groups
from pipeline.errors import InputError, command_errors
from pipeline.lists import (
    SIDES,
    Builder,
    GroupRule,
    Lists,
    canonical_stem,
    check_facts,
    key_of,
    pattern_group,
    read_lines,
    read_lists,
    stem_of,
    ucf_group,
)
from pipeline.paths import check_name, fault_of_part
from pipeline.text import many, some
from pipeline.video import PICTURE_SUFFIXES, VIDEO_SUFFIXES, list_pictures

DEPTH = 4
"""Folders below the videos' folder that are looked into: side, class, video, and one to spare."""
FOLDS = 3


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
    """Three splits; split k tests on the groups number k, k+3, ... in the order of their names.

    A class that a split would only test on is trained on there instead, as is one with a single group in all splits.
    """
    groups = {video_id: group(*video_id.split("/")) for video_id in sorted(ids)}
    fold_of = {name: index % FOLDS + 1 for index, name in enumerate(sorted(set(groups.values())))}
    folds: dict[str, set[int]] = defaultdict(set)
    for video_id, name in groups.items():
        folds[video_id.split("/")[0]].add(fold_of[name])
    splits = {}
    for number in range(1, FOLDS + 1):
        held_out = {
            video_id
            for video_id, name in groups.items()
            if fold_of[name] == number and len(folds[video_id.split("/")[0]]) > 1
        }
        train = tuple(video_id for video_id in groups if video_id not in held_out)
        splits[number] = Split(number, train, tuple(sorted(held_out)))
    return splits


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
        if not separator or not re.fullmatch("[0-9]{1,9}", count):
            raise InputError(f"{path}:{number}: expected a video and a count, found {line!r}")
        counts[name] = int(count) + more
    return counts


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
    elif not lists.paths:
        lines.append(
            f"no video lies in a folder of a class, but {many(len(found.videos), 'video')} elsewhere: "
            f"{some(found.videos, limit)}; expected CLASS/VIDEO in {videos}"
            + (f"; is it {videos.absolute().parent}?" if "/" not in found.videos[0] else "")
        )
    elif not matching.paths:
        lines.append(
            f"none of the {len(lists.paths):,} listed videos is there, but {many(len(found.videos), 'other video')}"
        )
    elif matching.missing and not allow_missing:
        lines.append(
            f"missing: {len(matching.missing):,} of {len(lists.paths):,} listed videos: "
            f"{some(matching.missing, limit)} (--allow-missing imports the others)"
        )
    if matching.duplicates:
        lines.append(
            f"duplicates: {many(len(matching.duplicates), 'video')} in more than one file: "
            f"{some(matching.duplicates, limit, quoted=False)}; keep one of each"
        )
    if found.outside:
        lines.append(
            f"links: {many(len(found.outside), 'link')} that lead outside {videos} or nowhere: "
            f"{some(found.outside, limit)} (--follow-links accepts those that lead outside)"
        )
    if lines and matching.paths and matching.extra:
        lines.append(
            f"extra: {many(len(matching.extra), 'video')} not in the lists: {some(matching.extra, limit)}"
        )
    if found.unusable:
        shown = [f"{path!a} ({fault})" for path, fault in found.unusable.items()]
        lines.append(
            f"names: {many(len(shown), 'name')} that cannot be used: {some(shown, limit, quoted=False)}"
        )
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
        notes.append(f"extra: {many(len(extra), 'video')} not in the lists, left out: {some(extra, limit)}")
    if loose:
        notes.append(
            f"extra: {many(len(loose), 'video')} in no folder of a class, left out: {some(loose, limit)}"
        )
    if found.empty:
        notes.append(f"empty: {many(len(found.empty), 'file')} of zero bytes: {some(found.empty, limit)}")
    if bad := {video_id: fault for video_id, fault in faults.items() if fault != "the file is empty"}:
        shown = [f"{video_id}: {fault}" for video_id, fault in bad.items()]
        notes.append(
            f"headers: {many(len(shown), 'video')} whose header cannot be read: {some(shown, limit, quoted=False)}"
        )
    if counts and (
        unknown := [i for i, video in dataset.videos.items() if not {i, i.split("/")[1]} & counts.keys()]
    ):
        notes.append(f"counts: {many(len(unknown), 'video')} without a known count: {some(unknown, limit)}")
    if empty := [
        label for label in dataset.classes if label not in {video.label for video in dataset.videos.values()}
    ]:
        notes.append(f"classes: {many(len(empty), 'class')} without any video: {some(empty, limit)}")
    for number, split in dataset.splits.items():
        if shared := shared_groups(dataset, number):
            notes.append(f"split {number}: {many(len(shared), 'group')} on both sides: {some(shared, limit)}")
        if not split.train or not split.test:
            notes.append(
                f"split {number}: {len(split.train):,} videos to train and {len(split.test):,} to test on"
            )
    return tuple(notes)


def describe(dataset: Dataset) -> list[str]:
    """Lines that say what a dataset holds."""
    groups = {video.group for video in dataset.videos.values()}
    frames = [video.frames for video in dataset.videos.values() if video.frames]
    lines = [
        f"{dataset.name}: {many(len(dataset.videos), 'video')} of {many(len(dataset.classes), 'class')} in "
        f"{many(len(groups), 'group')}"
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
