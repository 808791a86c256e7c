"""Scores of one run on one list of a split: what is scored already, what is not, and where it is kept.

What has been scored is saved every `SAVE_SECONDS`, so that an interrupted command resumes where it stopped, and tasks
that score disjoint shares of the videos merge exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluate import score_file
from evaluate.inference import Compute, load_network, logits_forward, video_scores, view_outputs
from evaluate.score_file import Scores
from evaluate.views import Views
from pipeline import atomic, catalog
from pipeline.errors import Damaged, InputError, OtherFormat, Unreadable
from pipeline.groups import training_folds
from pipeline.manifest import read_shard_set
from pipeline.plan import share
from pipeline.runs import RunPaths
from pipeline.shard import ShardAddress
from pipeline.text import many, some, typed
from train.checkpoint import Checkpoint

SAVE_SECONDS = 30.0
PART = re.compile(r"part-.+\.h5")


@dataclass(frozen=True)
class Measurement:
    """What is to be scored: the videos of one list, from one shard set, by one checkpoint with some views.

    Attributes:
        dataset: whose videos.
        run: whose folder the scores go to.
        checkpoint: of that run.
        split: number of the split.
        part: "test" or "train", the list of the split, or "held-out", what the run's fold left out of the latter.
        shards: folder of the shard set.
        views: of each video.
    """

    dataset: catalog.Dataset
    run: RunPaths
    checkpoint: Checkpoint
    split: int
    part: str
    shards: Path
    views: Views

    @property
    def videos(self) -> tuple[str, ...]:
        """The videos of the list; InputError for those held out by a run that learned from the whole list."""
        split, run = self.dataset.split(self.split), self.checkpoint.run
        if self.part != "held-out":
            return split.test if self.part == "test" else split.train
        if run.fold is None or run.folds is None:
            raise InputError(
                f"run {self.run.name} learned from the whole training list, so nothing of it is held out: "
                "train runs of its folds with --fold, or evaluate with --svm-scores held-out, which does so"
            )
        return training_folds(self.dataset.videos, split.train, run.folds)[run.fold - 1]

    @property
    def file(self) -> Path:
        """The score file."""
        return self.run.scores(f"{self.part}-{self.views}", self.other)

    @property
    def parts(self) -> Path:
        """The folder of scores that are not merged yet."""
        return self.run.score_parts(f"{self.part}-{self.views}", self.other)

    @property
    def other(self) -> str | None:
        """The dataset, where it is not the one that the run was trained on first."""
        return None if self.dataset.name == self.checkpoint.run.dataset else self.dataset.name

    def empty(self) -> Scores:
        """Scores of no video, with everything that describes them."""
        classes = len(self.dataset.classes)
        return Scores(
            dataset=self.dataset.name,
            split=self.split,
            part=self.part,
            stream=self.checkpoint.volume.stream,
            run=self.run.name,
            checkpoint=self.checkpoint.digest,
            shards=self.shards.name,
            settings={**asdict(self.views), "crop": self.checkpoint.volume.crop},
            classes=tuple(self.dataset.classes),
            videos=(),
            groups=(),
            labels=np.zeros(0, np.int32),
            logits=np.zeros((0, classes), np.float32),
            softmax=np.zeros((0, classes), np.float32),
            views=np.zeros(0, np.int32),
        )


@dataclass(frozen=True)
class ScoringState:
    """How far a measurement has got.

    Attributes:
        scored: what has been scored so far, None if nothing.
        todo: videos to score, with their shards.
        missing: videos that are not scored and have no shard.
        read: the score files that `scored` was read from, with their times of writing; none is read twice.
    """

    scored: Scores | None
    todo: Mapping[str, ShardAddress]
    missing: tuple[str, ...]
    read: Mapping[Path, int] = field(default_factory=dict)


def scoring_state(
    measurement: Measurement, shards: Mapping[str, ShardAddress] | None = None, anew: bool = False
) -> ScoringState:
    """What this checkpoint has scored with these views, and what is left; scores of another checkpoint do not count.

    Args:
        measurement: what is to be scored.
        shards: the shard set by video, where the caller has indexed it already.
        anew: finished scores do not count; they stay until new ones replace them.

    Raises:
        InputError: the list has no videos, or a pack of the shard set cannot be read.
    """
    if not measurement.videos:
        raise InputError(
            f"{measurement.dataset.name}: the {measurement.part} list of split {measurement.split} is empty"
        )
    before = ScoringState(None, {}, (), _finished(measurement)) if anew else None
    scored, read = _collect(measurement, before)
    done = set(scored.videos) if scored else set()
    there, missing = listed_shards(measurement, shards)
    return ScoringState(
        scored,
        {video: shard for video, shard in there.items() if video not in done},
        tuple(video for video in missing if video not in done),
        read,
    )


def listed_shards(
    measurement: Measurement, shards: Mapping[str, ShardAddress] | None = None
) -> tuple[dict[str, ShardAddress], tuple[str, ...]]:
    """The list's videos with their shards, and those that have none; `shards` as in `scoring_state`."""
    there = read_shard_set(measurement.shards) if shards is None else shards
    return (
        {video: there[video] for video in measurement.videos if video in there},
        tuple(video for video in measurement.videos if video not in there),
    )


