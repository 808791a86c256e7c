"""The views from which a video is classified (paper, section 5, "Testing"): frames equally spaced in time, ten crops
of each.

A view is a crop of one position of the video. A position is a frame for the spatial stream, and the first frame of a
full volume for the temporal one, so all volumes lie inside the video. Cutting the crops out of volumes is
`evaluate.inference.crop_views`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pipeline.errors import InputError
from pipeline.options import option

if TYPE_CHECKING:  # loaded when positions are computed, so that --help is quick
    import numpy as np
    import numpy.typing as npt

CROPS = (1, 5, 10)


class CropCount(click.Choice[str]):
    """A number of crops per position on the command line."""

    def __init__(self) -> None:
        super().__init__([str(crops) for crops in CROPS])

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:  # type: ignore[override]
        """1, 5 or 10."""
        return int(super().convert(str(value), param, ctx))


@dataclass(frozen=True)
class Views:
    """The views from which a video is classified.

    Attributes:
        frames: positions, equally spaced in time; all of them if the video has fewer.
        crops: of each position: 1 (centre), 5 (corners and centre) or 10 (the same five and their mirror images).
    """

    frames: int = option(25, "Positions per video, equally spaced.", minimum=1)
    crops: int = option(
        10, "Crops per position: centre; with four corners; with their mirror images.", kind=CropCount()
    )

    def __post_init__(self) -> None:
        if self.frames < 1 or self.crops not in CROPS:
            raise InputError(
                f"views: expected at least 1 frame and 1, 5 or 10 crops, found {self.frames} x {self.crops}"
            )

    def __str__(self) -> str:
        return f"{self.frames}x{self.crops}"


def positions(available: int, count: int) -> npt.NDArray[np.int64]:
    """Equally spaced positions, int64[min(available, count)], the first and the last always among them.

    With fewer positions than asked for, each is taken once; a single one is the middle.

    Raises:
        ValueError: no position available, or none asked for.
    """
    import numpy as np

    if available < 1 or count < 1:
        raise ValueError(f"at least one position is needed: {available} available, {count} asked for")
    if count == 1:
        return np.array([(available - 1) // 2], np.int64)
    count = min(available, count)
    # Integer arithmetic, since rounding in floats may differ between machines.
    steps = np.arange(count, dtype=np.int64)
    return (2 * steps * (available - 1) + (count - 1)) // (2 * (count - 1)) if count > 1 else steps


def crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the crops without the mirrored ones: the centre, or four corners and the centre.

    Args:
        height, width: the picture's size in pixels.
        size: side of the square crop.
        crops: 1 (centre), 5 (corners and centre) or 10 (the same five and their mirror images).

    Raises:
        ValueError: the crop is larger than the picture, or `crops` is not 1, 5 or 10.
    """
    if crops not in CROPS:
        raise ValueError(f"crops: choose 1, 5 or 10, found {crops}")
    if size > min(height, width):
        raise ValueError(f"a crop of {size} pixels does not fit into a picture of {width}x{height}")
    bottom, right = height - size, width - size
    centre = (bottom // 2, right // 2)
    return [centre] if crops == 1 else [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
