"""SLURM's own commands: test whether a job would be accepted, submit it, cancel it, ask for its state."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from slurm.chain import STAGES, VARIABLES, Job

UNFINISHED = {
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
}
ACCESS = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that determine how SLURM is reached; all others that begin with SLURM_ describe a job."""

PATIENCE = 120
"""Seconds to wait for an answer from SLURM's controller, which may be busy."""

# Prints the options of every stage that a site.env sets, each stage's after its name; a zero byte ends each word.
READ_SITE = """
set -eu
source "$1"
shift
for stage in "$@"; do
    declare -n options="${stage^^}_OPTIONS"
    printf '%s\\0' "=$stage" "${options[@]}"
done
"""


@dataclass(frozen=True)
class Task:
    """A job without an array, or one task of an array.

    Attributes:
        name: `12` or `12_3`.
        state: the state as SLURM names it, such as "RUNNING" or "COMPLETED", or "UNKNOWN".
        reason: why it waits or failed, if SLURM gives a reason.
        nodes: the nodes on which it runs or ran.
    """

    name: str
    state: str
    reason: str = ""
    nodes: str = ""


def site_options(site: Path, project: Path) -> dict[str, list[str]]:
    """Options for sbatch by stage from the site's file; those of every stage come first in each.

    Raises:
        InputError: there is no such file, or it fails.
    """
    if not (project / site).is_file():
        raise InputError(
            f"{project / site}: no such file; TWO_STREAM_SITE names the file with this cluster's settings"
        )
    done = subprocess.run(
        ["bash", "-c", READ_SITE, "bash", str(site), "all", *STAGES],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise InputError(f"{project / site} cannot be read by bash: {done.stderr.strip()}")
    found: dict[str, list[str]] = {"all": [], **{stage: [] for stage in STAGES}}
    stage = "all"
    for word in done.stdout.split("\0")[:-1]:
        if word.startswith("="):
            stage = word[1:]
        else:
            found[stage].append(word)
    return {stage: [*found["all"], *found[stage]] for stage in STAGES}


def require_slurm() -> None:
    """Raise InputError where there is no SLURM to submit to."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "no SLURM here (no program sbatch): submit from a login node of your cluster, "
            "or run the stages without it: make flow, make train, make evaluate"
        )


def check(job: Job, project: Path) -> None:
    """Ask SLURM whether it could ever run the job.

    Raises:
        InputError: it could not; with SLURM's own message and what the partitions offer.
    """
    done = _sbatch([*job.command()[:1], "--test-only", *job.command()[1:]], job, project)
    if done.returncode != 0:
        raise InputError(_refused(job, _words(done)))


def submit(job: Job, project: Path, waits_for: str | None) -> str:
    """Put the job into the queue; its number.

    Raises:
        InputError: SLURM refuses it, or it would wait forever; either way it is not in the queue.
    """
    done = _sbatch(job.command(waits_for), job, project)
    if done.returncode != 0:
        raise InputError(_refused(job, _words(done)))
    number = done.stdout.strip().split(";")[0]
    if fault := _never_starts(number):
        cancel([number])
        raise InputError(_refused(job, fault))
    return number


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue."""
    _ask("scancel", *jobs)


def states(job: str) -> list[Task]:
    """The tasks of a job from the queue, which remembers ended jobs for some minutes, else from the accounting.

    Empty where neither knows the job, and where there is no SLURM.

    Raises:
        InputError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    done = _ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i|%T|%r|%N")
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise InputError(f"squeue gives no state of job {job}: {_words(done)}")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    if rows:
        return [
            Task(name, state, "" if reason == "None" else reason, nodes)
            for name, state, reason, nodes in rows
        ]
    if shutil.which("sacct") is None:
        return []
    done = _ask("sacct", "-n", "-X", "-P", "--array", "-j", job, "-o", "JobID,State,NodeList")
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    # "CANCELLED by 1000" is one state.
    return [Task(row[0], row[1].split(" ")[0], "", row[2]) for row in rows if len(row) == 3]


def ended_badly(task: Task) -> bool:
    return task.state not in UNFINISHED | {"COMPLETED", "UNKNOWN"}


def seconds_of(limit: str) -> float:
    """A time as squeue and sinfo write it, `[days-][hours:]minutes:seconds`; infinite for a word such as "infinite"."""
    days, _, clock = limit.rpartition("-")
    parts = [days or "0", *clock.split(":")]
    if not all(part.isdigit() for part in parts):
        return float("inf")
    seconds = 0
    for part in parts[1:]:
        seconds = seconds * 60 + int(part)
    return seconds + 86_400 * int(parts[0])


def _never_starts(job: str) -> str | None:
    """What sbatch accepts in SLURM's default set-up although it never starts: too long a time, or no open partition."""
    row = _ask("squeue", "-h", "-j", job, "-o", "%P|%l").stdout.splitlines()
    if not row:
        return None
    names, asked = row[0].split("|")
    offers = [
        line.split("|") for line in _ask("sinfo", "-h", "-p", names, "-o", "%P|%a|%l").stdout.splitlines()
    ]
    offered = [limit for _, available, limit in offers if available == "up"]
    if offers and not offered:
        return f"partition {names} is {offers[0][1]}"
    if offered and all(seconds_of(asked) > seconds_of(limit) for limit in offered):
        return f"it asks for {asked} (days-hours:minutes:seconds), and partition {names} gives {', '.join(offered)}"
    return None


def _refused(job: Job, words: str) -> str:
    offers = _ask("sinfo", "-o", "%P %a %l %D %c %m %G %f").stdout.strip()
    options = " ".join(option for option in job.options if not option.startswith(("--output=", "--export=")))
    return (
        f"SLURM would not run the job '{job.stage}' ({job.script} {options}): {words}\n"
        f"What the cluster offers (partition, state, longest time, nodes, cores, MB, GPUs, features):\n{offers}\n"
        f"Change what is asked for in slurm/site.env ({job.stage.upper()}_OPTIONS) or with "
        f"--sbatch {job.stage}=--OPTION=VALUE; nothing was submitted."
    )


def _words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or f"exit status {done.returncode}"


def _sbatch(command: Sequence[str], job: Job, project: Path) -> subprocess.CompletedProcess[str]:
    return _run(command, project, job.environment)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return _run(command, None, {})


def _run(
    command: Sequence[str], folder: Path | None, values: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    # Inside a job, for example an interactive one, the variables that describe it are not the new job's. Nor is the
    # chain to be changed by what its user has exported for another one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith("SLURM_") or name in ACCESS) and name not in VARIABLES
    }
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**environment, **values},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{command[0]} got no answer from SLURM in {PATIENCE} s: is its controller up?"
        ) from error
