"""Flow as colours: the Middlebury wheel, and single components as gray."""

from __future__ import annotations

import functools

import numpy as np

from pipeline.codec import Floats, Levels

WHEEL = (  # hue, and the number of steps from it to the next
    ((255, 0, 0), 15),
    ((255, 255, 0), 6),
    ((0, 255, 0), 4),
    ((0, 255, 255), 11),
    ((0, 0, 255), 13),
    ((255, 0, 255), 6),
)
FASTEST_FRACTION = 99.9
SLOWEST_FULL_COLOUR = 0.5


@functools.cache
def colour_wheel() -> Levels:
    """The 55 colours of the Middlebury wheel, uint8[55,3] RGB: red to yellow in 15 steps, to green in 6, and so on,
    following how well the eye distinguishes hues (Baker et al., A Database and Evaluation Methodology for Optical Flow,
    IJCV 2011, and `colorcode.cpp` of its site)."""
    parts = []
    for (hue, count), (following, _) in zip(WHEEL, WHEEL[1:] + WHEEL[:1], strict=True):
        rising = 255 * np.arange(count)[:, None] // count
        parts.append(np.array(hue) + rising * np.sign(np.subtract(following, hue)))
    return np.concatenate(parts).astype(np.uint8)


def flow_colours(flow: Floats, fastest: float) -> Levels:
    """Flow float32[2,H,W] in the Middlebury colours, uint8[H,W,3]: hue is direction, saturation speed.

    Args:
        flow: in pixels.
        fastest: the speed of full colour; faster pixels are shown three quarters as bright.
    """
    wheel = colour_wheel().astype(np.float64) / 255
    x, y = flow[0].astype(np.float64) / fastest, flow[1].astype(np.float64) / fastest
    radius = np.hypot(x, y)
    position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    lower = np.floor(position).astype(np.int64)
    part = (position - lower)[..., None]
    colour = (1 - part) * wheel[lower] + part * wheel[(lower + 1) % len(wheel)]
    radius = radius[..., None]
    shaded = np.where(radius <= 1, 1 - radius * (1 - colour), colour * 0.75)
    return (255 * shaded).astype(np.uint8)


def component_gray(component: Floats, fastest: float) -> Levels:
    """One component as in the paper's figure 2 (d, e): gray is none, white positive, black negative; uint8[H,W,3]."""
    gray = np.clip(np.rint(127.5 + 127.5 * component / fastest), 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def full_colour_speed(flow: Floats) -> float:
    """The speed shown in full colour: that which all but 0.1% of the pixels keep to, and at least half a pixel.

    Args:
        flow: float32[n,2,H,W] in pixels.
    """
    speed = np.hypot(flow[:, 0], flow[:, 1])
    return max(float(np.percentile(speed, FASTEST_FRACTION)), SLOWEST_FULL_COLOUR)


@functools.cache
def wheel_picture(side: int) -> Levels:
    """The key to the colours, uint8[side,side,3]: a disc on white, each place in the colour of motion towards it."""
    place = (np.arange(side) - (side - 1) / 2) / (side / 2)
    flow = np.stack(np.meshgrid(place, place)).astype(np.float32)
    picture = flow_colours(flow, 1.0)
    picture[np.hypot(*flow) > 1] = 255
    return picture
