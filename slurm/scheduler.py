"""SLURM's own commands: whether it would accept a job, submitting, cancelling, the state of jobs, what partitions
offer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from slurm import answers
from slurm.answers import Answer, JobId, on_cluster, rows
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
    command = job.command()
    answer = run([*command[:1], "--test-only", *command[1:]], project, job.environment)
    if answer.status != 0:
        raise InputError(*refused(job, answer), "nothing was submitted")


def submit(job: Job, project: Path, waits_for: JobId | None) -> Answer:
    """Submit the job; returns SLURM's answer, which may not be the expected one."""
    return run(job.command(waits_for), project, job.environment)


def own_jobs(job: Job, cluster: str | None) -> set[str] | None:
    """Numbers of this user's jobs of the job's name that have not ended; None where SLURM does not say."""
    where = on_cluster(cluster or job.clusters)
    answer = ask("squeue", *where, "-h", "-u", str(os.getuid()), "-n", job.name, "-o", "%i|%j")
    if answer.status != 0:
        return None
    return {number for number, name in rows(answers.NAME_ROW, answer.lines) if name == job.name}


def is_another(job: Job, found: JobId) -> bool:
    """Whether SLURM says that the job of a number has another name than `job`."""
    answer = ask("squeue", *on_cluster(found.cluster), "-h", "-j", found.number, "-o", "%i|%j")
    names = [name for number, name in rows(answers.NAME_ROW, answer.lines) if number == found.number]
    return bool(names) and job.name not in names


def cancel(jobs: Sequence[JobId]) -> dict[JobId, str]:
    """Ask SLURM to cancel jobs; its message for each job for which it reports an error.

    An error does not mean that the job is still there, nor its absence that it is gone: see `states`.
    """
    faults = {}
    for job in jobs:
        answer = ask("scancel", *on_cluster(job.cluster), job.number)
        if answer.status != 0:
            faults[job] = answer.words()
    return faults


def states(job: str, cluster: str | None = None) -> list[Task]:
    """The tasks of a job from the queue, which remembers ended jobs for some minutes, else from the accounting.

    Empty where neither knows the job, and where there is no SLURM.

    Raises:
        InputError: SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    where = on_cluster(cluster)
    answer = ask("squeue", *where, "-h", "-r", "-t", "all", "-j", job, "-o", "%i|%T|%r|%N")
    tasks = [
        Task(name, state, "" if reason == "None" else reason, nodes)
        for name, state, reason, nodes in rows(answers.TASK_ROW, answer.lines)
        if name.split("_")[0] == job
    ]
    if tasks:
        # A federation lists a job once for each of its clusters; those that did not get it have it as revoked.
        return sorted(tasks, key=lambda task: task.state != "REVOKED")
    if (answer.status != 0 and not answer.unknown_job()) or answer.unreachable():
        fault = "no SLURM controller could be reached" if answer.unreachable() else "SLURM does not answer"
        raise InputError(f"{fault}: squeue gives no state of job {job}: {answer.words()}")
    if shutil.which("sacct") is None:
        return []
    answer = ask("sacct", *where, "-n", "-X", "-P", "--array", "-j", job, "-o", "JobID,State,NodeList")
    found = rows(answers.ACCOUNT_ROW, answer.lines) if answer.status == 0 else []
    return [Task(name, state, "", nodes) for name, state, nodes in found if name.split("_")[0] == job]


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


def never_starts(job: JobId) -> str | None:
    """What sbatch accepts in SLURM's default set-up although it never starts: too long a time, or no open partition."""
    where = on_cluster(job.cluster)
    found = rows(answers.LIMIT_ROW, ask("squeue", *where, "-h", "-j", job.number, "-o", "%P|%l").lines)
    if not found:
        return None
    names, asked = found[-1]
    offers = rows(answers.OFFER_ROW, ask("sinfo", *where, "-h", "-p", names, "-o", "%P|%a|%l").lines)
    offered = [limit for _, available, limit in offers if available == "up"]
    if offers and not offered:
        return f"partition {names} is {offers[0][1]}"
    if offered and all(seconds_of(asked) > seconds_of(limit) for limit in offered):
        return f"it asks for {asked} (days-hours:minutes:seconds), and partition {names} gives {', '.join(offered)}"
    return None


def refused(job: Job, answer: Answer) -> list[str]:
    """Lines about a job that sbatch did not take, with what the partitions offer unless there is no controller."""
    if answer.unreachable():
        return [
            f"no SLURM controller could be reached for the job '{job.stage}': {answer.words()}",
            "`scontrol ping` shows which controllers are up; submit again when one is",
        ]
    if answer.status is None:
        return [f"SLURM did not answer about the job '{job.stage}': {answer.words()}"]
    return cannot_run(job, answer.words())


def cannot_run(job: Job, why: str) -> list[str]:
    """Lines of a message about a job that SLURM would not run, with what the partitions offer."""
    offers = answers.shown(ask("sinfo", "-o", "%P %a %l %D %c %m %G %f").lines)
    options = " ".join(option for option in job.options if not option.startswith(("--output=", "--export=")))
    return [
        f"SLURM would not run the job '{job.stage}' ({job.script} {options}): {why}",
        "What the cluster offers (partition, state, longest time, nodes, cores, MB, GPUs, features):",
        *offers,
        f"Change what is asked for in slurm/site.env ({job.stage.upper()}_OPTIONS) or with "
        f"--sbatch {job.stage}=--OPTION=VALUE",
    ]


def ask(*command: str) -> Answer:
    """A question about jobs or partitions."""
    return run(command, None, {})


def run(command: Sequence[str], folder: Path | None, values: Mapping[str, str]) -> Answer:
    """Run one of SLURM's commands; what it prints need not be UTF-8."""
    # Inside a job, for example an interactive one, the variables that describe it are not the new job's. Nor is the
    # chain to be changed by what its user has exported for another one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith("SLURM_") or name in ACCESS) and name not in VARIABLES
    }
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **values},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that what a site's wrapper has started can be stopped with it
        )
    except OSError as error:
        return Answer(None, (), (f"{command[0]} cannot be run: {error.strerror or error}",))
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        _stop(process)
        return Answer(
            None, (), (f"{command[0]} got no answer from SLURM in {PATIENCE} s: is its controller up?",)
        )
    except BaseException:
        _stop(process)
        raise
    return Answer(process.returncode, answers.lines_of(output), answers.lines_of(errors))


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a command with everything that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
