"""The SVM learns from scores of videos that the networks did not see."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import add_run
from test_results import both, stream

from evaluate import held_out, results, score_file
from evaluate.__main__ import main
from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths, read_run
from train.__main__ import main as train_main
from train.checkpoint import load_checkpoint

VIEWS = ["--frames", "1", "--crops", "1"]


@pytest.fixture(scope="module")
def evaluated(
    scored_data: DatasetPaths, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DatasetPaths, str]]:
    """Runs of both streams on split 2, whose training list has two groups of each class, evaluated; and the output."""
    paths = DatasetPaths(tmp_path_factory.mktemp("held_out") / "data", "tiny")
    shutil.copytree(scored_data.data, paths.data)
    for kind in ("spatial", "temporal"):
        add_run(paths, kind, split=2)
        recipe = paths.run(f"{kind}-split2") / "recipe.toml"
        recipe.write_text(recipe.read_text().replace("batch = 256", "batch = 2"))

    def train(words: list[str], check: bool) -> Any:
        result = CliRunner().invoke(
            train_main, [*words[words.index("train") + 1 :], "--workers=0", "--no-tensorboard"]
        )
        return subprocess.CompletedProcess(words, result.exit_code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "FOLDS", 2)
        patch.setattr(held_out.subprocess, "run", train)
        yield paths, evaluate(paths, "--workers", "0")


def evaluate(paths: DatasetPaths, *arguments: str) -> str:
    result = CliRunner().invoke(
        main,
        [
            *arguments,
            "--dataset",
            "tiny",
            "--data",
            str(paths.data),
            "--split",
            "2",
            "--fusion",
            "svm",
            *VIEWS,
        ],
    )
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_each_video_of_the_training_list_is_scored_by_a_network_that_never_saw_its_group(
    evaluated: tuple[DatasetPaths, str],
) -> None:
    two_runs, output = evaluated
    dataset = load_dataset("tiny", two_runs.data)
    assert output.count("python -m train --dataset=tiny") == 4
    for kind in ("spatial", "temporal"):
        scored: list[str] = []
        for fold in (1, 2):
            run = RunPaths(two_runs.run(f"{kind}-split2-fold{fold}of2"))
            record = read_run(run.folder)
            assert (record.fold, record.folds) == (fold, 2)
            scores = score_file.read_scores(run.scores("held-out-1x1"))
            assert scores.checkpoint == load_checkpoint(run.scoring_checkpoint()).digest
            learned = {dataset.videos[video].group for video in dataset.split(2).train} - set(scores.groups)
            assert len(learned) == 2  # the other group of each class
            scored += scores.videos
        assert sorted(scored) == sorted(dataset.split(2).train)
    for text in ("cross-validated", "test accuracy", "held-out scores"):
        assert text in re.sub(r"[│\s]+", " ", output)  # the table folds its cells
    again = evaluate(two_runs, "--workers", "0")
    assert "python -m train" not in again
    assert "held-out" in evaluate(two_runs, "fuse")


def test_a_fold_s_network_of_another_recipe_is_refused(evaluated: tuple[DatasetPaths, str]) -> None:
    two_runs, _ = evaluated
    recipe = two_runs.run("spatial-split2") / "recipe.toml"
    before = recipe.read_text()
    recipe.write_text(before.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    try:
        with pytest.raises(AssertionError, match="without a fold, but learning_rate differs"):
            evaluate(two_runs, "fuse")
    finally:
        recipe.write_text(before)


def test_runs_of_folds_are_evaluated_only_where_they_are_named(evaluated: tuple[DatasetPaths, str]) -> None:
    two_runs, _ = evaluated
    from evaluate.runs import choose_runs

    chosen = choose_runs(two_runs, splits=[2])
    assert [run.name for run in chosen[2]] == ["spatial-split2", "temporal-split2"]
    named = choose_runs(two_runs, names=["spatial-split2-fold1of2"])
    assert named[2][0].record.fold == 1


def test_a_list_without_two_groups_of_a_class_takes_in_sample_scores(scored_data: DatasetPaths) -> None:
    dataset = load_dataset("tiny", scored_data.data)
    assert held_out.fold_count(dataset, 1) == 0
    assert not held_out.wanted(None, dataset, 1, [])
    assert held_out.wanted(None, dataset, 2, [])
    assert not held_out.wanted("in-sample", dataset, 2, [])


def test_a_run_on_the_whole_list_has_nothing_held_out(scored_data: DatasetPaths) -> None:
    arguments = [
        "score",
        "--part",
        "held-out",
        "--dataset",
        "tiny",
        "--data",
        str(scored_data.data),
        "--split",
        "1",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "learned from the whole training list" in result.output


def test_training_cross_validated_and_test_accuracy_stand_side_by_side() -> None:
    held = [dataclasses.replace(scores, part="held-out") for scores in both("train")]
    result = results.evaluate_split(both(), ["svm"], held)
    assert result.rows[0].training is None
    expected = np.mean(held[0].softmax.argmax(1) == held[0].labels)
    assert result.rows[0].cross_validated == pytest.approx(expected)
    svm = result.rows[-1]
    assert svm.training is not None
    assert svm.cross_validated is not None
    assert svm.training >= svm.cross_validated > 0.9
    saved = results.as_dict([result])["splits"][0]["rows"][-1]
    assert saved["cross_validated_accuracy"] == svm.cross_validated
    assert list(results._columns(result))[:4] == ["", "training accuracy", "cross-validated", "test accuracy"]


def test_folds_of_one_run_become_one_list() -> None:
    folds = [stream("spatial", "held-out", run=f"x-fold{k}of2", checkpoint=str(k) * 64) for k in (1, 2)]
    folds[0] = folds[0].take(np.arange(40))
    folds[1] = folds[1].take(np.arange(40, 80))
    whole = held_out.as_one("x", folds)
    assert (whole.run, len(whole.videos)) == ("x", 80)
    with pytest.raises(InputError, match="not parts of one measurement"):
        held_out.as_one("x", [folds[0], stream("spatial", "held-out", split=2)])


def test_fold_needs_a_number_within_folds(tmp_path: Path) -> None:
    result = CliRunner().invoke(train_main, ["--fold", "4", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "there are 3 folds" in result.output
