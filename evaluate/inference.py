"""From the views of videos to the network's outputs for each of them.

Worker processes decode each video once and pass on bytes; volumes are built, cropped and mirrored on the device. Views
of several videos share a batch, so that the device stays busy however short the videos are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evaluate.views import Views, crop_corners, positions
from pipeline.errors import InputError
from pipeline.shard import Shard, ShardAddress, open_shard
from train.batches import keep_opencv_to_one_thread, read_volumes, shard_positions
from train.checkpoint import Checkpoint
from train.models.network import Network
from train.volume import RawFlow, RawFrames, VolumeSpec, cut_side, mirror, resize, volume

CHUNK_BYTES = 1 << 25
"""Size of the volumes that are built at a time on a CPU, so that they stay in its cache; a GPU takes whole videos."""

Forward = Callable[[list[Tensor]], Tensor]
"""Crops, each [N,C,crop,crop] on the device and perhaps a window on a larger tensor -> outputs float32[sum of N,D]."""


@dataclass(frozen=True)
class Compute:
    """Where and how the network runs.

    Attributes:
        device: "cpu" or "cuda:N".
        batch: views per call of the network, rounded down to whole positions.
        workers: processes that decode; 0 decodes in this process.
        bf16: bfloat16 arithmetic: faster on GPUs; scores differ in the third digit.
    """

    device: str = "cpu"
    batch: int = 256
    workers: int = 0
    bf16: bool = False


class ViewOutputs(NamedTuple):
    """The network's outputs for all views of one video.

    Attributes:
        video: index of its shard.
        outputs: float32[views,D], position after position, the crops of each in the order of `crop_views`.
    """

    video: int
    outputs: npt.NDArray[np.float32]


def crop_views(volumes: Tensor, spec: VolumeSpec, crops: int) -> list[Tensor]:
    """All crops of each volume at the size that the network was trained for, on the volumes' device.

    Crops of a volume whose size is the network's own are windows on it, not copies; mirrored crops are windows on one
    mirrored copy of the volumes.

    Args:
        volumes: float32[N,C,H,W] in the network's units, at the stored resolution (`train.volume.volume`).
        spec: the network's input; its `crop` and `short_side` give the side of the crop in stored pixels.
        crops: 1, 5 or 10; of ten, the second five are the first five mirrored (x flow negated).

    Returns:
        `crops` tensors float32[N,C,crop,crop].

    Raises:
        ValueError: the crop is larger than the volume, or `crops` is none of 1, 5, 10.
    """
    height, width = volumes.shape[-2:]
    side = cut_side(spec, height, width)
    corners = crop_corners(height, width, side, crops)
    windows = [volumes[..., y : y + side, x : x + side] for y, x in corners]
    if crops == 10:
        mirrored = mirror(volumes, spec)
        windows += [mirrored[..., y : y + side, width - side - x : width - x] for y, x in corners]
    return [resize(window, spec.crop) for window in windows]


def view_outputs(
    forward: Forward,
    spec: VolumeSpec,
    shards: Sequence[ShardAddress],
    views: Views,
    compute: Compute,
) -> Iterator[ViewOutputs]:
    """The network's outputs for all views of every shard, in the order of the shards.

    Args:
        forward: the network; see `Forward`.
        spec: the network's input.
        shards: one for each video.
        views: which views.
        compute: where and how.

    Raises:
        InputError: a damaged shard, or one without what the stream needs.
    """
    loader = DataLoader(
        VideoBytes(shards, spec, views.frames),
        batch_size=None,
        num_workers=compute.workers,
        pin_memory=torch.device(compute.device).type == "cuda",
        prefetch_factor=2 if compute.workers else None,
    )
    at_once = max(1, compute.batch // views.crops)
    waiting: list[Volumes] = []
    partial = PartialOutputs(views.crops)

    def run(batch: list[Volumes]) -> Iterator[ViewOutputs]:
        crops = [crop for part in batch for crop in crop_views(part.volumes, spec, views.crops)]
        outputs = forward(crops).float().cpu().numpy()
        yield from partial.add(batch, outputs)

    with torch.inference_mode():
        for video, raw in loader:
            partial.expect(video, len(raw.size))
            for chunk in _chunks(raw, compute.device):
                waiting.append(Volumes(video, volume(chunk.to(compute.device), spec)))
                while sum(len(part.volumes) for part in waiting) >= at_once:
                    batch, waiting = _first_positions(waiting, at_once)
                    yield from run(batch)
        if waiting:
            yield from run(waiting)


def video_scores(outputs: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits and softmax of one video, float32[C] each: the means over its views of float32[views,C] logits."""
    logits = outputs.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    return logits.mean(axis=0).astype(np.float32), softmax.mean(axis=0).astype(np.float32)


