"""The views that a video is judged by (paper, section 5, "Testing"): frames equally spaced in time, ten crops of each.

A view is a crop of one position of the video. A position is a frame for the spatial stream, and the first frame of a
full volume for the temporal one, so all volumes lie inside the video.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from train import volume
from train.volume import VolumeSpec

CROPS = (1, 5, 10)


def positions(available: int, count: int) -> npt.NDArray[np.int64]:
    """Equally spaced positions, int64[min(available, count)], the first and the last always among them.

    With fewer positions than asked for, each is taken once; a single one is the middle.

    Raises:
        ValueError: no position available, or none asked for.
    """
    if available < 1 or count < 1:
        raise ValueError(f"at least one position is needed: {available} available, {count} asked for")
    if count == 1:
        return np.array([(available - 1) // 2], np.int64)
    count = min(available, count)
    # Integer arithmetic, since rounding in floats may differ between machines.
    steps = np.arange(count, dtype=np.int64)
    return (2 * steps * (available - 1) + (count - 1)) // (2 * (count - 1)) if count > 1 else steps


def crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the crops without their flips: the centre, or four corners and the centre.

    Args:
        height, width: the picture's size in pixels.
        size: side of the square crop.
        crops: 1 (centre), 5 (corners and centre) or 10 (the same five and their flips).

    Raises:
        ValueError: the crop is larger than the picture, or `crops` is none of 1, 5, 10.
    """
    if crops not in CROPS:
        raise ValueError(f"crops: choose 1, 5 or 10, found {crops}")
    if size > min(height, width):
        raise ValueError(f"a crop of {size} pixels does not fit into a picture of {width}x{height}")
    bottom, right = height - size, width - size
    centre = (bottom // 2, right // 2)
    return [centre] if crops == 1 else [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]


def crop_views(volumes: torch.Tensor, spec: VolumeSpec, crops: int) -> list[torch.Tensor]:
    """All crops of each volume at the size that the network was trained for, on the volumes' device.

    Crops of a volume whose size is the network's own are windows on it, not copies; mirrors are windows on one mirrored
    copy of the volumes.

    Args:
        volumes: float32[N,C,H,W] in the network's units, at the stored resolution (`train.volume.volume`).
        spec: of the network; its `crop` and `short_side` give the side of the crop in stored pixels.
        crops: 1, 5 or 10; of ten, the second five are the first five mirrored (x flow negated).

    Returns:
        `crops` tensors float32[N,C,crop,crop].
    """
    height, width = volumes.shape[-2:]
    side = volume.cut_side(spec, height, width)
    corners = crop_corners(height, width, side, crops)
    windows = [volumes[..., y : y + side, x : x + side] for y, x in corners]
    if crops == 10:
        mirrored = volume.mirror(volumes, spec)
        windows += [mirrored[..., y : y + side, width - side - x : width - x] for y, x in corners]
    return [volume.resize(window, spec.crop) for window in windows]
