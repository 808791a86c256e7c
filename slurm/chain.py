"""The chain of jobs that takes a dataset from videos to its report, as sbatch commands. Nothing here talks to SLURM."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipeline.runs import chain_run_name
from slurm.answers import JobId

CLUSTERS_OPTION = re.compile(r"(?:--clusters?=|-M)(.+)")
Split = TypeVar("Split", int, str)

STAGES = ("flow", "verify", "train", "score", "fuse")

SCRIPTS = {
    "flow": "slurm/flow.sbatch",
    "verify": "slurm/verify.sbatch",
    "train": "slurm/train.sbatch",
    "score": "slurm/evaluate.sbatch",
    "fuse": "slurm/evaluate.sbatch",
}

VARIABLES = ("TASKS", "SPLITS", "STREAMS", "RUN", "FOLD", "FOLDS", "PARTS", "DATASET")
"""The environment variables from which the scripts learn their work; a chain sets only those it needs."""

# How a stage waits for the one before it. `verify` runs even if flow tasks failed, since it lists everything that is
# missing; it fails then, and what needs all shards never starts. Score i waits for training i alone.
WAITS = {"verify": "afterany", "train": "afterok", "score": "aftercorr", "fuse": "afterok"}


@dataclass(frozen=True)
class ChainRequest:
    """The chain that is to be submitted.

    Attributes:
        dataset: name of the dataset.
        data: data root, absolute.
        logs: folder of the logs, absolute; its name holds no backslash.
        method: flow method.
        shard_set: the shard set that flow writes and training reads.
        tasks: number of flow tasks that share the videos.
        at_once: how many of them may run at a time; None for as many as SLURM allows.
        splits, streams: what is trained and scored, one task for each of their `pairs`.
        run: what the runs' names begin with; None for the trainer's own names.
        fusions: how streams are fused; empty for the evaluation's default.
        allow_missing: train and score without the videos that have no shard.
        stages: the stages to submit, consecutive ones of `STAGES`.
        arguments: by stage, more arguments for its command.
        options: by stage, more options for sbatch.
    """

    dataset: str
    data: Path
    logs: Path
    method: str
    shard_set: str
    tasks: int
    at_once: int | None
    splits: Sequence[int]
    streams: Sequence[str]
    run: str | None
    fusions: Sequence[str]
    allow_missing: bool
    stages: Sequence[str]
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One sbatch command, except for the number of the job that it waits for.

    Attributes:
        stage: one of `STAGES`.
        name: its name in the queue.
        tasks: size of the array; None for a job without one.
        environment: what the script reads from its environment.
        options: options for sbatch.
        script: path of the job script, relative to the project's folder.
        arguments: arguments of the script, which passes them to the stage's command.
        waits: "afterok" and the like, or None for the first of the chain.
    """

    stage: str
    name: str
    tasks: int | None
    environment: Mapping[str, str]
    options: Sequence[str]
    script: str
    arguments: Sequence[str]
    waits: str | None

    @property
    def clusters(self) -> str | None:
        """The clusters that its options name, with commas between them."""
        named = [found[1] for option in self.options if (found := CLUSTERS_OPTION.fullmatch(option))]
        return named[-1] if named else None

    def command(self, waits_for: JobId | None = None) -> list[str]:
        """The sbatch command, made to wait for the job `waits_for`, on that job's cluster."""
        waiting = []
        if waits_for:
            waiting = [f"--dependency={self.waits}:{waits_for.number}", "--kill-on-invalid-dep=yes"]
            # A job can wait for one of its own cluster only, unless the clusters are a federation.
            if waits_for.cluster and waits_for.cluster in (self.clusters or waits_for.cluster).split(","):
                waiting.append(f"--clusters={waits_for.cluster}")
        return ["sbatch", "--parsable", *self.options, *waiting, self.script, *self.arguments]


def pairs(splits: Sequence[Split], streams: Sequence[str]) -> list[tuple[Split, str]]:
    """The split and stream of each array task of training and scoring, in the order of the tasks."""
    return [(split, stream) for split in splits for stream in streams]


