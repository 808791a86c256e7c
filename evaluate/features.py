"""What the last layer sees of each video, for other people's classifiers: the penultimate layer's outputs, by video.

HDF5: attrs as in a score file, and `per` ("video" or "view"); /videos str[n], sorted; per video /features
float32[n,F]; per view /features float32[sum of views,F] and /start int64[n+1], video i having rows start[i] to
start[i+1], position after position, the crops of a position in the order of `views.crop_views`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from evaluate import score as scoring
from evaluate.runs import Run
from evaluate.score import Views, Work
from evaluate.stages import computing, progress
from pipeline import atomic
from pipeline.catalog import Dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from train.checkpoint import load_checkpoint

FORMAT = "two-stream features"


def write(
    dataset: Dataset, paths: DatasetPaths, run: Run, split: int, options: Mapping[str, Any], console: Console
) -> Path:
    """Write the features of one run on one list; returns the file.

    Raises:
        InputError: shards are missing and that was not allowed, or the file cannot be written.
    """
    checkpoint = load_checkpoint(run.checkpoint)
    views = Views(options["frames"], options["crops"])
    shard_set = options["shards"] or run.shards
    work = Work(paths, dataset, checkpoint, run.name, split, options["part"], shard_set, views)
    path = Path(
        options["output"] or paths.scores(run.name, f"features-{options['part']}-{views}-{options['per']}")
    )
    if path.exists() and not options["overwrite"]:
        raise InputError(
            f"{path} is there already: write it again with --overwrite, or elsewhere with --output"
        )
    shards, missing = scoring.shards_of(work)
    scoring.check_missing(work, missing, options["allow_missing"])
    videos = sorted(shards)
    device, batch, workers = computing(options)
    network = checkpoint.model().to(device[0])

    def forward(crops: list[Tensor]) -> Tensor:
        with torch.autocast(torch.device(device[0]).type, dtype=torch.bfloat16, enabled=options["bf16"]):
            return network.penultimate(torch.cat(crops))

    rows: list[np.ndarray] = [np.empty(0)] * len(videos)
    with progress(console, f"features of {run.name}", len(videos)) as advance:
        for index, outputs in scoring.score_views(
            forward, checkpoint.volume, [shards[video] for video in videos], views, device[0], batch, workers
        ):
            rows[index] = outputs if options["per"] == "view" else outputs.mean(axis=0, keepdims=True)
            advance(videos[index])
    with atomic.writing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "format": FORMAT,
                "version": 1,
                "dataset": dataset.name,
                "split": split,
                "part": options["part"],
                "stream": checkpoint.volume.stream,
                "run": run.name,
                "checkpoint": checkpoint.digest,
                "shards": shard_set,
                "views": json.dumps(work.empty().settings),
                "per": options["per"],
            }
        )
        file.create_dataset("videos", data=videos, dtype=h5py.string_dtype())
        file.create_dataset("features", data=np.concatenate(rows))
        if options["per"] == "view":
            file.create_dataset("start", data=np.cumsum([0, *map(len, rows)]))
    console.print(f"saved {path}", highlight=False, markup=False, soft_wrap=True)
    return path
