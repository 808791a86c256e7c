"""The stages of evaluation as the commands run them: choose runs, score, fuse, save, report."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evaluate import report as reporting
from evaluate import results, score_file
from evaluate import runs as running
from evaluate import score as scoring
from evaluate.results import Fusion, On, SplitResult
from evaluate.runs import Run
from evaluate.score import Views, Work
from evaluate.score_file import Scores
from pipeline.catalog import Dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.shard import index_shards
from train.checkpoint import load_checkpoint

LINES_EVERY = 10.0


def chosen_runs(paths: DatasetPaths, options: Mapping[str, Any], console: Console) -> dict[int, list[Run]]:
    """The runs that the options mean, told to the user."""
    chosen = running.choose_runs(paths, options["runs"], options["splits"] or (), options["streams"])
    for split, of_split in chosen.items():
        told = ", ".join(f"{run.name} ({run.stream}, {run.checkpoint.name})" for run in of_split)
        console.print(f"Split {split}: {told}", highlight=False, markup=False)
    return chosen


def devices(name: str) -> list[str]:
    """The devices to score on: every visible GPU for "auto" and "cuda" where there are any, else the CPU.

    Raises:
        InputError: a GPU is asked for that cannot be used.
    """
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return ["cpu"]
    if name in ("auto", "cuda") and count:
        return [f"cuda:{index}" for index in range(count)]
    if name.startswith("cuda") and not count:
        raise InputError(f"--device {name}: torch finds no usable GPU here; use --device cpu")
    try:
        index = torch.device(name).index
    except RuntimeError as error:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if not name.startswith("cuda") or index is None or index >= count:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N with N below {count}")
    return [name]


def computing(options: Mapping[str, Any]) -> tuple[list[str], int, int]:
    """Devices, views per call of the network, and decoding processes, with defaults that suit the machine."""
    places = devices(options["device"])
    gpu = places[0] != "cpu"
    cores = len(os.sched_getaffinity(0))
    workers = options["workers"] if options["workers"] is not None else (min(cores, 16) if gpu else 1)
    return places, options["batch"] or (500 if gpu else 100), workers


def score_run(
    dataset: Dataset,
    paths: DatasetPaths,
    run: Run,
    split: int,
    part: str,
    views: Views,
    options: Mapping[str, Any],
    console: Console,
) -> None:
    """Score one run on one list, if that is not done; says what it does, and what is missing.

    Raises:
        InputError: the run does not fit the dataset, or shards are missing and that was not allowed.
    """
    checkpoint = load_checkpoint(run.checkpoint)
    stream = options["streams"][0] if len(options["streams"]) == 1 else None
    scoring.check_checkpoint(checkpoint, dataset, stream, options.get("length"))
    work = Work(paths, dataset, checkpoint, run.name, split, part, options["shards"] or run.shards, views)
    if options["overwrite"]:
        scoring.discard(work)
    standing = scoring.standing(work)
    scoring.check_missing(work, standing.missing, options["allow_missing"])
    label = f"{run.name}, {part} list, {views} views"
    missing = f"; {len(standing.missing)} videos have no shard and are left out" if standing.missing else ""
    if not standing.todo:
        console.print(
            f"{label}: all {len(work.videos) - len(standing.missing)} videos are scored{missing}",
            highlight=False,
        )
        scoring.score(work)
        return
    task, tasks = options.get("task") or 0, options.get("tasks") or 1
    places, batch, workers = computing(options)
    share = f", share {task} of {tasks}" if tasks > 1 else ""
    console.print(
        f"{label}: {len(standing.todo)} videos to score on {', '.join(places)}{share}{missing}",
        highlight=False,
    )
    begun = time.monotonic()
    with progress(console, label, len(standing.todo)) as advance:
        if len(places) == 1:
            merged = scoring.score(work, places[0], batch, workers, task, tasks, options["bf16"], advance)
        else:
            merged = _score_on_all(work, places, batch, workers, task, tasks, options["bf16"])
    seconds = time.monotonic() - begun
    if merged is None:
        left = len(scoring.standing(work).todo)
        console.print(
            f"{label}: this share is done in {seconds:.0f} s; {left} videos are left to other tasks",
            highlight=False,
        )
    else:
        rate = len(standing.todo) / max(seconds, 1e-9)
        console.print(
            f"{label}: done in {seconds:.0f} s, {rate:.2f} videos/s: {work.file}",
            highlight=False,
            markup=False,
        )


def fuse(
    paths: DatasetPaths,
    chosen: Mapping[int, Sequence[Run]],
    views: Views,
    train_views: Views,
    fusions: Sequence[Fusion],
    weights: Sequence[float] | None,
    on: On,
    console: Console,
) -> list[SplitResult]:
    """Fuse each split's scores. With a single stream and the default fusion, that stream alone is measured."""
    fused = []
    for split, of_split in chosen.items():
        test = [score_file.read_scores(paths.scores(run.name, f"test-{views}")) for run in of_split]
        train = [
            score_file.read_scores(paths.scores(run.name, f"train-{train_views}"))
            for run in of_split
            if "svm" in fusions
        ]
        wanted: Sequence[Fusion] = fusions
        if len(of_split) == 1 and tuple(fusions) == ("average",):
            console.print(f"Split {split}: one stream only, nothing to fuse", highlight=False)
            wanted = ("none",)
        fused.append(results.evaluate_split(test, wanted, train, weights, on))
    return fused


