"""From the views of videos to the network's outputs for each of them.

Threads decode each flow or frame of a video once, and the bytes go to the device once. There they become fields of
floats, which are mirrored and cropped; a view is as many neighbouring fields of such a crop: a window, not a copy.
On a CPU, views of flow are looked up from the bytes instead, straight into the batch, where nothing has to be resized.
Views of several videos share a batch, so that the device stays busy however short the videos are.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluate.options import ComputeOptions
from evaluate.views import Views, crop_corners, positions
from pipeline.errors import InputError
from pipeline.machine import usable_cores
from pipeline.shard import Shard, ShardAddress, open_shard
from pipeline.text import typed
from train.batches import DistinctFields, read_distinct, shard_positions
from train.checkpoint import Checkpoint
from train.gpu_errors import gpu_errors
from train.loader import Readback, ahead
from train.models.network import Network
from train.volume import (
    RawFlow,
    VolumeSpec,
    cut_side,
    in_pairs,
    memory_for,
    mirror,
    resize,
    stack_values,
    volume,
    volume_memory,
)

CHUNK_BYTES = 1 << 26
"""Size of the fields of floats that are made at a time on a CPU; a GPU takes whole videos."""

MOST_WORKERS = 16
SIGNS_OF_TWO = np.uint64(0x8000000080000000)
"""The sign bits of two float32."""

Forward = Callable[[list[Tensor]], Tensor]
"""Views, each [N,C,crop,crop] on the device and perhaps a window on a larger tensor -> outputs float32[sum of N,D]."""


WriteViews = Callable[[npt.NDArray[np.int64], Tensor], None]
"""Writes the views of some positions: rows int64[N,k], the fields of each volume -> float32[crops,N,C,crop,crop]."""


@dataclass(frozen=True)
class Compute:
    """Where and how the network runs.

    Attributes:
        device: "cpu" or "cuda:N".
        batch: views per call of the network, rounded down to whole positions.
        workers: threads that read and decode; 0 does so in the calling one.
        bf16: bfloat16 arithmetic: faster on GPUs; scores differ in the third digit.
    """

    device: str = "cpu"
    batch: int = 256
    workers: int = 0
    bf16: bool = False


def devices(name: str) -> list[str]:
    """The devices of a --device option: every visible GPU for "auto" and "cuda" where there are any, else the CPU.

    Raises:
        InputError: a GPU is asked for that cannot be used.
    """
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return ["cpu"]
    if name in ("auto", "cuda") and count:
        return [f"cuda:{index}" for index in range(count)]
    if name.startswith("cuda") and not count:
        raise InputError(f"--device {name}: torch finds no usable GPU here; use --device cpu")
    try:
        index = torch.device(name).index
    except RuntimeError as error:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if not name.startswith("cuda") or index is None or index >= count:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N with N below {count}")
    return [name]


def computing(options: ComputeOptions, most: int | None = None) -> list[Compute]:
    """How to compute on each of the requested devices, at most `most` of them; they share the threads that decode.

    Raises:
        InputError: a GPU is asked for that cannot be used.
    """
    places = devices(options.device)[:most]
    gpu = places[0] != "cpu"
    workers = options.workers
    if workers is None:
        workers = min(usable_cores(), MOST_WORKERS) if gpu else 1
    each = workers if len(places) == 1 else max(1, workers // len(places))
    batch = options.batch or (500 if gpu else 100)
    return [Compute(place, batch, each, options.bf16) for place in places]


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
        volumes: float32[N,C,H,W] in the network's units, at the stored resolution (`train.volume.volume`): volumes, or
            the single fields that these consist of.
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
        DeviceFailed: the GPU failed or ran out of memory.
    """
    with gpu_errors("--batch"):
        yield from _view_outputs(forward, spec, shards, views, compute)


