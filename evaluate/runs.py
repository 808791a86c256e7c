"""Which training runs there are, and which of them to evaluate when the user names none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, Unreadable
from pipeline.paths import DatasetPaths
from pipeline.runs import (
    STREAMS,
    RunPaths,
    RunRecord,
    default_run_name,
    find_run,
    read_recipe,
    read_run,
    runs_in,
)
from pipeline.text import typed


@dataclass(frozen=True)
class TrainedRun:
    """A run that has a checkpoint, as its resolved recipe describes it; the checkpoint is not opened.

    Attributes:
        paths: its files.
        record: its dataset, stream, split and shard sets.
        recipe: network and schedule, in a few words.
        checkpoint: the file to score with.
        iterations: of its recipe.
    """

    paths: RunPaths
    record: RunRecord
    recipe: str
    checkpoint: Path
    iterations: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.paths.name

    @property
    def stream(self) -> str:
        """ "spatial" or "temporal"."""
        return self.record.stream


def trained_run(paths: RunPaths) -> TrainedRun:
    """The run in a folder.

    Raises:
        InputError: not a run, a damaged recipe, or no checkpoint yet.
    """
    record, recipe = read_run(paths.folder), read_recipe(paths.folder)
    iterations = recipe.get("iterations")
    if not isinstance(iterations, int):
        raise InputError(f"{paths.recipe}: expected a number of iterations, found {iterations!r}")
    return TrainedRun(paths, record, _described(recipe), paths.scoring_checkpoint(), iterations)


def find_runs(paths: DatasetPaths) -> list[TrainedRun]:
    """Every run of a dataset that has a checkpoint and a split, by name, except runs of folds; others are ignored.

    Raises:
        InputError: the record of a run is damaged or cannot be read: results without it would look complete.
    """
    found = []
    for name in runs_in(paths):
        begun = RunPaths(paths.run(name))
        if not begun.best.is_file() and not begun.checkpoints():
            continue
        try:
            run = trained_run(begun)
        except Unreadable:
            raise
        except InputError as error:
            raise InputError(
                *error.lines, "name the runs to evaluate with --run, or remove this one"
            ) from error
        if run.record.dataset == paths.dataset and run.record.split is not None and run.record.fold is None:
            found.append(run)
    return found


def choose_runs(
    paths: DatasetPaths,
    names: Sequence[str] = (),
    splits: Sequence[int] = (),
    streams: Sequence[str] = (),
) -> dict[int, list[TrainedRun]]:
    """The runs to evaluate for each split, spatial before temporal.

    Named runs are taken as they are, in their order. Otherwise each split takes one run per stream: the one with the
    trainer's default name, else the only one there is.

    Args:
        paths: of the dataset.
        names: runs by name, or by the path of their folder.
        splits: only these.
        streams: only these.

    Raises:
        InputError: no run, an unknown name, several runs of a stream of which none has the default name, or a split or
            stream without a run.
    """
    there = [trained_run(find_run(paths, name)) for name in names] if names else find_runs(paths)
    for run in there:
        if run.record.split is None:
            raise InputError(
                f"{run.paths.folder}: trained on a folder of images, so it has no split of {paths.dataset} to score"
            )
    there = [
        run
        for run in there
        if (not splits or run.record.split in splits) and (not streams or run.stream in streams)
    ]
    wanted = sorted(splits) if splits else sorted({run.record.split for run in there if run.record.split})
    if not wanted:
        raise InputError(
            f"{paths.runs}: no trained run to evaluate; train first: "
            f"{typed('train')} --dataset {paths.dataset} --split 1 --stream temporal"
        )
    chosen = {}
    for split in wanted:
        of_split = [run for run in there if run.record.split == split]
        missing = [stream for stream in streams if stream not in {run.stream for run in of_split}]
        if not of_split or missing:
            raise InputError(
                f"{paths.runs}: no trained run of split {split}"
                + (f" for the {', '.join(missing)} stream" if missing else "")
                + f"; train it: {typed('train')} --dataset {paths.dataset} --split {split} --stream "
                + (missing[0] if missing else "temporal")
            )
        chosen[split] = of_split if names else _one_per_stream(of_split, split, paths)
    return chosen


def _one_per_stream(runs: Sequence[TrainedRun], split: int, paths: DatasetPaths) -> list[TrainedRun]:
    chosen = []
    for stream in STREAMS:
        of_stream = [run for run in runs if run.stream == stream]
        default = [run for run in of_stream if run.name == default_run_name(stream, split)]
        if len(of_stream) > 1 and not default:
            raise InputError(
                f"{paths.runs}: split {split} has several {stream} runs: choose with --run: "
                + ", ".join(run.name for run in of_stream)
            )
        chosen += default or of_stream
    return chosen


def _described(recipe: dict[str, Any]) -> str:
    return f"{recipe.get('model')}, {recipe.get('iterations')} iterations of {recipe.get('batch')}"
