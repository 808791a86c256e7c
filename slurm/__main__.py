"""python -m slurm: send the whole chain of a dataset to SLURM, and see what has become of it."""

from __future__ import annotations

import importlib
import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.catalog import Dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.paths import DatasetPaths, check_name, data_root
from slurm import record, scheduler, state
from slurm.chain import STAGES, Job, Request, as_shell_script, plan
from slurm.record import Chain, Submitted

PROJECT = Path(__file__).resolve().parent.parent
STREAMS = ("spatial", "temporal")
USUAL_TASKS = 64

SEVERAL = {"evaluate": ("score", "fuse"), "all": STAGES}
"""Names that stand for several stages in --pass and --sbatch."""

COMMANDS = {
    "flow": ("extract_flow.__main__", "main"),
    "verify": ("pipeline.verify", "command"),
    "train": ("train.__main__", "main"),
    "score": ("evaluate.__main__", "score_command"),
    "fuse": ("evaluate.__main__", "main"),
}
"""Where the command of each stage lies."""

data_option = click.option(
    "--data", metavar="DIR", help="The data root (default: $TWO_STREAM_DATA, else ./data)."
)
dataset_option = click.option("--dataset", default="demo", show_default=True, help="A dataset that is known.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Every stage as a SLURM array job: flow, verify, train, score, fuse."""


@main.command()
@dataset_option
@data_option
@click.option(
    "--tasks",
    type=click.IntRange(1),
    help=f"Tasks that share the videos (default: {USUAL_TASKS}, or one per video if fewer).",
)
@click.option("--at-once", type=click.IntRange(1), help="Flow tasks that may run at a time (default: all).")
@click.option("--method", default="tvl1", show_default=True, help="Flow method.")
@click.option(
    "--set",
    "shard_set",
    help="Set of shards that flow writes and training reads (default: the method's name).",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NUMBERS",
    help="Splits to train on, as 1 or 1,2 (default: all).",
)
@click.option(
    "--stream",
    "streams",
    type=click.Choice(STREAMS),
    multiple=True,
    help="Stream to train; repeatable (default: both).",
)
@click.option("--run", help="Names the runs RUN-STREAM-splitK (default: STREAM-splitK).")
@click.option(
    "--fusion",
    "fusions",
    type=click.Choice(["average", "weighted", "svm", "none"]),
    multiple=True,
    help="How streams are fused; repeatable (default: average).",
)
@click.option("--allow-missing", is_flag=True, help="Train and score without the videos that have no shard.")
@click.option(
    "--from", "first", type=click.Choice(STAGES), default=STAGES[0], show_default=True, help="First stage."
)
@click.option(
    "--until", "last", type=click.Choice(STAGES), default=STAGES[-1], show_default=True, help="Last stage."
)
@click.option(
    "--pass",
    "passed",
    metavar="STAGE=ARGUMENT",
    multiple=True,
    help="Argument for a stage's command, as --pass train=--recipe=NAME; STAGE may be evaluate (score, fuse) or all.",
)
@click.option(
    "--sbatch",
    metavar="STAGE=OPTION",
    multiple=True,
    help="Option for sbatch, as --sbatch train=--gpus-per-node=4; STAGE as for --pass.",
)
@click.option("--dry-run", is_flag=True, help="Only print the sbatch commands, as a bash script.")
@click.option("--force", is_flag=True, help="Submit although an earlier chain of this dataset has not ended.")
@click.pass_context
@command_errors
def submit(context: click.Context, **options: Any) -> None:
    """Send the chain flow -> verify -> train -> score -> fuse to SLURM.

    Work that is done is skipped, so the same command goes on after a failure. What a cluster needs (partition,
    account, GPUs, modules) is set once in slurm/site.env.
    """
    dataset, data = load_dataset(options["dataset"], options["data"]), options["data"]
    paths = DatasetPaths(data_root(data), dataset.name)
    jobs = plan(_request(dataset, paths, options))
    if options["dry_run"]:
        for job in jobs:
            check_arguments(job)
        click.echo(as_shell_script(jobs, PROJECT, paths.logs))
        return
    _check_output(paths)
    scheduler.require_slurm()
    if not options["force"]:
        _check_nothing_runs(paths)
    for job in jobs:
        scheduler.check(job, PROJECT)
    for job in jobs:
        check_arguments(job)
    submitted = _submit_all(jobs)
    record.save(Chain(time.time(), tuple(_repeat(context)), tuple(submitted)), paths.logs)
    numbers = [each.job for each in submitted]
    for each in submitted:
        click.echo(f"{each.stage:<7} {each.job:>8}  {f'{each.tasks} tasks' if each.tasks else '1 job'}")
    click.echo(f"watch:  squeue -j {','.join(numbers)}")
    click.echo(f"state:  python -m slurm status {shlex.join(_where(dataset.name, data))}")
    click.echo(f"logs:   {paths.logs}")
    click.echo(f"cancel: scancel {' '.join(numbers)}")


@main.command()
@dataset_option
@data_option
@click.option("--set", "shard_set", help="Set of shards to count (default: all).")
@command_errors
def status(dataset: str, data: str | None, shard_set: str | None) -> None:
    """Show the state of the chain submitted last, which videos failed, and the command that goes on."""
    known = load_dataset(dataset, data)
    paths = DatasetPaths(data_root(data), dataset)
    for line in state.describe(known, paths, shard_set, _where(dataset, data)):
        click.echo(line)


def _request(dataset: Dataset, paths: DatasetPaths, options: Mapping[str, Any]) -> Request:
    """What the options of `submit` mean for the dataset; InputError for what does not fit it."""
    stages = STAGES[STAGES.index(options["first"]) : STAGES.index(options["last"]) + 1]
    if not stages:
        raise InputError(
            f"--from {options['first']} --until {options['last']}: the order is {', '.join(STAGES)}"
        )
    site = scheduler.site_options(Path(os.environ.get("TWO_STREAM_SITE", "slurm/site.env")), PROJECT)
    given = _by_stage(options["sbatch"], "--sbatch")
    return Request(
        dataset=dataset.name,
        data=paths.data,
        logs=paths.logs,
        method=options["method"],
        shard_set=check_name(options["shard_set"] or options["method"], "shard set"),
        tasks=options["tasks"] or min(USUAL_TASKS, max(len(dataset.videos), 1)),
        at_once=options["at_once"],
        splits=_splits(dataset, options["splits"], stages),
        streams=list(dict.fromkeys(options["streams"])) or STREAMS,
        run=check_name(options["run"], "run") if options["run"] else None,
        fusions=list(dict.fromkeys(options["fusions"])),
        allow_missing=options["allow_missing"],
        stages=stages,
        arguments=_by_stage(options["passed"], "--pass"),
        options={stage: [*site[stage], *given[stage]] for stage in STAGES},
    )


def check_arguments(job: Job) -> None:
    """Have the stage's own command read the arguments that the job will give it, so that a slip is told now.

    Raises:
        InputError: the command does not understand them.
    """
    module, name = COMMANDS[job.stage]
    command: click.Command = getattr(importlib.import_module(module), name)
    try:
        command.make_context(job.stage, list(job.arguments))
    except click.UsageError as error:
        raise InputError(
            f"the command of stage '{job.stage}' does not take its arguments: {error.format_message()}"
        ) from error


def _submit_all(jobs: Sequence[Job]) -> list[Submitted]:
    """Submit the jobs, each waiting for the one before; if one is refused, none stays in the queue."""
    submitted: list[Submitted] = []
    try:
        for job in jobs:
            waits_for = submitted[-1].job if submitted else None
            number = scheduler.submit(job, PROJECT, waits_for)
            submitted.append(Submitted(job.stage, number, job.tasks, tuple(job.command(waits_for))))
    except BaseException:
        if submitted:
            scheduler.cancel([each.job for each in submitted])
        raise
    return submitted


def _splits(dataset: Dataset, wanted: Sequence[str], stages: Sequence[str]) -> list[int]:
    """The splits to train on, each once, all of which the dataset has."""
    numbers = [number for text in wanted for number in text.split(",")]
    if wrong := [number for number in numbers if not number.isdecimal()]:
        raise InputError(f"--split {wrong[0]!r}: expected numbers, as 1 or 1,2,3")
    for number in numbers:
        dataset.split(int(number))
    found = list(dict.fromkeys(map(int, numbers))) or list(dataset.splits)
    if not found and not {"train", "score", "fuse"}.isdisjoint(stages):
        raise InputError(f"dataset {dataset.name} has no splits: import it with lists, or use --until verify")
    return found


def _by_stage(words: Sequence[str], option: str) -> dict[str, list[str]]:
    """The values of `train=VALUE`, `all=VALUE` and the like by stage, in the order given."""
    given: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for word in words:
        name, equals, value = word.partition("=")
        stages = SEVERAL.get(name, (name,))
        if not equals or not value or not set(stages) <= set(STAGES):
            names = ", ".join([*STAGES, *SEVERAL])
            raise InputError(f"{option} {word!r}: expected STAGE=VALUE, where STAGE is one of {names}")
        for stage in stages:
            given[stage].append(value)
    return given


def _check_output(paths: DatasetPaths) -> None:
    """Make the folder of the logs and write a file beside the shards, or raise InputError."""
    if "\\" in str(paths.logs):
        raise InputError(
            f"{paths.logs}: SLURM cannot write logs below a folder with a backslash in its name; use another --data"
        )
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        for folder in (paths.root, paths.logs):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise InputError(
            f"{paths.root} cannot be written to ({error.strerror}): its jobs could save nothing"
        ) from error


def _check_nothing_runs(paths: DatasetPaths) -> None:
    chain = record.latest(paths.logs)
    alive = [job.job for job in chain.jobs if state.is_alive(job)] if chain else []
    if alive:
        raise InputError(
            f"jobs {', '.join(alive)} of the chain submitted last have not ended: see `python -m slurm status`, take "
            f"them out of the queue with `scancel {' '.join(alive)}`, or submit all the same with --force"
        )


def _where(dataset: str, data: str | None) -> list[str]:
    return [f"--dataset={dataset}", *([f"--data={data}"] if data else [])]


def _repeat(context: click.Context) -> list[str]:
    """The options of `submit` that were given, but for those that say where in the chain to begin."""
    words = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name in ("first", "force", "dry_run"):
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append(parameter.opts[0])
        else:
            words += [
                f"{parameter.opts[0]}={each}" for each in (value if isinstance(value, tuple) else [value])
            ]
    return words


if __name__ == "__main__":
    main(prog_name="python -m slurm")
