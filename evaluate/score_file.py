"""Score files: the class scores of one run for each video of a list (documented in docs/reference/scores.md).

HDF5 1.10, one file for each run, part of the split and views' settings. Texts are UTF-8 of a fixed length, arrays lie
in the file as they are:

    /            attrs: format, version, dataset, split, part ("test" or "train"), stream, run, checkpoint (digest),
                 shards (set), views (JSON: frames, crops, flips, crop size), crc32 (of the arrays in this order)
    /videos      str[n]     class/stem, sorted
    /classes     str[C]
    /groups      str[n]     the source that a video was cut from
    /labels      int32[n]   index into classes
    /logits      float32[n,C]   mean over views
    /softmax     float32[n,C]   mean over views of the softmax
    /views       int32[n]   views averaged
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import numpy.typing as npt

from evaluate import score_file_v1
from pipeline import atomic, hdf5
from pipeline.errors import Damaged, InputError, OtherFormat, unreadable
from pipeline.hdf5 import Foreign, Invalid, SourceFile
from pipeline.runs import STREAMS, Part, RunPaths
from pipeline.text import first_line, typed

FORMAT = "two-stream scores"
VERSION = 2
TEXTS = ("videos", "classes", "groups")
ARRAYS = {"labels": "<i4", "logits": "<f4", "softmax": "<f4", "views": "<i4"}
SOFTMAX_TOLERANCE = 1e-3
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
    arrays = {name: hdf5.encoded(getattr(scores, name)) for name in TEXTS}
    arrays |= {name: np.asarray(getattr(scores, name), dtype) for name, dtype in ARRAYS.items()}
    attributes = {name: getattr(scores, name) for name in _ATTRIBUTES}
    with atomic.writing(path) as temporary:
        with hdf5.new_file(temporary) as file:
            hdf5.write_arrays(
                file, arrays, {"format": FORMAT, "version": VERSION, "views": scores.settings, **attributes}
            )
        if read_scores(temporary).videos != scores.videos:
            raise InputError(f"{path}: what was written does not read back; is the disk sound?")


def read_scores(path: Path) -> Scores:
    """Read and check a score file.

    Raises:
        InputError: no such file.
        OtherFormat: not a score file of a version that can be read.
        Unreadable: the system did not let it be read.
        Damaged: its bytes are not what was written, or its parts do not fit together.
    """
    try:
        if _is_of_version_1(path):
            return _read_version_1(path)
        with hdf5.reading(path) as (file, source):
            return _read(file, source)
    except FileNotFoundError:
        raise InputError(f"{path}: no such score file; make it with: {typed('evaluate')} score") from None
    except Foreign as error:
        raise OtherFormat(
            f"{path}: {error}; it was left as it is: use the program that wrote it, or move it away"
        ) from error
    except Invalid as error:
        raise Damaged(f"{path}: not a readable score file ({error}); score again with --overwrite") from error


def score_path(run: RunPaths, own: str, dataset: str, part: str) -> Path:
    """Where a run's scores of a part of a dataset are.

    Those of another dataset than the run's own lie in a folder of its name. Until version 0.2 they did not; a file from
    then is taken where there is no other.

    Args:
        run: the run.
        own: the dataset that it was trained on.
        dataset: the dataset that is scored, for whose classes the run has a head.
        part: of the split, with the views, as "test-25x10".
    """
    if own == dataset:
        return run.scores(part)
    path, earlier = run.scores(part, dataset), run.scores(part)
    if path.is_file() or not earlier.is_file():
        return path
    return earlier if read_scores(earlier).dataset == dataset else path


def _read(file: Any, source: SourceFile) -> Scores:
    root = h5py.h5g.open(file, b"/")
    found = [
        hdf5.attribute(root, name, kind) if h5py.h5a.exists(root, name.encode()) else None
        for name, kind in (("format", str), ("version", int))
    ]
    if found != [FORMAT, VERSION]:
        raise Foreign(f"expected {FORMAT!r} version {VERSION} or version 1, found {found[0]!r} {found[1]}")
    for name in root:
        if root.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise Invalid(f"{name.decode(errors='replace')} is a link out of the file; score files hold none")
    attributes: dict[str, Any] = {
        name: hdf5.attribute(root, name, int if name == "split" else str) for name in (*_ATTRIBUTES, "views")
    }
    arrays = {name: hdf5.texts(hdf5.child(root, name, h5py.h5d.open), name, source) for name in TEXTS} | {
        name: hdf5.array(hdf5.child(root, name, h5py.h5d.open), name, dtype, source)
        for name, dtype in ARRAYS.items()
    }
    scores = _scores(attributes, {name: hdf5.decoded(arrays[name]) for name in TEXTS}, arrays)
    if hdf5.crc32(arrays.values()) != hdf5.attribute(root, "crc32", int):
        raise Invalid("its arrays fail their checksum")
    return scores


def _is_of_version_1(path: Path) -> bool:
    """Whether a file is of HDF5's old format, as score files of version 1 are."""
    try:
        with SourceFile(path) as source:
            head = source.bytes_at(0, min(len(hdf5.SIGNATURE) + 1, source.size))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    return head.startswith(hdf5.SIGNATURE) and 0 <= head[-1] < hdf5.OLDEST_SUPERBLOCK


