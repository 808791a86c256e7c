"""Many videos: those that are done are skipped, the others go to supervised workers, and each outcome is recorded."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from extract_flow.clip import VideoTask, other_settings
from extract_flow.options import Execution
from extract_flow.progress import ProgressDisplay
from extract_flow.settings import ExtractionSettings
from extract_flow.supervisor import Event, Finished, Lost, Preparing, Progress, Started, Stopped, supervise
from extract_flow.worker import serve
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.machine import usable_cores
from pipeline.manifest import Facts, ShardSet, Stamp, read_shard_set, record
from pipeline.outcome import Outcome, OutcomeLog, describe, read_outcomes, summarise
from pipeline.request import Standing, standing
from pipeline.text import many, printable
from pipeline.video import VideoError, source_bytes


class Destination(NamedTuple):
    """Where an extraction writes.

    Attributes:
        shards: folder that all shards lie below.
        outcomes: folder of the outcome records.
        shard_set: name of the set, recorded with each outcome; "" outside of datasets.
        task: index of the array task, part of the name of its outcome file.
    """

    shards: Path
    outcomes: Path
    shard_set: str = ""
    task: int = 0


def extract(
    videos: Sequence[VideoTask],
    settings: ExtractionSettings,
    execution: Execution,
    destination: Destination,
    *,
    plain: bool | None = None,
) -> list[Outcome]:
    """Make the shards of all videos that are not done yet, with the progress on stderr.

    Args:
        videos: what to extract, and where each shard goes.
        settings: what to make of each.
        execution: on which device, with how many processes; changes no byte.
        destination: where shards and outcome records go.
        plain: progress as lines instead of a bar; None: unless stderr is a terminal.

    Returns:
        One outcome for each video, in order.

    Raises:
        InputError: nothing can be made at all: the method or device is not available, or the disk is full.
        Stopped: a signal stopped it; the outcomes of finished videos are recorded.
    """
    cores = execution.jobs or usable_cores()
    atomic.sweep(destination.shards)
    there = read_shard_set(destination.shards)
    videos = [video._replace(packed=there.get(video.video)) for video in videos]
    outcomes: dict[int, Outcome] = {}
    for number, answer in _standings(videos, settings, there, cores).items():
        video = videos[number].video
        if answer.done:
            outcomes[number] = Outcome(video, "skipped", shard_set=destination.shard_set)
        elif answer.differences and not settings.overwrite:
            reason = other_settings(answer, settings)
            outcomes[number] = Outcome(video, "failed", reason, shard_set=destination.shard_set)
    log = OutcomeLog(destination.outcomes, destination.task)
    try:
        _record_skipped(log, destination, [o for o in outcomes.values() if o.status == "skipped"])
        log.append(*(o for o in outcomes.values() if o.status == "failed"))
        left = [number for number in range(len(videos)) if number not in outcomes]
        if left:
            made = _extract_in_workers(
                [videos[number] for number in left], settings, execution, cores, destination, log, plain
            )
            outcomes |= {left[number]: outcome for number, outcome in made.items()}
    finally:
        log.close()
        atomic.sweep(destination.shards)  # what killed workers left
    return [outcomes[number] for number in range(len(videos))]


def _record_skipped(log: OutcomeLog, destination: Destination, skipped: list[Outcome]) -> None:
    """Record the videos that were done already, unless the records say so: a run without work adds no file."""
    known = read_outcomes(destination.outcomes, destination.shard_set) if skipped else {}
    log.append(*(o for o in skipped if o.video not in known or known[o.video].status == "failed"))


def _standings(
    videos: Sequence[VideoTask], settings: ExtractionSettings, there: ShardSet, cores: int
) -> dict[int, Standing]:
    """How existing shards answer what is asked, by the number of the video; those that do not open are left out."""
    there.learn((video.video for video in videos if video.packed is not None), jobs=cores)
    asked = settings.request(0)
    of_request: dict[int, Standing] = {}  # which shards made alike share
    found: dict[int, Standing] = {}
    for number, video in enumerate(videos):
        facts = there.facts.get(video.video)
        if facts is None or (size := _bytes(video.path)) is None:
            continue
        if size != facts.source_bytes:
            found[number] = standing(dataclasses.replace(asked, source_bytes=size), facts.made)
            continue
        if id(facts.request) not in of_request:
            of_request[id(facts.request)] = standing(asked, facts.request)
        found[number] = of_request[id(facts.request)]
    return found


def _bytes(path: Path) -> int | None:
    try:
        return source_bytes(path)
    except VideoError:
        return None


def _extract_in_workers(
    videos: list[VideoTask],
    settings: ExtractionSettings,
    execution: Execution,
    cores: int,
    destination: Destination,
    log: OutcomeLog,
    plain: bool | None,
) -> dict[int, Outcome]:
    """Give the videos to workers, and record how each ends; outcomes by the video's number."""
    written: dict[str, tuple[Stamp, Facts]] = {}
    events = supervise(
        videos,
        serve,
        (settings, execution.device, execution.threads, cores, execution.processes, execution.overlap),
        workers=cores,
        patience=execution.patience or None,
    )
    outcomes: dict[int, Outcome] = {}
    with ProgressDisplay(
        {number: _bytes(video.path) or 1 for number, video in enumerate(videos)}, plain
    ) as display:
        try:
            for event in events:
                _show(event, display, settings.method, len(videos))
                if (outcome := _outcome(event, videos)) is None:
                    continue
                assert isinstance(event, Finished | Lost)
                outcomes[event.task] = dataclasses.replace(outcome, shard_set=destination.shard_set)
                log.append(outcomes[event.task])
                if outcome.status == "failed":
                    display.line(f"failed: {printable(outcome.video)}: {printable(outcome.reason)}")
                display.finish(event.task, outcome.flows)
                if isinstance(event, Finished) and event.result.written is not None:
                    written[outcome.video] = event.result.written
                if isinstance(event, Finished) and event.result.disk_full:
                    raise InputError(
                        f"{outcome.reason} (the extraction was stopped; earlier shards are intact)"
                    )
        finally:
            events.close()  # ends the workers
            record(destination.shards, written)
    return outcomes


def _show(event: Event, display: ProgressDisplay, method: str, videos: int) -> None:
    if isinstance(event, Started):
        display.start()
        display.line(
            f"{method} on {event.ready.device}, {many(event.workers, 'process', 'processes')}, "
            f"{many(videos, 'video')} to do"
        )
    elif isinstance(event, Preparing):
        display.line(event.what)
    elif isinstance(event, Progress):
        display.progress(event.task, *event.report)


def _outcome(event: Event, videos: Sequence[VideoTask]) -> Outcome | None:
    """The outcome that an event brings, if it ends a video."""
    if isinstance(event, Finished):
        outcome: Outcome = event.result.outcome
        return outcome
    if isinstance(event, Lost):
        video = videos[event.task]
        return Outcome(video.video, "failed", f"{video.path}: {event.reason}")
    return None


def summary_lines(outcomes: list[Outcome], began: float) -> list[str]:
    """The lines that end an extraction which began at that `time.monotonic()`."""
    return describe(summarise(outcomes), time.monotonic() - began)


__all__ = ["Destination", "Stopped", "extract", "summary_lines"]
