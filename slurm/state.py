"""The state of a chain: from SLURM for each task, from our logs where it has forgotten, from our outcome records."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.catalog import Dataset, choose_dataset, load_dataset
from pipeline.errors import command_errors, reading
from pipeline.options import CONTEXT, DatasetOptions, ShardSetOptions, from_options, option, options_of
from pipeline.paths import DatasetPaths, data_root
from pipeline.text import many, typed
from slurm import record, scheduler
from slurm.answers import command_line
from slurm.chain import STAGES
from slurm.record import Chain, Submitted
from slurm.scheduler import Task

SHOWN = 10
"""How many failed tasks or videos are listed; the rest are counted."""

TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class StatusOptions(DatasetOptions, ShardSetOptions):
    """Options of `python -m slurm status`."""

    shards: str | None = option(None, "Shard set to count.", metavar="NAME", shown_default="all")


@click.command(context_settings=CONTEXT)
@options_of(StatusOptions)
@command_errors
def command(**values: Any) -> None:
    """Show the state of the chain submitted last, which videos failed, and the command that resumes it."""
    from pipeline.shard_sets import choose_shard_set

    options = from_options(StatusOptions, values)
    dataset = load_dataset(choose_dataset(options.dataset, options.data), options.data)
    paths = DatasetPaths(data_root(options.data), dataset.name)
    shard_set = choose_shard_set(paths, options.shards) if options.shards else None
    for line in describe(dataset, paths, shard_set, options_naming(dataset.name, options.data)):
        click.echo(line)


def options_naming(dataset: str, data: Path | None) -> list[str]:
    """The options that name a dataset, for commands that are shown."""
    return [f"--dataset={dataset}", *([f"--data={data}"] if data else [])]


def describe(dataset: Dataset, paths: DatasetPaths, shard_set: str | None, where: Sequence[str]) -> list[str]:
    """The lines of `python -m slurm status`.

    Args:
        shard_set: the shard set to count; None for all.
        where: options that name the dataset, for the commands shown.
    """
    chain = record.latest(paths.logs)
    if chain is None:
        lines = [f"no chain was submitted for {dataset.name}: {typed('slurm')} submit {shlex.join(where)}"]
        return [*lines, *_videos(dataset, paths, shard_set)]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(chain.submitted))
    lines = [f"chain of {dataset.name}, submitted {when}"]
    stages = {job.stage: tasks_of(job, paths.logs) for job in chain.jobs}
    for job in chain.jobs:
        lines.extend(_stage(job, stages[job.stage], paths.logs))
    lines.extend(_videos(dataset, paths, shard_set))
    lines.extend(_next(chain, stages, where))
    return lines


def is_alive(job: Submitted) -> bool:
    """Whether any task of the job has not ended yet."""
    return any(task.state in scheduler.UNFINISHED for task in scheduler.states(*job.id))


def tasks_of(job: Submitted, logs: Path) -> list[Task]:
    """Every task of a job: from SLURM, else from the last line of its log, else unknown."""
    known = {task.name: task for task in scheduler.states(*job.id)}
    return [known.get(name) or _from_log(name, logs) for name in job.task_names()]


def _from_log(name: str, logs: Path) -> Task:
    """A task according to the last line of its log, which job.sh writes."""
    match = re.search(rf", job {re.escape(name)} on (\S+): (.+)", (log_end(logs, name) or [""])[-1])
    if match is None:
        return Task(name, "UNKNOWN", "SLURM has forgotten it and it has no finished log")
    node, ended = match.groups()
    if ended.startswith("finished"):
        return Task(name, "COMPLETED", "", node)
    return Task(name, "UNKNOWN" if ended.startswith("begins") else "FAILED", ended, node)


def log_end(logs: Path, name: str) -> list[str]:
    """The last lines of a task's log, without empty ones; none where there is no log."""
    for path in logs.glob(f"*-{name}.log"):
        with reading(path), path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return []


def telling_line(lines: Sequence[str]) -> str:
    """The line of a log that best explains a failure: the last error, else the last line."""
    errors = [line for line in lines if re.match(r"error: |\w*(Error|Exception)\b|slurmstepd: error: ", line)]
    return (errors or lines or [""])[-1]


def _stage(job: Submitted, tasks: Sequence[Task], logs: Path) -> list[str]:
    counts = ", ".join(
        f"{count} {state.lower()}" for state, count in Counter(task.state for task in tasks).items()
    )
    waiting = {task.reason for task in tasks if task.state == "PENDING" and task.reason}
    why = f" ({', '.join(sorted(waiting))})" if waiting else ""
    lines = [f"  {job.stage:<7} {job.job:>8}  {counts}{why}"]
    bad = [task for task in tasks if scheduler.ended_badly(task)]
    for task in bad[:SHOWN]:
        why = telling_line(log_end(logs, task.name)) or task.reason or "it never started"
        lines.append(f"          {task.name} {task.state} on {task.nodes or 'no node'}: {why}")
    if len(bad) > SHOWN:
        lines.append(f"          and {len(bad) - SHOWN} more")
    if any(log_end(logs, task.name) for task in bad[:SHOWN]):
        lines.append(f"          logs: {logs}/*-{job.job}*.log")
    return lines


def _videos(dataset: Dataset, paths: DatasetPaths, shard_set: str | None) -> list[str]:
    """How complete each shard set is, and which videos failed."""
    from pipeline.shard_sets import shard_sets
    from pipeline.status import describe as describe_set
    from pipeline.status import set_status

    names = [shard_set] if shard_set else shard_sets(paths)
    lines = [line for name in names for line in describe_set(set_status(dataset, paths, name), SHOWN)]
    return lines or [f"no shards yet of {many(len(dataset.videos), 'video')}"]


def _next(chain: Chain, stages: Mapping[str, Sequence[Task]], where: Sequence[str]) -> list[str]:
    """What to do next."""
    tasks = [task for tasks in stages.values() for task in tasks]
    if any(task.state in scheduler.UNFINISHED for task in tasks):
        return [f"under way; watch: {command_line('squeue', (job.id for job in chain.jobs), '-j', ',')}"]
    open_stages = [
        stage for stage in STAGES if any(task.state != "COMPLETED" for task in stages.get(stage, []))
    ]
    if not open_stages:
        return ["finished"]
    again = shlex.join(["submit", *chain.options, f"--from={open_stages[0]}"])
    return [f"to resume: {typed('slurm')} {again}"]
