"""Shards of videos outside any dataset, in one pass over each: decoded, flow computed, handed on, removed.

Worker processes make them (`extract_flow.supervisor`), so that a video that kills or hangs its worker costs that video
only. No worker is more than one video ahead of the caller, so that disk space stays bounded. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from extract_flow import methods, worker
from extract_flow.clip import VideoTask
from extract_flow.flow_method import FlowMethod
from extract_flow.options import Execution
from extract_flow.settings import ExtractionSettings
from extract_flow.supervisor import Event, Finished, Link, Lost, Message, Preparing, Ready, Started, supervise
from extract_flow.supervisor import Progress as Report
from extract_flow.worker import Result
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.machine import usable_cores
from pipeline.paths import OutputPaths
from pipeline.progress import Progress, notes_to
from pipeline.request import Request
from pipeline.shard import ShardAddress
from pipeline.shard_file import DIRECTIONS

SHARE_OF_WORK = 0.8
"""What making its shards is of the work on a video, about; the networks do the rest."""


@dataclass(frozen=True)
class NewVideo:
    """A video to decode.

    Attributes:
        name: what results call it.
        path: the file, or the folder of pictures.
        identity: what files made of it are called, without their suffix; it may have folders in it.
    """

    name: str
    path: Path
    identity: str


class Made(NamedTuple):
    """The result for one video.

    Attributes:
        video: which.
        number: its place among the videos.
        shards: one for each wanted request; there only until the next video is asked for, unless they are kept.
        fault: why there are none.
    """

    video: NewVideo
    number: int
    shards: tuple[ShardAddress, ...] = ()
    fault: str = ""


def make_shards(
    videos: Sequence[NewVideo],
    wanted: Sequence[Request],
    device: str,
    workers: int | None = None,
    keep: Path | None = None,
    shown: Progress | None = None,
) -> Generator[Made, None, None]:
    """Make the shards of videos, and yield each video as it ends; in their order if there are no worker processes.

    Args:
        videos: their identities must differ if `keep` is given.
        wanted: what the shards must be; requests that differ in parts alone share one decoding.
        device: of the flow method: "auto", "cpu", "cuda" or "cuda:N".
        workers: processes that decode and compute flow; 0 does it in this one; None: one per core, none for a single
            video.
        keep: folder that keeps the shards; those that are there and as wanted are taken as they are.
        shown: shows what is compiled first, when the work begins, and how far each video is; the caller shows when
            one has ended.

    Raises:
        InputError: a flow method that this version or machine does not have, a full disk, or kept shards of several
            kinds.
        Stopped: a signal came; only with worker processes.
    """
    merged = merged_requests(wanted)
    kinds = [next(kind for kind, one in enumerate(merged) if _covers(one, request)) for request in wanted]
    if keep is not None and len(merged) > 1:
        raise InputError(
            "--keep-shards: the runs were trained on shards that were made in different ways; name one of them"
        )
    settings = [ExtractionSettings.from_request(request) for request in merged]
    cores = usable_cores()
    if workers is None:
        workers = 0 if len(videos) == 1 else min(cores, len(videos))
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="two-stream-shards-")))
            stack.enter_context(atomic.removing(folder))
            tasks = [
                VideoTask(f"video/{number}", video.path, folder / f"{number}.h5")
                for number, video in enumerate(videos)
            ]
        else:
            kept = OutputPaths(keep)
            tasks = [VideoTask(video.identity, video.path, kept.shard(video.identity)) for video in videos]
        for number, reason in _results(tasks, settings, device, workers, cores, shown):
            files = [_shard_of(tasks[number].shard, kind) for kind in range(len(merged))]
            if reason:
                yield Made(videos[number], number, fault=reason)
            else:
                yield Made(videos[number], number, tuple(ShardAddress(files[kind]) for kind in kinds))
            if keep is None:
                for file in files:
                    file.unlink(missing_ok=True)


def _results(
    tasks: Sequence[VideoTask],
    settings: Sequence[ExtractionSettings],
    device: str,
    workers: int,
    cores: int,
    shown: Progress | None,
) -> Iterator[tuple[int, str]]:
    """Number of each video as it ends, and why it failed, if it did; InputError if the disk is full."""
    if not workers:
        loaded = _load(settings, device, cores)
        _warm_up(loaded, settings, shown.note if shown else _quiet)
        if shown:
            shown.start()
        here = _Here(shown) if shown else None
        for number, task in enumerate(tasks):
            yield number, _reason(_make(number, task, settings, loaded, here))
        return
    threads = max(1, cores // workers)
    events: Generator[Event, None, None]
    patience = Execution().patience
    if len(settings) == 1:
        arguments = (settings[0], device, threads, cores, None, None)  # processes, overlap: the defaults
        events = supervise(tasks, worker.serve, arguments, workers=workers, patience=patience)
    else:
        events = supervise(
            tasks, serve_kinds, (tuple(settings), device, threads), workers=workers, patience=patience
        )
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Finished):
                yield event.task, _reason(event.result)
            elif isinstance(event, Lost):
                yield event.task, f"{tasks[event.task].path}: {event.reason}"
            elif shown and isinstance(event, Started):
                shown.start()
            elif shown and isinstance(event, Preparing):
                shown.note(event.what)
            elif shown and isinstance(event, Report):
                _show(shown, event)


class _Here(Link):
    """In the place of a worker's end of its pipe, where this process does the work itself."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def _send(self, message: Message) -> None:
        if isinstance(message, Report):
            _show(self._shown, message)


