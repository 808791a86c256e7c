"""What the commands of `python -m evaluate` do: choose runs, score them, fuse their scores, save, report."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluate import caveats, held_out, results, score_file
from evaluate import score as scoring
from evaluate.inference import Compute, computing
from evaluate.options import (
    EvaluateOptions,
    FeaturesOptions,
    FuseOptions,
    FusionOptions,
    ReportOptions,
    RunOptions,
    ScoredShardsOptions,
    ScoreOptions,
)
from evaluate.results import SplitResult
from evaluate.runs import TrainedRun, choose_runs
from evaluate.score import Measurement, ScoringState
from evaluate.score_file import Scores
from evaluate.views import Views
from pipeline.catalog import Dataset, choose_dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.manifest import read_shard_set
from pipeline.options import DatasetOptions, ShareOptions
from pipeline.ownership import owning_name
from pipeline.paths import DatasetPaths, data_root
from pipeline.progress import Progress, rate, reporting_compilation
from pipeline.runs import Fusion, SvmScores
from pipeline.shard import ShardAddress
from pipeline.shard_sets import choose_shard_set
from pipeline.text import duration, many, printable, typed
from train.checkpoint import Checkpoint, load_checkpoint

Chosen = Mapping[int, Sequence[TrainedRun]]
"""The runs of each split, in the order of fusion."""
ShardIndex = Callable[[Path], Mapping[str, ShardAddress]]
"""The shards of a set's folder by video; a command walks each folder once."""


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """Score what is not scored yet, fuse the streams, print and save the results.

    Raises:
        InputError: runs that do not fit the dataset or each other, missing or damaged shards.
    """
    dataset, paths = open_dataset(options.dataset, console)
    chosen = chosen_runs(paths, options.choose, console)
    views, train_views = options.views, options.train_views.views(options.views)
    computes = computing(options.compute)
    shards: ShardIndex = functools.cache(read_shard_set)

    def score_part(run: TrainedRun, split: int, part: str, part_views: Views) -> None:
        checkpoint = checked_checkpoint(run, dataset, options.choose)
        measurement = measurement_of(
            run, checkpoint, dataset, paths, split, part, part_views, options.shard_set
        )
        score_list(measurement, shards, options.shard_set.allow_missing, options.overwrite, computes, console)

    for split, runs in chosen.items():
        held = held_out.wanted(options.fusion.svm_scores, dataset, split, runs)
        for run in runs:
            score_part(run, split, "test", views)
            if "svm" not in options.fusion.fusions or len(runs) < 2:
                continue
            if not held:
                score_part(run, split, "train", train_views)
                continue
            for fold in held_out.train_folds(
                run, dataset, paths, options.compute.device, options.shard_set.allow_missing, console
            ):
                score_part(fold, split, "held-out", train_views)
    fused = fuse_runs(dataset, paths, chosen, views, train_views, options.fusion, console)
    folder = paths.results(options.fusion.name or default_results_name(list(chosen)))
    save(folder, fused, console)
    if options.report:
        report(folder, dataset, paths, fused, chosen, shards, console, options.details)


def score(options: ScoreOptions, console: Console) -> None:
    """Score one list of each chosen run, or a task's share of it.

    Raises:
        InputError: runs that do not fit the dataset, missing or damaged shards.
    """
    computes = computing(options.compute)
    shards: ShardIndex = functools.cache(read_shard_set)
    for measurement in chosen_measurements(options, console, options.length):
        score_list(
            measurement,
            shards,
            options.shard_set.allow_missing,
            options.overwrite,
            computes,
            console,
            options.share,
        )


def chosen_measurements(
    options: ScoreOptions | FeaturesOptions,
    console: Console,
    length: int | None = None,
    only_one: str = "",
) -> Iterator[Measurement]:
    """What the options mean: one list of each chosen run; prints the dataset where none was named, and the runs.

    Args:
        options: of the command.
        console: for what was chosen.
        length: refuse temporal runs of another L.
        only_one: why there must be only one run, if so.

    Raises:
        InputError: no such dataset, run or shard set, runs that do not fit the dataset, or too many runs.
    """
    dataset, paths = open_dataset(options.dataset, console)
    chosen = chosen_runs(paths, options.choose, console)
    if only_one and sum(map(len, chosen.values())) > 1:
        raise InputError(f"{only_one}, but several runs were chosen: name one with --run")
    for split, runs in chosen.items():
        for run in runs:
            checkpoint = checked_checkpoint(run, dataset, options.choose, length)
            yield measurement_of(
                run, checkpoint, dataset, paths, split, options.part, options.views, options.shard_set
            )


