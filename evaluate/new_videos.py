"""Videos outside any dataset: their frames and flow, made exactly as the shards were that a run was trained on.

How they were made is read from the run's checkpoint alone, so that a run can be copied to another machine without its
dataset.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from evaluate.options import NewVideoOptions
from extract_flow.options import FRAMES_QUALITY
from pipeline.errors import InputError
from pipeline.failures import file_beside, report_failures
from pipeline.request import Request, request_of
from pipeline.runs import RunRecord
from pipeline.shard import open_shard
from pipeline.shard_sets import targets_at
from pipeline.text import many
from train.checkpoint import Checkpoint, weights_digest
from train.convert import recognise
from train.initialise import hidden_layers, initialise
from train.models import build
from train.pretrained import fetch
from train.recipe import Recipe
from train.weights import read_weights

PUBLISHED_MODEL = "resnet50"
"""The network of --init imagenet where none is named."""


class Failures:
    """The videos that failed, and why; reported at the end, grouped by reason.

    Args:
        say: called with each line.
        output: where results go; what is not named in the lines is written beside it.
    """

    def __init__(self, say: Callable[[str], None], output: Path | None) -> None:
        self._say = say
        self._file = file_beside(Path(tempfile.gettempdir()) / "two-stream" if output is None else output)
        self.reasons: dict[str, str] = {}

    def add(self, video: str, reason: str) -> None:
        """Record that a video failed."""
        self.reasons[video] = reason

    def check(self, videos: int) -> None:
        """Report what failed, and raise InputError if anything did of so many videos."""
        if self.reasons:
            for line in report_failures(list(self.reasons.items()), self._file):
                self._say(line)
            raise InputError(f"{len(self.reasons):,} of {many(videos, 'video')} failed")


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
        say: called with what is assumed for a run that learned from images, which has no shards.

    Raises:
        InputError: the checkpoint does not record how its shards were made, and no shard was given with --like.
    """
    spec = checkpoint.volume
    if dataset in checkpoint.requests:
        made = checkpoint.requests[dataset]
    elif options.like is not None:
        made = request_of_shard(options.like)
    elif checkpoint.run.images is not None:
        side = spec.short_side or None
        made = Request(source_bytes=0, short_side=side, frames=True, frames_quality=FRAMES_QUALITY)
        size = f"smaller side {side} pixels" if side else "the video's own size"
        say(
            f"{checkpoint.path}: learned from images, not from shards; assumed for frames: {size}, JPEG quality "
            f"{FRAMES_QUALITY}"
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


def untrained_checkpoint(init: str, model: str | None, say: Callable[[str], None]) -> Checkpoint:
    """The network of published weights, or of a file of weights, as if a run had ended with it; spatial stream.

    Args:
        init: "imagenet", or a file that `train.weights` reads.
        model: the network; None: that of the file, `PUBLISHED_MODEL` for "imagenet".
        say: called with what was taken from the weights.

    Raises:
        InputError: no such weights, weights of a network for flow, or convolutions alone of a network whose features
            come from its fully connected layers.
    """
    if init == "imagenet":
        model = model or PUBLISHED_MODEL
        path = fetch(model)
    else:
        path = Path(init)
        weights = read_weights(path)
        network, name = recognise(path, weights)
        hidden = hidden_layers(network)
        bare = bool(hidden) and not any(f"{layer}.weight" in weights.tensors for layer in hidden)
        model = model or ("vgg16_gap" if bare and name == "vgg16" else name)
        if bare and model == name:
            raise InputError(
                f"{init}: has the convolutions only, and features of {model} come from its fully connected layers; "
                "take those of the convolutions of VGG-16 with --model vgg16_gap"
            )
        channels = weights.tensors[f"{network.first}.weight"].shape[1]
        if channels != 3:
            raise InputError(
                f"{init}: expected weights for RGB, found {channels} input channels: train a run first"
            )
    network = build(model, 3, 1)
    say(f"{init}: {model}, {initialise(network, path, ['none'])}")
    spec = Recipe(model=model).volume("spatial")
    checkpoint = Checkpoint(
        network.state_dict(),
        {"model": model, "dropout": 0.0, "width": 1.0},
        RunRecord("", "spatial", images="", init=init),
        spec,
        {"": ("none",)},
        0,
        path=path,
    )
    checkpoint.digest = weights_digest(checkpoint)
    return checkpoint
