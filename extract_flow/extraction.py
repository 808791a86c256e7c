"""Many videos: those that are done are skipped, the others go to supervised workers, and each outcome is recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from extract_flow.clip import VideoTask, check_source, other_settings
from extract_flow.gpu_use import busy_share
from extract_flow.options import Execution
from extract_flow.settings import ExtractionSettings
from extract_flow.supervisor import Event, Finished, Lost, Preparing, Started, Stopped, supervise
from extract_flow.supervisor import Progress as Report
from extract_flow.worker import serve
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.failures import report_failures
from pipeline.machine import usable_cores
from pipeline.manifest import Facts, ShardSet, Stamp, read_shard_set, record
from pipeline.outcome import (
    Outcome,
    OutcomeLog,
    describe,
    read_outcomes,
    seconds_of_work,
    summarise,
)
from pipeline.progress import Progress
from pipeline.request import Standing, other_ways, standing
from pipeline.shard_file import ShardAddress
from pipeline.text import many, shortened
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


class Known(NamedTuple):
    """What is known before any worker starts.

    Attributes:
        outcomes: of the videos that are done or cannot be made, by number.
        shards: that the set has, by video id.
    """

    outcomes: dict[int, Outcome]
    shards: Mapping[str, ShardAddress]


def extract(
    videos: Sequence[VideoTask],
    settings: ExtractionSettings,
    execution: Execution,
    destination: Destination,
    known: Known | None = None,
    *,
    plain: bool | None = None,
) -> list[Outcome]:
    """Make the shards of all videos that are not done yet, with the progress on stderr.

    Args:
        videos: what to extract, and where each shard goes.
        settings: what to make of each.
        execution: on which device, with how many processes; changes no byte.
        destination: where shards and outcome records go.
        known: what `known_outcomes` found, if it was called.
        plain: progress as lines instead of a bar; None: unless stderr is a terminal.

    Returns:
        One outcome for each video, in order.

    Raises:
        InputError: no shard can be made: the method or device is not available, or the disk is full.
        Stopped: a signal stopped it; the outcomes of finished videos are recorded.
    """
    known = known_outcomes(videos, settings, execution, destination) if known is None else known
    outcomes = dict(known.outcomes)
    left = [number for number in range(len(videos)) if number not in outcomes]
    log = OutcomeLog(destination.outcomes, destination.task)
    try:
        _record_skipped(log, destination, [o for o in outcomes.values() if o.status == "skipped"])
        log.append(*(o for o in outcomes.values() if o.status == "failed"))
        if left:
            made = _extract_in_workers(
                [videos[number]._replace(packed=known.shards.get(videos[number].video)) for number in left],
                settings,
                execution,
                destination,
                log,
                plain,
            )
            outcomes |= {left[number]: outcome for number, outcome in made.items()}
    finally:
        log.close()
        atomic.sweep(destination.shards)  # left behind by killed workers
    return [outcomes[number] for number in range(len(videos))]


def known_outcomes(
    videos: Sequence[VideoTask],
    settings: ExtractionSettings,
    execution: Execution,
    destination: Destination,
    there: ShardSet | None = None,
) -> Known:
    """What is known before any worker starts: videos that are done, and those that cannot be made.

    Existing shards are compared with what is asked, and the videos must be there; nothing is decoded. `there` are those
    of the destination, where they have been listed before.
    """
    atomic.sweep(destination.shards)
    outcomes: dict[int, Outcome] = {}
    there = read_shard_set(destination.shards) if there is None else there
    for number, found in _standings(videos, settings, there, _cores(execution)).items():
        video = videos[number].video
        if found.done:
            outcomes[number] = Outcome(video, "skipped", shard_set=destination.shard_set)
        elif found.differences and not settings.overwrite:
            reason = other_settings(found, settings)
            outcomes[number] = Outcome(video, "failed", reason, shard_set=destination.shard_set)
    for number in range(len(videos)):
        if number not in outcomes:
            try:
                check_source(videos[number])
            except InputError as error:
                reason = shortened(str(error))
                outcomes[number] = Outcome(
                    videos[number].video, "failed", reason, shard_set=destination.shard_set
                )
    return Known(outcomes, there)


def check_one_way(
    videos: Sequence[VideoTask],
    there: ShardSet,
    settings: ExtractionSettings,
    execution: Execution,
    destination: Destination,
) -> None:
    """Refuse to add shards to a set whose shards were made with other settings: training takes no mixture.

    Args:
        videos: of all array tasks, so that each finds the same.
        there: the shards of the destination.
        settings: what is asked; with `overwrite`, nothing is refused.
        execution: its processes read shards of which nothing is recorded.
        destination: of the shards.

    Raises:
        InputError: some shards differ while others are missing; shows how, and the ways on.
    """
    if settings.overwrite:
        return
    there.learn((video.video for video in videos), jobs=_cores(execution))
    asked = settings.request(0)
    made = {video.video: there.facts[video.video].request for video in videos if video.video in there.facts}
    ways = other_ways(asked, made)
    others = {video for way in ways for video in way.videos}
    left = sum(
        video.video not in made or (video.video not in others and bool(asked.missing(made[video.video])))
        for video in videos
    )
    if not others or not left:
        return
    lines = [
        f"  {many(len(way.videos), 'video')} (for example {way.videos[0]}): {'; '.join(way.differences)}"
        for way in ways
    ]
    presets = {preset for way in ways if (preset := settings.preset_of(way.made))}
    same = (
        f"the settings that its shards have ({' or '.join(sorted(presets))})" if presets else "its settings"
    )
    raise InputError(
        f"{destination.shards}: expected shards made with the settings that are asked, since a set is made in one way "
        f"and training refuses a mixture; {many(left, 'video')} of {len(videos)} would be made with these, "
        "while shards that are there were made with others:",
        *lines,
        f"nothing was made. To finish the set as it was begun, ask for {same}; for a set of its own, name another "
        f"--shards; to replace {'that shard' if len(others) == 1 else f'those {len(others)} shards'}, add --overwrite",
    )


def _cores(execution: Execution) -> int:
    return execution.jobs or usable_cores()


def failure_report(outcomes: Sequence[Outcome], destination: Destination, when: str) -> list[str]:
    """Lines about those that failed; a file beside the outcome records holds what they do not name.

    Args:
        outcomes: of which those that failed count.
        destination: of the extraction.
        when: part of the file's name, "before" or "during" the work.
    """
    failed = [(outcome.video, outcome.reason) for outcome in outcomes if outcome.status == "failed"]
    return report_failures(failed, destination.outcomes / f"failed-{when}-task{destination.task}.txt")


def _record_skipped(log: OutcomeLog, destination: Destination, skipped: list[Outcome]) -> None:
    """Record the videos that were done already, unless the records say so: a run without work adds no file."""
    known = read_outcomes(destination.outcomes, destination.shard_set) if skipped else {}
    log.append(*(o for o in skipped if o.video not in known or known[o.video].status == "failed"))


def _standings(
    videos: Sequence[VideoTask], settings: ExtractionSettings, there: ShardSet, cores: int
) -> dict[int, Standing]:
    """How existing shards answer the request, by the number of the video; those that cannot be opened are left out."""
    there.learn((video.video for video in videos), jobs=cores)
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
    destination: Destination,
    log: OutcomeLog,
    plain: bool | None,
) -> dict[int, Outcome]:
    """Give the videos to workers, and record how each ends; outcomes by the video's number."""
    written: dict[str, tuple[Stamp, Facts]] = {}
    cores = _cores(execution)
    events = supervise(
        videos,
        serve,
        (settings, execution.device, execution.threads, cores, execution.processes, execution.overlap),
        workers=cores,
        patience=execution.patience or None,
    )
    outcomes: dict[int, Outcome] = {}
    weights = {number: _bytes(video.path) or 1 for number, video in enumerate(videos)}
    with (
        Progress("", len(videos), weights=weights, amount="pair", plain=plain) as shown,
        ExitStack() as watching,
    ):
        busy: Callable[[], float | None] | None = None
        try:
            for event in events:
                _show(event, shown, settings.method, len(videos))
                if isinstance(event, Started) and event.ready.workers is not None:  # on a GPU
                    busy = watching.enter_context(busy_share(execution.device))
                if (outcome := _outcome(event, videos)) is None:
                    continue
                assert isinstance(event, Finished | Lost)
                outcomes[event.task] = dataclasses.replace(outcome, shard_set=destination.shard_set)
                log.append(outcomes[event.task])
                shown.finish(event.task, outcome.flows, outcome.status == "failed")
                if isinstance(event, Finished) and event.result.written is not None:
                    written[outcome.video] = event.result.written
                if isinstance(event, Finished) and event.result.disk_full:
                    raise InputError(
                        f"{outcome.reason} (the extraction was stopped; earlier shards are intact)"
                    )
        finally:
            events.close()  # ends the workers
            record(destination.shards, written)
        if busy is not None:
            share = busy()
            known = f"{share:.0%} of the time" if share is not None else "unknown, nvidia-smi says nothing"
            shown.line(f"GPU busy: {known}")
    return outcomes


