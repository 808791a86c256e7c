"""Importing a dataset: its folder is checked against its lists, every difference is reported, and it is recorded.

`pipeline.lists` reads the lists, `scan` the folder, and `match` compares the two. All problems are gathered before
anything is printed, so that a user sees everything that is wrong at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import catalog
from pipeline.catalog import FACTS, Dataset, Split, Video, shared_groups
from pipeline.errors import InputError, Unreadable, command_errors
from pipeline.failures import by_reason, limited, named
from pipeline.groups import GroupRule, fold_splits, pattern_group, ucf_group
from pipeline.lists import (
    SIDES,
    Builder,
    Lists,
    VideosFolder,
    canonical_stem,
    check_facts,
    identity,
    key_of,
    read_lines,
    read_lists,
)
from pipeline.machine import in_processes, usable_cores
from pipeline.options import CONTEXT, REQUIRED, DataOptions, argument, from_options, option, options_of
from pipeline.paths import DatasetPaths, check_name, data_root
from pipeline.pictures import list_pictures
from pipeline.progress import progress
from pipeline.scan import Found, links_not_followed, scan
from pipeline.text import many, printable, quoted, some, system_reason, typed

COMPARED = 2000
"""How many found videos are compared with a missing one, by name."""


@dataclass(frozen=True)
class Matching:
    """Lists against a folder: id -> path for each listed video that is there, and where the two differ."""

    paths: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    duplicates: tuple[str, ...]


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


def lists_of_folder(
    found: Found, group: GroupRule, keep_suffix: bool = False
) -> tuple[Lists, tuple[str, ...]]:
    """Lists for a folder without any, and the paths that are in no class folder.

    `train/class/name` with `val/` or `test/` beside it is one split. Of `class/name` three splits are made, each of
    which holds out every third group of each class.
    """
    tops = {path.split("/")[0]: side_of_folder(path.split("/")[0]) for path in found.videos if "/" in path}
    by_side = "train" in tops.values() and None not in tops.values()
    builder = Builder(keep_suffix)
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
        if identity(parts[-2], path, path, keep_suffix) not in builder.paths:
            builder.add(parts[-2], path, path, 1, side)
    lists = builder.lists(sorted({video_id.split("/")[0] for video_id in builder.paths}))
    if not by_side:
        lists = dataclasses.replace(lists, splits=fold_splits(lists.paths, group))
    return lists, tuple(loose)


def side_of_folder(name: str) -> str | None:
    """The side whose word is a folder's whole name: `test` holds a side, `test tube` is a class."""
    return next((side for side, names in SIDES.items() if name.lower() in names), None)


@dataclass(frozen=True)
class Header:
    """What a video's header claims, None where it claims nothing.

    Attributes:
        frames, width, height: the claims.
        fault: why the header could not be used, which is a fault of the file.
        unread: why the system did not let it be read, which says nothing about the file.
    """

    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fault: str = ""
    unread: str = ""


def probe(path: Path) -> Header:
    """Frames and size from the header, without decoding; good enough for balancing work, not to be relied on."""
    from av.error import FFmpegError

    for _ in range(2):
        try:
            return read_header(path)
        except (InputError, FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
            if not any(isinstance(cause, OSError) for cause in (error, error.__cause__)):
                return Header(fault=reason)
        try:
            read_through(path)
        except OSError as error:
            return Header(unread=system_reason(error))
    return Header(fault=reason)  # the file can be read, so that FFmpeg's error is about what is in it


def read_header(path: Path) -> Header:
    """`probe`, raising what it finds wrong: InputError, FFmpegError, OSError or ValueError."""
    from pipeline.container import count_packets, open_video

    if path.is_dir():
        return probe_pictures(path)
    container, stream, _ = open_video(path)
    with container:
        frames = max(stream.frames, 0)
        if not frames and stream.duration and stream.time_base and stream.average_rate:
            frames = max(round(stream.duration * stream.time_base * stream.average_rate), 0)
        if not frames:
            frames = count_packets(path, [stream.index]).total()
        return Header(frames or None, stream.width or None, stream.height or None)


def read_through(path: Path) -> None:
    """Read every byte of a video file, or of the first picture of a folder; OSError if the system does not allow it."""
    for file in list_pictures(path)[:1] if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 20):
                pass