def _read_version_1(path: Path) -> Scores:
    try:
        attributes, arrays = score_file_v1.read(path)
        for name, dtype in ARRAYS.items():
            if arrays[name].dtype != dtype:
                raise Invalid(f"{name!r} is not of type {np.dtype(dtype).name}")
        return _scores(attributes, {name: tuple(arrays[name].tolist()) for name in TEXTS}, arrays)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Invalid(first_line(error)) from error


def _scores(
    attributes: Mapping[str, Any],
    texts: Mapping[str, tuple[str, ...]],
    arrays: Mapping[str, npt.NDArray[Any]],
) -> Scores:
    """Scores of what a file holds; Invalid unless everything fits together."""
    values = dict(attributes)
    settings = json.loads(values.pop("views"))
    if not isinstance(settings, dict):
        raise Invalid("its `views` are not a mapping")
    values |= {**texts, **{name: arrays[name] for name in ARRAYS}, "settings": settings}
    scores = Scores(**values)
    for fault in _faults(scores):
        raise Invalid(fault)
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


def _faults(scores: Scores) -> Iterator[str]:
    """What is wrong with scores that were read; what comes later relies on what comes before."""
    videos, classes = len(scores.videos), len(scores.classes)
    if scores.split < 1 or scores.part not in get_args(Part) or scores.stream not in STREAMS:
        yield f"split {scores.split}, part {scores.part!r} and stream {scores.stream!r} are not those of any list"
    expected = {
        "labels": (videos,),
        "logits": (videos, classes),
        "softmax": (videos, classes),
        "views": (videos,),
    }
    for name, shape in expected.items():
        if getattr(scores, name).shape != shape:
            yield f"{name} should have shape {shape}, found {getattr(scores, name).shape}"
    if len(set(scores.videos)) != videos or len(scores.groups) != videos:
        yield "videos must be distinct, with one group each"
    if len(set(scores.classes)) != classes:
        yield "classes must be distinct"
    if videos and not (scores.labels.min() >= 0 and scores.labels.max() < classes):
        yield f"labels lie outside the {classes} classes"
    if not (np.isfinite(scores.logits).all() and np.isfinite(scores.softmax).all()):
        yield "scores hold values that are not finite"
    if not (scores.softmax >= 0).all() or (np.abs(scores.softmax.sum(1) - 1) > SOFTMAX_TOLERANCE).any():
        yield "softmax of a video does not add up to 1"
    if (scores.views < 1).any():
        yield "a video has no view"
