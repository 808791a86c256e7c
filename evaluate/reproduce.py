"""Reproducing the paper's tables: which runs a table needs (published.toml), in which order, and what they reach.

Everything is done by the same commands that a user would type, so every run and score file that exists is used as it
is, and an interrupted reproduction resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from evaluate.options import ReproduceOptions
from evaluate.published import experiments
from evaluate.views import Views
from pipeline import atomic
from pipeline.catalog import choose_dataset, load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root
from pipeline.runs import Fusion, RunPaths, chain_run_name
from pipeline.text import many, printable, typed
from train.training_data import ADDED


@dataclass(frozen=True)
class Step:
    """One command of a reproduction.

    Attributes:
        what: what it is for.
        words: the command line after `python -m`.
    """

    what: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{typed(self.words[0])} {shlex.join(self.words[1:])}"


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        runs: the paper's runs whose scores it needs.
        fusion: of their scores.
        published: the paper's accuracy in %, where it gives one for the dataset.
        lacking: what must be given before it can be made; "" if nothing.
    """

    runs: tuple[str, ...]
    fusion: Fusion = "none"
    published: float | None = None
    lacking: str = ""


@dataclass(frozen=True)
class Reproduction:
    """On which data a table is reproduced, and with what.

    Attributes:
        dataset, splits: what is learned and measured.
        data: the data root.
        other: the second dataset, if there is one.
        imagenet: ImageNet weights, if they were given.
        miniature: small networks and few iterations.
        overrides: recipe values of every run, as KEY=VALUE.
        keep: recipe keys whose values a miniature leaves as they are.
    """

    dataset: str
    splits: tuple[int, ...]
    data: Path
    other: str | None = None
    imagenet: Path | None = None
    miniature: bool = False
    overrides: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def cells(table: Mapping[str, Any], reproduction: Reproduction) -> list[tuple[str, list[Cell]]]:
    """The rows of a table with their cells; a cell that cannot be made says what is lacking."""
    known = experiments()["runs"]
    rows = []
    for row in table["rows"]:
        made = []
        for cell in row["cells"]:
            published = cell.get("published")
            if isinstance(published, Mapping):
                published = published.get(reproduction.dataset)
            elif reproduction.dataset not in table["datasets"]:
                published = None
            lacking = {text for run in cell.get("runs", ()) if (text := _lacking(known, run, reproduction))}
            made.append(
                Cell(
                    tuple(cell.get("runs", ())),
                    cell.get("fusion", "none"),
                    published,
                    "; ".join(sorted(lacking)),
                )
            )
        rows.append((row["name"], made))
    return rows


def plan(rows: Sequence[tuple[str, Sequence[Cell]]], reproduction: Reproduction) -> list[Step]:
    """The commands that make every cell that can be made, each once, in an order in which nothing is missing."""
    known = experiments()["runs"]
    wanted = [
        (run, cell.fusion == "svm")
        for _, made in rows
        for cell in made
        if not cell.lacking
        for run in cell.runs
    ]
    if not wanted:
        return []
    steps = _flow_steps({run for run, _ in wanted}, known, reproduction)
    for split in reproduction.splits:
        for run in dict.fromkeys(run for run, _ in wanted):
            steps += _training_steps(run, split, known, reproduction)
    for split in reproduction.splits:
        for run in dict.fromkeys(run for run, _ in wanted):
            parts = ["test"] + (["train"] if (run, True) in wanted else [])
            steps += [_score_step(run, split, part, reproduction) for part in parts]
    return steps


def run_name(run: str, split: int, reproduction: Reproduction) -> str:
    """Name of the run folder: apart from the user's own runs, and with miniatures apart from full ones."""
    return chain_run_name("paper-mini" if reproduction.miniature else "paper", run, split)


