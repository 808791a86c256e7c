"""What was submitted, recorded beside the logs so that `status` can report on it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic import writing
from pipeline.errors import unreadable
from slurm.answers import JOB_ID, JobId

FORMAT = "two-stream chain of jobs"
RECORD = re.compile(r"chain-.*\.json")


@dataclass(frozen=True)
class Submitted:
    """One job of a chain: its stage, number, size of its array (None without one), sbatch command, cluster if named."""

    stage: str
    job: str
    tasks: int | None
    command: tuple[str, ...]
    cluster: str | None = None

    @property
    def id(self) -> JobId:
        return JobId(self.job, self.cluster)

    def task_names(self) -> list[str]:
        """The names of its tasks in SLURM and in the names of their logs."""
        return [self.job] if self.tasks is None else [f"{self.job}_{index}" for index in range(self.tasks)]


@dataclass(frozen=True)
class Chain:
    """Jobs submitted together, and the options of `python -m slurm submit` that they came from."""

    submitted: float
    options: tuple[str, ...]
    jobs: tuple[Submitted, ...]


def save(chain: Chain, logs: Path) -> Path:
    """Write the record and return its path."""
    path = logs / f"chain-{chain.jobs[0].job}.json"
    with writing(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(chain)}, indent=1))
    return path


def latest(logs: Path) -> Chain | None:
    """The chain submitted last; None if there is none. A damaged record is ignored.

    Raises:
        Unreadable: the system does not let a record be read, which may be the last one.
    """
    try:
        paths = [path for path in logs.iterdir() if RECORD.fullmatch(path.name)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(logs, error) from error
    chains = [chain for path in paths if (chain := _read(path)) is not None]
    return max(chains, key=lambda chain: chain.submitted, default=None)


def _read(path: Path) -> Chain | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        return None
    jobs = [job for value in _list(values.get("jobs")) if (job := _job(value)) is not None]
    submitted = values.get("submitted")
    if not jobs or not isinstance(submitted, int | float) or submitted > time.time() + 86_400:
        return None
    return Chain(float(submitted), _words(values.get("options")), tuple(jobs))


def _job(value: Any) -> Submitted | None:
    if not isinstance(value, Mapping):
        return None
    stage, job, tasks, cluster = (value.get(key) for key in ("stage", "job", "tasks", "cluster"))
    if not isinstance(stage, str) or not isinstance(job, str) or not isinstance(cluster, str | None):
        return None
    if not JOB_ID.fullmatch(job if cluster is None else f"{job};{cluster}"):
        return None
    if tasks is not None and (not isinstance(tasks, int) or not 0 < tasks < 10_000_000):
        return None
    return Submitted(stage, job, tasks, _words(value.get("command")), cluster)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for word in _list(value) if isinstance(word, str))
