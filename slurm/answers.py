"""What SLURM's commands print, read as a site may print it: among banners and warnings, in colour, with cluster names.

Nothing here runs a command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.text import printable, shortened

SHOWN_LINES = 12
"""How many of an answer's last lines a message repeats."""

# Colours, movements of the cursor, titles of the window.
TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CLUSTER = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
JOB_ID = re.compile(rf"([1-9][0-9]{{0,9}})(?:;({CLUSTER}))?")
TASK_ROW = re.compile(r"([1-9][0-9]*(?:_[0-9]+)?)\s*\|\s*([A-Z_]+)\s*\|(.*)\|([^|]*)")
ACCOUNT_ROW = re.compile(
    r"([1-9][0-9]*(?:_[0-9]+)?)\|([A-Z_]+)[^|]*\|([^|]*)"
)  # "CANCELLED by 1000" is one state
NAME_ROW = re.compile(r"([1-9][0-9]*)(?:_\S+)?\|([^|]+)")
LIMIT_ROW = re.compile(r"([^|\s]+)\|([0-9:-]+|[A-Za-z_]+)")
OFFER_ROW = re.compile(r"([^|\s]+)\|(up|down|drain|inact)\|(\S+)")
UNREACHABLE = re.compile(
    r"unable to contact slurm controller|unable to establish control|socket timed out|zero bytes were transmitted"
    r"|could not establish a configuration source|dns srv lookup failed|failed to fetch (?:remote )?config"
    r"|communication connection failure|controller in standby mode",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.])[1-9][0-9]{0,9}(?![\w.]*\w)")
SUBMITTED = re.compile(r"submitted|submission|queued|accepted|job[ _-]?id", re.IGNORECASE)
ON_CLUSTER = re.compile(rf"\bon cluster ({CLUSTER})", re.IGNORECASE)


class JobId(NamedTuple):
    """A job's number, and the cluster that it belongs to where SLURM names one."""

    number: str
    cluster: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a command of SLURM printed.

    Attributes:
        status: its exit status; None where it was stopped after waiting too long or could not be started.
        lines: what it wrote to stdout: lines that are not blank, without colours and white space around them.
        errors: the same of stderr, or why there is no answer.
    """

    status: int | None
    lines: Sequence[str]
    errors: Sequence[str]

    def words(self) -> str:
        """Its error in one line: from stderr, else from stdout, into which some wrappers send everything."""
        lines = [_without_program(line) for line in self.errors or self.lines]
        return "; ".join(shown(lines)) or f"exit status {self.status}"

    def unreachable(self) -> bool:
        """Whether it reports that no controller of SLURM could be reached; meant for answers that hold nothing else."""
        return any(map(UNREACHABLE.search, [*self.errors, *self.lines]))

    def unknown_job(self) -> bool:
        return any("invalid job id" in line.lower() for line in [*self.errors, *self.lines])


def lines_of(text: str) -> list[str]:
    """Lines that are not blank, without colours and white space around them; a carriage return ends a line too."""
    return [line.strip() for line in TERMINAL.sub("", text).splitlines() if line.strip()]


def shown(lines: Sequence[str]) -> list[str]:
    """The last lines of an answer, fit to be shown."""
    return [shortened(printable(line), 200) for line in lines[-SHOWN_LINES:]]


def rows(pattern: re.Pattern[str], lines: Iterable[str]) -> list[tuple[str, ...]]:
    """The fields of each line that is a row of a table; other lines are passed over."""
    return [
        tuple(field.strip() for field in found.groups())
        for line in lines
        if (found := pattern.fullmatch(line))
    ]


def job_id(lines: Sequence[str]) -> JobId | None:
    """The job that `sbatch --parsable` submitted: the last line that is `number` or `number;cluster`."""
    found = [match for line in lines if (match := JOB_ID.fullmatch(line))]
    return JobId(found[-1][1], found[-1][2]) if found else None


def claimed_jobs(lines: Sequence[str]) -> list[JobId]:
    """Jobs that a line says were submitted, such as "Submitted batch job 12 on cluster c1".

    Not reliable enough for later jobs to depend on, but enough to cancel a job by.
    """
    jobs = []
    for line in lines:
        numbers = NUMBER.findall(line)
        if len(numbers) == 1 and "job" in line.lower() and SUBMITTED.search(line):
            cluster = ON_CLUSTER.search(line)
            jobs.append(JobId(numbers[0], cluster[1] if cluster else None))
    return jobs


def command_line(program: str, jobs: Iterable[JobId], flag: str = "", between: str = " ") -> str:
    """A command about jobs for a user to copy; one for each cluster.

    `command_line("squeue", jobs, "-j", ",")` is "squeue -j 12,13", on a named cluster "squeue -M c1 -j 12,13".
    """
    by_cluster: dict[str | None, list[str]] = {}
    for job in jobs:
        by_cluster.setdefault(job.cluster, []).append(job.number)
    return "; ".join(
        " ".join(filter(None, [program, *on_cluster(cluster), flag, between.join(numbers)]))
        for cluster, numbers in by_cluster.items()
    )


def on_cluster(cluster: str | None) -> list[str]:
    """The options that direct SLURM's commands to a named cluster."""
    return ["-M", cluster] if cluster else []


def _without_program(line: str) -> str:
    return re.sub(r"^(?:sbatch|squeue|scancel|sinfo|sacct): ", "", line).removeprefix("error: ")