def home(run: str, reproduction: Reproduction) -> Reproduction:
    """From which dataset's side a run is trained: a network that learns from two datasets equally is trained once, for
    both.

    Its folder is with the one of the two that has it already, else with the one that is reproduced.
    """
    if experiments()["runs"][run].get("also") != "other" or reproduction.other is None:
        return reproduction
    swapped = dataclasses.replace(reproduction, dataset=reproduction.other, other=reproduction.dataset)
    sides = [reproduction, swapped]
    begun = [
        side for side in sides if any(run_folder(run, split, side).is_dir() for split in reproduction.splits)
    ]
    return (begun or sides)[0]


def run_folder(run: str, split: int, reproduction: Reproduction) -> Path:
    """The folder of a run, and the dataset whose side it is trained from."""
    return DatasetPaths(reproduction.data, reproduction.dataset).run(run_name(run, split, reproduction))


def accuracy(cell: Cell, reproduction: Reproduction) -> float:
    """A cell's accuracy in %, the mean over the splits, from the score files.

    Raises:
        InputError: scores that are missing, damaged, or do not belong together.
    """
    from evaluate import results, score_file

    views = VIEWS[reproduction.miniature]
    found = []
    for split in reproduction.splits:
        files = {
            part: [
                score_file.read_scores(
                    score_file.score_path(
                        RunPaths(run_folder(run, split, side)),
                        side.dataset,
                        reproduction.dataset,
                        f"{part}-{views}",
                    )
                )
                for run in cell.runs
                for side in [home(run, reproduction)]
            ]
            for part in (["test", "train"] if cell.fusion == "svm" else ["test"])
        }
        result = results.evaluate_split(files["test"], [cell.fusion], files.get("train", []))
        found.append(result.rows[-1].metrics.accuracy)
    return 100 * float(np.mean(found))


def reproduce_table(options: ReproduceOptions, console: Console) -> None:
    """Make one of the paper's tables: print the plan, run it, print the table beside the published one, save it.

    Raises:
        InputError: unknown dataset or split, or a command failed.
    """
    table = experiments()["tables"][options.table]
    reproduction = _reproduction(table, options)
    rows = cells(table, reproduction)
    steps = plan(rows, reproduction)
    splits = ", ".join(map(str, reproduction.splits))
    small = ", in miniature (small network, few iterations, low accuracy)" if reproduction.miniature else ""
    for line in (
        f"Table {options.table}: {table['title']}",
        f"On dataset {reproduction.dataset}, splits {splits}{small}; {many(len(steps), 'step')}",
    ):
        console.print(line, markup=False, highlight=False)
    run_steps(steps, options.dry_run, console)
    if options.dry_run:
        _print_lacking(rows, console)
        return
    measured = [
        (name, [accuracy(cell, reproduction) if cell.runs and not cell.lacking else None for cell in made])
        for name, made in rows
    ]
    console.print(_rich_table(options.table, table, reproduction, rows, measured))
    _print_lacking(rows, console)
    folder = DatasetPaths(reproduction.data, reproduction.dataset).results(
        f"paper-table{options.table}" + ("-mini" if reproduction.miniature else "")
    )
    path = folder / "table.json"
    with atomic.writing(path) as temporary:
        temporary.write_text(json.dumps(_as_dict(table, reproduction, rows, measured), indent=1) + "\n")
    console.print(printable(f"saved {path}"), markup=False, highlight=False, soft_wrap=True)


def run_steps(steps: Sequence[Step], dry_run: bool, console: Console) -> None:
    """Print each command and, unless it is a dry run, run it.

    Raises:
        InputError: a command failed.
    """
    for number, step in enumerate(steps, 1):
        console.print(
            f"[{number}/{len(steps)}] {step.what}: {step}", markup=False, highlight=False, soft_wrap=True
        )
        if dry_run:
            continue
        # -P: not a train.py of the current folder
        status = subprocess.run([sys.executable, "-P", "-m", *step.words], check=False).returncode
        if status:
            raise InputError(
                f"step {number} ended with exit status {status} (see above); repeat it alone with: {step}"
            )


