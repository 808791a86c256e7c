"""The bytes of training and test samples: from shards to uint8 arrays.

Nothing here computes with pixels: fields and frames are decoded, cut and handed over as they are stored, and
`train.volume` makes the network's input of them on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.shard import Shard
from train.volume import RawFlow, RawFrames, VolumeSpec, flow_indices, position_count, zoom

Box = tuple[int, int, int, int]


def shard_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers (see `train.volume.position_count`); 0 if it lacks the frames or directions."""
    if spec.stream == "spatial":
        return shard.frame_count if shard.has_frames else 0
    if not set(spec.directions) <= set(shard.directions):
        return 0
    flows = min(shard.flow_count(direction) for direction in spec.directions)
    return position_count(spec, shard.frame_count, flows, shard.step(spec.directions[0]))


def read_volumes(
    shard: Shard, spec: VolumeSpec, positions: Sequence[int] | npt.NDArray[np.int64], box: Box | None = None
) -> RawFlow | RawFrames:
    """The bytes of some positions of a shard, as CPU tensors with leading shape [len(positions)].

    Every flow or frame is read and decoded once, however many volumes it is part of.

    Args:
        shard: open for reading.
        spec: what a volume is.
        positions: 0 .. shard_positions - 1.
        box: top, left, height, width of the part to keep; None keeps whole fields, as trajectories need them.

    Raises:
        InputError: damaged streams, or flow that the shard lacks.
        ValueError: positions that are not there.
    """
    if spec.stream == "spatial":
        pixels = _read(shard, "frames", np.asarray(positions), box)
        return RawFrames(torch.from_numpy(pixels), _sizes(pixels.shape[:1], pixels.shape[1:3]))
    flows = min(shard.flow_count(direction) for direction in spec.directions)
    step = shard.step(spec.directions[0])
    wanted = [flow_indices(spec, int(position), flows, step) for position in positions]
    levels, about = [], []
    for k, direction in enumerate(("forward", "backward")):
        indices = np.array([pair[k] for pair in wanted])
        if indices.size:
            levels.append(_read(shard, direction, indices, box))
            table = np.broadcast_to(shard.table(direction), (*indices.shape, 256))
            about.append(
                (
                    table,
                    shard.scale(direction)[indices],
                    shard.offset(direction)[indices],
                    shard.mean(direction)[indices],
                )
            )
    joined = levels[0] if len(levels) == 1 else np.concatenate(levels, axis=1)
    count = len(joined)
    table, scale, offset, mean = (
        torch.from_numpy(np.concatenate(parts, axis=1)) for parts in zip(*about, strict=True)
    )
    size = _sizes((count,), joined.shape[-2:])
    return RawFlow(
        torch.from_numpy(joined),
        table,
        scale,
        offset,
        mean,
        size,
        torch.full((count,), zoom(spec, shard.height, shard.width)),
    )


def _sizes(leading: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(size, dtype=torch.int64).expand(*leading, 2).clone()


def _read(shard: Shard, part: str, indices: npt.NDArray[np.int64], box: Box | None) -> npt.NDArray[np.uint8]:
    """Flows [*,2,h,w] or frames [*,h,w,3] at indices of any shape, each decoded once."""
    top, left, height, width = box or (0, 0, shard.height, shard.width)
    tail = (height, width, 3) if part == "frames" else (2, height, width)
    kept = np.empty((indices.size, *tail), np.uint8)
    unique, places = np.unique(indices.reshape(-1), return_inverse=True)
    # Runs of neighbours are one read of the file; decoding goes one by one, so that memory holds one whole image.
    for run in np.split(unique, np.flatnonzero(np.diff(unique) != 1) + 1):
        start, stop = int(run[0]), int(run[-1]) + 1
        images = shard.frames(start, stop) if part == "frames" else shard.levels(start, stop, part)
        cropped = (
            images[:, top : top + height, left : left + width]
            if part == "frames"
            else images[:, :, top : top + height, left : left + width]
        )
        for place, index in enumerate(range(start, stop)):
            kept[np.flatnonzero(unique[places] == index)] = cropped[place]
    return kept.reshape(*indices.shape, *tail)