def fuse(options: FuseOptions, console: Console) -> None:
    """Fuse the existing scores of the dataset's runs, print and save the results; with ReportOptions, the report too.

    Raises:
        InputError: scores that are missing, damaged, or do not belong together.
    """
    dataset, paths = open_dataset(options.dataset, console)
    chosen = chosen_runs(paths, options.choose, console)
    train_views = options.train_views.views(options.views)
    fused = fuse_runs(dataset, paths, chosen, options.views, train_views, options.fusion, console)
    folder = paths.results(options.fusion.name or default_results_name(list(chosen)))
    save(folder, fused, console)
    if isinstance(options, ReportOptions):
        report(
            folder,
            dataset,
            paths,
            fused,
            chosen,
            functools.cache(read_shard_set),
            console,
            options.details,
        )


def fuse_files(files: Sequence[Path], options: FusionOptions, data: Path | None, console: Console) -> None:
    """Fuse given score files: those of test lists by split; those of training lists are for the SVM.

    Raises:
        InputError: scores that are damaged or do not belong together, or none of a test list.
    """
    read = [score_file.read_scores(path) for path in files]
    splits = sorted({scores.split for scores in read if scores.part == "test"})
    if not splits:
        raise InputError("the given files are all of training lists; fusion is measured on test lists")

    def of(split: int, part: str) -> list[Scores]:
        return [scores for scores in read if scores.split == split and scores.part == part]

    fused = [
        results.evaluate_split(
            of(split, "test"), options.fusions, of(split, "train"), options.weights or None, options.on
        )
        for split in splits
    ]
    paths = DatasetPaths(data_root(data), fused[0].streams[0].dataset)
    save(paths.results(options.name or default_results_name(splits)), fused, console)


# --- the steps ------------------------------------------------------------------------------------------------------


def open_dataset(options: DatasetOptions, console: Console) -> tuple[Dataset, DatasetPaths]:
    """The dataset asked for, or the one that `choose_dataset` takes, which is printed.

    Raises:
        InputError: unknown, or several are known and none is named.
    """
    root = data_root(options.data)
    name = choose_dataset(options.dataset, root)
    if options.dataset is None:
        console.print(printable(f"Dataset: {name} (in {root})"), highlight=False, markup=False)
    return load_dataset(name, root), DatasetPaths(root, name)


def chosen_runs(paths: DatasetPaths, options: RunOptions, console: Console) -> dict[int, list[TrainedRun]]:
    """The runs that the options mean; prints them.

    Raises:
        InputError: see `evaluate.runs.choose_runs`.
    """
    chosen = choose_runs(paths, options.runs, options.splits, options.streams)
    for split, of_split in chosen.items():
        names = ", ".join(f"{run.name} ({run.stream}, {run.checkpoint.name})" for run in of_split)
        console.print(f"Split {split}: {names}", highlight=False, markup=False)
    return chosen


def checked_checkpoint(
    run: TrainedRun, dataset: Dataset, options: RunOptions, length: int | None = None
) -> Checkpoint:
    """The run's checkpoint, if it fits the dataset and what was asked for; raises as `score.check_checkpoint` does."""
    checkpoint = load_checkpoint(run.checkpoint)
    stream = options.streams[0] if len(options.streams) == 1 else None
    scoring.check_checkpoint(checkpoint, dataset, stream, length)
    return checkpoint


def measurement_of(
    run: TrainedRun,
    checkpoint: Checkpoint,
    dataset: Dataset,
    paths: DatasetPaths,
    split: int,
    part: str,
    views: Views,
    options: ScoredShardsOptions,
) -> Measurement:
    """What is to be scored: from the shard set asked for, else the run's own, else `choose_shard_set`'s.

    Raises:
        InputError: no such shard set.
    """
    shard_set = choose_shard_set(paths, options.shards or run.record.shard_sets.get(dataset.name))
    return Measurement(dataset, run.paths, checkpoint, split, part, paths.shards(shard_set), views)