def probe_pictures(folder: Path) -> Header:
    """The number of a folder's frames, and the size of the first."""
    import cv2

    pictures = list_pictures(folder)
    if not pictures:
        return Header(fault="holds no numbered picture")
    data = np.frombuffer(pictures[0].read_bytes(), np.uint8)
    if not data.size:
        return Header(fault=f"{pictures[0].name} is empty")
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        return Header(fault=f"{pictures[0].name} cannot be decoded")
    return Header(len(pictures), image.shape[1], image.shape[0])


def probe_all(paths: Sequence[Path], jobs: int = -1) -> list[Header]:
    """`probe` of each path, over processes if there are many, with a progress bar on a terminal."""
    from concurrent.futures.process import BrokenProcessPool

    jobs = jobs if len(paths) > 100 else 1  # starting processes takes longer than a hundred headers
    try:
        return list(progress(in_processes(probe, paths, jobs), "read headers", len(paths)))
    except BrokenProcessPool as error:
        raise InputError(
            "a process that read headers died, because of a damaged video or because it ran out of memory: import "
            "with --no-probe, and the extraction will name the video"
        ) from error


def read_counts(path: Path) -> dict[str, int]:
    """Known frames per video from a table of tab- or comma-separated `video` and `flows` or `frames`; by stem or id."""
    lines = read_lines(path)
    header = re.split(r"[\t,]", lines[0][1].lower()) if lines else []
    if header not in (["video", "flows"], ["video", "frames"]):
        raise InputError(
            f"{path}: expected a first line of `video` and `flows` or `frames`, found {quoted(','.join(header))}"
        )
    more = 1 if header[1] == "flows" else 0  # n flows lie between n + 1 frames
    counts = {}
    for number, line in lines[1:]:
        name, separator, count = line.rpartition("\t" if "\t" in line else ",")
        if not separator or not re.fullmatch("[0-9]{1,9}", count):
            raise InputError(f"{path}:{number}: expected a video and a count, found {quoted(line)}")
        counts[name] = int(count) + more
    return counts


@dataclass(frozen=True)
class Imported:
    """A dataset ready to be recorded, and what its user should know about it."""

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
    keep_suffix: bool = False,
    headers: bool = True,
    jobs: int = -1,
    limit: int = 5,
    everything: Path | None = None,
) -> Imported:
    """Check a folder of videos against lists and make it a dataset; nothing is written.

    Args:
        kind: "ucf101" or "hmdb51", whose lists must be the official ones, or "folder".
        name: what the dataset will be called.
        videos: the folder of the videos.
        lists_source: folder or file of lists; only "folder" may omit it.
        class_names: names of the labels of lists that number them.
        group: (class, stem) -> group; by default the rule of the kind.
        counts: known frames by stem or id; they take precedence over headers.
        allow_missing: leave out listed videos that are not there.
        follow_links: accept links that lead outside the folder.
        keep_suffix: without lists, name videos by their files' whole names, so that a.avi and a.mp4 are two.
        headers: read frames and sizes from the videos' headers.
        jobs: processes for that.
        limit: names shown per problem.
        everything: the file for all names, where there are more of a problem; None: none is written.

    Raises:
        InputError: everything that is wrong, one line each.
    """
    found = scan(videos, follow_links)
    lists, loose = lists_for(kind, videos, lists_source, class_names, found, group, keep_suffix)
    matching = Matching(lists.paths, (), loose, ()) if keep_suffix else match(lists, found)
    problems = limited(
        lambda most: problems_of(videos, lists, found, matching, allow_missing, most), limit, everything
    )
    if problems:
        raise InputError(f"{name} cannot be imported from {videos}", *(f"  {line}" for line in problems))
    ids = sorted(matching.paths)
    paths = {video_id: videos.absolute() / matching.paths[video_id] for video_id in ids}
    read = dict(zip(ids, probe_all(list(paths.values()), jobs), strict=True)) if headers else {}
    check_read(read, limit)
    counts = {canonical_stem(key): count for key, count in (counts or {}).items()}
    read_from = {} if lists_source is None else {"lists": str(lists_source.absolute())}
    dataset = Dataset(
        name=name,
        classes=lists.classes,
        videos=records_of(paths, group or lists.group, read, counts),
        splits={
            number: Split(number, *(tuple(i for i in ids if i in paths) for ids in (split.train, split.test)))
            for number, split in lists.splits.items()
        },
        missing=matching.missing,
        origin={"kind": kind, "listed": len(lists.paths), **read_from},
    )
    faults = {video_id: header.fault for video_id, header in read.items() if header.fault}
    notes = limited(
        lambda most: notes_of(dataset, lists, found, matching, loose, faults, counts, most), limit, everything
    )
    return Imported(dataset, tuple(notes))


