"""python -m evaluate: score runs, fuse streams, measure, report; without a subcommand, all of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluate.options import (
    EvaluateOptions,
    ExportScoresOptions,
    FeaturesOptions,
    FuseOptions,
    NewVideoOptions,
    PredictOptions,
    ReportOptions,
    ReproduceOptions,
    ReproduceRealOptions,
    ScoreOptions,
)
from pipeline import start
from pipeline.errors import command_errors
from pipeline.machine import usable_cores
from pipeline.options import CONTEXT, from_options, given_options, options_of

if TYPE_CHECKING:
    from rich.console import Console


def make_console(stderr: bool = False) -> Console:
    """Output to the terminal at its width; to a file or a job's log, wide enough for every table."""
    from pipeline import console

    return console.make_console(stderr, width=130)


@click.group(invoke_without_command=True, context_settings=CONTEXT)
@options_of(EvaluateOptions)
@click.pass_context
@command_errors
def main(context: click.Context, **values: Any) -> None:
    """Score what is not scored yet, fuse the streams, print and save the results.

    Without options it takes the only known dataset (else the demo) and its runs, and prints which.
    """
    if context.invoked_subcommand is not None:
        if given := given_options(context):
            raise click.UsageError(f"{given[0]} belongs after {context.invoked_subcommand!r}")
        return
    options = from_options(EvaluateOptions, values)
    from evaluate import commands

    commands.evaluate(options, make_console())


@main.command("score", context_settings=CONTEXT)
@options_of(ScoreOptions)
@command_errors
def score_command(**values: Any) -> None:
    """Score the videos of a split with the views of the paper; resumes where it was interrupted."""
    options = from_options(ScoreOptions, values)
    from evaluate import commands

    commands.score(options, make_console())


@main.command("fuse", context_settings=CONTEXT)
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@options_of(FuseOptions)
@click.pass_context
@command_errors
def fuse_command(context: click.Context, files: tuple[Path, ...], **values: Any) -> None:
    """Fuse existing scores, of the dataset's runs or of the given score FILEs; nothing is scored.

    Given FILEs may be of any runs and, for the SVM, of both lists.
    """
    options = from_options(FuseOptions, values)
    from_files = {"--data", "--fusion", "--weights", "--on", "--name"}
    if files and (others := [name for name in given_options(context) if name not in from_files]):
        raise click.UsageError(
            f"{others[0]} chooses scores of a dataset's runs; leave it out with score FILEs"
        )
    from evaluate import commands

    if files:
        commands.fuse_files(files, options.fusion, options.dataset.data, make_console())
    else:
        commands.fuse(options, make_console())


@main.command("report", context_settings=CONTEXT)
@options_of(ReportOptions)
@command_errors
def report_command(**values: Any) -> None:
    """Fuse existing scores and write the report as one HTML file; nothing is scored."""
    options = from_options(ReportOptions, values)
    from evaluate import commands

    commands.fuse(options, make_console())


@main.command("export-scores", context_settings=CONTEXT)
@options_of(ExportScoresOptions)
@click.pass_context
@command_errors
def export_scores_command(context: click.Context, **values: Any) -> None:
    """Write scores as CSV with probabilities, or as mmaction2's pickle: of the dataset's runs, or of score FILEs."""
    options = from_options(ExportScoresOptions, values)
    of_files = {"--format", "--output"}
    if options.files and (others := [name for name in given_options(context) if name not in of_files]):
        raise click.UsageError(
            f"{others[0]} chooses scores of a dataset's runs; leave it out with score FILEs"
        )
    from evaluate import export_scores

    export_scores.export_scores(options, make_console())


@main.command("predict", context_settings=CONTEXT)
@options_of(PredictOptions)
@command_errors
def predict_command(**values: Any) -> None:
    """Classify videos that need not be in any dataset: files, folders of them, or every video of --dataset.

    Their frames and flow are made as the run's shards were, which its checkpoint records, in one pass over each video.
    """
    options = from_options(PredictOptions, values)
    from evaluate import predict

    with stopped_by_signal():
        predict.predict(options, make_console(), make_console(stderr=True))


@main.command("features", context_settings=CONTEXT)
@options_of(FeaturesOptions)
@command_errors
def features_command(**values: Any) -> None:
    """Write the penultimate layer's outputs for the videos of a split, or for given VIDEOs outside any dataset.

    Frames and flow of given VIDEOs are made as the run's shards were, which its checkpoint records, in one pass over
    each video. With --init no run is needed.
    """
    options = from_options(FeaturesOptions, values)
    from evaluate import commands, features

    console = make_console()
    if options.videos or options.new.list or options.init:
        with stopped_by_signal():
            features.video_features(options, console, make_console(stderr=True))
        return
    if options.new != NewVideoOptions():
        raise click.UsageError(
            "--like goes with VIDEOs outside a dataset, and so do --keep-shards and --keep-suffix"
        )
    only_one = "--output names one file" if options.output else ""
    for measurement in commands.chosen_measurements(options, console, only_one=only_one):
        features.list_features(measurement, options, console)


@main.command("reproduce", context_settings=CONTEXT)
@options_of(ReproduceOptions)
@command_errors
def reproduce_command(**values: Any) -> None:
    """Run the experiments of one of the paper's tables and print them beside the published figures.

    Existing runs and scores are used as they are.
    """
    options = from_options(ReproduceOptions, values)
    from evaluate import reproduce

    reproduce.reproduce_table(options, make_console())


@main.command("reproduce-real", context_settings=CONTEXT)
@options_of(ReproduceRealOptions)
@command_errors
def reproduce_real_command(**values: Any) -> None:
    """Measure both streams, their variants and fusions on small sets of real videos, over all splits.

    Imports, extracts, trains, scores and fuses with the other commands; what exists is used as it is.
    """
    options = from_options(ReproduceRealOptions, values)
    from evaluate import reproduce_real

    reproduce_real.reproduce_real(options, make_console())


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """End with the exit status of a signal that stopped the workers, as a shell would report it."""
    from extract_flow.supervisor import Stopped

    try:
        yield
    except Stopped as stop:
        print(f"{stop}; the same command continues", file=sys.stderr)
        sys.exit(128 + stop.number)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    start.run(main, "python -m evaluate")