def score_list(
    measurement: Measurement,
    shards: ShardIndex,
    allow_missing: bool,
    overwrite: bool,
    computes: Sequence[Compute],
    console: Console,
    share: ShareOptions | None = None,
) -> None:
    """Score one run on one list unless that is done; prints what it does and what is missing.

    Raises:
        InputError: shards are damaged, or missing and that was not allowed.
    """
    share = share or ShareOptions()
    if not overwrite and not scoring.scoring_state(measurement, shards(measurement.shards)).todo:
        _score_list(measurement, shards, allow_missing, computes, console, share)  # which may be read-only
        return
    with owning_name(measurement.file, f"{share.task} of {share.tasks}"):
        if overwrite:
            scoring.discard(measurement, share.task, share.tasks)
        _score_list(measurement, shards, allow_missing, computes, console, share, overwrite)


def _score_list(
    measurement: Measurement,
    shards: ShardIndex,
    allow_missing: bool,
    computes: Sequence[Compute],
    console: Console,
    share: ShareOptions,
    anew: bool = False,
) -> None:
    state = scoring.scoring_state(measurement, shards(measurement.shards), anew)
    scoring.check_missing(measurement, state.missing, allow_missing)
    label = f"{measurement.run.name}, {measurement.part} list, {measurement.views} views"
    missing = f"; {many(len(state.missing), 'video')} without a shard left out" if state.missing else ""

    def say(line: str) -> None:
        console.print(f"{label}: {line}", highlight=False, markup=False)

    if not state.todo:
        scoring.merge(measurement, state)
        say(f"all {many(len(measurement.videos) - len(state.missing), 'video')} are scored{missing}")
        return
    place = ", ".join(compute.device for compute in computes)
    part = f", share {share.task} of {share.tasks}" if share.tasks > 1 else ""
    say(f"{many(len(state.todo), 'video')} to score on {place}{part}{missing}")
    mine = scoring.share_of(measurement, state, share.task, share.tasks)
    with Progress(label, len(mine)) as shown:
        if len(computes) == 1:
            with shown.compiling():
                after = scoring.score(
                    measurement, state, computes[0], share.task, share.tasks, lambda video: shown.advance()
                )
        else:
            after = _score_on_all(measurement, state, computes, share, shown)
        seconds = shown.seconds
    if after.todo:
        say(f"this share took {duration(seconds)}; {many(len(after.todo), 'video')} left to other tasks")
    else:
        say(f"took {duration(seconds)}, {rate(len(mine) / max(seconds, 1e-9))} videos/s: {measurement.file}")


def fuse_runs(
    dataset: Dataset,
    paths: DatasetPaths,
    chosen: Chosen,
    views: Views,
    train_views: Views,
    options: FusionOptions,
    console: Console,
) -> list[SplitResult]:
    """Fuse each split's scores. With a single stream and the default fusion, that stream alone is measured.

    Raises:
        InputError: scores that are missing, damaged, or do not belong together.
    """
    fused = []
    for split, of_split in chosen.items():
        test = [read_list(run, dataset, f"test-{views}") for run in of_split]
        train: list[Scores] = []
        if "svm" in options.fusions and len(of_split) > 1:
            train = svm_scores(dataset, paths, split, of_split, train_views, options.svm_scores)
        fusions: Sequence[Fusion] = options.fusions
        if len(of_split) == 1 and options.fusions == ("average",):
            console.print(f"Split {split}: one stream only, nothing to fuse", highlight=False)
            fusions = ("none",)
        unfinished = [line for run in of_split for line in caveats.of_run(run)]
        fused.append(
            results.evaluate_split(test, fusions, train, options.weights or None, options.on, unfinished)
        )
    return fused