def load_network(checkpoint: Checkpoint) -> Network:
    """The checkpoint's network in evaluation mode, on the CPU.

    Raises:
        InputError: its weights do not fit the recipe, stream or number of classes that the file names.
    """
    try:
        return checkpoint.model()
    except RuntimeError as error:
        raise InputError(f"{checkpoint.path}: weights and recipe do not fit together: {error}") from error


def logits_forward(network: Network, columns: npt.NDArray[np.int64], compute: Compute) -> Forward:
    """The network as a function from crops to the logits of the given outputs, float32[N,len(columns)].

    Moves the network to the device.
    """
    network = network.to(compute.device)
    selected = torch.as_tensor(columns, device=compute.device)

    def forward(crops: list[Tensor]) -> Tensor:
        with _precision(compute):
            logits: Tensor = network(torch.cat(crops))
        return logits[:, selected].float()

    return forward


def features_forward(network: Network, compute: Compute) -> Forward:
    """The network as a function from crops to the penultimate layer's outputs, float32[N,F].

    Moves the network to the device.
    """
    network = network.to(compute.device)

    def forward(crops: list[Tensor]) -> Tensor:
        with _precision(compute):
            return network.penultimate(torch.cat(crops)).float()

    return forward


class VideoBytes(Dataset[tuple[int, RawFlow | RawFrames]]):
    """The bytes of all positions of each video, decoded once; item i is (i, bytes)."""

    def __init__(self, shards: Sequence[ShardAddress], spec: VolumeSpec, frames: int) -> None:
        keep_opencv_to_one_thread()
        self.shards, self.spec, self.frames = shards, spec, frames

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[int, RawFlow | RawFrames]:
        with open_shard(self.shards[index]) as shard:
            wanted = positions(available_positions(shard, self.spec), self.frames)
            return index, read_volumes(shard, self.spec, wanted)


def available_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers to the network.

    Raises:
        InputError: none, since it lacks frames, a direction of flow, or any flow at all.
    """
    count = shard_positions(shard, spec)
    if not count:
        if spec.stream == "spatial":
            needed, option = "RGB frames", "--rgb"
        else:
            both = len(spec.directions) == 2
            needed = f"{' and '.join(spec.directions)} flow"
            option = f"--direction {'both' if both else spec.directions[0]}"
        raise InputError(
            f"{shard!r} has no {needed}, which the {spec.stream} stream needs; extract it with "
            f"python -m extract_flow {option}"
        )
    return count


class Volumes(NamedTuple):
    """Volumes float32[N,C,H,W] of N consecutive positions of one video."""

    video: int
    volumes: Tensor


class PartialOutputs:
    """Outputs of videos of which only some positions went through the network so far."""

    def __init__(self, crops: int) -> None:
        self.crops = crops
        self.parts: dict[int, list[npt.NDArray[np.float32]]] = {}
        self.left: dict[int, int] = {}

    def expect(self, video: int, positions: int) -> None:
        """A video with that many positions follows."""
        self.parts[video], self.left[video] = [], positions

    def add(self, batch: Sequence[Volumes], outputs: npt.NDArray[np.float32]) -> Iterator[ViewOutputs]:
        """Outputs float32[views,D] of a batch, crop after crop within each part; yields the videos they complete."""
        start = 0
        for video, volumes in batch:
            count = len(volumes)
            stop = start + count * self.crops
            by_crop = outputs[start:stop].reshape(self.crops, count, -1)
            self.parts[video].append(by_crop.swapaxes(0, 1).reshape(stop - start, -1))
            start = stop
            self.left[video] -= count
            if not self.left[video]:
                del self.left[video]
                yield ViewOutputs(video, np.concatenate(self.parts.pop(video)))


def _precision(compute: Compute) -> torch.autocast:
    return torch.autocast(torch.device(compute.device).type, dtype=torch.bfloat16, enabled=compute.bf16)


def _chunks(raw: RawFlow | RawFrames, device: str) -> Iterator[RawFlow | RawFrames]:
    """A video's positions: all at once for a GPU, a few at a time for a CPU."""
    count, values = len(raw.size), (raw.levels if isinstance(raw, RawFlow) else raw.pixels)
    step = count
    if torch.device(device).type == "cpu":
        step = max(1, CHUNK_BYTES // (4 * values[0].numel()))
    for start in range(0, count, step):
        yield type(raw)(*(tensor[start : start + step] for tensor in raw))


def _first_positions(waiting: list[Volumes], count: int) -> tuple[list[Volumes], list[Volumes]]:
    """The first `count` positions of what waits, and the rest."""
    first: list[Volumes] = []
    for place, (video, volumes) in enumerate(waiting):
        if len(volumes) > count:
            rest = [Volumes(video, volumes[count:]), *waiting[place + 1 :]]
            return [*first, Volumes(video, volumes[:count])], rest
        first.append(waiting[place])
        count -= len(volumes)
        if not count:
            return first, waiting[place + 1 :]
    return first, []
