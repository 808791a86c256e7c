"""python -m evaluate: score runs, fuse streams, measure, report; without a subcommand, all of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from evaluate.options import (
    NumberList,
    dataset_options,
    device_options,
    open_dataset,
    run_options,
    view_options,
)
from evaluate.score import Views
from pipeline.errors import InputError, command_errors
from pipeline.paths import DatasetPaths, data_root

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def make_console() -> Console:
    """Output to the terminal at its width; to a file or a job's log, wide enough for every table."""
    return Console(width=None if sys.stdout.isatty() else 130)


def fusion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How streams are fused, and where the results go."""
    for option in reversed(
        [
            click.option(
                "--fusion",
                "fusions",
                type=click.Choice(["average", "weighted", "svm", "none"]),
                multiple=True,
                default=("average",),
                show_default=True,
                help="How streams are fused; may be given several times.",
            ),
            click.option(
                "--weights",
                type=NumberList(),
                help="Weights of --fusion weighted, one per stream, as 1,1.5. [default: 1 spatial, 1.5 temporal]",
            ),
            click.option(
                "--on",
                type=click.Choice(["softmax", "logits"]),
                default="softmax",
                show_default=True,
                help="What average and weighted work on.",
            ),
            click.option("--name", help="Name of the results' folder. [default: after the splits]"),
        ]
    ):
        command = option(command)
    return command


def train_view_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Views of the training list, which the SVM learns from."""
    command = click.option(
        "--train-crops",
        type=int,
        help="Crops per frame of the training list's scores, for the SVM. [default: --crops]",
    )(command)
    return click.option(
        "--train-frames",
        type=int,
        help="Frames of the training list's scores, for the SVM. [default: --frames]",
    )(command)


def test_and_train_views(options: Mapping[str, Any]) -> tuple[Views, Views]:
    """Views of the test list, and of the training list where they are not said to be others."""
    views = Views(options["frames"], options["crops"])
    return views, Views(options["train_frames"] or views.frames, options["train_crops"] or views.crops)


@click.group(invoke_without_command=True, context_settings=SETTINGS)
@dataset_options
@run_options
@view_options
@train_view_options
@fusion_options
@device_options
@click.option("--report", "with_report", is_flag=True, help="Write the report as one HTML file too.")
@click.pass_context
@command_errors
def main(context: click.Context, **options: Any) -> None:
    """Score what is not scored yet, fuse the streams, print and save the results.

    With nothing said it takes the only known dataset (or the demo) and its runs, and says which.
    """
    if context.invoked_subcommand is not None:
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name
            and context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(f"{given[0]} belongs after {context.invoked_subcommand!r}")
        return
    from evaluate import stages

    console = make_console()
    dataset, paths = open_dataset(options["dataset"], options["data"], console)
    chosen = stages.chosen_runs(paths, options, console)
    views, train_views = test_and_train_views(options)
    wanted = [("test", views)] + ([("train", train_views)] if "svm" in options["fusions"] else [])
    for split, runs in chosen.items():
        for run in runs:
            for part, part_views in wanted:
                stages.score_run(dataset, paths, run, split, part, part_views, options, console)
    fused = stages.fuse(
        paths, chosen, views, train_views, options["fusions"], options["weights"], options["on"], console
    )
    folder = paths.results(options["name"] or stages.default_name(list(chosen)))
    stages.save(folder, fused, console)
    if options["with_report"]:
        stages.report(folder, paths, fused, chosen, console)


@main.command("score", context_settings=SETTINGS)
@dataset_options
@run_options
@click.option(
    "--part",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="Which list of the split; the SVM learns from train.",
)
@view_options
@device_options
@click.option("--length", type=int, help="Refuse a temporal run that was not trained with this L.")
@click.option("--task", type=int, help="Score share number TASK (from 0) of --tasks.")
@click.option(
    "--tasks", type=int, default=1, show_default=True, help="Into how many shares the videos are divided."
)
@command_errors
def score_command(**options: Any) -> None:
    """Score the videos of a split with the views of the paper; goes on where it was stopped."""
    from evaluate import stages

    console = make_console()
    dataset, paths = open_dataset(options["dataset"], options["data"], console)
    if options["task"] is None and options["tasks"] != 1:
        raise click.UsageError("--tasks needs --task")
    for split, runs in stages.chosen_runs(paths, options, console).items():
        for run in runs:
            views = Views(options["frames"], options["crops"])
            stages.score_run(dataset, paths, run, split, options["part"], views, options, console)


