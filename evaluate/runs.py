"""Which training runs there are, and which of them to evaluate when the user names none."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.report import RunStory
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from train.checkpoint import Checkpoint, find_checkpoint
from train.log import read_log

STREAM_ORDER = ("spatial", "temporal")


@dataclass(frozen=True)
class Run:
    """A run folder's own words about itself, from its resolved recipe; the checkpoint is not opened for them."""

    name: str
    folder: Path
    stream: str
    split: int
    shards: str
    recipe: str
    checkpoint: Path


def find_runs(paths: DatasetPaths) -> list[Run]:
    """Every run of a dataset that has a checkpoint, by name; folders that are no runs are passed over."""
    if not paths.runs.is_dir():
        return []
    return [run for folder in sorted(paths.runs.iterdir()) if (run := _described(folder)) is not None]


def choose_runs(
    paths: DatasetPaths,
    names: Sequence[str] = (),
    splits: Sequence[int] = (),
    streams: Sequence[str] = (),
) -> dict[int, list[Run]]:
    """The runs to evaluate for each split, spatial before temporal.

    Named runs are taken as they are. Otherwise each split takes one run per stream: the one with the trainer's default
    name `<stream>-split<k>`, else the only one there is.

    Raises:
        InputError: no run, an unknown name, several runs of a stream of which none has the default name, or a split or
            stream without a run.
    """
    there = find_runs(paths)
    if names:
        by_name = {run.name: run for run in there}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise InputError(
                f"{paths.runs}: no finished run {', '.join(unknown)}; there are: {', '.join(by_name) or 'none'}"
            )
        there = [by_name[name] for name in names]
    there = [
        run for run in there if (not splits or run.split in splits) and (not streams or run.stream in streams)
    ]
    wanted = sorted(splits) if splits else sorted({run.split for run in there})
    if not wanted:
        raise InputError(
            f"{paths.runs}: no trained run to evaluate; train first: "
            f"python -m train --dataset {paths.dataset} --split 1 --stream temporal"
        )
    chosen = {}
    for split in wanted:
        of_split = [run for run in there if run.split == split]
        missing = [stream for stream in streams if stream not in {run.stream for run in of_split}]
        if not of_split or missing:
            raise InputError(
                f"{paths.runs}: no trained run of split {split}"
                + (f" for the {', '.join(missing)} stream" if missing else "")
                + f"; train it: python -m train --dataset {paths.dataset} --split {split} --stream "
                + (missing[0] if missing else "temporal")
            )
        chosen[split] = of_split if names else _one_per_stream(of_split, paths)
    return chosen


def story(run: Run, checkpoint: Checkpoint) -> RunStory:
    """What the report tells of a run: its log and its first layer."""
    network = checkpoint.model()
    losses = [record for record in read_log(run.folder) if "loss" in record and "iteration" in record]
    filters = network.first_layer.weight.detach().numpy().astype(np.float32)
    return RunStory(run.name, run.recipe, checkpoint.volume, losses, filters)


def _described(folder: Path) -> Run | None:
    try:
        recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
        run = recipe["run"]
        shards = dict(entry.split("=", 1) for entry in run["shards"].split(","))
        return Run(
            name=folder.name,
            folder=folder,
            stream=str(run["stream"]),
            split=int(run["split"]),
            shards=shards[run["dataset"]],
            recipe=f"{recipe['model']}, {recipe['iterations']} iterations of {recipe['batch']}",
            checkpoint=find_checkpoint(folder),
        )
    except (
        OSError,
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
        KeyError,
        TypeError,
        ValueError,
        InputError,
    ):
        return None


def _one_per_stream(runs: Sequence[Run], paths: DatasetPaths) -> list[Run]:
    chosen = []
    for stream in STREAM_ORDER:
        of_stream = [run for run in runs if run.stream == stream]
        default = [run for run in of_stream if run.name == f"{stream}-split{run.split}"]
        if len(of_stream) > 1 and not default:
            raise InputError(
                f"{paths.runs}: split {runs[0].split} has several {stream} runs: say which with --run: "
                + ", ".join(run.name for run in of_stream)
            )
        chosen += default or of_stream
    return chosen
