"""Datasets: their videos, classes, groups and splits, as recorded by `python -m pipeline import`.

A video's identity is `class/stem`. The record is one JSON file per dataset; nothing in it is trusted when read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import atomic, checked_json
from pipeline.errors import InputError, OtherFormat, unreadable
from pipeline.machine import making_what_stays
from pipeline.paths import NAME, DatasetPaths, check_video_id, data_root
from pipeline.text import quoted, shortened, some, typed

FORMAT = "two-stream dataset"
VERSION = 1
KEYS = ("format", "version", "name", "origin", "short_side", "root", "classes", "videos", "splits", "missing")
LARGEST_COUNT = 1 << 40
SHORT_SIDE = 256
"""The paper's frame size: the smaller side in pixels."""


@dataclass(frozen=True)
class Facts:
    """What is published about a dataset, which lists that claim to be its own must match."""

    title: str
    classes: int
    videos: int
    splits: Mapping[int, tuple[int, int]]
    """split number -> videos to train on, videos to test on"""
    lists: str
    """address of the archive of its official lists"""
    archive: str
    """address of the archive of its videos"""
    page: str
    """address of the page that says where both are"""


FACTS: Mapping[str, Facts] = {
    # Soomro, Zamir, Shah: UCF101, CRCV-TR-12-01, and its official lists for action recognition.
    "ucf101": Facts(
        "UCF-101",
        101,
        13_320,
        {1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)},
        "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
        "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar",
        "https://www.crcv.ucf.edu/data/UCF101.php",
    ),
    # Kuehne et al.: HMDB, ICCV 2011: 70 clips to train on and 30 to test on per class; the others are unused.
    "hmdb51": Facts(
        "HMDB-51",
        51,
        6_766,
        {number: (51 * 70, 51 * 30) for number in (1, 2, 3)},
        "http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/test_train_splits.rar",
        "http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/hmdb51_org.rar",
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
    ),
}


@dataclass(frozen=True)
class Video:
    """One video: where it is, its class, and what its header claims (None where not known)."""

    id: str
    path: Path
    label: str
    group: str
    frames: int | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Split:
    """The ids of the videos to train and to test on."""

    number: int
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset whose parts fit together; `videos` are in the order of their ids.

    Attributes:
        name: what other commands call it.
        classes: class names, in the order of the dataset's labels.
        videos: by id, those that exist; some may be in no split.
        splits: by number from 1; empty for a dataset without any.
        missing: ids that the lists name and that were missing at import; they are in no split.
        origin: where it came from: "kind" (ucf101, hmdb51, folder, demo) and what that kind of import adds.
        short_side: the smaller side in pixels at which its frames and flow are extracted unless the user asks for
            another; None takes the videos as they are.
    """

    name: str
    classes: tuple[str, ...]
    videos: Mapping[str, Video]
    splits: Mapping[int, Split]
    missing: tuple[str, ...] = ()
    origin: Mapping[str, str | int] = field(default_factory=lambda: {"kind": "folder"})
    short_side: int | None = SHORT_SIDE
    labels: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_dataset(self)
        object.__setattr__(self, "labels", {name: index for index, name in enumerate(self.classes)})

    def label(self, video_id: str) -> int:
        """The index of a video's class in `classes`; InputError if the dataset has no such video."""
        if video_id not in self.videos:
            raise InputError(f"dataset {self.name} has no video {video_id!r}")
        return self.labels[self.videos[video_id].label]

    def split(self, number: int) -> Split:
        """One split; the InputError for any other number names the existing ones."""
        if number not in self.splits:
            there = ", ".join(map(str, self.splits)) or "none"
            raise InputError(f"dataset {self.name} has no split {number} (it has: {there})")
        return self.splits[number]


