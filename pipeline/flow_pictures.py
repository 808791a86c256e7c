"""Labelled pictures of flow: of one clip, of two ways to compute its flow, and of many clips as a contact sheet.

Everything here takes arrays and gives a picture, uint8[H,W,3] RGB; nothing reads or writes files.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.codec import Floats, Levels
from pipeline.flow_colours import component_gray, flow_colours, wheel_picture
from pipeline.text import printable

SMALLEST_PANEL, LARGEST_PANEL = 240, 512
"""Longer side of a panel in pixels; smaller fields are enlarged, larger ones reduced."""
THUMBNAIL = (150, 114)
SHEET_WIDTH = 1450
GAP, MARGIN = 6, 12
BLACK, GRAY, EDGE, WHITE = (20, 20, 20), (100, 100, 100), (200, 200, 200), (255, 255, 255)
TITLE, TEXT, SMALL = 17, 13, 12
KEY_WIDTH = 132


@dataclass(frozen=True)
class Shown:
    """One flow of one shard, with what its labels say.

    Attributes:
        label: of the flow, for example its method.
        flow: float32[2,H,W] in pixels.
        frame: the frame it starts from, uint8[H,W,3], where there is one.
        frame_label: of the frame.
    """

    label: str
    flow: Floats
    frame: Levels | None = None
    frame_label: str = ""


@dataclass(frozen=True)
class Clip:
    """A cell of a contact sheet: a clip's flow, or two of it; `caption` are the lines below."""

    caption: tuple[str, str]
    shown: tuple[Shown, ...]
    fastest: float


def clip_picture(title: str, note: str, shown: Sequence[Shown], fastest: float) -> Levels:
    """A frame, its flow in Middlebury's colours, x and y side by side, with title, labels, and the key to the colours.

    Args:
        title, note: the lines above, in black and gray.
        shown: one flow, or two of the same frames: the second stands below the first, with their difference.
        fastest: the speed of full colour, in pixels.
    """
    rows = [_panels(each, fastest) for each in shown]
    if len(shown) == 2:
        rows[1][:1] = (
            [_difference(shown[0].flow, shown[1].flow, fastest)] if rows[0][0][1] is not None else []
        )
    rows = [[panel for panel in row if panel[1] is not None] for row in rows]
    width, height = _panel_size(shown[0].flow)
    across = max(map(len, rows))
    below = TEXT + 8
    top = MARGIN + TITLE + TEXT + 16
    canvas_width = 2 * MARGIN + across * (width + GAP) + KEY_WIDTH
    canvas_height = top + max(len(rows) * (height + below), KEY_WIDTH + 70) + MARGIN // 2
    canvas = Image.new("RGB", (canvas_width, canvas_height), WHITE)
    draw = ImageDraw.Draw(canvas)
    room = canvas_width - 2 * MARGIN
    _write(draw, (MARGIN, MARGIN), title, TITLE, BLACK, room)
    _write(draw, (MARGIN, MARGIN + TITLE + 6), note, TEXT, GRAY, room)
    for row, panels in enumerate(rows):
        y = top + row * (height + below)
        for column, (label, picture) in enumerate(panels):
            x = MARGIN + column * (width + GAP)
            _paste(canvas, draw, _fitted(picture, width, height), (x, y))
            _write(draw, (x, y + height + 3), label, TEXT, BLACK, width)
    _draw_key(canvas, draw, canvas_width - MARGIN - KEY_WIDTH + GAP, top, fastest)
    return np.asarray(canvas)


def _panels(shown: Shown, fastest: float) -> list[tuple[str, Any]]:
    x, y = shown.flow
    return [
        (shown.frame_label, shown.frame),
        (
            f"{shown.label}: {np.hypot(*shown.flow).mean():.2f} px on average",
            flow_colours(shown.flow, fastest),
        ),
        ("x: white is right, black left", component_gray(x, fastest)),
        ("y: white is down, black up", component_gray(y, fastest)),
    ]


def _difference(one: Floats, other: Floats, fastest: float) -> tuple[str, Levels]:
    """How much two flows of the same frames differ: black where they agree, white from half of full colour on."""
    if one.shape != other.shape:
        text = f"of {one.shape[2]}x{one.shape[1]} and {other.shape[2]}x{other.shape[1]} pixels"
        return text, np.full((*one.shape[1:], 3), 255, np.uint8)
    distance = np.hypot(*(one - other))
    gray = np.clip(np.rint(510 * distance / fastest), 0, 255).astype(np.uint8)
    return f"difference: {distance.mean():.2f} px on average", np.repeat(gray[..., None], 3, axis=2)


