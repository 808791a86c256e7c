"""Many videos: what is done is skipped, the rest goes to supervised workers, and each outcome is recorded."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from extract_flow.extract import Settings, Task, is_done, source_bytes
from extract_flow.progress import Meter
from extract_flow.supervisor import Finished, Lost, Progress, Started, Stopped, supervise
from extract_flow.worker import serve
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.outcome import Outcome, OutcomeLog, describe, read_outcomes, summarise
from pipeline.paths import OutputPaths
from pipeline.shard import index_shards
from pipeline.video import VIDEO_SUFFIXES, VideoError, list_pictures

MANY = 2000
"""Shards from which on they are looked at by several processes; a process costs about as much as a thousand shards."""


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run works; none of it changes what is in the shards.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        jobs: CPU cores to use; None takes the usable ones.
        threads: CPU threads of each worker's method on a CPU.
        patience: seconds without a decoded frame after which a decoder is given up.
        task: number of the array task, part of the outcome file's name.
        overlap: run a worker's stages in threads; None does so on a GPU.
    """

    device: str = "auto"
    jobs: int | None = None
    threads: int = 1
    patience: float | None = 300.0
    task: int = 0
    overlap: bool | None = None


def usable_cores() -> int:
    """CPU cores that this process may use: what SLURM gave it, at most those it is bound to."""
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        bound = os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdecimal() and int(given) > 0 else bound


def find_videos(paths: Iterable[Path], output: OutputPaths) -> list[Task]:
    """The videos that paths name: files, folders of numbered pictures, and all of both below other folders.

    A file's identity is its stem, a folder of pictures' its name; what lies below a folder keeps its relative path.

    Raises:
        InputError: no such path, nothing found, or two videos whose shards would have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        here = _below(path) if path.is_dir() and not list_pictures(path) else {_stem(path): path}
        if not here:
            raise InputError(f"{path}: no video and no folder of numbered pictures lies in or below it")
        for video, file in here.items():
            if video in found and found[video].resolve() != file.resolve():
                raise InputError(
                    f"{file} and {found[video]} would both become {output.shard(video)}: "
                    "extract them into different folders"
                )
            found[video] = file
    return [Task(video, path, output.shard(video)) for video, path in sorted(found.items())]


def _stem(path: Path) -> str:
    name = path.absolute().name
    return name if path.is_dir() else Path(name).stem


def _below(folder: Path) -> dict[str, Path]:
    """Videos and folders of pictures below a folder, by relative path without suffix."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        here = Path(parent)
        if here != folder and list_pictures(here):
            found[here.relative_to(folder).as_posix()] = here
            continue
        for name in sorted(names):
            path = here / name
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                video = path.relative_to(folder).with_name(path.stem).as_posix()
                if video in found:
                    raise InputError(
                        f"{path} and {found[video]} would both become {video}.h5: rename one of them"
                    )
                found[video] = path
    return found


def run(
    tasks: Sequence[Task],
    settings: Settings,
    how: Run,
    folder: Path,
    outcomes: Path,
    shard_set: str,
    *,
    plain: bool | None = None,
) -> list[Outcome]:
    """Make the shards of all tasks that are not done yet, telling the user on stderr how far it is.

    Args:
        tasks: the videos.
        settings: what to make of them.
        how: on what device, with how many processes.
        folder: that all shards lie below.
        outcomes: folder of the outcome records.
        shard_set: name of the set, recorded with each outcome.
        plain: progress as lines instead of a bar; None asks whether stderr is a terminal.

    Returns:
        One outcome for each task, in order.

    Raises:
        InputError: nothing can be made at all: the method or device is not there, or the disk is full.
        Stopped: a signal ended the run; finished videos are recorded.
    """
    jobs = how.jobs or usable_cores()
    atomic.sweep(folder)
    there = index_shards(folder)
    tasks = [task._replace(packed=there.get(task.video)) for task in tasks]
    ended: dict[int, Outcome] = {}
    for number in _done(tasks, settings, jobs):
        ended[number] = Outcome(tasks[number].video, "skipped", shard_set=shard_set)
    log = OutcomeLog(outcomes, how.task)
    try:
        with atomic.disk_errors(outcomes):
            _record_skipped(log, outcomes, list(ended.values()), shard_set)
        left = [number for number in range(len(tasks)) if number not in ended]
        if left:
            _work(tasks, left, settings, how, jobs, log, shard_set, ended, plain)
    finally:
        log.close()
        atomic.sweep(folder)  # what a worker left that was killed
    return [ended[number] for number in range(len(tasks))]