def check_dataset(dataset: Dataset) -> None:
    """Raise InputError unless classes, videos and splits fit together and no video is on both sides of a split."""
    where = f"dataset {dataset.name}"
    if twice := [name for name, count in Counter(dataset.classes).items() if count > 1]:
        raise InputError(f"{where}: classes named twice: {some(twice)}")
    known = set(dataset.classes)
    for video_id, video in dataset.videos.items():
        try:
            check_video_id(video_id)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if video.id != video_id or video_id.split("/")[0] != video.label:
            raise InputError(f"{where}: {video_id!r} does not begin with its class {video.label!r}")
        if video.label not in known:
            raise InputError(
                f"{where}: {video_id!r} is of class {video.label!r}, which the classes do not name"
            )
    for number, split in dataset.splits.items():
        if number < 1:
            raise InputError(f"{where}: splits are counted from 1, found {number}")
        for side, ids in (("train", split.train), ("test", split.test)):
            if twice := [video_id for video_id, count in Counter(ids).items() if count > 1]:
                raise InputError(f"{where}: split {number} names videos twice to {side} on: {some(twice)}")
            if unknown := [video_id for video_id in ids if video_id not in dataset.videos]:
                raise InputError(
                    f"{where}: split {number} names unknown videos to {side} on: {some(unknown)}"
                )
        if both := sorted(set(split.train) & set(split.test)):
            raise InputError(f"{where}: split {number} has {len(both)} videos on both sides: {some(both)}")


def shared_groups(dataset: Dataset, number: int) -> list[str]:
    """Groups (people, sources) with videos on both sides of a split: none in a split that holds groups out."""
    split = dataset.split(number)
    sides = ({dataset.videos[video_id].group for video_id in ids} for ids in (split.train, split.test))
    return sorted(set.intersection(*sides))


def known_datasets(data: str | os.PathLike[str] | None = None) -> list[str]:
    """Names of the datasets that have a record below the data root."""
    root = data_root(data)
    if not root.is_dir():
        return []
    return sorted(
        folder.name
        for folder in root.iterdir()
        if NAME.fullmatch(folder.name) and DatasetPaths(root, folder.name).record.is_file()
    )


def choose_dataset(name: str | None, data: str | os.PathLike[str] | None = None) -> str:
    """The dataset that a command is about: the named one; else the only known one; else the demo if it is known.

    Raises:
        InputError: none is named and none is known, or several are; the message lists them.
    """
    if name is not None:
        return name
    known = known_datasets(data)
    if len(known) == 1:
        return known[0]
    if "demo" in known:
        return "demo"
    if not known:
        raise InputError(
            f"{data_root(data)}: no dataset is known there; make one known with: {typed('pipeline')} demo, or "
            f"{typed('pipeline')} import"
        )
    raise InputError(
        f"{data_root(data)}: several datasets ({', '.join(known)}): choose one with --dataset NAME"
    )


def save(dataset: Dataset, root: Path, data: str | os.PathLike[str] | None = None) -> Path:
    """Record a dataset, atomically, so that other commands know it; its record's path.

    Args:
        dataset: every video's path lies below `root`.
        root: the folder of the videos. Recorded relative to the record if it lies beside it, so that such a dataset
            can be moved.
        data: the data root, see `pipeline.paths`.

    Raises:
        OtherFormat: there is a record of a later version, which stays.
        InputError: the record cannot be written.
    """
    paths = DatasetPaths(data_root(data), dataset.name)
    check_replaceable(paths.record)
    root = root.absolute()
    record = {
        "format": FORMAT,
        "version": VERSION,
        "name": dataset.name,
        "origin": dict(dataset.origin),
        "short_side": dataset.short_side,
        "root": str(root.relative_to(paths.root) if root.is_relative_to(paths.root) else root),
        "classes": list(dataset.classes),
        "videos": {
            video.id: {
                "path": video.path.relative_to(root).as_posix(),
                "group": video.group,
                "frames": video.frames,
                "width": video.width,
                "height": video.height,
            }
            for video in sorted(dataset.videos.values(), key=lambda video: video.id)
        },
        "splits": {
            str(number): {"train": list(split.train), "test": list(split.test)}
            for number, split in sorted(dataset.splits.items())
        },
        "missing": list(dataset.missing),
    }
    atomic.sweep(paths.root)
    with atomic.writing(paths.record) as temporary:
        temporary.write_text(checked_json.encoded(record), encoding="ascii")
    return paths.record


