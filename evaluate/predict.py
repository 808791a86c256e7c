"""Classifying videos outside any dataset: frames and flow on the fly, as the runs' own shards were made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from evaluate import fusion
from evaluate.devices import computing
from evaluate.inference import Compute, load_network, logits_forward, video_scores, view_outputs
from evaluate.new_videos import make_shards, wanted_request
from evaluate.options import PredictOptions
from evaluate.views import Views
from pipeline.errors import InputError
from pipeline.shard import ShardAddress
from train.checkpoint import Checkpoint, find_checkpoint, is_path, load_checkpoint


def predict(options: PredictOptions, console: Console, notes: Console) -> None:
    """Print the best classes of each video, one column for each run and one for their fusion.

    Args:
        options: the command's.
        console: for the results.
        notes: for what is assumed.

    Raises:
        InputError: runs that do not fit together, or a video that cannot be decoded; the others are classified first.
    """
    if options.dataset.dataset and all(map(is_path, options.runs)):
        raise click.UsageError("--dataset goes with a --run that is a name; every --run is a path")
    paths = [find_checkpoint(run, options.dataset) for run in options.runs]
    checkpoints = [load_checkpoint(path) for path in paths]
    head, classes = common_classes(checkpoints)
    weights = options.weights or (1.0,) * len(paths)
    if len(weights) != len(paths):
        raise InputError(f"--weights: {len(paths)} runs need as many weights, found {len(weights)}")

    def say(line: str) -> None:
        notes.print(line, markup=False, highlight=False, soft_wrap=True)

    if options.new.like and all(head in checkpoint.requests for checkpoint in checkpoints):
        raise click.UsageError(
            "--like is for runs whose checkpoint does not record how their shards were made"
        )
    wanted = [wanted_request(checkpoint, head, options.new, say) for checkpoint in checkpoints]
    compute = computing(options.compute, most=1)[0]
    with tempfile.TemporaryDirectory(prefix="two-stream-predict-") as folder:
        made = make_shards(options.videos, wanted, Path(folder), options.compute.device)
        softmax = [
            predicted_softmax(checkpoint, head, classes, shards, options.views, compute)
            for checkpoint, shards in zip(checkpoints, made.shards, strict=True)
        ]
    columns = [_column(path, checkpoint) for path, checkpoint in zip(paths, checkpoints, strict=True)]
    for row, video in enumerate(made.videos):
        scores = {column: of_run[row] for column, of_run in zip(columns, softmax, strict=True)}
        if len(paths) > 1:
            scores["fusion"] = _fused([of_run[row] for of_run in softmax], weights)
        _show(video, _best(scores, classes, options.top), options.json, console)
    if made.faults:
        raise InputError("; ".join(made.faults))


def common_classes(checkpoints: Sequence[Checkpoint]) -> tuple[str, tuple[str, ...]]:
    """The head (dataset) that all runs were trained for, and its classes.

    Raises:
        InputError: none in common, or its classes differ.
    """
    first = checkpoints[0]
    main = first.run.dataset
    head = main if main in first.heads else next(iter(first.heads))
    for other in checkpoints[1:]:
        if head not in other.heads:
            raise InputError(
                f"{first.path} was trained for {head}, {other.path} for {', '.join(other.heads)}: nothing in common"
            )
        if set(other.heads[head]) != set(first.heads[head]):
            raise InputError(
                f"{first.path} knows {len(first.heads[head])} classes of {head}, {other.path} "
                f"{len(other.heads[head])}: they cannot be fused"
            )
    return head, first.heads[head]


def predicted_softmax(
    checkpoint: Checkpoint,
    head: str,
    classes: Sequence[str],
    shards: Sequence[ShardAddress],
    views: Views,
    compute: Compute,
) -> list[npt.NDArray[np.float32]]:
    """Mean softmax over the views of each shard's video, float32[C] in the order of `classes`.

    Raises:
        InputError: classes that the head lacks, or a video too short for the stream.
    """
    forward = logits_forward(load_network(checkpoint), checkpoint.columns(head, classes), compute)
    by_video = {
        index: video_scores(outputs)[1]
        for index, outputs in view_outputs(forward, checkpoint.volume, shards, views, compute)
    }
    return [by_video[index] for index in range(len(shards))]


def _fused(softmax: Sequence[npt.NDArray[np.float32]], weights: Sequence[float]) -> npt.NDArray[np.floating]:
    try:
        return fusion.weighted(softmax, weights)
    except ValueError as error:
        raise InputError(f"--weights: {error}") from error


def _column(path: Path, checkpoint: Checkpoint) -> str:
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    return f"{checkpoint.volume.stream} ({folder.name})"


def _best(
    scores: Mapping[str, npt.NDArray[np.floating]], classes: Sequence[str], count: int
) -> dict[str, dict[str, float]]:
    """For each column the best classes with their scores, best first."""
    return {
        name: {classes[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[:count]}
        for name, row in scores.items()
    }


def _show(video: Path, best: Mapping[str, Mapping[str, float]], as_json: bool, console: Console) -> None:
    if as_json:
        print(json.dumps({"video": str(video), **best}, ensure_ascii=False))
        return
    console.print(str(video), markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for name in best:
        table.add_column(name)
    for row in zip(*(top.items() for top in best.values()), strict=True):
        table.add_row(*(f"{label} {100 * score:.1f}%" for label, score in row))
    console.print(table)