def plan(request: ChainRequest) -> list[Job]:
    """The jobs of the chain in the order in which they are to be submitted; each waits for the one before it."""
    return [_job(request, stage, first=index == 0) for index, stage in enumerate(request.stages)]


def _job(request: ChainRequest, stage: str, first: bool) -> Job:
    tasks, array = None, []
    if stage == "flow":
        tasks = request.tasks
        array = [f"--array=0-{tasks - 1}" + (f"%{request.at_once}" if request.at_once else "")]
    elif stage in ("train", "score"):
        tasks = len(pairs(request.splits, request.streams))
        array = [f"--array=0-{tasks - 1}"]
    # SLURM replaces % in the name of a log, and does so in the folder's name too.
    log = f"{str(request.logs).replace('%', '%%')}/%x-{'%A_%a' if tasks else '%j'}.log"
    name = f"{stage}-{request.dataset}"
    options = [f"--job-name={name}", f"--output={log}", "--export=ALL", *array]
    where = [f"--dataset={request.dataset}", f"--data={request.data}"]
    return Job(
        stage=stage,
        name=name,
        tasks=tasks,
        environment=_environment(request, stage),
        options=[*options, *request.options.get(stage, ())],
        script=SCRIPTS[stage],
        arguments=[*where, *_arguments(request, stage), *request.arguments.get(stage, ())],
        waits=None if first else WAITS[stage],
    )


def _environment(request: ChainRequest, stage: str) -> dict[str, str]:
    """What the stage's script reads from its environment."""
    if stage == "flow":
        return {"TASKS": str(request.tasks)}
    if stage not in ("train", "score"):
        return {}
    values = {"SPLITS": " ".join(map(str, request.splits)), "STREAMS": " ".join(request.streams)}
    values |= {"RUN": request.run} if request.run else {}
    return values | ({"PARTS": "test train"} if stage == "score" and "svm" in request.fusions else {})


def _arguments(request: ChainRequest, stage: str) -> list[str]:
    """What the stage's command needs beside the dataset."""
    lenient = ["--allow-missing"] if request.allow_missing else []
    if stage == "flow":
        return [f"--method={request.method}", f"--shards={request.shard_set}"]
    if stage == "verify":
        return [f"--shards={request.shard_set}", *([] if request.allow_missing else ["--complete"])]
    if stage == "train":
        return [f"--shards={request.shard_set}", *lenient]
    if stage == "score":
        return lenient
    runs = [
        chain_run_name(request.run, stream, split)
        for split, stream in pairs(request.splits, request.streams)
        if request.run
    ]
    return [
        f"--split={','.join(map(str, request.splits))}",
        *(f"--stream={stream}" for stream in request.streams),
        *(f"--run={run}" for run in runs),
        *(f"--fusion={fusion}" for fusion in request.fusions),
        *lenient,
    ]


def as_shell_script(jobs: Sequence[Job], project: Path, logs: Path) -> str:
    """The chain as a bash script that submits it."""
    lines = [
        "set -e -o pipefail",
        # Sites print banners around the job's id, and clusters append their name.
        "job_id() { tr -d '\\r' | grep -E '^[0-9]+(;[[:alnum:]_.-]+)?$' | tail -n 1; }",
        f"cd {shlex.quote(str(project))}",
        f"mkdir -p {shlex.quote(str(logs))}",
        f"unset {' '.join(VARIABLES)}",
    ]
    before: str | None = None
    for job in jobs:
        values = "".join(f"{name}={shlex.quote(value)} " for name, value in job.environment.items())
        waiting = f"--dependency={job.waits}:"
        words = [
            # Every word is data except the number of the job before.
            f'{waiting}"${{{before}%%;*}}"' if before and word == waiting + before else shlex.quote(word)
            for word in job.command(JobId(before) if before else None)
        ]
        lines.append(f"{job.stage}=$({values}{' '.join(words)} | job_id)")
        before = job.stage
    lines.append("echo " + " ".join(f'"${job.stage}"' for job in jobs))
    return "\n".join(lines)
