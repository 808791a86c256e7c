"""Augmentation of samples: random crops and PCA colour noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.decoder import Region
from train.volume import VolumeSpec, cut_side

Box = Region

# Principal components of ImageNet's colours in 0..1 (Krizhevsky et al. 2012, section 4.1; values as published with
# fb.resnet.torch): spread along each, and its direction in RGB.
_SPREAD = np.array([0.2175, 0.0188, 0.0045])
_DIRECTION = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_DIRECTION_OF_BYTES = 255 * _DIRECTION


def random_box(
    random: np.random.Generator,
    height: int,
    width: int,
    spec: VolumeSpec,
    cut: str = "random",
    scales: Sequence[float] = (),
) -> Box:
    """Region of a stored frame to train on: (top, left, height, width) in stored pixels.

    Args:
        random: source of random numbers; how many are drawn does not depend on the frame's size.
        height, width: of the stored frame.
        spec: its crop and short_side give the region's side if there is no scale jitter.
        cut: "random" for anywhere in the frame, "corner" for one of the four corners or the centre.
        scales: sides as shares of the frame's smaller side; both sides of the region are drawn, at most one entry
            apart (Wang et al. 2015, "Towards good practices for very deep two-stream ConvNets").
    """
    sides = region_sides(height, width, spec, scales)
    rows = columns = sides[0]
    if scales:
        first = int(random.integers(len(scales)))
        second = min(max(first + int(random.integers(-1, 2)), 0), len(scales) - 1)
        rows, columns = sides[first], sides[second]
    if cut == "corner":
        corner = int(random.integers(5))
        if corner == 4:
            return (height - rows) // 2, (width - columns) // 2, rows, columns
        return (height - rows) * (corner // 2), (width - columns) * (corner % 2), rows, columns
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    return int(top), int(left), rows, columns


def region_sides(height: int, width: int, spec: VolumeSpec, scales: Sequence[float] = ()) -> list[int]:
    """Sides in stored pixels that a region may have: one for each scale, else that of the network's crop."""
    if not scales:
        return [cut_side(spec, height, width)]
    return [max(round(min(height, width) * scale), 1) for scale in scales]


def centre_box(height: int, width: int, spec: VolumeSpec) -> Box:
    """The centre crop of a stored frame, as validation uses it."""
    side = cut_side(spec, height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def lighting_noise(random: np.random.Generator, deviation: float) -> npt.NDArray[np.float32]:
    """Colour noise to add to every pixel of a frame: RGB float32[3], in units of 0..255."""
    return lighting_shifts(random.normal(0, 1, (1, 3)), deviation)[0]


def lighting_shifts(normals: npt.NDArray[np.float64], deviation: float) -> npt.NDArray[np.float32]:
    """The colour noise that rows of three normal numbers mean: RGB float32[n,3]."""
    amounts = normals * deviation * _SPREAD
    return np.array([_DIRECTION_OF_BYTES @ amount for amount in amounts]).astype(np.float32)
