"""Fusing the scores of several streams (paper, section 2): averaging, weighting, and a linear SVM.

Every function takes the streams' scores in one order of videos; `score_file.aligned` makes sure of that. Order of the
SVM's features: streams in the order given, each stream's softmax vector scaled to unit length on its own, then laid
side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

ClassScores = npt.NDArray[np.floating]

COSTS = tuple(2.0**exponent for exponent in range(-5, 11, 2))
ITERATIONS = 20_000
SEED = 0
"""Of the folds of the cross-validation, and of the solver."""


class SvmFusion(NamedTuple):
    """A fitted fusion: what was chosen, how it did in cross-validation, the classifier, its accuracy on the videos
    that it was fitted on, and the temperature that turns its decision values into shares (`shares`)."""

    cost: float
    folds: int
    accuracies: dict[float, float]
    classifier: LinearSVC
    classes: int
    training_accuracy: float
    temperature: float


def average(streams: Sequence[ClassScores]) -> ClassScores:
    """Mean of the streams' scores, float[n,C] (the paper averages softmax scores)."""
    return weighted(streams, [1.0] * len(streams))


def weighted(streams: Sequence[ClassScores], weights: Sequence[float]) -> ClassScores:
    """Weighted mean of the streams' scores, float[n,C]; the field's usual weights are 1 (spatial) to 1.5 (temporal).

    Raises:
        ValueError: not one weight for each stream, a negative weight, or only zeros.
    """
    if len(weights) != len(streams) or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(
            f"{len(streams)} streams need as many weights, none negative, not all zero; found {list(weights)}"
        )
    total = sum(
        weight * np.asarray(scores, np.float64) for weight, scores in zip(weights, streams, strict=True)
    )
    return np.asarray(total) / sum(weights)


def svm_features(streams: Sequence[ClassScores]) -> npt.NDArray[np.float64]:
    """Stacked L2-normalised softmax scores, float64[n, streams*C]: each stream's row has unit length."""
    rows = [np.asarray(scores, np.float64) for scores in streams]
    return np.concatenate([row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows], axis=1)


def fit_svm(
    streams: Sequence[ClassScores],
    labels: npt.NDArray[np.integer],
    groups: Sequence[str],
    costs: Sequence[float] = COSTS,
    folds: int = 5,
) -> SvmFusion:
    """Fit a multi-class linear SVM on scores of the training list.

    The cost C is the one with the best cross-validated accuracy (of equals, the smallest), over folds that never
    divide a group of videos cut from one source. With too few groups for two folds C is 1.

    Args:
        streams: softmax scores of the training videos, one float[n,C] for each stream.
        labels: int[n].
        groups: the source each video was cut from; only compared for equality.
        costs: the values of C to try.
        folds: folds of the cross-validation, fewer where a class has fewer groups.

    Raises:
        ValueError: fewer than two classes among the labels.
    """
    features, labels = svm_features(streams), np.asarray(labels)
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(f"an SVM needs at least two classes among the training videos, found {len(present)}")
    names = np.asarray(groups)
    folds = min(folds, *(len(set(names[labels == label])) for label in present))
    classes = streams[0].shape[1]
    accuracies: dict[float, float] = {}
    unseen: dict[
        float, npt.NDArray[np.float64]
    ] = {}  # decision values of videos that the classifier did not see
    if folds >= 2:
        plan = list(
            StratifiedGroupKFold(folds, shuffle=True, random_state=SEED).split(features, labels, names)
        )
        for cost in costs:
            decisions = np.empty((len(labels), classes))
            for fit, held in plan:
                decisions[held] = _decisions(
                    _fitted(features[fit], labels[fit], cost), features[held], classes
                )
            accuracies[float(cost)] = float((decisions.argmax(axis=1) == labels).mean())
            unseen[float(cost)] = decisions
    cost = min(accuracies, key=lambda value: (-accuracies[value], value)) if accuracies else 1.0
    classifier = _fitted(features, labels, cost)
    training = float((classifier.predict(features) == labels).mean())
    decisions = unseen[cost] if accuracies else _decisions(classifier, features, classes)
    return SvmFusion(
        cost, max(folds, 0), accuracies, classifier, classes, training, fit_temperature(decisions, labels)
    )


def svm_scores(fusion: SvmFusion, streams: Sequence[ClassScores]) -> npt.NDArray[np.float64]:
    """Decision values float64[n,C] of a fitted fusion; a class that had no training video comes last everywhere."""
    return _decisions(fusion.classifier, svm_features(streams), fusion.classes)


def shares(scores: ClassScores, temperature: float) -> npt.NDArray[np.float64]:
    """Scores that are no probabilities as shares that add up to one, float64[n,C]: softmax of scores / temperature.

    The order of a video's classes stays as it is.
    """
    return np.asarray(softmax(np.asarray(scores, np.float64) / temperature, axis=1))


def fit_temperature(scores: ClassScores, labels: npt.NDArray[np.integer]) -> float:
    """The temperature at which `shares` fits the labels best (Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017), by likelihood.

    Args:
        scores: float[n,C] of videos that the classifier did not learn from.
        labels: int[n]. As in Platt 1999, a few right answers are no proof of certainty: each class is counted once
            more than it was seen, so that scores without a mistake get a finite temperature too.
    """
    videos, classes = scores.shape
    targets = np.full((videos, classes), 1 / (videos + classes))
    targets[np.arange(videos), labels] += videos / (videos + classes)

    def loss(logarithm: float) -> float:
        return float(-(targets * log_softmax(scores / np.exp(logarithm), axis=1)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e3)), method="bounded").x))


def _decisions(
    classifier: LinearSVC, features: npt.NDArray[np.float64], classes: int
) -> npt.NDArray[np.float64]:
    """Decision values float64[n,classes]; a class that the classifier did not learn comes last everywhere."""
    decision = classifier.decision_function(features)
    if decision.ndim == 1:  # scikit-learn gives one column for two classes
        decision = np.stack([-decision, decision], axis=1)
    scores = np.full((len(decision), classes), decision.min() - 1.0)
    scores[:, classifier.classes_] = decision
    return scores


def _fitted(features: npt.NDArray[np.float64], labels: npt.NDArray[np.integer], cost: float) -> LinearSVC:
    classifier = LinearSVC(C=cost, max_iter=ITERATIONS, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at a large C the solution no longer changes
        return classifier.fit(features, labels)
