"""python -m slurm: send the whole chain of a dataset to SLURM, and see what has become of it."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from pipeline.catalog import Dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.paths import DatasetPaths, data_root
from slurm import record, scheduler, state
from slurm.chain import STAGES, Job, Request, as_shell_script, plan
from slurm.record import Chain, Submitted

PROJECT = Path(__file__).resolve().parent.parent
STREAMS = ("spatial", "temporal")
USUAL_TASKS = 64

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
@click.option(
    "--split", "splits", type=int, multiple=True, help="Split to train on; repeatable (default: all)."
)
@click.option(
    "--stream",
    "streams",
    type=click.Choice(STREAMS),
    multiple=True,
    help="Stream to train; repeatable (default: both).",
)
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
    help="Argument for a stage's command, as in --pass train=--recipe=paper; repeatable.",
)
@click.option(
    "--sbatch",
    "sbatch",
    metavar="STAGE=OPTION",
    multiple=True,
    help="Option for sbatch, as in --sbatch train=--gpus-per-node=4; STAGE may be `all`; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Only print the sbatch commands, as a bash script.")
@click.option("--force", is_flag=True, help="Submit although an earlier chain of this dataset has not ended.")
@command_errors
def submit(
    dataset: str,
    data: str | None,
    tasks: int | None,
    at_once: int | None,
    splits: tuple[int, ...],
    streams: tuple[str, ...],
    first: str,
    last: str,
    passed: tuple[str, ...],
    sbatch: tuple[str, ...],
    dry_run: bool,
    force: bool,
) -> None:
    """Send the chain flow -> verify -> train -> score -> fuse to SLURM.

    Work that is done is skipped, so the same command goes on after a failure. What a cluster needs (partition,
    account, GPUs, modules) is set once in slurm/site.env.
    """
    known = load_dataset(dataset, data)
    paths = DatasetPaths(data_root(data), dataset)
    stages = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not stages:
        raise InputError(f"--from {first} --until {last}: the order is {', '.join(STAGES)}")
    options = scheduler.site_options(Path(os.environ.get("TWO_STREAM_SITE", "slurm/site.env")), PROJECT)
    for stage, words in _by_stage(sbatch, "--sbatch").items():
        options[stage] = [*options[stage], *words]
    request = Request(
        dataset=dataset,
        data=data_root(data),
        logs=paths.logs,
        tasks=tasks or min(USUAL_TASKS, max(len(known.videos), 1)),
        at_once=at_once,
        splits=_splits(known, splits, stages),
        streams=list(dict.fromkeys(streams)) or STREAMS,
        stages=stages,
        arguments=_by_stage(passed, "--pass"),
        options=options,
    )
    jobs = plan(request)
    if dry_run:
        click.echo(as_shell_script(jobs, PROJECT))
        return
    _check_output(paths)
    scheduler.require_slurm()
    if not force:
        _check_nothing_runs(paths)
    for job in jobs:
        scheduler.check(job, PROJECT)
    submitted = _submit_all(jobs)
    repeat = _repeat(dataset, data, tasks, at_once, splits, streams, last, passed, sbatch)
    record.save(Chain(time.time(), tuple(repeat), tuple(submitted)), paths.logs)
    numbers = [each.job for each in submitted]
    for each in submitted:
        click.echo(f"{each.stage:<7} {each.job:>8}  {f'{each.tasks} tasks' if each.tasks else '1 job'}")
    click.echo(f"watch:  squeue -j {','.join(numbers)}")
    click.echo(f"state:  python -m slurm status {shlex.join(_where(dataset, data))}")
    click.echo(f"logs:   {paths.logs}")
    click.echo(f"cancel: scancel {' '.join(numbers)}")


@main.command()
@dataset_option
@data_option
@click.option("--set", "shard_set", help="The set of shards to count (default: the only one there is).")
@command_errors
def status(dataset: str, data: str | None, shard_set: str | None) -> None:
    """Show the state of the chain submitted last, which videos failed, and the command that goes on."""
    known = load_dataset(dataset, data)
    paths = DatasetPaths(data_root(data), dataset)
    for line in state.describe(known, paths, shard_set, _where(dataset, data)):
        click.echo(line)


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


def _splits(dataset: Dataset, wanted: Sequence[int], stages: Sequence[str]) -> list[int]:
    """The splits to train on, each once, all of which the dataset has."""
    for number in wanted:
        dataset.split(number)
    found = list(dict.fromkeys(wanted)) or list(dataset.splits)
    if not found and not {"train", "score", "fuse"}.isdisjoint(stages):
        raise InputError(
            f"dataset {dataset.name} has no splits to train on: import it with lists, or use --until verify"
        )
    return found


def _by_stage(words: Sequence[str], option: str) -> dict[str, list[str]]:
    """`train=--lr=1` and the like by stage; what is for `all` comes first in each."""
    given: dict[str, list[str]] = {"all": [], **{stage: [] for stage in STAGES}}
    for word in words:
        stage, equals, argument = word.partition("=")
        if stage not in given or not equals or not argument:
            raise InputError(
                f"{option} {word!r}: expected STAGE=VALUE, where STAGE is all, {', '.join(STAGES)}"
            )
        given[stage].append(argument)
    return {stage: [*given["all"], *given[stage]] for stage in STAGES}


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


def _repeat(
    dataset: str,
    data: str | None,
    tasks: int | None,
    at_once: int | None,
    splits: Sequence[int],
    streams: Sequence[str],
    last: str,
    passed: Sequence[str],
    sbatch: Sequence[str],
) -> list[str]:
    """The options that submit the same chain again."""
    given: Mapping[str, Sequence[object]] = {
        "--tasks": [tasks] if tasks else [],
        "--at-once": [at_once] if at_once else [],
        "--split": splits,
        "--stream": streams,
        "--until": [last] if last != STAGES[-1] else [],
        "--pass": passed,
        "--sbatch": sbatch,
    }
    return [
        *_where(dataset, data),
        *(f"{name}={value}" for name, values in given.items() for value in values),
    ]


if __name__ == "__main__":
    main(prog_name="python -m slurm")
