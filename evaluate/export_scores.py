"""Score files in the formats of others: `python -m evaluate export-scores`."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from evaluate import metrics
from evaluate.commands import chosen_runs, open_dataset
from evaluate.options import ExportScoresOptions, ScoreFormat
from evaluate.score_file import Scores, read_scores
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.text import many, printable, spreadsheet_cell


def export_scores(options: ExportScoresOptions, console: Console) -> None:
    """Write the score files asked for in another format, beside them or to a given folder.

    Raises:
        InputError: no such score file, a damaged one, or two that would be written to one file.
    """
    files = options.files or chosen_files(options, console)
    suffix, content = FORMATS[options.format]
    targets: dict[Path, Path] = {}
    for file in files:
        name = f"{file.stem}{suffix}" if options.output is None else f"{_run_of(file)}-{file.stem}{suffix}"
        target = (options.output or file.parent) / name
        if target in targets:
            raise InputError(
                f"{target}: would be written from {targets[target]} and from {file}; export them separately"
            )
        targets[target] = file
    for target, file in targets.items():
        scores = read_scores(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(target) as temporary:
            temporary.write_bytes(content(scores))
        console.print(
            f"{printable(str(target))}: {many(len(scores.videos), 'video')} of {many(len(scores.classes), 'class')}, "
            f"run {printable(scores.run)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def chosen_files(options: ExportScoresOptions, console: Console) -> list[Path]:
    """The score files of the dataset's runs that the options mean.

    Raises:
        InputError: see `evaluate.runs.choose_runs`.
    """
    _, paths = open_dataset(options.dataset, console)
    chosen = chosen_runs(paths, options.choose, console)
    return [run.paths.scores(f"{options.part}-{options.views}") for runs in chosen.values() for run in runs]


def as_csv(scores: Scores) -> bytes:
    """A line for each video: video, class, predicted, then the probability (softmax) of each class under its name."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "class", "predicted", *map(spreadsheet_cell, scores.classes)])
    for video, label, best, shares in zip(
        scores.videos, scores.labels, metrics.predictions(scores.softmax), scores.softmax, strict=True
    ):
        names = (video, scores.classes[label], scores.classes[best])
        writer.writerow([*map(spreadsheet_cell, names), *(f"{share:.7g}" for share in shares.tolist())])
    return buffer.getvalue().encode("utf-8", "surrogateescape")


def as_mmaction2(scores: Scores) -> bytes:
    """The pickle that mmaction2 1.x dumps with `--dump` and its `report_accuracy.py` reads: a list of dicts.

    Each holds tensors `pred_score` float32[C] (softmax), `pred_label` and `gt_label` int64[1], and `num_classes`; and
    the video's name as `video_id`. Videos are sorted by name, so that files of several runs can be fused line by line.
    """
    scores = scores.sorted()
    best = metrics.predictions(scores.softmax)
    samples: Sequence[Mapping[str, Any]] = [
        {
            "video_id": video,
            "num_classes": len(scores.classes),
            "pred_score": torch.from_numpy(shares.copy()),
            "pred_label": torch.tensor([int(guess)]),
            "gt_label": torch.tensor([int(label)]),
        }
        for video, label, guess, shares in zip(
            scores.videos, scores.labels, best, scores.softmax, strict=True
        )
    ]
    return pickle.dumps(samples)


FORMATS: Mapping[ScoreFormat, tuple[str, Callable[[Scores], bytes]]] = {
    "csv": (".csv", as_csv),
    "mmaction2": (".pkl", as_mmaction2),
}
"""Format -> suffix of its files, and their content."""


def _run_of(file: Path) -> str:
    """The run whose folder a score file lies in, else the folder's name."""
    folder = file.absolute().parent
    return folder.parent.name if folder.name == "scores" else folder.name
