"""Fusion against hand-worked values and scikit-learn used directly."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from evaluate import fusion


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def two_streams(
    videos: int = 120, classes: int = 4, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Each stream sees one bit of the class only; together they see the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(videos) % classes
    bit = [labels // 2, labels % 2]
    streams = []
    for stream in range(2):
        logits = random.normal(0, 0.3, (videos, classes))
        for label in range(classes):
            logits[:, label] += 2.0 * ((label // 2 if stream == 0 else label % 2) == bit[stream])
        streams.append(softmax(logits))
    return streams, labels, [f"g{video // 8}" for video in range(videos)]


def test_averaging_and_weighting_by_hand() -> None:
    spatial = np.array([[0.6, 0.4], [0.2, 0.8]])
    temporal = np.array([[0.1, 0.9], [0.5, 0.5]])
    np.testing.assert_allclose(fusion.average([spatial, temporal]), [[0.35, 0.65], [0.35, 0.65]])
    np.testing.assert_allclose(fusion.weighted([spatial, temporal], [1, 1.5]), [[0.3, 0.7], [0.38, 0.62]])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        fusion.weighted([np.ones((1, 2)), np.ones((1, 2))], weights)


def test_svm_features_are_unit_rows_of_each_stream_in_the_order_given() -> None:
    streams, _, _ = two_streams()
    features = fusion.svm_features(streams)
    np.testing.assert_allclose(features, np.hstack([normalize(stream) for stream in streams]))


def test_svm_scores_are_scikit_learns_on_the_same_arrays() -> None:
    streams, labels, groups = two_streams()
    fitted = fusion.fit_svm(streams, labels, groups)
    features = np.hstack([normalize(stream) for stream in streams])
    direct = LinearSVC(C=fitted.cost, max_iter=fusion.ITERATIONS, random_state=0).fit(features, labels)
    test_streams = two_streams(seed=1)[0]
    expected = direct.decision_function(np.hstack([normalize(stream) for stream in test_streams]))
    np.testing.assert_allclose(fusion.svm_scores(fitted, test_streams), expected, atol=1e-9)


def test_fused_streams_see_what_neither_sees_alone() -> None:
    streams, labels, groups = two_streams()
    test_streams, test_labels, _ = two_streams(seed=1)
    fitted = fusion.fit_svm(streams, labels, groups)
    alone = max((stream.argmax(1) == test_labels).mean() for stream in test_streams)
    by_svm = (fusion.svm_scores(fitted, test_streams).argmax(1) == test_labels).mean()
    by_average = (fusion.average(test_streams).argmax(1) == test_labels).mean()
    assert alone < 0.7
    assert by_svm > 0.95
    assert by_average > 0.95


def test_cross_validation_never_divides_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, labels, groups = two_streams()
    seen: list[set[str]] = []
    original = fusion.StratifiedGroupKFold.split

    def watched(self, features, labels, names):  # type: ignore[no-untyped-def]
        for fit, held in original(self, features, labels, names):
            seen.append(set(names[fit]) & set(names[held]))
            yield fit, held

    monkeypatch.setattr(fusion.StratifiedGroupKFold, "split", watched)
    fusion.fit_svm(streams, labels, groups)
    assert seen
    assert not any(seen)


def test_of_equally_good_costs_the_smallest_is_taken() -> None:
    streams, labels, groups = two_streams()
    fitted = fusion.fit_svm(streams, labels, groups)
    best = max(fitted.accuracies.values())
    assert fitted.cost == min(cost for cost, accuracy in fitted.accuracies.items() if accuracy == best)


def test_one_group_alone_leaves_the_cost_at_one() -> None:
    streams, labels, _ = two_streams()
    fitted = fusion.fit_svm(streams, labels, ["one"] * len(labels))
    assert (fitted.cost, fitted.accuracies) == (1.0, {})


def test_two_classes_and_classes_without_training_videos_keep_their_columns() -> None:
    streams, labels, groups = two_streams()
    some = np.isin(labels, [1, 3])
    fitted = fusion.fit_svm(
        [stream[some] for stream in streams],
        labels[some],
        [g for g, keep in zip(groups, some, strict=True) if keep],
    )
    scores = fusion.svm_scores(fitted, streams)
    assert scores.shape == (len(labels), 4)
    assert set(scores.argmax(1)) == {1, 3}
    assert (scores.argmax(1)[some] == labels[some]).mean() > 0.95


def test_one_class_cannot_be_fitted() -> None:
    streams, _, groups = two_streams()
    with pytest.raises(ValueError, match="two classes"):
        fusion.fit_svm(streams, np.zeros(120, int), groups)


def test_more_than_two_streams_fuse() -> None:
    streams, labels, groups = two_streams()
    more = [*streams, two_streams(seed=5)[0][1], two_streams(seed=6)[0][0]]
    assert fusion.average(more).shape == (120, 4)
    assert fusion.svm_scores(fusion.fit_svm(more, labels, groups), more).shape == (120, 4)