def check_missing(measurement: Measurement, missing: Sequence[str], allowed: bool) -> None:
    """Refuse to continue without some of the list's videos, unless the user allowed it.

    Raises:
        InputError: names them and says what to do; also if every single one is missing.
    """
    if missing and (not allowed or len(missing) == len(measurement.videos)):
        name = measurement.dataset.name
        raise InputError(
            f"{measurement.shards}: {len(missing)} of the {many(len(measurement.videos), 'video')} of the "
            f"{measurement.part} list of split {measurement.split} have no shard ({some(missing)}; "
            f"{typed('pipeline')} status --dataset {name} shows what failed and why): extract them with "
            f"{typed('extract_flow')} --dataset {name}, or score the others with --allow-missing"
        )


def check_checkpoint(
    checkpoint: Checkpoint, dataset: catalog.Dataset, stream: str | None, length: int | None
) -> None:
    """Refuse a checkpoint that was trained for something else; the message names both values.

    Args:
        checkpoint: the file read.
        dataset: what it is to score.
        stream: the stream asked for, or None.
        length: L asked for, or None; only temporal runs have one.

    Raises:
        InputError: other stream, other L, no head for the dataset, or classes that the head lacks.
    """
    found = checkpoint.volume
    if stream is not None and found.stream != stream:
        raise InputError(
            f"{checkpoint.path}: asked for the {stream} stream, but it was trained on the {found.stream} one"
        )
    if length is not None and found.stream == "temporal" and found.length != length:
        raise InputError(
            f"{checkpoint.path}: asked for L = {length}, but it was trained with L = {found.length}"
        )
    checkpoint.columns(dataset.name, dataset.classes)


def score(
    measurement: Measurement,
    state: ScoringState,
    compute: Compute | None = None,
    task: int = 0,
    tasks: int = 1,
    progress: Callable[[str], None] = lambda video: None,
) -> ScoringState:
    """Score what one task's share has left, and merge once every video of the list has its scores.

    Args:
        measurement: what to score.
        state: of it, from `scoring_state`.
        compute: where and how the network runs.
        task, tasks: this process scores share `task` (from 0) of `tasks`, balanced by frames.
        progress: called with the name of each video as it is done.

    Returns:
        The state now; `todo` holds what other tasks have left, and once it is empty the score file is complete.

    Raises:
        InputError: a shard is damaged or lacks what the stream needs, or the disk is full.
    """
    atomic.sweep(measurement.file.parent)
    names = share_of(measurement, state, task, tasks)
    if names:
        _score_videos(measurement, {name: state.todo[name] for name in names}, compute or Compute(), progress)
    return merge(measurement, state)


def share_of(measurement: Measurement, state: ScoringState, task: int, tasks: int) -> list[str]:
    """The videos that are left of one task's share of the list."""
    mine = _of_task(measurement, task, tasks)
    return [video for video in state.todo if video in mine]


def _of_task(measurement: Measurement, task: int, tasks: int) -> set[str]:
    listed = [measurement.dataset.videos[video] for video in measurement.videos]
    return {video.id for video in share(listed, task, tasks)}


def merge(measurement: Measurement, state: ScoringState) -> ScoringState:
    """What is left of an earlier state; once that is nothing, the parts become one score file.

    Raises:
        InputError: the score file cannot be written.
    """
    scored, read = _collect(measurement, state)
    done = set(scored.videos) if scored else set()
    todo = {video: shard for video, shard in state.todo.items() if video not in done}
    if scored is not None and not todo and (not measurement.file.is_file() or measurement.parts.is_dir()):
        score_file.write_scores(measurement.file, scored)
        _remove_parts(measurement.parts)
    missing = tuple(video for video in state.missing if video not in done)
    return ScoringState(scored, todo, missing, read)