def _view_outputs(
    forward: Forward,
    spec: VolumeSpec,
    shards: Sequence[ShardAddress],
    views: Views,
    compute: Compute,
) -> Iterator[ViewOutputs]:
    device = torch.device(compute.device)
    at_once = max(1, compute.batch // views.crops)
    waiting: list[Positions] = []
    partial = PartialOutputs(views.crops)
    running: deque[tuple[list[Positions], Readback]] = deque()

    def finish(most: int) -> Iterator[ViewOutputs]:
        while len(running) > most:
            batch, outputs = running.popleft()
            yield from partial.add(batch, outputs.wait().numpy())

    def run(batch: list[Positions]) -> Iterator[ViewOutputs]:
        counts = [views.crops * len(part.rows) for part in batch]
        together = volume_memory((sum(counts), spec.channels, spec.crop, spec.crop), device)
        for part, out in zip(batch, together.split(counts), strict=True):
            part.write(part.rows, out.view(views.crops, len(part.rows), *out.shape[1:]))
        running.append((batch, Readback(forward([together]).float())))
        # A GPU's outputs are read once it has the next batch to work on.
        yield from finish(most=int(device.type == "cuda"))

    memory = memory_for(device)

    def read(address: ShardAddress) -> DistinctFields:
        with open_shard(address) as shard:
            wanted = positions(available_positions(shard, spec), views.frames)
            return read_distinct(shard, spec, wanted, memory)

    with (
        torch.inference_mode(),
        ahead(read, shards, compute.workers) as videos,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        for video, fields in enumerate(videos):
            partial.expect(video, len(fields.rows))
            for chunk in _chunks(fields, device):
                write = views_of_bytes(chunk, spec, views.crops, pool) if device.type == "cpu" else None
                write = write or views_of_fields(chunk, spec, views.crops, device)
                waiting.append(Positions(video, write, chunk.rows))
                while sum(len(part.rows) for part in waiting) >= at_once:
                    batch, waiting = _first_positions(waiting, at_once)
                    yield from run(batch)
        if waiting:
            yield from run(waiting)
        yield from finish(most=0)


def views_of_fields(fields: DistinctFields, spec: VolumeSpec, crops: int, device: torch.device) -> WriteViews:
    """Views from fields of floats on the device, each crop of which is cut once for all volumes."""
    cut = crop_views(volume(fields.raw.to(device), fields.spec), spec, crops)

    def write(rows: npt.NDArray[np.int64], out: Tensor) -> None:
        for crop, views in zip(cut, out, strict=True):
            torch.cat(volume_views(crop, rows), out=views)

    return write


def views_of_bytes(fields: DistinctFields, spec: VolumeSpec, crops: int, pool: Executor) -> WriteViews | None:
    """Views straight from the bytes of flow, without fields of floats, on a CPU; None where that is not possible.

    The values are those of `views_of_fields`, bit for bit.
    """
    raw = fields.raw
    if not isinstance(raw, RawFlow) or spec.stacking != "stack" or not in_pairs(spec.crop):
        return None
    height, width = raw.levels.shape[-2:]
    if cut_side(spec, height, width) != spec.crop:
        return None
    from pipeline.codec_kernels import look_up_windows

    levels = raw.levels.view(-1, height, width).numpy()
    values = stack_values(raw, fields.spec).numpy().view(np.uint32)
    corners = crop_corners(height, width, spec.crop, crops)

    def write(rows: npt.NDArray[np.int64], out: Tensor) -> None:
        planes = (2 * rows[..., None] + np.arange(2)).reshape(-1)
        signs = np.where(planes % 2, 0, SIGNS_OF_TWO)
        bits = out.view(crops, len(planes), spec.crop, spec.crop).numpy().view(np.uint64)

        def one(crop: int) -> None:
            mirrored = bits[crop + len(corners)] if crops == 2 * len(corners) else bits[:0, 0]
            look_up_windows(levels, values, planes, signs, *corners[crop], bits[crop], mirrored)

        list(pool.map(one, range(len(corners))))

    return write


def volume_views(fields: Tensor, rows: npt.NDArray[np.int64]) -> list[Tensor]:
    """Volumes of some positions, windows on the fields where these are neighbours in the order of the volume.

    Args:
        fields: float32[F,c,H,W].
        rows: int64[P,k], the fields of each volume.

    Returns:
        P tensors float32[1,k*c,H,W].
    """
    volumes = []
    for of in rows.tolist():
        if of == list(range(of[0], of[0] + len(of))):
            volumes.append(fields[of[0] : of[0] + len(of)].flatten(0, 1)[None])
        else:
            volumes.append(torch.cat([fields[row] for row in of])[None])
    return volumes


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
    network = _moved(network, compute)
    selected = torch.as_tensor(columns, device=compute.device)

    def forward(views: list[Tensor]) -> Tensor:
        with _precision(compute):
            logits: Tensor = network(_one(views))
        return logits[:, selected].float()

    return forward


def _moved(network: Network, compute: Compute) -> Network:
    with gpu_errors("--batch"):
        return network.to(compute.device)


def features_forward(network: Network, compute: Compute) -> Forward:
    """The network as a function from crops to the penultimate layer's outputs, float32[N,F].

    Moves the network to the device.
    """
    network = _moved(network, compute)

    def forward(views: list[Tensor]) -> Tensor:
        with _precision(compute):
            return network.penultimate(_one(views)).float()

    return forward


def available_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers to the network.

    Raises:
        InputError: it offers none, since it lacks frames, a direction of flow, or any flow at all.
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
            f"{typed('extract_flow')} {option}"
        )
    return count


class Positions(NamedTuple):
    """Consecutive positions of one video, on the device.

    Attributes:
        video: index of its shard.
        write: writes their views.
        rows: int64[N,k], the fields of each position's volume.
    """

    video: int
    write: WriteViews
    rows: npt.NDArray[np.int64]


class PartialOutputs:
    """Outputs of videos of which only some positions went through the network so far."""

    def __init__(self, crops: int) -> None:
        self.crops = crops
        self.parts: dict[int, list[npt.NDArray[np.float32]]] = {}
        self.left: dict[int, int] = {}

    def expect(self, video: int, positions: int) -> None:
        """Announce a video with that many positions."""
        self.parts[video], self.left[video] = [], positions

    def add(self, batch: Sequence[Positions], outputs: npt.NDArray[np.float32]) -> Iterator[ViewOutputs]:
        """Outputs float32[views,D] of a batch, crop after crop within each part; yields the videos they complete."""
        start = 0
        for video, _, rows in batch:
            count = len(rows)
            stop = start + count * self.crops
            by_crop = outputs[start:stop].reshape(self.crops, count, -1)
            self.parts[video].append(by_crop.swapaxes(0, 1).reshape(stop - start, -1))
            start = stop
            self.left[video] -= count
            if not self.left[video]:
                del self.left[video]
                yield ViewOutputs(video, np.concatenate(self.parts.pop(video)))


def _one(views: list[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(views)


def _precision(compute: Compute) -> torch.autocast:
    return torch.autocast(torch.device(compute.device).type, dtype=torch.bfloat16, enabled=compute.bf16)


def _chunks(fields: DistinctFields, device: torch.device) -> Iterator[DistinctFields]:
    """A video's positions: all at once for a GPU, a few at a time for a CPU."""
    count = len(fields.rows)
    if device.type != "cpu":
        yield fields
        return
    # Positions follow each other in time, so that those of a chunk share most of their fields.
    chunks = max(1, -(-4 * fields.raw[0].numel() // CHUNK_BYTES))
    edges = [count * i // chunks for i in range(chunks + 1)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield fields.part(start, stop) if chunks > 1 else fields


def _first_positions(waiting: list[Positions], count: int) -> tuple[list[Positions], list[Positions]]:
    """The first `count` positions of what waits, and the rest."""
    first: list[Positions] = []
    for place, part in enumerate(waiting):
        if len(part.rows) > count:
            rest = [part._replace(rows=part.rows[count:]), *waiting[place + 1 :]]
            return [*first, part._replace(rows=part.rows[:count])], rest
        first.append(part)
        count -= len(part.rows)
        if not count:
            return first, waiting[place + 1 :]
    return first, []
