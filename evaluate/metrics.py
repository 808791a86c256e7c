"""How good a set of scores is: accuracy over videos, mean class recall, confusion, disagreement, intervals.

Accuracy is the share of videos classified correctly; mean class recall is the mean over classes of the share of that
class's videos classified correctly. They differ when classes have different numbers of videos, and the literature
mixes them up, so both are always reported under their own names. All scores are float[n,C], higher is better; labels
are int[n] in 0..C-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ClassScores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

RESAMPLES = 1000
SEED = 0
"""Draws of the bootstrap behind an interval, and their seed."""


class Metrics(NamedTuple):
    """What one set of scores reaches; rates are fractions in 0..1, intervals are (low, high)."""

    videos: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float
    mean_class_recall: float
    mean_class_recall_interval: tuple[float, float]
    mean_class_top5: float
    class_recall: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.int64]


class ConfusedPair(NamedTuple):
    """Videos of class `true` that were taken for class `predicted`."""

    true: int
    predicted: int
    videos: int
    share: float


def rank_of_label(scores: ClassScores, labels: Labels) -> npt.NDArray[np.int64]:
    """How many classes come before the true one, int[n]; of equal scores the lower class index comes first."""
    scores, labels = _checked(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def chance(labels: Labels) -> float:
    """Accuracy of always answering the class with the most videos; the mean class recall of that is 1 / classes."""
    return float(np.bincount(labels).max() / len(labels))


def predictions(scores: ClassScores) -> npt.NDArray[np.int64]:
    """The best class of each video, int[n]; of equal scores the lower class index wins."""
    return np.asarray(scores).argmax(axis=1)


def class_recall(hit: npt.NDArray[np.bool_], labels: Labels, classes: int) -> npt.NDArray[np.float64]:
    """Share of each class's videos that are hits, float[classes]; NaN for a class without videos."""
    total = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=hit, minlength=classes)
    return np.divide(hits, total, out=np.full(classes, np.nan), where=total > 0)


def confusion(scores: ClassScores, labels: Labels) -> npt.NDArray[np.int64]:
    """Videos counted by (true class, predicted class), int[C,C]."""
    scores, labels = _checked(scores, labels)
    classes = scores.shape[1]
    return np.bincount(labels * classes + predictions(scores), minlength=classes**2).reshape(classes, classes)


def measure(
    scores: ClassScores,
    labels: Labels,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Metrics:
    """All metrics of one set of scores, with 95% bootstrap intervals over groups of videos.

    The clips of one source succeed and fail together, so drawing clips one by one would make intervals too narrow
    (cluster bootstrap; Cameron, Gelbach & Miller 2008). Classes without any video in `labels` take no part in the mean
    class recall.

    Args:
        scores: float[n,C].
        labels: int[n].
        groups: the source each video was cut from; None if each video has a source of its own. With a single group the
            intervals are NaN: nothing can be said about other sources.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no videos, labels outside the classes, or scores that are not finite.
    """
    scores, labels = _checked(scores, labels)
    rank = rank_of_label(scores, labels)
    first, five = rank == 0, rank < 5
    classes = scores.shape[1]
    recall = class_recall(first, labels, classes)
    names = (
        np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    accuracies, recalls = _bootstrap(first, labels, names, classes, resamples, seed)
    return Metrics(
        videos=len(labels),
        accuracy=float(first.mean()),
        accuracy_interval=_interval(accuracies),
        top5=float(five.mean()),
        mean_class_recall=float(np.nanmean(recall)),
        mean_class_recall_interval=_interval(recalls),
        mean_class_top5=float(np.nanmean(class_recall(five, labels, classes))),
        class_recall=recall,
        confusion=confusion(scores, labels),
    )


def most_confused(matrix: npt.NDArray[np.int64], count: int = 10) -> list[ConfusedPair]:
    """The pairs of classes (true, predicted) with most wrong videos, most first, at most `count`."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    totals = matrix.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(matrix)) for flat in order]
    return [
        ConfusedPair(
            true, predicted, int(wrong[true, predicted]), float(wrong[true, predicted] / totals[true])
        )
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def disagreement(first: ClassScores, second: ClassScores, labels: Labels) -> dict[str, int]:
    """Videos by who was right: {"both", "first", "second", "neither"}; the counts add up to all videos."""
    right_first = rank_of_label(first, labels) == 0
    right_second = rank_of_label(second, labels) == 0
    return {
        "both": int((right_first & right_second).sum()),
        "first": int((right_first & ~right_second).sum()),
        "second": int((~right_first & right_second).sum()),
        "neither": int((~right_first & ~right_second).sum()),
    }


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean over splits and its sample standard deviation (0 for a single split)."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread


def _checked(scores: ClassScores, labels: Labels) -> tuple[ClassScores, Labels]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),) or not len(labels):
        raise ValueError(
            f"scores[n,C] and labels[n] expected, found {list(scores.shape)}, {list(labels.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold values that are not finite")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but scores have {scores.shape[1]} classes"
        )
    return scores, labels


def _bootstrap(
    hit: npt.NDArray[np.bool_], labels: Labels, groups: Labels, classes: int, resamples: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Accuracy and mean class recall of `resamples` draws of the groups (int[n], 0..G-1) with replacement."""
    count = int(groups.max()) + 1
    if count < 2:
        nothing = np.full(resamples, np.nan)
        return nothing, nothing
    videos, hits = np.zeros((count, classes)), np.zeros((count, classes))
    np.add.at(videos, (groups, labels), 1)
    np.add.at(hits, (groups, labels), hit)
    random = np.random.default_rng(seed)
    accuracies, recalls = np.empty(resamples), np.empty(resamples)
    for index in range(resamples):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        total, right = times @ videos, times @ hits
        accuracies[index] = right.sum() / total.sum()
        recalls[index] = (right[total > 0] / total[total > 0]).mean()
    return accuracies, recalls


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)
