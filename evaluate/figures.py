"""The report's pictures, as PNG bytes: every function takes arrays and gives a picture, none reads files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

STREAM_COLOURS = {"spatial": "#4477aa", "temporal": "#ee9944"}
FUSION_COLOUR = "#222222"
MORE_COLOURS = ("#66aa77", "#aa4499", "#777777")
DPI = 110


def class_recall_chart(classes: Sequence[str], recalls: Mapping[str, npt.NDArray[np.float64]]) -> bytes:
    """Recall of each class for the streams and their fusion, as in the paper's last figure; classes sorted by fusion.

    Args:
        classes: C names.
        recalls: name -> float[C] in 0..1; the last one gives the order of the classes.
    """
    names = list(recalls)
    order = np.argsort(np.nan_to_num(recalls[names[-1]], nan=-1), kind="stable")
    thickness = 0.8 / len(names)
    figure = Figure(
        figsize=(6, 1.2 + 0.12 * max(2, len(names)) * len(classes)), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots()
    for position, (name, colour) in enumerate(zip(names, _colours(names), strict=True)):
        offset = (position - (len(names) - 1) / 2) * thickness
        axes.barh(
            np.arange(len(classes)) + offset,
            100 * recalls[name][order],
            thickness,
            color=colour,
            label=name,
        )
    axes.set(xlim=(0, 100), ylim=(-0.7, len(classes) - 0.3), xlabel="class recall, %")
    axes.set_yticks(np.arange(len(classes)), [classes[index] for index in order], fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12 if len(classes) < 20 else -0.02),
        ncols=3,
        frameon=False,
    )
    return _png(figure)


def confusion_chart(classes: Sequence[str], matrix: npt.NDArray[np.int64]) -> bytes:
    """Confusion matrix int[C,C], rows the true class, each row as shares of its videos."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = float(np.clip(2 + 0.35 * len(classes), 5, 14))
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(classes) <= 30 else 4
    axes.set_xticks(np.arange(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(classes)), classes, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) <= 20:
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            axes.text(
                predicted,
                true,
                str(matrix[true, predicted]),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[true, predicted] > 0.5 else "black",
            )
    return _png(figure)


def curves_chart(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Training loss over iterations, one line for each run; each entry has `iteration` and `loss`.

    Faint: every entry; strong: a running mean over a thirtieth of the run.
    """
    figure = Figure(figsize=(6, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (name, entries), colour in zip(runs.items(), _colours(list(runs)), strict=True):
        iterations = np.array([entry["iteration"] for entry in entries])
        losses = np.array([entry["loss"] for entry in entries])
        window = max(1, len(losses) // 30)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(iterations, losses, color=colour, alpha=0.25, linewidth=1)
        axes.plot(iterations[window - 1 :], smooth, color=colour, label=name)
    axes.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def filters_chart(filters: npt.NDArray[np.float32], flow: bool, count: int = 24) -> bytes:
    """First-layer filters float[N,C,k,k]: colour pictures of RGB filters, or the flow filters' channels in rows.

    A flow filter is one column: its x channels above its y channels, time running down, as in the paper's figure 4.
    """
    filters = filters[np.argsort(-np.abs(filters).mean(axis=(1, 2, 3)), kind="stable")[:count]]
    if not flow:
        columns = 8
        rows = -(-len(filters) // columns)
        figure = Figure(figsize=(6, 0.75 * rows), dpi=DPI, layout="constrained")
        for axes, one in zip(
            figure.subplots(rows, columns, squeeze=False).flat, _padded(filters, rows * columns), strict=True
        ):
            axes.axis("off")
            if one is not None:
                low, high = one.min(), one.max()
                axes.imshow(((one - low) / max(high - low, 1e-12)).transpose(1, 2, 0))
        return _png(figure)
    gap = np.zeros((filters.shape[0], 1, *filters.shape[2:]), filters.dtype)
    stacked = np.concatenate([filters[:, 0::2], gap, filters[:, 1::2]], axis=1)
    stacked = stacked / np.maximum(np.abs(stacked).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    stacked = np.pad(stacked, ((0, 0), (0, 0), (1, 1), (1, 1)))
    tall = stacked.transpose(1, 2, 0, 3).reshape(stacked.shape[1] * stacked.shape[2], -1)
    figure = Figure(figsize=(6, max(1.5, 6 * tall.shape[0] / tall.shape[1])), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(tall, cmap="RdBu", vmin=-1, vmax=1, aspect="equal")
    half = stacked.shape[2] * filters.shape[1] // 4
    axes.set_yticks([half, tall.shape[0] - half], ["x", "y"])
    axes.set_xticks([])
    return _png(figure)


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """An RGB picture uint8[H,W,3] as PNG bytes."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, picture, format="png")
    return buffer.getvalue()


def _colours(names: Sequence[str]) -> list[str]:
    more = iter(MORE_COLOURS * len(names))
    return [
        next((colour for stream, colour in STREAM_COLOURS.items() if name.startswith(stream)), None)
        or (FUSION_COLOUR if name == names[-1] else next(more))
        for name in names
    ]


def _padded(items: npt.NDArray[np.float32], length: int) -> list[npt.NDArray[np.float32] | None]:
    return [*items, *[None] * (length - len(items))]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