def _record_skipped(log: OutcomeLog, folder: Path, skipped: list[Outcome], shard_set: str) -> None:
    """Record what was found done, unless the records say so already: a run without work leaves no further file."""
    known = read_outcomes(folder, shard_set) if skipped else {}
    log.append(*(o for o in skipped if o.video not in known or known[o.video].status == "failed"))


def _done(tasks: Sequence[Task], settings: Settings, jobs: int) -> list[int]:
    """Numbers of the tasks whose shards are there and as asked."""
    there = [number for number, task in enumerate(tasks) if task.packed is not None]
    if len(there) < MANY or jobs < 2:
        return [number for number in there if is_done(tasks[number], settings)]
    parts = min(jobs, 8)
    shares = [there[part::parts] for part in range(parts)]
    with ProcessPoolExecutor(parts) as pool:
        results = pool.map(_done_of, ([(tasks[n], n) for n in share] for share in shares), [settings] * parts)
        return [number for result in results for number in result]


def _done_of(share: list[tuple[Task, int]], settings: Settings) -> list[int]:
    return [number for task, number in share if is_done(task, settings)]


def _work(
    tasks: Sequence[Task],
    left: list[int],
    settings: Settings,
    how: Run,
    jobs: int,
    log: OutcomeLog,
    shard_set: str,
    ended: dict[int, Outcome],
    plain: bool | None,
) -> None:
    """Give the tasks that are left to workers and record how each ends."""
    arguments = (settings, how.device, how.threads, jobs, how.overlap)
    events = supervise(
        [tasks[number] for number in left], serve, arguments, workers=jobs, patience=how.patience
    )
    weights = {i: _weight(tasks[number].path) for i, number in enumerate(left)}
    with Meter(weights, plain) as meter:

        def record(i: int, outcome: Outcome) -> None:
            outcome = dataclasses.replace(outcome, shard_set=shard_set)
            ended[left[i]] = outcome
            with atomic.disk_errors(log.path):
                log.append(outcome)
            if outcome.status == "failed":
                meter.line(f"failed: {outcome.video}: {outcome.reason}")
            meter.finish(i, outcome.flows)

        try:
            for event in events:
                if isinstance(event, Started):
                    meter.start()
                    processes = f"{event.workers} process{'es' * (event.workers != 1)}"
                    meter.line(
                        f"{settings.method} on {event.ready.device}, {processes}, {len(left)} videos to do"
                    )
                elif isinstance(event, Progress):
                    meter.progress(event.task, *event.report)
                elif isinstance(event, Finished):
                    record(event.task, event.result.outcome)
                    if event.result.disk_full:
                        raise InputError(
                            f"{event.result.outcome.reason} (the run was stopped; earlier shards are intact)"
                        )
                elif isinstance(event, Lost):
                    task = tasks[left[event.task]]
                    record(event.task, Outcome(task.video, "failed", f"{task.path}: {event.reason}"))
        finally:
            events.close()  # ends the workers


def _weight(path: Path) -> int:
    try:
        return source_bytes(path)
    except VideoError:
        return 1


def summary_lines(outcomes: list[Outcome], began: float) -> list[str]:
    """The lines that end a run which began at that `time.monotonic()`."""
    return describe(summarise(outcomes), time.monotonic() - began)


__all__ = ["Run", "Stopped", "find_videos", "run", "summary_lines", "usable_cores"]
