"""Where everything is read and written: only this module and `pipeline.runs` build paths that a stage reads or writes.

DATA/<dataset>/dataset.json                        the catalogue's record
DATA/<dataset>/videos/                             only for the rendered demo
DATA/<dataset>/shards/<set>/<class>/<stem>.h5      one shard per video
DATA/<dataset>/outcomes/<stage>/<owner>.jsonl      what happened to each video
DATA/<dataset>/runs/<run>/                         one training run; its files are `pipeline.runs.RunPaths`
DATA/<dataset>/results/<name>/                     fusion, metrics, report
DATA/<dataset>/logs/                               SLURM logs
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError

DEFAULT_METHOD = "tvl1"
"""The flow method of a command that names none; a shard set is named after its method unless the user names it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_PART = 200
"""Bytes of a class or stem; file systems allow 255, and a temporary name adds its owner to the stem."""


def data_root(data: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all datasets: `data` if given, else $TWO_STREAM_DATA, else `data` in the current folder."""
    return Path(data or os.environ.get("TWO_STREAM_DATA") or "data").absolute()


def check_name(name: str, what: str) -> str:
    """The name of a dataset, run, shard set, stage or result, unchanged if it is a safe folder name.

    Raises:
        InputError: the name is anything but 1 to 64 letters, digits, `.`, `_` and `-` that begin with a letter or
            digit.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be the name of a {what}: use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


def fault_of_part(part: str) -> str | None:
    """Why `part` cannot be one folder or file name of a video's identity, or None if it can."""
    if part in ("", ".", ".."):
        return "it is empty or leads to another folder"
    if "/" in part:
        return "it holds a slash"
    if not part.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in part
    ):
        return "it holds control characters or bytes that are not UTF-8"
    if len(part.encode()) > LONGEST_PART:
        return f"it is longer than {LONGEST_PART} bytes"
    return None


def check_video_id(video_id: str) -> str:
    """A video's identity `class/stem`, unchanged if both parts are plain names of one folder and one file.

    Raises:
        InputError: not exactly two parts, or a part that is empty, `..`, too long or holds control characters.
    """
    parts = video_id.split("/")
    if len(parts) != 2:
        raise InputError(f"{video_id!r} is not a valid video id: expected class/stem")
    for part in parts:
        if fault := fault_of_part(part):
            raise InputError(f"{video_id!r} cannot be the name of a video: {fault}")
    return video_id


@dataclass(frozen=True)
class DatasetPaths:
    """Every path of one dataset below the data root, as in `DatasetPaths(data_root(data), "ucf101")`."""

    data: Path
    dataset: str

    def __post_init__(self) -> None:
        check_name(self.dataset, "dataset")

    @property
    def root(self) -> Path:
        return self.data / self.dataset

    @property
    def record(self) -> Path:
        return self.root / "dataset.json"

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def shard_sets(self) -> Path:
        return self.root / "shards"

    @property
    def outcomes_root(self) -> Path:
        return self.root / "outcomes"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def results_root(self) -> Path:
        return self.root / "results"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def shards(self, shard_set: str) -> Path:
        """The folder of one shard set; a set is named after its flow method unless the user names it."""
        return self.shard_sets / check_name(shard_set, "shard set")

    def shard(self, shard_set: str, video_id: str) -> Path:
        """The shard of one video; InputError for an identity that would leave the folder."""
        # Not with_suffix: the stem of a.b.avi is a.b.
        return self.shards(shard_set) / f"{check_video_id(video_id)}.h5"

    def outcomes(self, stage: str) -> Path:
        """The folder of one stage's outcome records."""
        return self.outcomes_root / check_name(stage, "stage")

    def run(self, run: str) -> Path:
        """The folder of one training run."""
        return self.runs / check_name(run, "run")

    def results(self, name: str) -> Path:
        """The folder of one set of results: fused scores, metrics, report."""
        return self.results_root / check_name(name, "result")


@dataclass(frozen=True)
class OutputPaths:
    """Every path below a folder for the shards of videos that belong to no dataset (`--output`)."""

    folder: Path

    @property
    def outcomes(self) -> Path:
        """The folder of the outcome records."""
        return self.folder / "outcomes"

    def shard(self, video_id: str) -> Path:
        """The shard of one video, whose identity is its path below the given folder, without suffix."""
        return self.folder / f"{video_id}.h5"
