"""From score files to the tables people read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from evaluate import fusion, results
from evaluate.score_file import Scores
from pipeline.errors import InputError

CLASSES = ("a", "b", "c", "d")


def stream(kind: str, part: str = "test", split: int = 1, count: int = 80, **changes: Any) -> Scores:
    """Scores of a stream that sees one bit of the class only."""
    random = np.random.default_rng([["spatial", "temporal"].index(kind), part == "train", split])
    labels = np.arange(count) % 4
    bit = {"spatial": lambda label: label // 2, "temporal": lambda label: label % 2}[kind]
    logits = random.normal(0, 0.3, (count, 4)) + 2.0 * (bit(np.arange(4))[None] == bit(labels)[:, None])
    powers = np.exp(logits)
    values: dict[str, Any] = {
        "dataset": "demo",
        "split": split,
        "part": part,
        "stream": kind,
        "run": f"{kind}-split{split}",
        "checkpoint": f"{kind}{split}" + "0" * 32,
        "shards": "tvl1",
        "settings": {"frames": 25, "crops": 10, "crop": 64},
        "classes": CLASSES,
        "videos": tuple(f"{CLASSES[label]}/{part}{video:03d}" for video, label in enumerate(labels)),
        "groups": tuple(f"{part}{video // 8}" for video in range(count)),
        "labels": labels.astype(np.int32),
        "logits": logits.astype(np.float32),
        "softmax": (powers / powers.sum(1, keepdims=True)).astype(np.float32),
        "views": np.full(count, 250, np.int32),
    }
    return Scores(**{**values, **changes})


def both(part: str = "test", split: int = 1) -> list[Scores]:
    return [stream("spatial", part, split), stream("temporal", part, split)]


def test_rows_are_the_streams_then_the_fusions_asked_for() -> None:
    result = results.evaluate_split(both(), ["average", "weighted", "svm"], both("train"))
    names = [row.name for row in result.rows]
    assert names == ["spatial", "temporal", "fusion by averaging", "fusion by weights", "fusion by SVM"]
    accuracy = {row.name: row.metrics.accuracy for row in result.rows}
    assert max(accuracy["spatial"], accuracy["temporal"]) < 0.7
    assert min(accuracy["fusion by averaging"], accuracy["fusion by SVM"]) > 0.95


def test_rows_hold_the_same_scores_as_the_fusion_functions() -> None:
    test, train = both(), both("train")
    result = results.evaluate_split(test, ["average", "weighted", "svm"], train)
    spatial, temporal = sorted_softmax(test)
    np.testing.assert_allclose(result.rows[2].scores, (spatial + temporal) / 2, atol=1e-7)
    np.testing.assert_allclose(result.rows[3].scores, (spatial + 1.5 * temporal) / 2.5, atol=1e-7)
    learned = [scores.sorted() for scores in train]
    fitted = fusion.fit_svm([scores.softmax for scores in learned], learned[0].labels, learned[0].groups)
    np.testing.assert_allclose(result.rows[4].scores, fusion.svm_scores(fitted, [spatial, temporal]))


def sorted_softmax(scores: list[Scores]) -> list[np.ndarray]:
    return [one.sorted().softmax for one in scores]


def test_fusion_on_logits_is_named_as_such() -> None:
    result = results.evaluate_split(both(), ["average"], on="logits")
    assert result.rows[2].name == "fusion by averaging (logits)"
    logits = [one.sorted().logits for one in both()]
    np.testing.assert_allclose(result.rows[2].scores, np.mean(logits, axis=0), atol=1e-6)


def test_the_order_of_videos_in_the_files_changes_nothing() -> None:
    shuffled = [scores.take(np.random.default_rng(3).permutation(80)) for scores in both()]
    straight, other = (results.evaluate_split(streams, ["average"]) for streams in (both(), shuffled))
    assert results.as_dict([straight]) == results.as_dict([other])


def test_the_svm_never_sees_the_test_list() -> None:
    leaked = [
        stream("spatial", "train", videos=both()[0].videos),
        stream("temporal", "train", videos=both()[0].videos),
    ]
    with pytest.raises(InputError, match="80 test videos are in the training scores"):
        results.evaluate_split(both(), ["svm"], leaked)
    with pytest.raises(InputError, match="test list of split 1"):
        results.evaluate_split(both(), ["svm"], both())


def test_training_scores_of_another_checkpoint_are_refused() -> None:
    train = [stream("spatial", "train", checkpoint="other" * 8), stream("temporal", "train")]
    with pytest.raises(InputError, match=r"checkpoint otherothero.*expected.*checkpoint spatial10000"):
        results.evaluate_split(both(), ["svm"], train)


def test_svm_without_training_scores_says_how_to_make_them() -> None:
    with pytest.raises(InputError, match=r"temporal-split1 has none.*--part train"):
        results.evaluate_split(both(), ["svm"], both("train")[:1])


def test_one_stream_cannot_be_fused_but_can_be_measured() -> None:
    alone = [stream("temporal")]
    assert [row.name for row in results.evaluate_split(alone, ["none"]).rows] == ["temporal"]
    with pytest.raises(InputError, match="at least two streams, found only temporal"):
        results.evaluate_split(alone, ["average"])


def test_streams_of_one_kind_are_told_apart_by_their_runs() -> None:
    streams = [stream("temporal"), stream("temporal", run="brox-split1")]
    assert results.stream_names(streams) == ["temporal (temporal-split1)", "temporal (brox-split1)"]
    assert len(results.evaluate_split([stream("spatial"), *streams], ["average"]).rows) == 4


def test_means_over_splits_are_means_of_the_splits() -> None:
    splits = [results.evaluate_split(both(split=split), ["average"]) for split in (1, 2, 3)]
    for place, entry in enumerate(results.mean_rows(splits)):
        accuracies = [result.rows[place].metrics.accuracy for result in splits]
        assert entry["accuracy"] == pytest.approx(np.mean(accuracies))
        assert entry["accuracy_spread"] == pytest.approx(np.std(accuracies, ddof=1))


def test_saved_files_say_the_same_as_the_metrics(tmp_path: Path) -> None:
    result = results.evaluate_split(both(), ["average"])
    results.write(tmp_path, [result])
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["accuracy"] for row in saved["splits"][0]["rows"]] == [
        row.metrics.accuracy for row in result.rows
    ]
    assert sum(value for key, value in saved["splits"][0]["disagreement"][0].items() if "right" in key) == 80
    with (tmp_path / "predictions-split1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = np.mean([row["class"] == row["fusion by averaging"] for row in rows])
    assert right == pytest.approx(result.rows[2].metrics.accuracy)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == [row.name for row in result.rows]


def test_tables_show_accuracy_and_recall_under_their_own_names() -> None:
    console = Console(width=140, record=True)
    for table in results.tables([results.evaluate_split(both(split=split), ["average"]) for split in (1, 2)]):
        console.print(table)
    text = console.export_text()
    assert "accuracy" in text
    assert "mean class recall" in text
    assert "mean over splits 1, 2" in text
