"""The paper's experiments as data (published.toml): which runs a table needs, in which order, and what they reach.

Everything is done by the same commands that a user would type, so every run and score file that exists is used as it
is, and a stopped reproduction goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root
from train.training_data import ADDED

EXPERIMENTS = Path(__file__).parent / "published.toml"


@dataclass(frozen=True)
class Step:
    """One command of a reproduction: what it is for, its words after `python -m`, and what it makes."""

    what: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(("python", "-m", *self.words))


@dataclass(frozen=True)
class Cell:
    """One figure of a table: the runs whose scores it needs, their fusion, the published figure, what it lacks."""

    runs: tuple[str, ...]
    fusion: str = "none"
    published: float | None = None
    lacking: str = ""


@dataclass(frozen=True)
class Setting:
    """What a reproduction works on and with; `keep` names the recipe's values that a miniature leaves as they are."""

    dataset: str
    splits: tuple[int, ...]
    data: Path
    other: str | None = None
    imagenet: Path | None = None
    miniature: bool = False
    overrides: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def experiments() -> dict[str, Any]:
    """The paper's runs and tables, as in published.toml."""
    return tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))


def published_rows(dataset: str, split: int | None) -> dict[str, str]:
    """The paper's figures for the rows of a results table, as text; empty where it has none. None: mean over splits."""
    of_dataset = experiments()["report"].get(dataset, {})
    return {
        name: f"{value:.1f}"
        for name, value in of_dataset.get("mean" if split is None else f"split{split}", {}).items()
    }


def cells(table: Mapping[str, Any], setting: Setting) -> list[tuple[str, list[Cell]]]:
    """The rows of a table with their cells; a cell that cannot be made says what is lacking."""
    known = experiments()["runs"]
    rows = []
    for row in table["rows"]:
        made = []
        for cell in row["cells"]:
            published = cell.get("published")
            if isinstance(published, Mapping):
                published = published.get(setting.dataset)
            elif setting.dataset not in table["datasets"]:
                published = None
            lacking = {text for run in cell.get("runs", ()) if (text := _lacking(known, run, setting))}
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


def plan(rows: Sequence[tuple[str, Sequence[Cell]]], setting: Setting) -> list[Step]:
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
    steps = _flow_steps({run for run, _ in wanted}, known, setting)
    for split in setting.splits:
        for run in dict.fromkeys(run for run, _ in wanted):
            steps += _training_steps(run, split, known, setting)
    for split in setting.splits:
        for run in dict.fromkeys(run for run, _ in wanted):
            parts = ["test"] + (["train"] if (run, True) in wanted else [])
            steps += [_score_step(run, split, part, setting) for part in parts]
    return steps


def run_name(run: str, split: int, setting: Setting) -> str:
    """Name of the run folder: apart from the user's own runs, and miniatures apart from full ones."""
    return f"paper-{'mini-' if setting.miniature else ''}{run}-split{split}"


def accuracy(cell: Cell, setting: Setting) -> float:
    """A cell's accuracy in %, the mean over the splits, from the score files."""
    from evaluate import results, score_file

    paths = DatasetPaths(setting.data, setting.dataset)
    views = VIEWS[setting.miniature]
    found = []
    for split in setting.splits:
        files = {
            part: [
                score_file.read_scores(paths.scores(run_name(run, split, setting), f"{part}-{views}"))
                for run in cell.runs
            ]
            for part in (["test", "train"] if cell.fusion == "svm" else ["test"])
        }
        fusions: list[results.Fusion] = [cell.fusion]  # type: ignore[list-item]
        result = results.evaluate_split(files["test"], fusions, files.get("train", []))
        found.append(result.rows[-1].metrics.accuracy)
    return 100 * float(np.mean(found))


def run(options: Mapping[str, Any], console: Console) -> None:
    """Make one of the paper's tables: say what is planned, run it, print the table beside the published one, save it.

    Raises:
        InputError: unknown dataset or split, or a command failed.
    """
    table = experiments()["tables"][options["table"]]
    setting = _setting(table, options)
    rows = cells(table, setting)
    steps = plan(rows, setting)
    console.print(f"Table {options['table']}: {table['title']}", markup=False, highlight=False)
    told = f"dataset {setting.dataset}, splits {', '.join(map(str, setting.splits))}"
    small = ", in miniature (small network, few iterations, low accuracy)" if setting.miniature else ""
    console.print(f"On {told}{small}; {len(steps)} steps", markup=False, highlight=False)
    for number, step in enumerate(steps, 1):
        console.print(
            f"[{number}/{len(steps)}] {step.what}: {step}", markup=False, highlight=False, soft_wrap=True
        )
        if not options["dry_run"]:
            status = subprocess.run([sys.executable, "-m", *step.words], check=False).returncode
            if status:
                raise InputError(
                    f"step {number} ended with exit status {status} (see above); repeat it alone with: {step}"
                )
    if options["dry_run"]:
        _print_lacking(rows, console)
        return
    measured = [
        (name, [accuracy(cell, setting) if cell.runs and not cell.lacking else None for cell in made])
        for name, made in rows
    ]
    console.print(_rich_table(options["table"], table, setting, rows, measured))
    _print_lacking(rows, console)
    folder = DatasetPaths(setting.data, setting.dataset).results(
        f"paper-table{options['table']}" + ("-mini" if setting.miniature else "")
    )
    path = folder / "table.json"
    with atomic.writing(path) as temporary:
        temporary.write_text(json.dumps(_as_dict(table, setting, rows, measured), indent=1) + "\n")
    console.print(f"saved {path}", markup=False, highlight=False, soft_wrap=True)


