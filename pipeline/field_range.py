"""The range of levels that each field of flow gets: a whole-pixel offset, a scale from a ladder, a JPEG step.

The quantiser's table reaches from -bound to bound. Where a field's motion lies elsewhere or reaches further, its
values are shifted and divided before they become levels, so that a fast pan is not clipped. All decisions follow from
integers, namely sums of fixed-point values and counts of pixels, whose order does not matter: every device that has
the same flow decides alike. docs/explanation/codec.md explains the rules; each is one function here:

1. `whole_pixel_offset`: a component's offset is its mean, rounded to whole pixels.
2. `ladder_rung`: the scale, shared by both components, is the smallest 2^(k/2) at which at most one pixel in a
   thousand lies beyond the bound.
3. `has_fast_motion`: a field of which more than 3% of the pixels are fast is coded with a finer JPEG step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UNITS_PER_PIXEL = 2**20
"""Fixed-point values are whole multiples of this fraction of a pixel."""
RUNGS = 11
LADDER = np.array([2 ** (k / 2) for k in range(RUNGS)], np.float32)
"""The scales, float32[11]: 1, 1.414..., 2, ... 32."""
LADDER.flags.writeable = False
OUTSIDE_IN = 1000
"""One pixel in so many may lie beyond the bound."""
FAST = 5.0
"""Pixels at scale 1 from which motion counts as fast."""
FAST_PERCENT = 3


def whole_pixel_offset(sums: npt.NDArray[np.int64], pixels: int) -> npt.NDArray[np.int64]:
    """The mean of `pixels` values in whole pixels, halves away from zero.

    Args:
        sums: int64[...] of fixed-point values (`UNITS_PER_PIXEL`), each a whole number of units.
        pixels: how many values each is the sum of.

    Returns:
        int64[...] = sign(S) * ((|S| + pixels * 2^19) // (pixels * 2^20)).
    """
    sums = np.asarray(sums, np.int64)
    unit = pixels * UNITS_PER_PIXEL
    return np.asarray(np.sign(sums) * ((np.abs(sums) + unit // 2) // unit))


def ladder_limits(bound: float | np.float32) -> npt.NDArray[np.float32]:
    """For each rung the largest float32 that its scale leaves within the bound: float32[11].

    A value lies beyond the bound at rung k, that is, float32(value / LADDER[k]) > bound, exactly if it is greater
    than limit k: a count of pixels beyond the limits needs no division.
    """
    bound = np.float32(bound)
    limits = bound * LADDER  # at most one float away, since multiplication and division round once each
    above = np.nextafter(limits, np.float32(np.inf))
    limits = np.where(above / LADDER <= bound, above, limits)
    below = np.nextafter(limits, np.float32(0))
    return np.where(limits / LADDER <= bound, limits, below).astype(np.float32)


def ladder_rung(beyond: npt.NDArray[np.int64], pixels: int) -> npt.NDArray[np.int64]:
    """The smallest rung at which at most one pixel in a thousand lies beyond the bound; the last if there is none.

    Args:
        beyond: int64[...,11], for each rung how many pixels have max(|x - x offset|, |y - y offset|), computed in
            float32, above its limit (`ladder_limits`).
        pixels: of the field.

    Returns:
        int64[...], an index into `LADDER`.
    """
    few = OUTSIDE_IN * np.asarray(beyond, np.int64) <= pixels
    return np.where(few.any(axis=-1), few.argmax(axis=-1), RUNGS - 1)


def has_fast_motion(levels: npt.NDArray[np.uint8], fast_distance: int) -> bool:
    """Whether more than 3% of a field's pixels have a component at least `fast_distance` levels from 128.

    Args:
        levels: uint8[2,H,W].
        fast_distance: levels between 128 and `FAST` pixels at scale 1, 1..127.
    """
    fast = (levels >= np.uint8(128 + fast_distance)) | (levels <= np.uint8(128 - fast_distance))
    return bool(100 * np.count_nonzero(fast[0] | fast[1]) > FAST_PERCENT * fast[0].size)
