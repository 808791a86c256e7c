"""A chain gets into the queue whole, or not at all: whatever SLURM answers, no job of half a chain is left there."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.errors import InputError
from slurm import answers, scheduler
from slurm.answers import Answer, JobId, command_line
from slurm.chain import Job
from slurm.record import Submitted

PAUSES = (0.0, 0.5, 2.0)
"""Seconds before each check whether a cancelled job is gone: a federation passes the request on."""


def submit_all(jobs: Sequence[Job], project: Path) -> list[Submitted]:
    """Submit the jobs, each waiting for the one before.

    Raises:
        InputError: SLURM refuses one, would never start it, or cannot be reached or understood; what was submitted is
            cancelled again, and the message says so, or names what could not be cancelled. The same happens after
            Ctrl-C and SIGTERM, which are then re-raised.
    """
    submitted: list[Submitted] = []
    for job in jobs:
        waits_for = submitted[-1].id if submitted else None
        cluster = waits_for.cluster if waits_for else None
        answer: Answer | None = None
        before = None
        try:
            before = scheduler.own_jobs(job, cluster)
            answer = scheduler.submit(job, project, waits_for)
            found = _accepted(job, answer)
        except BaseException as error:
            left = _perhaps_submitted(job, answer, before, cluster)
            outcome = _withdraw([*(each.id for each in submitted), *left], job, before)
            if isinstance(error, InputError):
                raise InputError(*error.lines, *outcome) from error
            click.echo(
                "\n".join((f"the job '{job.stage}' was not submitted", *outcome)), err=True
            )  # Ctrl-C, SIGTERM
            raise
        command = tuple(job.command(waits_for))
        submitted.append(Submitted(job.stage, found.number, job.tasks, command, found.cluster))
    return submitted


def _accepted(job: Job, answer: Answer) -> JobId:
    """The id of the job that was just submitted.

    Raises:
        InputError: it was not, or would wait forever, or the answer holds no id.
    """
    found = answers.job_id(answer.lines)
    if answer.status != 0 or (found is None and answer.unreachable()):
        raise InputError(*scheduler.refused(job, answer))
    if found is None:
        lines = answers.shown([*answer.lines, *answer.errors]) or ["(nothing)"]
        raise InputError(
            f"sbatch answered without the id of the job '{job.stage}' (a line `number` or `number;cluster`):",
            *(f"  {line}" for line in lines),
        )
    if fault := scheduler.never_starts(found):
        raise InputError(*scheduler.cannot_run(job, fault))
    return found


def _perhaps_submitted(
    job: Job, answer: Answer | None, before: set[str] | None, cluster: str | None
) -> list[JobId]:
    """Jobs in the queue that resulted from an attempt to submit `job`: by their id, a sentence about it, or their
    name.
    """
    found = []
    if answer:
        named = answers.job_id(answer.lines)
        if named and answer.status == 0:
            return [named]
        # A number in a refusal or in an unclear answer may be anything, another job of this user too.
        if answer.status == 0 or before is not None:
            found = [*([named] if named else []), *answers.claimed_jobs([*answer.lines, *answer.errors])]
            found = [each for each in dict.fromkeys(found) if each.number not in (before or ())]
    found = [JobId(each.number, each.cluster or cluster) for each in found]
    found = [each for each in found if not scheduler.is_another(job, each)]
    if before is not None:
        new = (scheduler.own_jobs(job, cluster) or set()) - before - {each.number for each in found}
        found += [JobId(number, cluster) for number in sorted(new)]
    return found


def _withdraw(jobs: Sequence[JobId], last: Job, before: set[str] | None) -> list[str]:
    """Cancel jobs, check that they are gone, and report in lines what is left in the queue."""
    if not jobs and before is not None:
        return ["nothing of this chain is in the queue"]
    look = f"squeue -u {_user()} -n {last.name}"
    unsure = f"SLURM does not say whether the job '{last.stage}' is in the queue: look with `{look}`"
    if not jobs:
        return [unsure]
    faults = scheduler.cancel(jobs)
    left: dict[JobId, str] = {}
    for pause in PAUSES:
        time.sleep(pause)
        left = {job: state for job in jobs if (state := _state(job))}
        if not left:
            break
    lines = []
    if gone := [job for job in jobs if job not in left]:
        lines.append(f"cancelled: job {', '.join(job.number for job in gone)}")
    for job, state in left.items():
        why = f"; scancel: {faults[job]}" if job in faults else ""
        lines.append(f"could not be cancelled: job {job.number} ({state}{why})")
    if left:
        lines.append(f"take out of the queue what is still there: {command_line('scancel', left)}")
    return lines


def _state(job: JobId) -> str:
    """The state of a job that is still in the queue; empty if it is not, or about to leave it."""
    try:
        tasks = scheduler.states(*job)
    except InputError as error:
        return f"its state is unknown: {error}"
    alive = {task.state for task in tasks} & scheduler.UNFINISHED - {"COMPLETING"}
    return ", ".join(sorted(alive)).lower()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return str(os.getuid())