def check_read(headers: Mapping[str, Header], limit: int) -> None:
    """Raise Unreadable if there are videos that the system did not let be read: a record without their counts would
    last, and the fault does not."""
    unread = [f"{video_id}: {header.unread}" for video_id, header in headers.items() if header.unread]
    if unread:
        raise Unreadable(
            f"{many(len(unread), 'video')} could not be read: {some(unread, limit, quoted=False)}; nothing was "
            "recorded: import again once that is fixed (--no-probe imports without looking into the videos)"
        )


def lists_for(
    kind: str,
    videos: Path,
    source: Path | None,
    class_names: Sequence[str] | None,
    found: Found,
    group: GroupRule | None,
    keep_suffix: bool = False,
) -> tuple[Lists, tuple[str, ...]]:
    """The lists of a kind of dataset, and the paths that are in no class folder where there are no lists.

    Raises:
        InputError: official lists that are missing, or are not the official ones.
    """
    facts = FACTS.get(kind)
    if source is None:
        if facts:
            raise InputError(
                f"{facts.title} needs its official lists: --lists DIR ({typed('pipeline')} fetch-lists {kind})"
            )
        return lists_of_folder(found, group or ucf_group, keep_suffix)
    lists = read_lists(source, class_names, VideosFolder.of(videos, found.videos))
    if facts:
        check_facts(lists, facts, source)
    return lists, ()


def records_of(
    paths: Mapping[str, Path], rule: GroupRule, read: Mapping[str, Header], counts: Mapping[str, int]
) -> dict[str, Video]:
    """The catalogue's record of each video; a known count takes precedence over its header."""
    records = {}
    for video_id, path in paths.items():
        label, stem = video_id.split("/")
        header = read.get(video_id, Header())
        frames = counts.get(video_id, counts.get(stem, header.frames))
        records[video_id] = Video(
            video_id, path, label, rule(label, stem), frames, header.width, header.height
        )
    return records


