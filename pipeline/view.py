"""Pictures of a shard's flow: `python -m pipeline view`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import numpy.typing as npt

from pipeline import atomic
from pipeline.codec import Floats, Levels
from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT, REQUIRED, argument, from_options, option, options_of
from pipeline.shard import Shard, open_shard
from pipeline.shard_sets import targets_at

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
BATCH = 16


@functools.cache
def colour_wheel() -> Levels:
    """The 55 colours of the Middlebury wheel, uint8[55,3] RGB: red to yellow in 15 steps, to green in 6, and so on,
    after how well the eye tells hues apart (Baker et al., A Database and Evaluation Methodology for Optical Flow,
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
    """The speed shown in full colour: that which all but 0.1% of the pixels keep to, and at least half a pixel."""
    speed = np.hypot(flow[:, 0], flow[:, 1])
    return max(float(np.percentile(speed, FASTEST_FRACTION)), SLOWEST_FULL_COLOUR)


def panels(frame: Levels | None, flow: Floats, fastest: float) -> Levels:
    """Frame (where there is one), coloured flow, x and y side by side: uint8[H,W',3] RGB."""
    pictures = [] if frame is None else [frame]
    pictures += [flow_colours(flow, fastest), *(component_gray(component, fastest) for component in flow)]
    gap = np.full((flow.shape[1], 4, 3), 255, np.uint8)
    row = [pictures[0]]
    for picture in pictures[1:]:
        row += [gap, picture]
    return np.concatenate(row, axis=1)


def frame_of(shard: Shard, index: int, direction: str) -> Levels | None:
    """The frame that a flow starts from, or None where the shard holds no frames."""
    if not shard.has_frames:
        return None
    index = min(index + (shard.step(direction) if direction == "backward" else 0), shard.frame_count - 1)
    return shard.frames(index, index + 1)[0]


def liveliest(shard: Shard, direction: str) -> int:
    """The flow whose mean vector is the longest, as a picture worth looking at."""
    return int(np.argmax(np.hypot(*shard.mean(direction).T)))


def write_picture(shard: Shard, path: Path, index: int, direction: str) -> None:
    """One flow as PNG."""
    from PIL import Image

    flow = shard.flows(index, index + 1, direction)
    with atomic.writing(path) as temporary:
        Image.fromarray(panels(frame_of(shard, index, direction), flow[0], full_colour_speed(flow))).save(
            temporary
        )


def write_video(shard: Shard, path: Path, direction: str) -> None:
    """All flows as H.264 in MP4, colours alike from first to last."""
    count = shard.flow_counts[direction]
    sample = np.unique(np.linspace(0, count - 1, BATCH).astype(int))
    fastest = full_colour_speed(np.concatenate([shard.flows(i, i + 1, direction) for i in sample]))
    encode_video(path, pictures(shard, direction, fastest), shard.fps or 25)


def encode_video(path: Path, pictures: Iterable[Levels], fps: float) -> None:
    """RGB pictures uint8[H,W,3] of one size as H.264 in MP4; odd sides are padded by a pixel, as the codec needs."""
    import av

    with atomic.writing(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as container:
        stream: Any = None
        for picture in pictures:
            odd: npt.NDArray[np.int64] = np.array(picture.shape[:2]) % 2
            even = np.pad(picture, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") if odd.any() else picture
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = *even.shape[:2], "yuv420p"
                stream.options = {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def pictures(shard: Shard, direction: str, fastest: float) -> Iterator[Levels]:
    """The panels of every flow."""
    for index in range(shard.flow_counts[direction]):
        flow = shard.flows(index, index + 1, direction)[0]
        yield panels(frame_of(shard, index, direction), flow, fastest)


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What to show."""

    shard: Path = argument(REQUIRED, metavar="SHARD")
    output: Path | None = option(None, "A .png or .mp4 file.", shown_default="<stem>.png")
    index: int | None = option(
        None, "PNG: which flow, from 0.", minimum=0, shown_default="the one with most motion"
    )
    direction: Literal["forward", "backward"] | None = option(
        None, "Direction of flow.", shown_default="the shard's first"
    )

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix not in (".png", ".mp4"):
            raise InputError(f"{self.output}: expected a name that ends in .png or .mp4")
        if self.output is not None and self.output.suffix == ".mp4" and self.index is not None:
            raise click.UsageError("--index goes with a PNG: an MP4 shows all flows")


@click.command(context_settings=CONTEXT)
@options_of(ViewOptions)
@command_errors
def command(**values: Any) -> None:
    """Show a shard's flow beside its frames, as PNG or MP4.

    SHARD is a file, or FILE.h5pack/class/stem. Left to right: the frame if there is one, the flow in Middlebury colours
    (hue is direction, saturation speed), and its x and y as in the paper's figure 2 (gray is none, white is right or
    down). The speed of full colour is printed.
    """
    options = from_options(ViewOptions, values)
    targets = targets_at(options.shard)
    if len(targets) != 1:
        raise InputError(f"{options.shard}: expected one shard, found {len(targets)}; name one of them")
    with open_shard(targets[0].address) as shard:
        if not shard.directions:
            raise InputError(f"{options.shard}: expected flow to show, found frames only")
        output = options.output or Path(f"{shard.video.rpartition('/')[2]}.png")
        direction = options.direction or shard.directions[0]
        count = shard.flow_counts[direction]
        if (options.index or 0) >= count:
            raise InputError(
                f"{options.shard}: holds {count} {direction} flows, so there is no flow {options.index or 0} to show"
            )
        if output.suffix == ".mp4":
            write_video(shard, output, direction)
            click.echo(f"{output}: {count} {direction} flows of {shard.video}")
        else:
            index = liveliest(shard, direction) if options.index is None else options.index
            write_picture(shard, output, index, direction)
            fastest = full_colour_speed(shard.flows(index, index + 1, direction))
            click.echo(
                f"{output}: {direction} flow {index} of {shard.video}; full colour is {fastest:.1f} pixels"
            )