def fuse_files(
    files: Sequence[Path], fusions: Sequence[Fusion], weights: Sequence[float] | None, on: On
) -> list[SplitResult]:
    """Fuse given score files: those of the test lists by split; those of the training lists are for the SVM."""
    read = [score_file.read_scores(path) for path in files]
    splits = sorted({scores.split for scores in read if scores.part == "test"})
    if not splits:
        raise InputError("none of the files holds scores of a test list")

    def of(split: int, part: str) -> list[Scores]:
        return [scores for scores in read if scores.split == split and scores.part == part]

    return [
        results.evaluate_split(of(split, "test"), fusions, of(split, "train"), weights, on)
        for split in splits
    ]


def default_name(splits: Sequence[int]) -> str:
    """Name of the results' folder: split1, or splits-1-2-3."""
    return f"split{splits[0]}" if len(splits) == 1 else "splits-" + "-".join(map(str, sorted(splits)))


def save(folder: Path, fused: Sequence[SplitResult], console: Console) -> None:
    """Print the tables and save them."""
    for table in results.tables(fused):
        console.print(table)
    for path in results.write(folder, fused):
        console.print(f"saved {path}", highlight=False, markup=False, soft_wrap=True)


def report(
    folder: Path,
    paths: DatasetPaths,
    fused: Sequence[SplitResult],
    chosen: Mapping[int, Sequence[Run]],
    console: Console,
) -> Path:
    """Write the report beside the results; returns its path."""
    told = [run for of_split in chosen.values() for run in of_split]
    stories = [running.story(run, load_checkpoint(run.checkpoint)) for run in told]
    path = folder / "report.html"
    reporting.write_report(path, fused, stories, index_shards(paths.shards(told[0].shards)))
    console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)
    return path


def _score_on_all(
    work: Work, places: Sequence[str], batch: int, workers: int, task: int, tasks: int, half: bool
) -> Scores | None:
    """One process for each GPU; each takes its share of this task's videos."""
    context = multiprocessing.get_context("spawn")
    count = len(places)
    processes = [
        context.Process(
            target=scoring.score,
            args=(work, place, batch, max(1, workers // count), task * count + number, tasks * count, half),
        )
        for number, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [place for place, process in zip(places, processes, strict=True) if process.exitcode]
    if failed:
        raise InputError(
            f"scoring failed on {', '.join(failed)} (see above); what was scored is kept: run it again"
        )
    return scoring.score(work, task=task, tasks=tasks)


class progress:
    """A bar on a terminal, lines every `LINES_EVERY` seconds elsewhere; entering gives the function to advance it."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total, self.done = console, label, total, 0
        self.printed = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    def __enter__(self) -> Any:
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=self.total)
        return self._advance

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def _advance(self, video: str) -> None:
        self.done += 1
        self.bar.advance(self.task)
        if not self.console.is_terminal and time.monotonic() - self.printed > LINES_EVERY:
            self.printed = time.monotonic()
            self.console.print(f"  {self.done} of {self.total}, {video}", highlight=False, markup=False)