@main.command("fuse", context_settings=SETTINGS)
@dataset_options
@run_options
@view_options
@train_view_options
@fusion_options
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@command_errors
def fuse_command(files: tuple[Path, ...], **options: Any) -> None:
    """Fuse scores that are there, of the dataset's runs or of the given score FILES; scores nothing.

    Given FILES may be of any runs and, for the SVM, of both lists.
    """
    from evaluate import stages

    console = make_console()
    if files:
        fused = stages.fuse_files(files, options["fusions"], options["weights"], options["on"])
        paths = DatasetPaths(data_root(options["data"]), fused[0].streams[0].dataset)
        splits = [result.split for result in fused]
    else:
        _, paths = open_dataset(options["dataset"], options["data"], console)
        chosen = stages.chosen_runs(paths, options, console)
        views, train_views = test_and_train_views(options)
        fused = stages.fuse(
            paths, chosen, views, train_views, options["fusions"], options["weights"], options["on"], console
        )
        splits = list(chosen)
    stages.save(paths.results(options["name"] or stages.default_name(splits)), fused, console)


@main.command("report", context_settings=SETTINGS)
@dataset_options
@run_options
@view_options
@train_view_options
@fusion_options
@command_errors
def report_command(**options: Any) -> None:
    """Write the HTML report from scores that are there; scores nothing."""
    from evaluate import stages

    console = make_console()
    _, paths = open_dataset(options["dataset"], options["data"], console)
    chosen = stages.chosen_runs(paths, options, console)
    views, train_views = test_and_train_views(options)
    fused = stages.fuse(
        paths, chosen, views, train_views, options["fusions"], options["weights"], options["on"], console
    )
    folder = paths.results(options["name"] or stages.default_name(list(chosen)))
    stages.save(folder, fused, console)
    stages.report(folder, paths, fused, chosen, console)


@main.command("predict", context_settings=SETTINGS)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Run folder or checkpoint; several are fused.",
)
@view_options
@device_options
@click.option("--weights", type=NumberList(), help="Weights of the runs, as 1,1.5. [default: equal]")
@click.option("--top", type=int, default=5, show_default=True, help="Classes shown for each video.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per video instead of a table.")
@command_errors
def predict_command(videos: tuple[Path, ...], runs: tuple[Path, ...], **options: Any) -> None:
    """Classify videos that need not be in any dataset: frames and flow are made on the fly."""
    from evaluate import predict

    predict.run(videos, runs, options, make_console())


@main.command("features", context_settings=SETTINGS)
@dataset_options
@run_options
@click.option(
    "--part",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="Which list of the split.",
)
@view_options
@device_options
@click.option(
    "--per",
    type=click.Choice(["video", "view"]),
    default="video",
    show_default=True,
    help="Mean over the views of a video, or every view.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="HDF5 file. [default: beside the run's scores]"
)
@command_errors
def features_command(**options: Any) -> None:
    """Write what the last layer sees (the penultimate layer's output), keyed by video."""
    from evaluate import features, stages

    console = make_console()
    dataset, paths = open_dataset(options["dataset"], options["data"], console)
    chosen = stages.chosen_runs(paths, options, console)
    if options["output"] and sum(map(len, chosen.values())) > 1:
        raise InputError("--output names one file, but several runs were chosen: name one with --run")
    for split, runs in chosen.items():
        for run in runs:
            features.write(dataset, paths, run, split, options, console)


@main.command("reproduce", context_settings=SETTINGS)
@dataset_options
@click.option(
    "--table",
    type=click.Choice(["1a", "1b", "2", "3", "4"]),
    required=True,
    help="Which of the paper's tables.",
)
@click.option("--other", help="The second dataset, where a table needs one. [default: as in the paper]")
@click.option(
    "--imagenet", type=click.Path(path_type=Path), help="ImageNet weights for cells that start from them."
)
@click.option(
    "--miniature/--full",
    default=None,
    help="Small networks and few iterations instead of the paper's. [default: --miniature for the demo]",
)
@click.option("--split", "splits", type=NumberList(int), help="Splits instead of the paper's, as 1,2,3.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A recipe's value for every run."
)
@click.option("--dry-run", is_flag=True, help="Only say which runs each cell needs, in order.")
@command_errors
def reproduce_command(**options: Any) -> None:
    """Run the experiments of one of the paper's tables and print them beside the published figures.

    Runs and scores that exist are not made again.
    """
    from evaluate import reproduce

    reproduce.run(options, make_console())


def cli(arguments: Sequence[str] | None = None) -> None:
    """Entry point; the working folder is the project's checkout."""
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    main(arguments, prog_name="python -m evaluate")


if __name__ == "__main__":
    cli()