VIEWS = {False: Views(), True: Views(5, 5)}
"""Views of full and miniature reproductions."""
MINIATURE = {
    "model": "resnet18",
    "width": "0.25",
    "crop": "56",
    "short_side": "64",
    "batch": "32",
    "iterations": "150",
    "learning_rate": "0.05",
    "schedule": "cosine",
    "dropout": "0.2",
    "clip": "10.0",
}


def _reproduction(table: Mapping[str, Any], options: ReproduceOptions) -> Reproduction:
    data = data_root(options.dataset.data)
    dataset = choose_dataset(options.dataset.dataset, data)
    record = load_dataset(dataset, data)
    splits = options.splits or tuple(split for split in table["splits"] if split in record.splits)
    for split in splits:
        record.split(split)
    if not splits:
        raise InputError(
            f"{dataset} has none of the table's splits {table['splits']}: name others with --split"
        )
    _check_needed(table, options)
    return Reproduction(
        dataset,
        splits,
        data,
        _second_dataset(table, dataset, options.other),
        options.init,
        dataset == "demo" if options.miniature is None else options.miniature,
        options.overrides,
        tuple(table.get("miniature_keeps", ())),
    )


def _check_needed(table: Mapping[str, Any], options: ReproduceOptions) -> None:
    """Refuse --other and --init for a table of which no run needs them."""
    known = experiments()["runs"]
    runs = {run for row in table["rows"] for cell in row["cells"] for run in cell.get("runs", ())}
    if options.other and not any("other" in known[run].values() for run in runs):
        raise click.UsageError(f"--other: no run of table {options.table} needs a second dataset")
    if options.init and not any(known[run].get("init") == "imagenet" for run in runs):
        raise click.UsageError(f"--init: no run of table {options.table} starts from ImageNet weights")


def _second_dataset(table: Mapping[str, Any], dataset: str, wanted: str | None) -> str | None:
    """The dataset asked for, else the table's own second one where the first is one of the paper's."""
    other = wanted or table.get("other")
    if isinstance(other, Mapping):
        other = other.get(dataset)
    if other == dataset or (not wanted and dataset not in table["datasets"]):
        return None
    return other


def _lacking(known: Mapping[str, Any], run: str, reproduction: Reproduction) -> str:
    needs = known[run]
    if needs.get("init") == "imagenet" and reproduction.imagenet is None:
        return (
            "starts from ImageNet weights: give --init FILE, a checkpoint of a run trained on ImageNet "
            "or a state dict of the same network"
        )
    if (
        "other" in (needs.get("init_dataset"), needs.get("add_classes"), needs.get("also"))
        and reproduction.other is None
    ):
        return "learns from a second dataset: give --other DATASET"
    if needs.get("add_classes") == "other" and reproduction.other is not None:
        listed = ADDED / f"{reproduction.dataset}+{reproduction.other}.txt"
        if not listed.is_file():
            return (
                f"learns added classes of {reproduction.other}: name those that join in {listed}, one a line"
            )
    return ""


def _flow_steps(runs: set[str], known: Mapping[str, Any], reproduction: Reproduction) -> list[Step]:
    backward = any(known[run].get("needs_backward") for run in runs)
    second = any("other" in known[run].values() for run in runs)
    datasets = [reproduction.dataset] + ([reproduction.other] if second and reproduction.other else [])
    return [
        Step(
            f"frames and flow of {dataset}",
            (
                "extract_flow",
                f"--dataset={dataset}",
                f"--data={reproduction.data}",
                *(["--direction=both"] if backward and dataset == reproduction.dataset else []),
            ),
        )
        for dataset in datasets
    ]