def _show(event: Event, shown: Progress, method: str, videos: int) -> None:
    if isinstance(event, Started):
        starting = shown.seconds
        shown.start()
        note = f" {event.ready.note}" if event.ready.note else ""
        shown.line(
            f"{method} on {event.ready.device}, {many(event.workers, 'process', 'processes')}{note}, "
            f"{many(videos, 'video')} to do; starting took {starting:.1f} s"
        )
    elif isinstance(event, Preparing):
        shown.note(event.what)
    elif isinstance(event, Report):
        shown.report(event.task, *event.report)


def _outcome(event: Event, videos: Sequence[VideoTask]) -> Outcome | None:
    """The outcome that an event brings, if it ends a video."""
    if isinstance(event, Finished):
        outcome: Outcome = event.result.outcome
        return outcome
    if isinstance(event, Lost):
        video = videos[event.task]
        return Outcome(video.video, "failed", f"{video.path}: {event.reason}")
    return None


def summary_lines(
    outcomes: Sequence[Outcome],
    settings: ExtractionSettings,
    destination: Destination,
    reported: Sequence[Outcome] = (),
) -> list[str]:
    """The lines that end an extraction: what was made, how fast, where it is, and what failed.

    Args:
        outcomes: one for each video.
        settings: of the extraction.
        destination: of the extraction.
        reported: failures that were reported already.
    """
    said = {outcome.video for outcome in reported}
    failures = failure_report([o for o in outcomes if o.video not in said], destination, "during")
    lines = describe(summarise(outcomes), seconds_of_work(outcomes), settings.rgb, failures)
    if any(outcome.status != "failed" for outcome in outcomes):
        named = f" (shard set {destination.shard_set})" if destination.shard_set else ""
        lines.append(f"shards: {destination.shards}{named}")
    return lines


__all__ = ["Destination", "Stopped", "extract", "failure_report", "known_outcomes", "summary_lines"]