def contact_sheet(title: str, note: str, clips: Sequence[Clip]) -> Levels:
    """Clips in a grid, each a frame and its flow, with the key to the colours above."""
    panels = max(len(_sheet_panels(clip)) for clip in clips)
    cell = panels * (THUMBNAIL[0] + 4) + 12
    columns = max(1, min(len(clips), (SHEET_WIDTH - 2 * MARGIN) // cell))
    cell_height = THUMBNAIL[1] + 2 * SMALL + 18
    key = 72
    top = MARGIN + key + 10
    width = max(2 * MARGIN + columns * cell, 560)
    canvas = Image.new("RGB", (width, top + -(-len(clips) // columns) * cell_height), WHITE)
    draw = ImageDraw.Draw(canvas)
    canvas.paste(Image.fromarray(wheel_picture(key)), (width - MARGIN - key, MARGIN))
    words = ("hue: direction", "saturation: speed")
    for line, text in enumerate(words):
        _write(draw, (width - MARGIN - key - 120, MARGIN + 18 + line * 18), text, TEXT, GRAY, 115)
    room = width - 2 * MARGIN - key - 130
    _write(draw, (MARGIN, MARGIN + 14), title, TITLE, BLACK, room)
    _write(draw, (MARGIN, MARGIN + 40), note, TEXT, GRAY, room)
    for place, clip in enumerate(clips):
        x, y = MARGIN + place % columns * cell, top + place // columns * cell_height
        for column, picture in enumerate(_sheet_panels(clip)):
            thumbnail = _within(picture, *THUMBNAIL)
            left = x + column * (THUMBNAIL[0] + 4) + (THUMBNAIL[0] - thumbnail.width) // 2
            _paste(canvas, draw, thumbnail, (left, y + (THUMBNAIL[1] - thumbnail.height) // 2))
        for line, text in enumerate(clip.caption):
            place_of_line = (x, y + THUMBNAIL[1] + 3 + line * (SMALL + 4))
            _write(draw, place_of_line, text, SMALL, (BLACK, GRAY)[line], cell - 12)
    return np.asarray(canvas)


def _sheet_panels(clip: Clip) -> list[Levels]:
    frame = clip.shown[0].frame
    flows = [flow_colours(shown.flow, clip.fastest) for shown in clip.shown]
    return flows if frame is None else [frame, *flows]


def _draw_key(canvas: Any, draw: Any, x: int, y: int, fastest: float) -> None:
    """The wheel of colours and the ramp of grays, with the scale."""
    side = KEY_WIDTH - GAP - 20
    canvas.paste(Image.fromarray(wheel_picture(side)), (x + 10, y))
    ramp = component_gray(np.linspace(-fastest, fastest, side, dtype=np.float32)[None].repeat(12, 0), fastest)
    lines = (f"full colour: {fastest:.1f} px", "per pair of frames")
    for line, text in enumerate(lines):
        _write(draw, (x, y + side + 4 + line * (SMALL + 3)), text, SMALL, (BLACK, GRAY)[line], KEY_WIDTH)
    below = y + side + 4 + 2 * (SMALL + 3) + 8
    canvas.paste(Image.fromarray(ramp), (x + 10, below))
    for text, left in ((f"-{fastest:.1f}", x), ("0", x + 6 + side // 2), (f"+{fastest:.1f}", x + side - 14)):
        _write(draw, (left, below + 14), text, SMALL, BLACK, KEY_WIDTH)


def _paste(canvas: Any, draw: Any, picture: Any, place: tuple[int, int]) -> None:
    """A picture with a thin edge around it, since zero flow is as white as the page."""
    x, y = place
    draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=EDGE)
    canvas.paste(picture, place)


def _panel_size(flow: Floats) -> tuple[int, int]:
    """Width and height of a panel: the field's own, unless it is very small or large."""
    height, width = flow.shape[1:]
    longest = max(width, height)
    if longest < SMALLEST_PANEL:
        times: float = -(-SMALLEST_PANEL // longest)
    else:
        times = min(1.0, LARGEST_PANEL / longest)
    return max(1, round(width * times)), max(1, round(height * times))


def _fitted(picture: Levels, width: int, height: int) -> Any:
    """The picture at that size: small ones keep their pixels' edges."""
    way = Image.Resampling.NEAREST if picture.shape[1] <= width else Image.Resampling.BOX
    image = Image.fromarray(picture)
    return image if image.size == (width, height) else image.resize((width, height), way)


def _within(picture: Levels, width: int, height: int) -> Any:
    """The picture as large as fits into width x height, its shape kept."""
    times = min(width / picture.shape[1], height / picture.shape[0])
    return _fitted(picture, max(1, round(picture.shape[1] * times)), max(1, round(picture.shape[0] * times)))


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _write(
    draw: Any, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], room: int
) -> None:
    """One line of text; what does not fit into `room` pixels is cut out of its middle."""
    font, text = _font(size), printable(text)
    kept = len(text)
    shown = text
    while font.getlength(shown) > room and kept > 1:
        kept = min(kept - 1, int(kept * room / font.getlength(shown)))
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    draw.text(place, shown, fill=colour, font=font)
