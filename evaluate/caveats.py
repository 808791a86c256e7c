"""What a reader must know before trusting a table of results, one line for each finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evaluate import metrics
from evaluate.metrics import Metrics
from evaluate.runs import TrainedRun
from pipeline.runs import iteration_of
from pipeline.text import some


class Measured(Protocol):
    """A named row of a results table."""

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> Metrics: ...


def of_results(
    streams: Sequence[Measured],
    fusions: Sequence[Measured],
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
) -> list[str]:
    """Warnings about one split: streams at chance, fusions below their best stream, classes without test videos.

    Chance is the accuracy of always answering the class with the most test videos. A stream is at chance if its
    interval reaches down to that or, where there is no interval, its accuracy does.
    """
    counts = np.bincount(labels, minlength=len(classes))
    found = []
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        found.append(
            f"{len(empty)} of {len(classes)} classes have no test videos: {some(empty)}; nothing is known about them"
        )
    chance = metrics.chance(labels)
    for row in streams:
        accuracy, (low, high) = row.metrics.accuracy, row.metrics.accuracy_interval
        if (accuracy if np.isnan(low) else low) > chance:
            continue
        interval = "" if np.isnan(low) else f" (95% interval {_percent(low)} to {_percent(high)})"
        found.append(
            f"{row.name}: {_percent(accuracy)}%{interval} cannot be told from chance, {_percent(chance)}% by always "
            "answering the most frequent class"
        )
    best = max(streams, key=lambda row: row.metrics.accuracy)
    found += [
        f"{row.name}: {_percent(row.metrics.accuracy)}% is below its best stream, {best.name} with "
        f"{_percent(best.metrics.accuracy)}%"
        for row in fusions
        if row.metrics.accuracy < best.metrics.accuracy
    ]
    return found


def of_run(run: TrainedRun) -> list[str]:
    """A warning if a run has not trained all iterations of its recipe."""
    reached = max((iteration_of(path) or 0 for path in run.paths.checkpoints()), default=None)
    if reached is None or reached >= run.iterations:
        return []
    return [
        f"run {run.name} is unfinished: checkpoint {reached} of {run.iterations} iterations; "
        "the command that trains it resumes it"
    ]


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"