def svm_scores(
    dataset: Dataset,
    paths: DatasetPaths,
    split: int,
    runs: Sequence[TrainedRun],
    views: Views,
    asked: SvmScores | None,
) -> list[Scores]:
    """The scores of the training list that an SVM of these runs learns from, one for each run.

    Where nothing was asked for: a small dataset's held-out scores if every run has them, else in-sample ones.

    Raises:
        InputError: scores that are missing or damaged.
    """
    if held_out.wanted(asked, dataset, split, runs):
        found = [held_out.read_held_out(run, dataset, paths, views) for run in runs]
        there = [scores for scores in found if scores is not None]
        if len(there) == len(runs):
            return there
        if asked == "held-out":
            lacking = ", ".join(run.name for run, scores in zip(runs, found, strict=True) if scores is None)
            raise InputError(
                f"no held-out scores of {lacking} with {views} views: make them with "
                f"{typed('evaluate')} --dataset {dataset.name} --split {split} --fusion svm --svm-scores held-out"
            )
    return [read_list(run, dataset, f"train-{views}") for run in runs]


def read_list(run: TrainedRun, dataset: Dataset, part: str) -> Scores:
    """A run's scores of a part of a dataset; InputError if they are missing or damaged."""
    return score_file.read_scores(score_file.score_path(run.paths, run.record.dataset, dataset.name, part))


def default_results_name(splits: Sequence[int]) -> str:
    """Name of the results folder: split1, or splits-1-2-3."""
    return f"split{splits[0]}" if len(splits) == 1 else "splits-" + "-".join(map(str, sorted(splits)))


def save(folder: Path, fused: Sequence[SplitResult], console: Console) -> None:
    """Print the tables and their warnings, and save them."""
    for table in results.tables(fused):
        console.print(table)
    for result in fused:
        for line in result.warnings:
            console.print(
                f"warning: split {result.split}: {line}", highlight=False, markup=False, soft_wrap=True
            )
    for path in results.write(folder, fused):
        console.print(printable(f"saved {path}"), highlight=False, markup=False, soft_wrap=True)


def report(
    folder: Path,
    dataset: Dataset,
    paths: DatasetPaths,
    fused: Sequence[SplitResult],
    chosen: Chosen,
    shards: ShardIndex,
    console: Console,
    details: str | None = None,
) -> Path:
    """Write the report beside the results, with pictures from the shards that were scored, those of a temporal stream
    where there is one; returns its path.
    """
    from evaluate import report as reporting
    from evaluate.provenance import provenance

    stories = [
        reporting.run_story(run.paths, run.recipe, load_checkpoint(run.checkpoint))
        for runs in chosen.values()
        for run in runs
    ]
    path = folder / "report.html"
    streams = sorted((stream for result in fused for stream in result.streams), key=lambda one: one.stream)
    sets = {stream.shards: shards(paths.shards(stream.shards)) for stream in streams}
    pictured = sets[streams[-1].shards]
    with reporting_compilation():
        reporting.write_report(path, fused, stories, pictured, details, provenance(dataset, fused, sets))
    console.print(printable(f"report: {path}"), highlight=False, markup=False, soft_wrap=True)
    return path


@command_errors
def _score_share(*arguments: Any) -> None:
    """`evaluate.score.score` in a process of its own, which reports its errors as a command does."""
    scoring.score(*arguments)


def _score_on_all(
    measurement: Measurement,
    state: ScoringState,
    computes: Sequence[Compute],
    share: ShareOptions,
    shown: Progress,
) -> ScoringState:
    """One process for each GPU; each takes its share of this task's videos."""
    context = multiprocessing.get_context("spawn")
    count = len(computes)
    scored = context.Queue()
    processes = [
        context.Process(
            target=_score_share,
            args=(measurement, state, compute, share.task * count + number, share.tasks * count, scored.put),
        )
        for number, compute in enumerate(computes)
    ]
    for process in processes:
        process.start()
    with contextlib.suppress(queue.Empty):
        while True:
            try:
                scored.get(timeout=0.5)
                shown.advance()
            except queue.Empty:
                if not any(process.is_alive() for process in processes):
                    raise
    for process in processes:
        process.join()
    failed = [
        compute.device for compute, process in zip(computes, processes, strict=True) if process.exitcode
    ]
    if failed:
        raise InputError(
            f"scoring failed on {', '.join(failed)} (see above); what was scored is kept: run it again"
        )
    return scoring.merge(measurement, state)