def discard(measurement: Measurement, task: int = 0, tasks: int = 1) -> None:
    """Delete what one task has scored of an unfinished measurement, and nothing of other tasks or finished ones.

    Raises:
        OtherFormat: there is a file of a later version among all of it; nothing is deleted.
    """
    mine, parts = _of_task(measurement, task, tasks), []
    for path in _score_files(measurement):
        try:
            scores = score_file.read_scores(path)
            of_task = set(scores.videos) <= mine
        except OtherFormat:
            raise
        except (InputError, FileNotFoundError):
            of_task = True
        if of_task and path.parent == measurement.parts:
            parts.append(path)
    for path in parts:
        path.unlink(missing_ok=True)


def _finished(measurement: Measurement) -> dict[Path, int]:
    """The score files that are no parts, with their times of writing."""
    files = [path for path in _score_files(measurement) if path.parent != measurement.parts]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def _score_videos(
    measurement: Measurement,
    shards: Mapping[str, ShardAddress],
    compute: Compute,
    progress: Callable[[str], None],
) -> None:
    """Score videos and save them as parts, including those finished before an error or a signal ends it."""
    checkpoint, names = measurement.checkpoint, list(shards)
    columns = checkpoint.columns(measurement.dataset.name, measurement.dataset.classes)
    forward = logits_forward(load_network(checkpoint), columns, compute)
    fresh: list[tuple[str, npt.NDArray[np.float32]]] = []
    saved = time.monotonic()

    def save() -> None:
        if fresh:
            part = atomic.temporary_path(measurement.parts / "part").name.replace(".tmp-", "part-")
            score_file.write_scores(measurement.parts / f"{part}.h5", _scores_of(measurement, fresh))
            fresh.clear()

    try:
        for index, outputs in view_outputs(
            forward, checkpoint.volume, list(shards.values()), measurement.views, compute
        ):
            fresh.append((names[index], outputs))
            progress(names[index])
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()


def _scores_of(measurement: Measurement, scored: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> Scores:
    averaged = [video_scores(outputs) for _, outputs in scored]
    videos, dataset = tuple(video for video, _ in scored), measurement.dataset
    return dataclasses.replace(
        measurement.empty(),
        videos=videos,
        groups=tuple(dataset.videos[video].group for video in videos),
        labels=np.array([dataset.label(video) for video in videos], np.int32),
        logits=np.stack([logits for logits, _ in averaged]),
        softmax=np.stack([softmax for _, softmax in averaged]),
        views=np.array([len(outputs) for _, outputs in scored], np.int32),
    )


def _collect(
    measurement: Measurement, before: ScoringState | None = None
) -> tuple[Scores | None, dict[Path, int]]:
    """Everything scored so far by this checkpoint with these views, of videos still on the list, and the files read.

    A file that is damaged, or that another checkpoint made, does not count: its videos are scored again, and merging
    replaces it. Raises Unreadable if the system does not let a file be read, and OtherFormat if a later version wrote
    it: what is in it may be good. Files that were read `before`, and are unchanged, are not read again.
    """
    wanted, read = measurement.empty(), dict(before.read) if before else {}
    found = [before.scored] if before and before.scored else []
    for path in _score_files(measurement):
        try:
            written = path.stat().st_mtime_ns
            if read.get(path) == written:
                continue
            scores = score_file.read_scores(path)
        except (Unreadable, OtherFormat):
            raise
        except (InputError, FileNotFoundError):
            continue
        read[path] = written
        if wanted.same_measurement(scores):
            found.append(scores)
    if not found:
        return None, read
    merged, listed = score_file.joined(found), set(measurement.videos)
    return merged.take(
        np.array([row for row, video in enumerate(merged.videos) if video in listed], np.int64)
    ), read


def _score_files(measurement: Measurement) -> list[Path]:
    """The score file, whether it is there or not, one where earlier versions kept it, and the parts not merged yet."""
    folder = measurement.parts
    # Not glob, which takes a folder that may not be listed for an empty one.
    parts = sorted(path for path in folder.iterdir() if PART.fullmatch(path.name)) if folder.is_dir() else []
    files = [measurement.file]
    if measurement.other:
        name, own = f"{measurement.part}-{measurement.views}", measurement.checkpoint.run.dataset
        with contextlib.suppress(Damaged, OtherFormat):
            files.append(score_file.score_path(measurement.run, own, measurement.dataset.name, name))
    return [*dict.fromkeys(files), *parts]


def _remove_parts(folder: Path) -> None:
    # Another task may be removing the same folder, or still be writing videos that it scored twice.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