def check_replaceable(path: Path) -> None:
    """Raise an InputError if an existing record may not be replaced; a damaged one may.

    Raises:
        OtherFormat: it is of a later version.
        Unreadable: the system does not let it be read, so it is not known what would be replaced.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unreadable(path, error) from error
    with contextlib.suppress(ValueError, RecursionError):
        _check_version(json.loads(text), path)


def _check_version(record: Any, path: Path) -> None:
    """Raise OtherFormat for a record of a later version whose checksum matches."""
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or type(record.get("version")) is not int
    ):
        return
    if record["version"] > VERSION and checked_json.fault(record, record) is None:
        raise OtherFormat(
            f"{path}: the dataset's record has version {record['version']}, and this program reads version {VERSION}; "
            "it was left as it is: use the program that wrote it, or choose another name"
        )


@making_what_stays()
def load_dataset(name: str, data: str | os.PathLike[str] | None = None) -> Dataset:
    """The dataset of that name.

    Raises:
        OtherFormat: its record is of a later version.
        InputError: it is not known (the message names the command that makes it known), or its record is damaged.
    """
    paths = DatasetPaths(data_root(data), name)
    try:
        written = paths.record.read_bytes()
        text = written.decode()
    except (FileNotFoundError, NotADirectoryError):
        command = {"demo": "demo", **{kind: f"import {kind} --videos DIR --lists DIR" for kind in FACTS}}
        known = ", ".join(known_datasets(data)) or "none"
        raise InputError(
            f"dataset {name!r} is not known in {paths.data} (known: {known}); make it known with: "
            f"{typed('pipeline')} {command.get(name, f'import folder --videos DIR --name {name}')}"
        ) from None
    except OSError as error:
        raise unreadable(paths.record, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{paths.record}: damaged record ({error}); import the dataset again") from error
    try:
        record = json.loads(text)
        _check_version(record, paths.record)
        dataset = parse_record(record, name, paths.root)
        if not checked_json.is_intact(written) and (fault := checked_json.fault(record, KEYS)):
            raise ValueError(fault)
        return dataset
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = shortened(f"{type(error).__name__}: {error}")
        raise InputError(f"{paths.record}: damaged record ({reason}); import the dataset again") from error


def parse_record(record: Any, name: str, folder: Path) -> Dataset:
    """A record as read from JSON -> Dataset; `folder` is where the record lies.

    Raises:
        InputError: parts that do not fit together, a newer version, or a path that leaves the dataset's root.
        ValueError, KeyError, TypeError, AttributeError: not such a record.
    """
    if record["format"] != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, found {record['format']!r}")
    if record["version"] != VERSION:
        raise InputError(
            f"{folder}: version {record['version']} of the dataset's record, expected {VERSION}: import it again"
        )
    if record["name"] != name:
        raise ValueError(f"name: expected {name!r}, found {record['name']!r}")
    root, source = folder / as_text(record["root"]), str(folder)
    return Dataset(
        name=name,
        classes=tuple(as_text(label) for label in record["classes"]),
        videos={
            video_id: Video(
                id=video_id,
                path=root / check_inside(as_text(entry["path"]), source),
                label=video_id.split("/")[0],
                group=as_text(entry["group"]),
                frames=as_count(entry["frames"]),
                width=as_count(entry["width"]),
                height=as_count(entry["height"]),
            )
            for video_id, entry in record["videos"].items()
        },
        splits={
            int(number): Split(
                int(number), tuple(map(as_text, ids["train"])), tuple(map(as_text, ids["test"]))
            )
            for number, ids in sorted(record["splits"].items(), key=lambda item: int(item[0]))
        },
        missing=tuple(map(as_text, record["missing"])),
        origin={"kind": as_text(record["origin"]["kind"]), **record["origin"]},
        short_side=as_count(record["short_side"]),
    )


def check_inside(path: str, source: str) -> str:
    """A relative path from a list or record, unchanged unless it would leave the dataset's root.

    Raises:
        InputError: the path is absolute, empty, or has `..` in it; `source` is where it was read, for the message.
    """
    parts = path.split("/")
    if not {"", "."}.issuperset(parts) and ".." not in parts and parts[0] and "\0" not in path:
        return path
    raise InputError(
        f"{source}: the path {quoted(path)} leaves the folder of the videos, which is not allowed"
    )


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    if not value.isprintable() and b"\0" in os.fsencode(
        value
    ):  # refuses lone surrogates that do not stand for a byte
        raise ValueError(f"{value!r} cannot be in the name of a file")
    return value


def as_count(value: Any) -> int | None:
    if value is None or (type(value) is int and 0 <= value <= LARGEST_COUNT):
        return value
    raise TypeError(f"expected a count or null, found {value!r}")
