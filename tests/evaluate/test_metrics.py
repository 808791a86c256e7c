"""Accuracy and recall against scikit-learn, and the rules they keep."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from evaluate import metrics


def scores_and_labels(videos: int = 300, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, videos)
    scores = random.normal(size=(videos, classes))
    scores[np.arange(videos), labels] += 1.5
    return scores, labels


def test_rates_and_confusion_are_scikit_learns() -> None:
    scores, labels = scores_and_labels()
    measured = metrics.measure(scores, labels, resamples=10)
    predicted = scores.argmax(1)
    assert measured.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert measured.mean_class_recall == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert measured.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    np.testing.assert_array_equal(measured.confusion, confusion_matrix(labels, predicted, labels=range(7)))
    np.testing.assert_allclose(
        measured.class_recall, measured.confusion.diagonal() / measured.confusion.sum(1)
    )


def test_accuracy_is_not_mean_class_recall_when_classes_have_different_sizes() -> None:
    labels = np.array([0, 0, 0, 1])
    scores = np.eye(2)[[0, 0, 0, 0]]
    measured = metrics.measure(scores, labels, resamples=10)
    assert (measured.accuracy, measured.mean_class_recall) == (0.75, 0.5)


def test_a_class_without_videos_takes_no_part_in_the_mean() -> None:
    measured = metrics.measure(np.eye(3)[[0, 1]], np.array([0, 1]), resamples=50)
    assert measured.mean_class_recall == 1.0
    assert np.isnan(measured.class_recall[2])
    assert np.isfinite(measured.mean_class_recall_interval).all()


def test_equal_scores_never_favour_the_true_class() -> None:
    flat = np.zeros((4, 4))
    np.testing.assert_array_equal(metrics.rank_of_label(flat, np.arange(4)), [0, 1, 2, 3])
    np.testing.assert_array_equal(metrics.predictions(flat), [0, 0, 0, 0])


def test_the_bootstrap_interval_holds_the_accuracy_and_narrows_with_more_videos() -> None:
    few = metrics.measure(*scores_and_labels(100), resamples=400)
    many = metrics.measure(*scores_and_labels(3000), resamples=400)
    for measured in (few, many):
        low, high = measured.accuracy_interval
        assert low <= measured.accuracy <= high
    width = [high - low for low, high in (few.accuracy_interval, many.accuracy_interval)]
    assert width[1] < width[0]
    # Binomial standard error times 2 x 1.96, within the noise of 400 resamples.
    expected = 2 * 1.96 * np.sqrt(many.accuracy * (1 - many.accuracy) / 3000)
    assert width[1] == pytest.approx(expected, rel=0.2)


def test_most_confused_pairs_come_in_order_and_only_where_something_is_wrong() -> None:
    matrix = np.array([[5, 3, 0], [0, 4, 1], [0, 0, 9]])
    assert metrics.most_confused(matrix) == [(0, 1, 3, 3 / 8), (1, 2, 1, 1 / 5)]


def test_disagreement_counts_every_video_once() -> None:
    first, labels = scores_and_labels(seed=1)
    second = scores_and_labels(seed=2)[0]
    counts = metrics.disagreement(first, second, labels)
    assert sum(counts.values()) == len(labels)
    assert counts["both"] + counts["first"] == (first.argmax(1) == labels).sum()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "expected"),
        (np.zeros((2, 3)), np.array([0, 3]), "3 classes"),
        (np.full((2, 3), np.nan), np.array([0, 1]), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.measure(scores, labels)


def test_mean_over_splits_comes_with_its_sample_spread() -> None:
    assert metrics.mean_and_spread([0.7, 0.8, 0.9]) == pytest.approx((0.8, 0.1))
    assert metrics.mean_and_spread([0.7]) == (0.7, 0.0)
