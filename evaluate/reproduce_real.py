"""The two-stream claim on small sets of real videos: which networks (real.toml), by which commands, and their table.

As for the paper's tables, everything is done by the commands that a user would type, what exists is used as it is, and
an interrupted reproduction resumes where it stopped.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluate import commands, metrics
from evaluate.options import FusionOptions, ReproduceRealOptions
from evaluate.reproduce import Step, run_steps
from evaluate.results import SplitResult
from evaluate.runs import TrainedRun, trained_run
from evaluate.views import Views
from pipeline import atomic
from pipeline.catalog import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root
from pipeline.runs import RunPaths, chain_run_name
from pipeline.text import duration
from train.log import training_seconds

EXPERIMENTS = Path(__file__).parent / "real.toml"
PROJECT = Path(__file__).resolve().parents[1]
DATASETS = ("ut_interaction1", "weizmann4")
WEIGHTS = "weights/vgg16_features_half.pth"
PREFIX = "real"
"""What the runs' names begin with, so that they are apart from the user's own."""


@dataclass(frozen=True)
class Setting:
    """What is reproduced, on which data.

    Attributes:
        source: folder that holds a folder of videos and lists for each dataset.
        weights: weights that spatial networks start from.
        data: the data root.
        splits: numbers of the splits; empty for all of each dataset.
        overrides: recipe values of every run, as KEY=VALUE.
    """

    source: Path
    weights: Path
    data: Path
    splits: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a dataset's table.

    Attributes:
        title: what was measured.
        accuracies: by split, as fractions.
        minutes: of training per split, by the logs of the runs; 0 where nothing was trained for it.
    """

    title: str
    accuracies: Mapping[int, float]
    minutes: float


def experiments() -> dict[str, Any]:
    """The contents of real.toml."""
    return tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))


def reproduce_real(options: ReproduceRealOptions, console: Console) -> None:
    """Import, extract, train, score and fuse; print the table of each dataset and save it.

    Raises:
        InputError: no such folder of videos, unknown splits, or a command failed.
    """
    source = options.source or Path(
        os.environ.get("TWO_STREAM_TEST_DATA") or PROJECT.parent / "shared" / "data"
    )
    setting = Setting(
        source,
        options.init or source / WEIGHTS,
        data_root(options.data),
        options.splits,
        options.overrides,
    )
    begun = time.monotonic()
    for name in options.datasets or DATASETS:
        run_steps([import_step(name, setting)], options.dry_run, console)
        if options.dry_run and not DatasetPaths(setting.data, name).record.is_file():
            console.print(
                f"{name}: its other commands follow from its splits, once it is imported", markup=False
            )
            continue
        dataset = load_dataset(name, setting.data)
        run_steps(steps(dataset, setting), options.dry_run, console)
        if not options.dry_run:
            report(dataset, setting, time.monotonic() - begun, console)
            begun = time.monotonic()


def import_step(name: str, setting: Setting) -> Step:
    """The command that makes a dataset known.

    Raises:
        InputError: its videos and lists are not there.
    """
    videos, lists = (setting.source / name / part for part in ("videos", "splits"))
    for folder in (videos, lists):
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; name the one that holds {name} with --source or TWO_STREAM_TEST_DATA"
            )
    words = (f"--name={name}", f"--videos={videos}", f"--lists={lists}", f"--data={setting.data}")
    return Step(f"import {name}", ("pipeline", "import", "folder", *words))


def steps(dataset: Dataset, setting: Setting) -> list[Step]:
    """The commands for one dataset, the fused networks first, so that an interruption leaves what matters most."""
    about = experiments()
    splits = splits_of(dataset, setting)
    sides = about["short_side"]
    where = (f"--dataset={dataset.name}", f"--data={setting.data}")
    both = any("direction=both" in run.get("set", ()) for run in about["runs"].values())
    made = [
        Step(
            f"frames and flow of {dataset.name}",
            (
                "extract_flow",
                *where,
                f"--short-side={sides.get(dataset.name, sides['default'])}",
                *(["--direction=both"] if both else []),
            ),
        )
    ]
    fused = about["fused"]
    for names in (fused, [name for name in about["runs"] if name not in fused]):
        for split in splits:
            made += [_training_step(name, split, about["runs"][name], where, setting) for name in names]
        for split in splits:
            made.append(_evaluation_step(names, split, about, where, fuse=names == fused))
    return made


def splits_of(dataset: Dataset, setting: Setting) -> tuple[int, ...]:
    """The splits that are measured; InputError names those there are."""
    splits = setting.splits or tuple(dataset.splits)
    for split in splits:
        dataset.split(split)
    return splits