def _show(shown: Progress, event: Report) -> None:
    amount, part = event.report
    shown.report(event.task, amount, SHARE_OF_WORK * part)


def _quiet(line: str) -> None:
    """A `Link` for work in this process, where there is no supervisor to report to."""


def _warm_up(
    loaded: Sequence[FlowMethod], settings: Sequence[ExtractionSettings], report: Callable[[str], None]
) -> None:
    for method, kind in zip(loaded, settings, strict=True):
        if method.device == "cpu" and kind.directions:
            worker.warm_up(method, kind.codec.quantiser, report)


def serve_kinds(
    link: Link,
    slot: int,
    first: Ready | None,
    settings: Sequence[ExtractionSettings],
    device: str,
    threads: int,
) -> None:
    """Make every kind of shard of each video: the `serve` of `supervise` where runs need several kinds."""
    try:
        on_gpus = first is not None and first.workers is not None and device in ("auto", "cuda")
        with notes_to(link.preparing):
            loaded = _load(settings, f"cuda:{slot}" if on_gpus else device, threads)
    except InputError as error:
        link.refuse(str(error))
        return
    _warm_up(loaded, settings, link.preparing)
    gpus = [method.device_count for method in loaded if method.device != "cpu"]
    several = 1 if device.startswith("cuda:") else min(gpus, default=0)
    link.ready(Ready(loaded[0].device, several if gpus else None, 1))
    while (message := link.receive()) is not None:
        number, task = message
        link.finish(number, _make(number, task, settings, loaded, link))


def _load(settings: Sequence[ExtractionSettings], device: str, threads: int) -> list[FlowMethod]:
    return [methods.load(kind.method, device, threads, **kind.parameters) for kind in settings]


def _make(
    number: int,
    task: VideoTask,
    settings: Sequence[ExtractionSettings],
    loaded: Sequence[FlowMethod],
    link: Link | None = None,
) -> Result:
    """Every kind of shard of one video; the first that fails is the result."""
    for kind, (of_kind, method) in enumerate(zip(settings, loaded, strict=True)):
        one = task._replace(shard=_shard_of(task.shard, kind))
        result = worker.make(number, one, of_kind, method, method.device, link)
        if result.outcome.status == "failed":
            break
    return result


def _shard_of(shard: Path, kind: int) -> Path:
    return shard if kind == 0 else shard.with_name(f"{shard.stem}-{kind}.h5")


def _reason(result: Result) -> str:
    """Why a video failed; "" if it did not."""
    if result.disk_full:
        raise InputError(f"{result.outcome.reason} (stopped; what was written before is intact)")
    return result.outcome.reason if result.outcome.status == "failed" else ""


def merged_requests(wanted: Sequence[Request]) -> list[Request]:
    """The fewest requests that cover all: those that differ only in directions and frames become one."""
    merged: list[Request] = []
    for request in wanted:
        for place, other in enumerate(merged):
            if _without_parts(other) == _without_parts(request):
                both = {*other.directions, *request.directions}
                merged[place] = dataclasses.replace(
                    other,
                    directions=tuple(direction for direction in DIRECTIONS if direction in both),
                    frames=other.frames or request.frames,
                )
                break
        else:
            merged.append(request)
    return merged


def _without_parts(request: Request) -> Request:
    return dataclasses.replace(request, directions=(), frames=False)


def _covers(made: Request, wanted: Request) -> bool:
    return _without_parts(made) == _without_parts(wanted) and not wanted.missing(made)