# Views of full and miniature reproductions, as `Views` prints them.
VIEWS = {False: "25x10", True: "5x5"}
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


def _setting(table: Mapping[str, Any], options: Mapping[str, Any]) -> Setting:
    data = data_root(options["data"])
    dataset = options["dataset"] or table["datasets"][0]
    other = options["other"] or table.get("other")
    if isinstance(other, Mapping):
        other = other.get(dataset)
    record = load_dataset(dataset, data)
    splits = tuple(options["splits"] or [split for split in table["splits"] if split in record.splits])
    for split in splits:
        record.split(split)
    if not splits:
        raise InputError(
            f"{dataset} has none of the table's splits {table['splits']}: name others with --split"
        )
    if other is not None and (
        other == dataset or (not options["other"] and dataset not in table["datasets"])
    ):
        other = None
    miniature = options["miniature"] if options["miniature"] is not None else dataset == "demo"
    return Setting(
        dataset,
        splits,
        data,
        other,
        options["imagenet"],
        bool(miniature),
        tuple(options["overrides"]),
        tuple(table.get("miniature_keeps", ())),
    )


def _lacking(known: Mapping[str, Any], run: str, setting: Setting) -> str:
    needs = known[run]
    if needs.get("init") == "imagenet" and setting.imagenet is None:
        return (
            "starts from ImageNet weights: give --imagenet FILE, a checkpoint of a run trained on ImageNet "
            "or a state dict of the same network"
        )
    if (
        "other" in (needs.get("init_dataset"), needs.get("add_classes"), needs.get("also"))
        and setting.other is None
    ):
        return "learns from a second dataset: give --other DATASET"
    if needs.get("add_classes") == "other" and setting.other is not None:
        listed = ADDED / f"{setting.dataset}+{setting.other}.txt"
        if not listed.is_file():
            return f"learns added classes of {setting.other}: name those that join in {listed}, one a line"
    return ""


def _flow_steps(runs: set[str], known: Mapping[str, Any], setting: Setting) -> list[Step]:
    backward = any(known[run].get("needs_backward") for run in runs)
    second = any("other" in known[run].values() for run in runs)
    datasets = [setting.dataset] + ([setting.other] if second and setting.other else [])
    return [
        Step(
            f"frames and flow of {dataset}",
            (
                "extract_flow",
                f"--dataset={dataset}",
                f"--data={setting.data}",
                *(["--direction=both"] if backward and dataset == setting.dataset else []),
            ),
        )
        for dataset in datasets
    ]


def _training_steps(run: str, split: int, known: Mapping[str, Any], setting: Setting) -> list[Step]:
    needs = known[run]
    words = ["train", f"--dataset={setting.dataset}", f"--data={setting.data}", f"--split={split}"]
    words += [f"--stream={needs['stream']}", f"--recipe={run}", f"--run={run_name(run, split, setting)}"]
    before: list[Step] = []
    if needs.get("init") == "imagenet":
        words.append(f"--init={setting.imagenet}")
    elif "init" in needs:
        assert setting.other is not None
        source = dataclasses.replace(setting, dataset=setting.other, splits=(1,), other=None)
        before = _training_steps(needs["init"], 1, known, source)
        folder = DatasetPaths(setting.data, setting.other).run(run_name(needs["init"], 1, source))
        words.append(f"--init={folder}")
    if "also" in needs:
        words.append(f"--also={setting.other}")
    if "add_classes" in needs:
        words.append(f"--add-classes={setting.other}")
    small = (
        [f"{key}={value}" for key, value in MINIATURE.items() if key not in setting.keep]
        if setting.miniature
        else []
    )
    given = {override.partition("=")[0] for override in setting.overrides}
    for override in (*(one for one in small if one.partition("=")[0] not in given), *setting.overrides):
        words += ["--set", override]
    return [*before, Step(f"train {run}, split {split} of {setting.dataset}", tuple(words))]


def _score_step(run: str, split: int, part: str, setting: Setting) -> Step:
    frames, crops = VIEWS[setting.miniature].split("x")
    words = [
        "evaluate",
        "score",
        f"--dataset={setting.dataset}",
        f"--data={setting.data}",
        f"--split={split}",
    ]
    words += [
        f"--run={run_name(run, split, setting)}",
        f"--part={part}",
        f"--frames={frames}",
        f"--crops={crops}",
    ]
    return Step(f"score {run} on the {part} list of split {split}", tuple(words))


def _rich_table(
    name: str,
    table: Mapping[str, Any],
    setting: Setting,
    rows: Sequence[tuple[str, Sequence[Cell]]],
    measured: Sequence[tuple[str, Sequence[float | None]]],
) -> Table:
    shown = Table(title=f"Table {name}: {table['title']}\nhere: {setting.dataset}; accuracy, %")
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
    setting: Setting,
    rows: Sequence[tuple[str, Sequence[Cell]]],
    measured: Sequence[tuple[str, Sequence[float | None]]],
) -> dict[str, Any]:
    return {
        "title": table["title"],
        "dataset": setting.dataset,
        "splits": list(setting.splits),
        "miniature": setting.miniature,
        "views": VIEWS[setting.miniature],
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