def problems_of(
    videos: Path, lists: Lists, found: Found, matching: Matching, allow_missing: bool, limit: int
) -> list[str]:
    """A line for each problem that prevents the dataset from being imported."""
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
            f"{named(found.videos, limit)}; expected CLASS/VIDEO in {videos}"
            + _other_folder(videos, found.videos)
        )
    elif not matching.paths:
        lines.append(
            f"none of the {len(lists.paths):,} listed videos is there, but {many(len(found.videos), 'other video')}"
            + _names_that_differ(lists, matching)
        )
    elif matching.missing and not allow_missing:
        lines.append(
            f"missing: {len(matching.missing):,} of {len(lists.paths):,} listed videos: "
            f"{named(matching.missing, limit)} (--allow-missing imports the others)"
            + _names_that_differ(lists, matching)
        )
    if matching.duplicates:
        lines.append(
            f"duplicates: {many(len(matching.duplicates), 'video')} in more than one file: "
            f"{named(matching.duplicates, limit, quoted=False)}; keep one of each "
            "(without lists, --keep-suffix takes both)"
        )
    if found.links:
        lines.append(links_not_followed(found, videos, limit))
    if lines and matching.paths and matching.extra:
        lines.append(
            f"extra: {many(len(matching.extra), 'video')} not in the lists: {named(matching.extra, limit)}"
        )
    if found.unusable:
        shown = [f"{path!a} ({fault})" for path, fault in found.unusable.items()]
        lines.append(
            f"names: {many(len(shown), 'name')} that cannot be used: {named(shown, limit, quoted=False)}"
        )
    return lines


def _other_folder(videos: Path, found: Sequence[str]) -> str:
    """A guess at the folder that was meant: the one above, or the only one in it."""
    tops = {path.split("/")[0] for path in found}
    if "/" not in found[0]:
        return f"; is it {videos.absolute().parent}?"
    return f"; is it {videos / tops.pop()}?" if len(tops) == 1 else ""


def _names_that_differ(lists: Lists, matching: Matching) -> str:
    """The first missing video as it is listed, and the extra one whose name is most like it."""
    if not matching.missing or not matching.extra:
        return ""
    wanted = lists.paths[matching.missing[0]]
    (found,) = difflib.get_close_matches(wanted, matching.extra[:COMPARED], 1, cutoff=0.0)
    return f"; wanted for example {quoted(wanted)}, found {quoted(found)}"


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
    """A line for each fact that a user should know although the dataset can be imported."""
    notes = list(lists.notes)
    if matching.missing:
        notes.append(
            f"missing: {len(matching.missing):,} of {len(lists.paths):,} listed videos are left out of the dataset "
            f"and its splits: {named(matching.missing, limit)}"
        )
    if extra := [path for path in matching.extra if path not in set(loose)]:
        notes.append(f"extra: {many(len(extra), 'video')} not in the lists, left out: {named(extra, limit)}")
    if loose:
        notes.append(
            f"extra: {many(len(loose), 'video')} in no folder of a class, left out: {named(loose, limit)}"
        )
    if found.flow:
        notes.append(
            f"flow: {many(len(found.flow), 'folder')} of flow without frames, left out: {named(found.flow, limit)} "
            f"({typed('pipeline')} import-flow)"
        )
    if found.empty:
        notes.append(f"empty: {many(len(found.empty), 'file')} of zero bytes: {named(found.empty, limit)}")
    if bad := {video_id: fault for video_id, fault in faults.items() if fault != "the file is empty"}:
        for fault, videos in by_reason(list(bad.items())).items():
            shown = named([video for video, _ in videos], limit, quoted=False)
            notes.append(
                f"headers: {many(len(videos), 'video')} whose header cannot be read: {shown}: {fault}"
            )
    if counts and (
        unknown := [i for i, video in dataset.videos.items() if not {i, i.split("/")[1]} & counts.keys()]
    ):
        notes.append(f"counts: {many(len(unknown), 'video')} without a known count: {named(unknown, limit)}")
    if empty := [
        label for label in dataset.classes if label not in {video.label for video in dataset.videos.values()}
    ]:
        notes.append(f"classes: {many(len(empty), 'class')} without any video: {named(empty, limit)}")
    for number, split in dataset.splits.items():
        if shared := shared_groups(dataset, number):
            notes.append(
                f"split {number}: {many(len(shared), 'group')} on both sides: {named(shared, limit)}"
            )
        if not split.train or not split.test:
            notes.append(
                f"split {number}: {many(len(split.train), 'video')} to train and {len(split.test):,} to test on"
            )
    return tuple(notes)


