"""The penultimate layer's outputs for each video, for other classifiers.

HDF5: attrs as in a score file, and `per` ("video" or "view"); /videos str[n], sorted; per video /features
float32[n,F]; per view /features float32[sum of views,F] and /start int64[n+1], video i having rows start[i] to
start[i+1], position after position, the crops of a position in the order of `inference.crop_views`. For videos outside
a dataset /videos holds their paths in the order given, and dataset, split, part and shards are "", 0, "" and "".
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import numpy.typing as npt
from rich.console import Console

from evaluate.devices import computing
from evaluate.inference import features_forward, load_network, view_outputs
from evaluate.new_videos import make_shards, wanted_request
from evaluate.options import FeaturesOptions, RunOptions, ScoredShardsOptions
from evaluate.progress import progress_of
from evaluate.score import Measurement, check_missing, listed_shards
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.shard import ShardAddress
from train.checkpoint import Checkpoint, find_checkpoint, is_path, load_checkpoint

FORMAT = "two-stream features"


def list_features(measurement: Measurement, options: FeaturesOptions, console: Console) -> Path:
    """Write the features of one run on one list; returns the file.

    Raises:
        InputError: shards are missing and that was not allowed, or the file is there or cannot be written.
    """
    name = f"features-{measurement.part}-{measurement.views}-{options.per}"
    path = options.output or measurement.run.scores(name)
    check_output(path, options.overwrite)
    shards, missing = listed_shards(measurement)
    check_missing(measurement, missing, options.shard_set.allow_missing)
    shards = dict(sorted(shards.items()))
    attributes = {
        "dataset": measurement.dataset.name,
        "split": measurement.split,
        "part": measurement.part,
        "run": measurement.run.name,
        "shards": measurement.shards.name,
    }
    rows = features_of(measurement.checkpoint, shards, options, console)
    return save(path, measurement.checkpoint, attributes, list(shards), rows, options, console)


def video_features(options: FeaturesOptions, console: Console, notes: Console) -> Path:
    """Write one run's features of videos outside any dataset; returns the file.

    Raises:
        InputError: no such run, a checkpoint that does not record how its shards were made, a video that cannot be
            decoded, or a file that is there or cannot be written.
    """
    _check_options_of_videos(options)
    assert options.output is not None
    check_output(options.output, options.overwrite)
    source = find_checkpoint(options.choose.runs[0], options.dataset)
    checkpoint = load_checkpoint(source)
    dataset = checkpoint.run.dataset
    if options.new.like and dataset in checkpoint.requests:
        raise click.UsageError(
            "--like is for a run whose checkpoint does not record how its shards were made"
        )
    wanted = wanted_request(
        checkpoint,
        dataset,
        options.new,
        lambda line: notes.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    with tempfile.TemporaryDirectory(prefix="two-stream-features-") as folder:
        made = make_shards(options.videos, [wanted], Path(folder), options.compute.device)
        if made.faults:
            raise InputError("; ".join(made.faults))
        videos = [str(video) for video in made.videos]
        shards = dict(zip(videos, made.shards[0], strict=True))
        rows = features_of(checkpoint, shards, options, console)
    run = source.absolute() if source.is_dir() else source.absolute().parent
    attributes = {"dataset": "", "split": 0, "part": "", "run": run.name, "shards": ""}
    return save(options.output, checkpoint, attributes, list(shards), rows, options, console)


def features_of(
    checkpoint: Checkpoint, shards: Mapping[str, ShardAddress], options: FeaturesOptions, console: Console
) -> list[npt.NDArray[np.float32]]:
    """Features of each shard's video: float32[views,F], or their mean as float32[1,F] with --per video."""
    videos = list(shards)
    compute = computing(options.compute, most=1)[0]
    forward = features_forward(load_network(checkpoint), compute)
    rows: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(videos)
    with progress_of(console, "features", len(videos)) as advance:
        for index, outputs in view_outputs(
            forward, checkpoint.volume, list(shards.values()), options.views, compute
        ):
            rows[index] = outputs if options.per == "view" else outputs.mean(axis=0, keepdims=True)
            advance(videos[index])
    return rows


def check_output(path: Path, overwrite: bool) -> None:
    """Raise InputError if the file is there and may not be replaced."""
    if path.exists() and not overwrite:
        raise InputError(
            f"{path}: is there already: replace it with --overwrite, or name another with --output"
        )


def save(
    path: Path,
    checkpoint: Checkpoint,
    attributes: Mapping[str, Any],
    videos: Sequence[str],
    rows: Sequence[npt.NDArray[np.float32]],
    options: FeaturesOptions,
    console: Console,
) -> Path:
    """Write the file that the module's docstring describes; returns its path.

    Raises:
        InputError: it cannot be written.
    """
    views = {"frames": options.views.frames, "crops": options.views.crops, "crop": checkpoint.volume.crop}
    with atomic.writing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "format": FORMAT,
                "version": 1,
                **attributes,
                "stream": checkpoint.volume.stream,
                "checkpoint": checkpoint.digest,
                "views": json.dumps(views),
                "per": options.per,
            }
        )
        file.create_dataset("videos", data=list(videos), dtype=h5py.string_dtype())
        file.create_dataset("features", data=np.concatenate(rows))
        if options.per == "view":
            file.create_dataset("start", data=np.cumsum([0, *map(len, rows)]))
    console.print(f"saved {path}", highlight=False, markup=False, soft_wrap=True)
    return path


def _check_options_of_videos(options: FeaturesOptions) -> None:
    """Refuse options that mean nothing for videos outside a dataset, and require those that only they need."""
    of_lists = (options.choose.splits, options.choose.streams, options.part, options.shard_set)
    if of_lists != (RunOptions().splits, RunOptions().streams, "test", ScoredShardsOptions()):
        raise click.UsageError(
            "--split, --stream, --part, --shards and --allow-missing choose videos of a dataset; leave them out "
            "where VIDEOs are given"
        )
    if len(options.choose.runs) != 1 or options.output is None:
        raise click.UsageError("features of VIDEOs need one --run and --output FILE")
    if options.dataset.dataset and is_path(options.choose.runs[0]):
        raise click.UsageError("--dataset goes with a --run that is a name, but it is a path")
    if len(set(options.videos)) != len(options.videos):
        raise click.UsageError("a VIDEO is named twice")
