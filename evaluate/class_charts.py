"""The report's charts of classes: recall of each, and which is mistaken for which. Arrays in, values for the template
out.

All charts of a report show the classes in one order, `class_order`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluate import metrics

Confusion = npt.NDArray[np.int64]

MOST_SHOWN = 24
"""Up to this many classes, all are shown; of more, only the best and the worst, with the others folded."""
ENDS = 10
"""How many of the best, and of the worst, are shown then."""
MOST_COUNTED = 20
"""Up to this many classes, the cells of the confusion matrix hold their numbers of videos."""
LONGEST_LABEL = 26
SHADES = 20


def recall_of(confusion: Confusion) -> npt.NDArray[np.float64]:
    """Recall of each class, float[C]; NaN for a class without videos."""
    totals = confusion.sum(axis=1)
    return np.divide(np.diag(confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def class_order(confusion: Confusion) -> list[int]:
    """The classes by recall, the best first; equal ones in the dataset's order, those without videos last."""
    return np.argsort(-np.nan_to_num(recall_of(confusion), nan=-1), kind="stable").tolist()


def class_view(
    classes: Sequence[str], order: Sequence[int], confusions: Mapping[str, Confusion]
) -> dict[str, Any]:
    """Everything that is shown of the classes on some test videos.

    Args:
        classes: C names.
        order: of the classes.
        confusions: row of the results -> int[C,C], the true class down; the last is shown in detail.
    """
    name, detailed = list(confusions.items())[-1]
    recalls = [recall_of(confusion) for confusion in confusions.values()]
    totals = detailed.sum(axis=1)
    entries = [
        {
            "place": place,
            "name": classes[index],
            "videos": int(totals[index]),
            "recalls": [
                None if np.isnan(recall[index]) else round(100 * float(recall[index]), 1)
                for recall in recalls
            ],
            "taken_for": _taken_for(classes, detailed, index),
        }
        for place, index in enumerate(order, 1)
    ]
    return {
        "rows": list(confusions),
        "best": name,
        "chance": round(100 / len(classes), 1),
        "names": min(max(map(len, classes)), LONGEST_LABEL),
        "parts": _parts(entries),
        "entries": entries,
        "matrix": _matrix(classes, order, detailed),
        "confused": [
            {
                "true": classes[pair.true],
                "predicted": classes[pair.predicted],
                "videos": pair.videos,
                "share": pair.share,
            }
            for pair in metrics.most_confused(detailed)
        ],
    }


def _parts(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The classes as the chart shows them: all, or the best and the worst with the others folded between them."""
    if len(entries) <= MOST_SHOWN:
        return [{"title": "", "folded": False, "classes": entries}]
    between = entries[ENDS:-ENDS]
    return [
        {"title": f"The {ENDS} best", "folded": False, "classes": entries[:ENDS]},
        {"title": f"The {len(between)} between", "folded": True, "classes": between},
        {"title": f"The {ENDS} worst", "folded": False, "classes": entries[-ENDS:]},
    ]


def _taken_for(classes: Sequence[str], confusion: Confusion, index: int) -> str:
    """The class that a class's videos are most often mistaken for, and how many are; empty where none is."""
    wrong = confusion[index].copy()
    wrong[index] = 0
    other = int(wrong.argmax())
    return f"{classes[other]} ({wrong[other]})" if wrong[other] else ""


def _matrix(classes: Sequence[str], order: Sequence[int], confusion: Confusion) -> dict[str, Any]:
    """The confusion matrix as a drawing, in CSS pixels: rows the true class, shades the share of its videos.

    Cells of one shade are one path, so that a drawing of 101 classes stays small.
    """
    ordered = confusion[np.ix_(order, order)]
    count = len(classes)
    totals = ordered.sum(axis=1, keepdims=True)
    shares = np.divide(ordered, totals, out=np.zeros(ordered.shape), where=totals > 0)
    cell = int(np.clip(620 / count, 9, 44))
    font = min(13, cell)
    labels = [_label(classes[index]) for index in order]
    margin = round(0.6 * font * max(map(len, labels))) + 10
    paths: dict[tuple[bool, int], str] = {}
    for true, predicted in zip(*(places.tolist() for places in np.nonzero(ordered)), strict=True):
        key = (true == predicted, int(np.ceil(SHADES * shares[true, predicted])))
        square = f"M{margin + predicted * cell} {true * cell}h{cell}v{cell}h-{cell}z"
        paths[key] = paths.get(key, "") + square
    return {
        "cell": cell,
        "font": font,
        "margin": margin,
        "side": cell * count,
        "labels": labels,
        "paths": [
            {"right": right, "opacity": round(0.15 + 0.85 * shade / SHADES, 3), "path": path}
            for (right, shade), path in sorted(paths.items())
        ],
        "counts": [
            {
                "x": margin + predicted * cell + cell / 2,
                "y": true * cell + cell / 2,
                "videos": int(ordered[true, predicted]),
                "dark": bool(shares[true, predicted] > 0.5),
            }
            for true, predicted in zip(*(places.tolist() for places in np.nonzero(ordered)), strict=True)
        ]
        if count <= MOST_COUNTED
        else [],
    }


def _label(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
