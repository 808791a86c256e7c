"""Score files: the class scores of one run for each video of a list (documented in docs/reference/scores.md).

HDF5, one file for each run, part of the split and views' settings:

    /            attrs: format, version, dataset, split, part ("test" or "train"), stream, run, checkpoint (digest),
                 shards (set), views (JSON: frames, crops, flips, crop size)
    /videos      str[n]     class/stem, sorted
    /classes     str[C]
    /labels      int32[n]   index into classes
    /groups      str[n]     the source that a video was cut from
    /logits      float32[n,C]   mean over views
    /softmax     float32[n,C]   mean over views of the softmax
    /views       int32[n]   views averaged
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import atomic
from pipeline.errors import InputError

FORMAT = "two-stream scores"
VERSION = 1
MAX_BYTES = 1 << 33
_ATTRIBUTES = ("dataset", "split", "part", "stream", "run", "checkpoint", "shards")


@dataclass(frozen=True)
class Scores:
    """Scores of one run on one list; arrays are in the order of `videos` (see the module docstring)."""

    dataset: str
    split: int
    part: str
    stream: str
    run: str
    checkpoint: str
    shards: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    videos: tuple[str, ...]
    groups: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    softmax: npt.NDArray[np.float32]
    views: npt.NDArray[np.int32]

    def sorted(self) -> Scores:
        """The same scores in the order of the videos' names, so that files do not depend on who scored when."""
        return self.take(
            np.array(sorted(range(len(self.videos)), key=self.videos.__getitem__), dtype=np.int64)
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Scores:
        """Only the given rows, in their order."""
        return dataclasses.replace(
            self,
            videos=tuple(self.videos[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            labels=self.labels[rows],
            logits=self.logits[rows],
            softmax=self.softmax[rows],
            views=self.views[rows],
        )

    def same_measurement(self, other: Scores) -> bool:
        """Whether two sets of scores come from one checkpoint, list, shard set and views: then rows may be joined."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in (
                "dataset",
                "split",
                "part",
                "stream",
                "checkpoint",
                "shards",
                "settings",
                "classes",
            )
        )


def write_scores(path: Path, scores: Scores) -> None:
    """Write a score file under a temporary name, read it back, then rename it.

    Raises:
        InputError: the file cannot be written, or reads back differently.
    """
    scores = scores.sorted()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs.update({"format": FORMAT, "version": VERSION, "views": json.dumps(scores.settings)})
            file.attrs.update({name: getattr(scores, name) for name in _ATTRIBUTES})
            for name in ("videos", "classes", "groups"):
                file.create_dataset(name, data=list(getattr(scores, name)), dtype=h5py.string_dtype())
            for name in ("labels", "logits", "softmax", "views"):
                file.create_dataset(name, data=getattr(scores, name))
        if read_scores(temporary).videos != scores.videos:
            raise InputError(f"{path}: what was written does not read back; is the disk sound?")


def read_scores(path: Path) -> Scores:
    """Read and check a score file.

    Raises:
        InputError: no such file, not a score file of this version, or its parts do not fit together.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such score file; make it with: python -m evaluate score")
    try:
        with h5py.File(path, "r") as file:
            found = (file.attrs.get("format"), file.attrs.get("version"))
            if found != (FORMAT, VERSION):
                raise InputError(
                    f"{path}: expected {FORMAT!r} version {VERSION}, found {found[0]!r} {found[1]}"
                )
            for name in file:
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    raise InputError(f"{path}: {name} is a link out of the file; score files hold none")
            if sum(file[name].size * file[name].dtype.itemsize for name in file) > MAX_BYTES:
                raise InputError(f"{path}: claims more than {MAX_BYTES >> 30} GiB of scores")
            values: dict[str, Any] = {name: file.attrs[name] for name in _ATTRIBUTES}
            values["split"] = int(values["split"])
            values["settings"] = json.loads(file.attrs["views"])
            for name in ("videos", "classes", "groups"):
                values[name] = tuple(file[name].asstr()[...].tolist())
            for name in ("labels", "logits", "softmax", "views"):
                values[name] = file[name][...]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: not a readable score file ({error}); score again with --overwrite"
        ) from error
    scores = Scores(**values)
    _check(path, scores)
    return scores


def aligned(files: Sequence[Scores]) -> list[Scores]:
    """The same videos of several streams in one order, ready to be fused.

    Raises:
        InputError: the files differ in dataset, split, list, classes, videos or labels; the difference is shown.
    """
    first, rest = files[0].sorted(), [scores.sorted() for scores in files[1:]]
    for other in rest:
        pair = f"{_name(first)} and {_name(other)} cannot be fused"
        for name in ("dataset", "split", "part"):
            if getattr(first, name) != getattr(other, name):
                raise InputError(f"{pair}: {name} is {getattr(first, name)!r} and {getattr(other, name)!r}")
        if first.classes != other.classes:
            raise InputError(f"{pair}: their classes differ: {_difference(first.classes, other.classes)}")
        if first.videos != other.videos:
            raise InputError(f"{pair}: their videos differ: {_difference(first.videos, other.videos)}")
        unequal = np.flatnonzero(first.labels != other.labels)
        if len(unequal):
            video = first.videos[unequal[0]]
            a, b = (scores.classes[scores.labels[unequal[0]]] for scores in (first, other))
            raise InputError(f"{pair}: {len(unequal)} labels differ, first that of {video}: {a!r} and {b!r}")
    return [first, *rest]


def joined(parts: Sequence[Scores]) -> Scores:
    """Disjoint parts of one measurement as one; a video that several parts hold is taken once.

    Raises:
        InputError: the parts come from different checkpoints, lists or settings.
    """
    first = parts[0]
    for other in parts[1:]:
        if not first.same_measurement(other):
            raise InputError(
                f"{_name(first)} and {_name(other)} are not parts of one measurement: score again with --overwrite"
            )
    rows: dict[str, tuple[Scores, int]] = {}
    for part in parts:
        for row, video in enumerate(part.videos):
            rows.setdefault(video, (part, row))
    videos = sorted(rows)
    picked = [rows[video] for video in videos]
    return dataclasses.replace(
        first,
        videos=tuple(videos),
        groups=tuple(part.groups[row] for part, row in picked),
        labels=np.array([part.labels[row] for part, row in picked], np.int32),
        logits=np.stack([part.logits[row] for part, row in picked]),
        softmax=np.stack([part.softmax[row] for part, row in picked]),
        views=np.array([part.views[row] for part, row in picked], np.int32),
    )


def _name(scores: Scores) -> str:
    return f"run {scores.run!r} ({scores.stream}, {scores.part} list of split {scores.split})"


def _difference(first: Sequence[str], second: Sequence[str], show: int = 5) -> str:
    only_first, only_second = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    if not only_first and not only_second:
        return "the same names in another order"
    shown = [
        f"{len(names)} only in the {which} ({', '.join(names[:show])}{', ...' if len(names) > show else ''})"
        for which, names in (("first", only_first), ("second", only_second))
        if names
    ]
    return "; ".join(shown)


def _check(path: Path, scores: Scores) -> None:
    videos, classes = len(scores.videos), len(scores.classes)
    expected = {
        "labels": (videos,),
        "logits": (videos, classes),
        "softmax": (videos, classes),
        "views": (videos,),
    }
    for name, shape in expected.items():
        if getattr(scores, name).shape != shape:
            raise InputError(f"{path}: {name} should have shape {shape}, found {getattr(scores, name).shape}")
    if len(set(scores.videos)) != videos or len(scores.groups) != videos:
        raise InputError(f"{path}: videos must be distinct, with one group each")
    if videos and not (scores.labels.min() >= 0 and scores.labels.max() < classes):
        raise InputError(f"{path}: labels lie outside the {classes} classes")
    if not (np.isfinite(scores.logits).all() and np.isfinite(scores.softmax).all()):
        raise InputError(f"{path}: scores hold values that are not finite")
