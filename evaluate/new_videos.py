"""Videos outside any dataset: their frames and flow, made exactly as the shards were that a run was trained on.

How they were made is read from the run's checkpoint alone, so that a run can be copied to another machine without its
dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.options import NewVideoOptions
from extract_flow import methods, worker
from extract_flow.clip import VideoTask
from extract_flow.settings import ExtractionSettings
from pipeline.errors import InputError
from pipeline.machine import usable_cores
from pipeline.request import Request, request_of
from pipeline.shard import DIRECTIONS, ShardAddress, open_shard
from pipeline.shard_sets import targets_at
from train.checkpoint import Checkpoint

IMAGE_QUALITY = 90
"""JPEG quality of frames for a run that learnt from images: extraction's default."""


@dataclass(frozen=True)
class NewShards:
    """Shards of new videos.

    Attributes:
        videos: those that could be decoded, in the order given.
        shards: for each checkpoint, one shard for each of `videos`.
        faults: why each other video could not be decoded.
    """

    videos: tuple[Path, ...]
    shards: tuple[tuple[ShardAddress, ...], ...]
    faults: tuple[str, ...]


def wanted_request(
    checkpoint: Checkpoint,
    dataset: str,
    options: NewVideoOptions,
    say: Callable[[str], None],
) -> Request:
    """What shards of new videos must be for a checkpoint: as those of its dataset were, with what its stream needs.

    Args:
        checkpoint: of the run.
        dataset: the one of its datasets whose classes are wanted.
        options: `like` stands in for what a checkpoint of version 1 does not record.
        say: called with what is assumed for a run that learnt from images, which has no shards.

    Raises:
        InputError: the checkpoint does not record how its shards were made, and no shard is given that shows it.
    """
    spec = checkpoint.volume
    if dataset in checkpoint.requests:
        made = checkpoint.requests[dataset]
    elif options.like is not None:
        made = request_of_shard(options.like)
    elif checkpoint.run.images is not None:
        side = spec.short_side or None
        made = Request(source_bytes=0, short_side=side, frames=True, frames_quality=IMAGE_QUALITY)
        size = f"smaller side {side} pixels" if side else "the video's own size"
        say(
            f"{checkpoint.path}: learnt from images, not from shards; assumed for frames: {size}, JPEG quality "
            f"{IMAGE_QUALITY}"
        )
    else:
        raise InputError(
            f"{checkpoint.path}: does not record how its shards of {dataset} were made (checkpoints of version 1 do "
            "not): give one of those shards with --like SHARD"
        )
    return dataclasses.replace(
        made, source_bytes=0, directions=spec.directions, frames=spec.stream == "spatial"
    )


def request_of_shard(path: Path) -> Request:
    """How one shard was made; a shard in a pack is `FILE.h5pack/class/stem`.

    Raises:
        InputError: not one shard, or a damaged one.
    """
    found = targets_at(path)
    if len(found) != 1:
        raise InputError(f"--like {path}: expected one shard, found {len(found)}")
    with open_shard(found[0].address) as shard:
        return request_of(shard)


def make_shards(videos: Sequence[Path], wanted: Sequence[Request], folder: Path, device: str) -> NewShards:
    """Shards of new videos for each wanted request; requests that differ in parts alone share one decoding.

    Args:
        videos: files, or folders of pictures.
        wanted: one for each checkpoint.
        folder: where the shards go.
        device: of the flow method: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: a flow method that this version or machine does not have.
    """
    made: dict[tuple[int, int], Path] = {}
    faults: dict[int, str] = {}
    merged = merged_requests(wanted)
    for kind, request in enumerate(merged):
        settings = ExtractionSettings.from_request(request)
        method = methods.load(settings.method, device, usable_cores(), **settings.parameters)
        for place, video in enumerate(videos):
            if place in faults:
                continue
            shard = folder / f"{place}-{kind}.h5"
            task = VideoTask(f"video/{place}", video, shard)
            outcome = worker.make(0, task, settings, method, method.device).outcome
            if outcome.status == "failed":
                faults[place] = outcome.reason
            else:
                made[place, kind] = shard
    good = [place for place in range(len(videos)) if place not in faults]
    kinds = [next(kind for kind, one in enumerate(merged) if _covers(one, request)) for request in wanted]
    return NewShards(
        tuple(videos[place] for place in good),
        tuple(tuple(ShardAddress(made[place, kind]) for place in good) for kind in kinds),
        tuple(faults.values()),
    )


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