def _training_steps(run: str, split: int, known: Mapping[str, Any], reproduction: Reproduction) -> list[Step]:
    needs = known[run]
    reproduction = home(run, reproduction)
    words = ["train", f"--dataset={reproduction.dataset}", f"--data={reproduction.data}", f"--split={split}"]
    words += [f"--stream={needs['stream']}", f"--recipe={run}", f"--run={run_name(run, split, reproduction)}"]
    before: list[Step] = []
    if needs.get("init") == "imagenet":
        words.append(f"--init={reproduction.imagenet}")
    elif "init" in needs:
        assert reproduction.other is not None
        source = dataclasses.replace(reproduction, dataset=reproduction.other, splits=(1,), other=None)
        before = _training_steps(needs["init"], 1, known, source)
        folder = DatasetPaths(reproduction.data, reproduction.other).run(run_name(needs["init"], 1, source))
        words.append(f"--init={folder}")
    if "also" in needs:
        words.append(f"--also={reproduction.other}")
    if "add_classes" in needs:
        words.append(f"--add-classes={reproduction.other}")
    small = (
        [f"{key}={value}" for key, value in MINIATURE.items() if key not in reproduction.keep]
        if reproduction.miniature
        else []
    )
    given = {override.partition("=")[0] for override in reproduction.overrides}
    for override in (*(one for one in small if one.partition("=")[0] not in given), *reproduction.overrides):
        words += ["--set", override]
    return [*before, Step(f"train {run}, split {split} of {reproduction.dataset}", tuple(words))]


def _score_step(run: str, split: int, part: str, reproduction: Reproduction) -> Step:
    views, side = VIEWS[reproduction.miniature], home(run, reproduction)
    named = run_name(run, split, reproduction)
    words = [
        "evaluate",
        "score",
        f"--dataset={reproduction.dataset}",
        f"--data={reproduction.data}",
        f"--split={split}",
    ]
    words += [
        f"--run={named if side.dataset == reproduction.dataset else run_folder(run, split, side)}",
        f"--part={part}",
        f"--frames={views.frames}",
        f"--crops={views.crops}",
    ]
    return Step(f"score {run} on the {part} list of split {split}", tuple(words))


def _rich_table(
    name: str,
    table: Mapping[str, Any],
    reproduction: Reproduction,
    rows: Sequence[tuple[str, Sequence[Cell]]],
    measured: Sequence[tuple[str, Sequence[float | None]]],
) -> Table:
    shown = Table(title=f"Table {name}: {table['title']}\nhere: {reproduction.dataset}; accuracy, %")
    shown.add_column("")
    for column in table["columns"]:
        shown.add_column(f"{column}\nhere", justify="right")
        shown.add_column("\npaper", justify="right", style="dim")
    for (label, made), (_, values) in zip(rows, measured, strict=True):
        texts = []
        for cell, value in zip(made, values, strict=True):
            texts += [
                f"{value:.1f}" if value is not None else ("needs more" if cell.lacking else "-"),
                f"{cell.published:.1f}" if cell.published is not None else "-",
            ]
        shown.add_row(label, *texts)
    return shown


def _print_lacking(rows: Sequence[tuple[str, Sequence[Cell]]], console: Console) -> None:
    for name, made in rows:
        for lacking in dict.fromkeys(cell.lacking for cell in made if cell.lacking):
            console.print(f"{name}: {lacking}", markup=False, highlight=False, soft_wrap=True)


def _as_dict(
    table: Mapping[str, Any],
    reproduction: Reproduction,
    rows: Sequence[tuple[str, Sequence[Cell]]],
    measured: Sequence[tuple[str, Sequence[float | None]]],
) -> dict[str, Any]:
    return {
        "title": table["title"],
        "dataset": reproduction.dataset,
        "splits": list(reproduction.splits),
        "miniature": reproduction.miniature,
        "views": str(VIEWS[reproduction.miniature]),
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "column": column,
                        "runs": list(cell.runs),
                        "fusion": cell.fusion,
                        "accuracy": value,
                        "published": cell.published,
                        "lacking": cell.lacking,
                    }
                    for column, cell, value in zip(table["columns"], made, values, strict=True)
                ],
            }
            for (name, made), (_, values) in zip(rows, measured, strict=True)
        ],
    }
