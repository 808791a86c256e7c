"""The report's pictures, as the bytes of image files: every function takes arrays and none reads files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from pipeline.flow_colours import wheel_picture

STREAM_COLOURS = {"spatial": "#0072b2", "temporal": "#c8500a"}
LINES = ("-", "--", ":", "-.")
DPI = 130
JPEG_QUALITY = 88


def curves_chart(stream: str, logs: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> bytes:
    """Training loss over iterations as PNG, a line for each run of a stream.

    Faint: every entry of the log; strong: a running mean over a thirtieth of the run.

    Args:
        stream: its name, which gives the colour.
        logs: name and log of each run; an entry of a log has `iteration` and `loss`.
    """
    figure = Figure(figsize=(4.6, 3.1), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for number, (name, entries) in enumerate(logs):
        iterations = np.array([entry["iteration"] for entry in entries])
        losses = np.array([entry["loss"] for entry in entries])
        window = max(1, len(losses) // 30)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        colour, line = STREAM_COLOURS[stream], LINES[number % len(LINES)]
        axes.plot(iterations, losses, color=colour, alpha=0.2, linewidth=1)
        axes.plot(iterations[window - 1 :], smooth, color=colour, linestyle=line, label=name)
    axes.set(xlabel="iteration", ylabel="training loss", ylim=(0, None), title=f"{stream} stream")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return buffer.getvalue()


def filters_picture(filters: npt.NDArray[np.float32], flow: bool, count: int = 24) -> bytes:
    """The strongest first-layer filters as PNG, from float[N,C,k,k]: in colours for RGB; for flow one column each.

    A flow filter is its x channels above its y channels, time running down, as in the paper's figure 4; red is
    positive, blue negative.
    """
    filters = filters[np.argsort(-np.abs(filters).mean(axis=(1, 2, 3)), kind="stable")[:count]]
    if flow:
        strength = filters / np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12)
        away = 1 - np.abs(strength)
        coloured = np.stack([np.where(strength > 0, 1, away), away, np.where(strength < 0, 1, away)], axis=-1)
        gap = np.ones((len(filters), 1, *coloured.shape[2:]))
        cells = np.concatenate([coloured[:, 0::2], gap, coloured[:, 1::2]], axis=1)  # filter, row, k, k, RGB
        columns, scale = len(filters), 4
        tiles = cells.transpose(1, 0, 2, 3, 4).reshape(-1, *cells.shape[2:])
    else:
        low, high = (end(filters, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
        tiles = ((filters - low) / np.maximum(high - low, 1e-12)).transpose(0, 2, 3, 1)
        columns, scale = 8, 10
    return _png(np.repeat(np.repeat(_mosaic(tiles, columns), scale, axis=0), scale, axis=1))


def flow_wheel(side: int = 120) -> bytes:
    """The colours of flow as PNG: a disc whose centre is no motion and whose edge is the speed of full colour."""
    across = (np.arange(side) - (side - 1) / 2) / (side / 2)
    disc = np.where(np.hypot(*np.meshgrid(across, across)) <= 1, 255, 0).astype(np.uint8)
    return _png(np.dstack([wheel_picture(side), disc]))


def jpeg(picture: npt.NDArray[np.uint8], width: int) -> bytes:
    """An RGB picture uint8[H,W,3] as JPEG bytes, made smaller where it is wider than `width`."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def _mosaic(tiles: npt.NDArray[np.floating], columns: int) -> npt.NDArray[np.uint8]:
    """Pictures float[n,h,w,3] in 0..1 row by row, with a white pixel between them: uint8[H,W,3]."""
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1] + 1, tiles.shape[2] + 1
    board = np.ones((rows * columns, height, width, 3))
    board[: len(tiles), :-1, :-1] = tiles
    board = board.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    flat = board.reshape(rows * height, columns * width, 3)[:-1, :-1]
    return np.rint(255 * flat).astype(np.uint8)


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
