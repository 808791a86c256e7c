"""The chain of jobs that takes a dataset from videos to its report, as sbatch commands. Nothing here talks to SLURM."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("flow", "verify", "train", "score", "fuse")

SCRIPTS = {
    "flow": "slurm/flow.sbatch",
    "verify": "slurm/verify.sbatch",
    "train": "slurm/train.sbatch",
    "score": "slurm/evaluate.sbatch",
    "fuse": "slurm/evaluate.sbatch",
}

# How a stage waits for the one before it. `verify` runs even if flow tasks failed, since it is what names everything
# that is missing; it fails then, and what needs all shards never starts. Score i waits for training i alone.
WAITS = {"verify": "afterany", "train": "afterok", "score": "aftercorr", "fuse": "afterok"}


@dataclass(frozen=True)
class Request:
    """What is to be submitted.

    Attributes:
        dataset: its name.
        data: the data root, absolute.
        logs: the folder for the logs, absolute; its name holds no backslash.
        tasks: how many tasks share the videos.
        at_once: how many of them may run at a time; None for as many as SLURM allows.
        splits, streams: what is trained and scored, one task for each pair.
        stages: those to submit, a run of `STAGES`.
        arguments: by stage, more arguments for its command.
        options: by stage, more options for sbatch.
    """

    dataset: str
    data: Path
    logs: Path
    tasks: int
    at_once: int | None
    splits: Sequence[int]
    streams: Sequence[str]
    stages: Sequence[str]
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One sbatch command but for the number of the job that it waits for.

    Attributes:
        stage: what it does.
        tasks: size of the array; None for a job without one.
        environment: what the script reads from its environment.
        options: for sbatch.
        script: relative to the project's folder.
        arguments: for the script, which hands them to the stage's command.
        waits: "afterok" and the like, or None for the first of the chain.
    """

    stage: str
    tasks: int | None
    environment: Mapping[str, str]
    options: Sequence[str]
    script: str
    arguments: Sequence[str]
    waits: str | None

    def command(self, waits_for: str | None = None) -> list[str]:
        """The sbatch command, made to wait for the job `waits_for`."""
        dependency = (
            [f"--dependency={self.waits}:{waits_for}", "--kill-on-invalid-dep=yes"] if waits_for else []
        )
        return ["sbatch", "--parsable", *self.options, *dependency, self.script, *self.arguments]


def plan(request: Request) -> list[Job]:
    """The jobs of the chain in the order in which they are to be submitted; each waits for the one before it."""
    return [_job(request, stage, first=index == 0) for index, stage in enumerate(request.stages)]


def _job(request: Request, stage: str, first: bool) -> Job:
    environment: dict[str, str] = {}
    arguments = [f"--dataset={request.dataset}", f"--data={request.data}"]
    tasks: int | None = None
    array = ""
    if stage == "flow":
        tasks = request.tasks
        environment = {"TASKS": str(request.tasks)}
        array = f"--array=0-{tasks - 1}" + (f"%{request.at_once}" if request.at_once else "")
    elif stage in ("train", "score"):
        tasks = len(request.splits) * len(request.streams)
        environment = {"SPLITS": " ".join(map(str, request.splits)), "STREAMS": " ".join(request.streams)}
        array = f"--array=0-{tasks - 1}"
    elif stage == "fuse":
        arguments += [f"--split={split}" for split in request.splits]
    # SLURM replaces % in the name of a log, and does so in the folder's name too.
    log = f"{str(request.logs).replace('%', '%%')}/%x-{'%A_%a' if tasks else '%j'}.log"
    options = [f"--job-name={stage}-{request.dataset}", f"--output={log}", "--export=ALL"]
    options += [array] if array else []
    return Job(
        stage=stage,
        tasks=tasks,
        environment=environment,
        options=[*options, *request.options.get(stage, ())],
        script=SCRIPTS[stage],
        arguments=[*arguments, *request.arguments.get(stage, ())],
        waits=None if first else WAITS[stage],
    )


def as_shell_script(jobs: Sequence[Job], project: Path) -> str:
    """The chain as a bash script that submits it."""
    lines = ["set -e", f"cd {shlex.quote(str(project))}"]
    before: str | None = None
    for job in jobs:
        values = "".join(f"{name}={shlex.quote(value)} " for name, value in job.environment.items())
        waiting = f"--dependency={job.waits}:"
        words = [
            # Every word is data but for the number of the job before.
            f'{waiting}"${before}"' if before and word == waiting + before else shlex.quote(word)
            for word in job.command(before)
        ]
        lines.append(f"{job.stage}=$({values}{' '.join(words)})")
        before = job.stage
    lines.append("echo " + " ".join(f'"${job.stage}"' for job in jobs))
    return "\n".join(lines)
