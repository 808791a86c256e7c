"""Score files come back as written, are joined and aligned by video, and refuse what does not belong together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from evaluate import score_file
from evaluate.score_file import Scores
from pipeline.errors import InputError


def make_scores(count: int = 5, seed: int = 0, **changes: Any) -> Scores:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 3)).astype(np.float32)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values: dict[str, Any] = {
        "dataset": "demo",
        "split": 1,
        "part": "test",
        "stream": "spatial",
        "run": "spatial-split1",
        "checkpoint": "c0ffee",
        "shards": "tvl1",
        "settings": {"frames": 25, "crops": 10, "size": 64},
        "classes": ("a", "b", "ç"),
        "videos": tuple(f"a/v {video:02d} é" for video in range(count)),
        "groups": tuple(f"g{video // 2}" for video in range(count)),
        "labels": (np.arange(count) % 3).astype(np.int32),
        "logits": logits,
        "softmax": softmax.astype(np.float32),
        "views": np.full(count, 250, np.int32),
    }
    return Scores(**{**values, **changes})


def assert_equal(first: Scores, second: Scores) -> None:
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), field.name)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scores = make_scores()
    score_file.write_scores(tmp_path / "deep" / "test.h5", scores)
    assert_equal(score_file.read_scores(tmp_path / "deep" / "test.h5"), scores)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["test.h5"]


def test_files_do_not_depend_on_the_order_of_scoring(tmp_path: Path) -> None:
    scores = make_scores()
    score_file.write_scores(tmp_path / "test.h5", scores.take(np.array([3, 0, 4, 2, 1])))
    assert_equal(score_file.read_scores(tmp_path / "test.h5"), scores)


def test_disjoint_parts_join_to_the_whole_and_a_video_counts_once() -> None:
    scores = make_scores()
    parts = [scores.take(np.array(rows)) for rows in ([4, 1], [0], [1, 3, 2])]
    assert_equal(score_file.joined(parts), scores)


def test_parts_of_different_checkpoints_are_not_joined() -> None:
    with pytest.raises(InputError, match="not parts of one measurement"):
        score_file.joined([make_scores(), make_scores(checkpoint="other")])


def test_streams_are_aligned_by_video_not_by_order() -> None:
    spatial, temporal = make_scores(), make_scores(seed=1, stream="temporal").take(np.array([2, 0, 1, 4, 3]))
    first, second = score_file.aligned([spatial, temporal])
    assert first.videos == second.videos
    np.testing.assert_array_equal(second.logits, make_scores(seed=1).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": 2}, "split is 1 and 2"),
        ({"part": "train"}, "part is 'test' and 'train'"),
        ({"dataset": "hmdb51"}, "dataset is 'demo' and 'hmdb51'"),
        ({"classes": ("a", "b", "d")}, r"1 only in the first \(ç\); 1 only in the second \(d\)"),
        ({"classes": ("b", "a", "ç")}, "another order"),
        ({"videos": ("a/x", *(f"a/v {video:02d} é" for video in range(1, 5)))}, "only in the second"),
        (
            {"labels": np.array([0, 1, 2, 0, 2], np.int32)},
            "1 labels differ, first that of a/v 04 é: 'b' and 'ç'",
        ),
    ],
)
def test_streams_that_differ_are_not_fused_and_the_difference_is_shown(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_file.aligned([make_scores(), make_scores(seed=1, **changes)])


def damage_attribute(file: h5py.File) -> None:
    file.attrs["version"] = 99


def damage_shape(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = np.zeros(2, np.int32)


def damage_labels(file: h5py.File) -> None:
    file["labels"][0] = 7


def damage_values(file: h5py.File) -> None:
    file["logits"][0, 0] = np.nan


def damage_link(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("elsewhere.h5", "/")


def damage_missing(file: h5py.File) -> None:
    del file["softmax"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_attribute, "version 1, found"),
        (damage_shape, "labels should have shape"),
        (damage_labels, "outside the 3 classes"),
        (damage_values, "not finite"),
        (damage_link, "link out of the file"),
        (damage_missing, "not a readable score file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "test.h5"
    score_file.write_scores(path, make_scores())
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message) as error:
        score_file.read_scores(path)
    assert str(path) in str(error.value)


def test_no_file_and_no_hdf5_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such score file"):
        score_file.read_scores(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("not hdf5")
    with pytest.raises(InputError, match="not a readable score file"):
        score_file.read_scores(tmp_path / "text.h5")