def run_name(name: str, split: int) -> str:
    """Name of a run's folder."""
    return chain_run_name(PREFIX, name, split)


def _training_step(
    name: str, split: int, run: Mapping[str, Any], where: Sequence[str], setting: Setting
) -> Step:
    words = [*where, f"--split={split}", f"--stream={run['stream']}", f"--run={run_name(name, split)}"]
    words += [f"--init={setting.weights}"] if run.get("weights") else []
    for override in (*run.get("set", ()), *setting.overrides):
        words += ["--set", override]
    return Step(f"train {name}, split {split}", ("train", *words))


def _evaluation_step(
    names: Sequence[str], split: int, about: Mapping[str, Any], where: Sequence[str], fuse: bool
) -> Step:
    views = about["views"]
    words = [*where, f"--split={split}", *(f"--run={run_name(name, split)}" for name in names)]
    words += [f"--frames={views['frames']}", f"--crops={views['crops']}"]
    if not fuse:
        return Step(f"score the other networks of split {split}", ("evaluate", "score", *words))
    results_name = f"{PREFIX}-{commands.default_results_name([split])}"
    words += ["--fusion=average", "--fusion=svm", "--svm-scores=held-out", f"--name={results_name}"]
    words += [f"--train-frames={views['training_frames']}", f"--train-crops={views['training_crops']}"]
    return Step(f"score and fuse {' and '.join(names)}, split {split}", ("evaluate", *words))


def table(dataset: Dataset, setting: Setting, console: Console) -> tuple[list[Row], list[str]]:
    """Every row of a dataset from the score files, and the warnings about its splits.

    Raises:
        InputError: scores that are missing or damaged.
    """
    about, paths = experiments(), DatasetPaths(setting.data, dataset.name)
    views = Views(about["views"]["frames"], about["views"]["crops"])
    training_views = Views(about["views"]["training_frames"], about["views"]["training_crops"])
    found: dict[str, dict[int, float]] = {}
    minutes: dict[str, list[float]] = {}
    warnings = []
    for split in splits_of(dataset, setting):
        runs = {name: trained_run(RunPaths(paths.run(run_name(name, split)))) for name in about["runs"]}

        def measured(chosen: Sequence[TrainedRun], fusion: FusionOptions, split: int = split) -> SplitResult:
            return commands.fuse_runs(
                dataset, paths, {split: chosen}, views, training_views, fusion, console
            )[0]

        for name, run in runs.items():
            title = about["runs"][name]["title"]
            row = measured([run], FusionOptions(fusions=("none",))).rows[0]
            found.setdefault(title, {})[split] = row.metrics.accuracy
            minutes.setdefault(title, []).append(training_seconds(run.paths.folder) / 60)
        pair = measured(
            [runs[name] for name in about["fused"]],
            FusionOptions(fusions=("average", "svm"), svm_scores="held-out"),
        )
        for row in pair.rows[len(pair.streams) :]:
            found.setdefault(row.name, {})[split] = row.metrics.accuracy
        warnings += [f"split {split}: {line}" for line in pair.warnings]
    rows = [
        Row(title, accuracies, sum(minutes.get(title, ())) / len(accuracies))
        for title, accuracies in found.items()
    ]
    return rows, warnings


def report(dataset: Dataset, setting: Setting, seconds: float, console: Console) -> None:
    """Print a dataset's table and save it as results/real/table.json."""
    rows, warnings = table(dataset, setting, console)
    splits = splits_of(dataset, setting)
    shown = Table(title=f"{dataset.name}: accuracy, %")
    for column in (
        "",
        *(f"split {split}" for split in splits),
        "mean (spread)",
        "minutes of training a split",
    ):
        shown.add_column(column, justify="right" if column else "left")
    for row in rows:
        mean, spread = metrics.mean_and_spread(list(row.accuracies.values()))
        shown.add_row(
            row.title,
            *(f"{100 * row.accuracies[split]:.1f}" for split in splits),
            f"{100 * mean:.1f} ({100 * spread:.1f})",
            f"{row.minutes:.1f}" if row.minutes else "-",
        )
    console.print(shown)
    for line in warnings:
        console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
    path = DatasetPaths(setting.data, dataset.name).results(PREFIX) / "table.json"
    values = {
        "dataset": dataset.name,
        "rows": [
            {
                "name": row.title,
                "accuracy": {str(k): v for k, v in row.accuracies.items()},
                "minutes": row.minutes,
            }
            for row in rows
        ],
        "warnings": warnings,
    }
    with atomic.writing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    console.print(
        f"{dataset.name}: took {duration(seconds)} this time; saved {path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