def describe(dataset: Dataset) -> list[str]:
    """Lines for a user: what a dataset holds."""
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
FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class ImportOptions(DataOptions):
    """What to import, and how strictly."""

    kind: str = argument(REQUIRED, metavar="KIND", choices=(*FACTS, "folder"))
    videos: Path = option(REQUIRED, "Folder of the videos, in folders of their classes.", kind=FOLDER)
    lists: Path | None = option(None, "Folder (or one file) of lists.", kind=FILE_OR_FOLDER)
    name: str | None = option(
        None, "Name of the dataset.", metavar="NAME", shown_default="KIND; needed for a folder"
    )
    classes: Path | None = option(
        None, "Class names, one a line, for lists that number them from 0.", kind=FILE
    )
    group_pattern: str | None = option(
        None, "Regular expression that finds the group (person, source) in a video's stem."
    )
    counts: Path | None = option(
        None, "Known counts: a table with `video` and `flows` or `frames`.", kind=FILE
    )
    allow_missing: bool = option(False, "Import although listed videos are missing; they are left out.")
    follow_links: bool = option(False, "Accept links that lead outside the folder of the videos.")
    keep_suffix: bool = option(
        False, "Name videos by their files' whole names, so that a.avi and a.mp4 are two; without lists only."
    )
    probe: bool = option(True, "Read frame counts and sizes from the videos' headers.")
    jobs: int | None = option(
        None, "Processes that read headers.", minimum=1, shown_default="one per usable core"
    )
    show: int = option(5, "Names shown per problem.", minimum=1)

    def __post_init__(self) -> None:
        if self.name is None and self.kind == "folder":
            raise click.UsageError("a folder needs a name: --name NAME")
        if self.kind in FACTS and self.lists is None:
            raise click.UsageError(
                f"{self.kind} needs its official lists: --lists DIR; get them with: "
                f"{typed('pipeline')} fetch-lists {self.kind} --output DIR"
            )
        if self.classes is not None and self.lists is None:
            raise click.UsageError("--classes goes with --lists: it names the classes that lists number")
        if self.jobs is not None and not self.probe:
            raise click.UsageError("--jobs goes with --probe: without it no headers are read")
        if self.keep_suffix and self.lists is not None:
            raise click.UsageError(
                "--keep-suffix goes with a folder without --lists: lists name their videos"
            )


@click.command(context_settings=CONTEXT)
@options_of(ImportOptions)
@command_errors
def command(**values: Any) -> None:
    """Check a dataset's videos against its lists and record it, so that other commands know it.

    KIND is ucf101 or hmdb51 with their official lists, or folder for one's own videos: with lists as UCF-101, HMDB-51,
    mmaction2 or Kinetics have them, or without any.
    """
    options = from_options(ImportOptions, values)
    name = check_name(options.name or options.kind, "dataset")
    catalog.check_replaceable(
        DatasetPaths(data_root(options.data), name).record
    )  # before the work, not after it
    imported = import_dataset(
        options.kind,
        name,
        options.videos,
        options.lists,
        class_names=[line for _, line in read_lines(options.classes)] if options.classes else None,
        group=pattern_group(options.group_pattern) if options.group_pattern else None,
        counts=read_counts(options.counts) if options.counts else None,
        allow_missing=options.allow_missing,
        follow_links=options.follow_links,
        keep_suffix=options.keep_suffix,
        headers=options.probe,
        jobs=options.jobs or usable_cores(),
        limit=options.show,
        everything=data_root(options.data) / f"{name}.import.txt",
    )
    record = catalog.save(imported.dataset, options.videos.absolute(), options.data)
    for line in describe(imported.dataset):
        click.echo(line)
    for note in imported.notes:
        click.echo(printable(f"note: {note}"))
    click.echo(printable(f"recorded in {record}"))
