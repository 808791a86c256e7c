"""Which flow of a clip is worth showing, and the scale of colours that suits all of them.

The flow with most motion is a shot cut, where flow means nothing. A typical one is the median, by the speed of the
fastest pixels (the actor rather than the background), of those that are neither cuts nor still (repeated frames).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.codec import Floats
from pipeline.flow_colours import SLOWEST_FULL_COLOUR
from pipeline.shard import Shard

SAMPLED = 24
"""Flows of a clip that are looked at, evenly spread."""
PIXELS = 1 << 14
"""Pixels of a flow that are looked at, on a grid."""
CUT = 3.0
"""A cut is so many times faster than the flows before and after it, and than the usual flow of the clip."""
STILL = 0.1
"""Speed, in pixels, up to which a flow shows nothing."""
FASTEST_SHARE = 0.05
"""Share of the pixels whose mean speed is the speed of a flow."""
SHARE_IN_SCALE = 99.7
"""Percent of the pixels that keep to the speed of full colour."""


@dataclass(frozen=True)
class Typical:
    """A clip's typical flow, and the speed of full colour for the whole clip in pixels."""

    index: int
    fastest: float


def typical_flow(shard: Shard, direction: str) -> Typical:
    """The typical flow of a direction.

    Raises:
        ValueError: it has none.
        InputError: a damaged shard.
    """
    count = shard.flow_counts[direction]
    if not count:
        raise ValueError(f"{shard!r}: expected {direction} flow, found none")
    indices = np.unique(np.linspace(0, count - 1, min(SAMPLED, count)).round().astype(int)).tolist()
    pixels = {index: _pixel_speeds(shard, direction, index) for index in indices}
    speeds = {index: _speed(pixels[index]) for index in indices}
    moving = [i for i in indices if speeds[i] > STILL] or indices
    usual = float(np.median([speeds[i] for i in moving]))
    cuts = {i for i in moving if speeds[i] > CUT * usual and _is_cut(shard, direction, i, speeds[i])}
    kept = sorted((i for i in moving if i not in cuts), key=speeds.__getitem__) or moving
    fastest = float(np.percentile(np.concatenate([pixels[i] for i in kept]), SHARE_IN_SCALE))
    return Typical(kept[len(kept) // 2], max(fastest, SLOWEST_FULL_COLOUR))


def _is_cut(shard: Shard, direction: str, index: int, speed: float) -> bool:
    """Whether a flow is several times faster than the flows before and after it that share no step with it."""
    step = shard.step(direction)
    around = [i for i in (index - step, index + step) if 0 <= i < shard.flow_counts[direction]]
    return all(speed > CUT * _speed(_pixel_speeds(shard, direction, i)) for i in around)


def _speed(pixels: Floats) -> float:
    """The mean speed of the fastest pixels."""
    count = max(1, int(FASTEST_SHARE * pixels.size))
    return float(np.partition(pixels, -count)[-count:].mean())


def _pixel_speeds(shard: Shard, direction: str, index: int) -> Floats:
    """Speeds on a grid of a flow's pixels: float32[n]."""
    flow = shard.flows(index, index + 1, direction)[0]
    stride = max(1, int(np.sqrt(flow[0].size / PIXELS)))
    x, y = flow[:, ::stride, ::stride]
    speeds: Floats = np.hypot(x, y).ravel()
    return speeds
