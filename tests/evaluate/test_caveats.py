"""What is wrong with results is said beside them: in the table, JSON and the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import add_run
from test_results import both, stream

from evaluate import caveats, metrics, report, results
from evaluate.runs import trained_run
from evaluate.score_file import Scores
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths


def certain(kind: Literal["spatial", "temporal"], right: int) -> Scores:
    """Scores of a stream that gets the first `right` of 80 videos right, and takes the others for the next class."""
    scores = stream(kind)
    guess = np.where(np.arange(80) < right, scores.labels, (scores.labels + 1) % 4)
    softmax = np.full((80, 4), 0.01, np.float32)
    softmax[np.arange(80), guess] = 0.97
    return dataclasses.replace(scores, softmax=softmax)


def test_a_fusion_below_its_best_stream_and_a_stream_at_chance_are_named() -> None:
    streams = [certain("spatial", 16), certain("temporal", 80)]
    result = results.evaluate_split(streams, ["weighted"], weights=[2, 1])
    chance, below = result.warnings
    assert chance.startswith("spatial: 20.0% (95% interval ")
    assert "chance, 25.0%" in chance
    assert below == "fusion by weights: 20.0% is below its best stream, temporal with 100.0%"


def test_sound_results_have_no_warnings() -> None:
    streams = [certain("spatial", 60), certain("temporal", 80)]
    streams = [dataclasses.replace(one, groups=one.videos) for one in streams]
    assert results.evaluate_split(streams, ["weighted"], weights=[1, 2]).warnings == ()


def test_a_class_without_test_videos_is_named() -> None:
    streams = [scores.take(np.flatnonzero(scores.labels != 2)) for scores in both()]
    found = results.evaluate_split(streams, ["average"]).warnings
    assert found[0].startswith("1 of 4 classes have no test videos: ")


def test_an_unfinished_run_is_named_with_its_iterations(tmp_path: Path) -> None:
    folder = add_run(DatasetPaths(tmp_path, "tiny"), "spatial").parent
    assert caveats.of_run(trained_run(RunPaths(folder))) == []
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("iterations = 1\n", "iterations = 40\n"))
    (found,) = caveats.of_run(trained_run(RunPaths(folder)))
    assert "spatial-split1 is unfinished: checkpoint 1 of 40" in found


def test_warnings_stand_in_json_and_report() -> None:
    result = results.evaluate_split(both(), ["average"], unfinished=["run x is <unfinished>"])
    assert results.as_dict([result])["splits"][0]["warnings"][0] == "run x is <unfinished>"
    assert "Warning: run x is &lt;unfinished&gt;." in report.render(report.context([result], [], {}))


def test_intervals_draw_groups_since_clips_of_one_source_fail_together() -> None:
    random = np.random.default_rng(0)
    labels = np.zeros(400, np.int64)
    groups = [str(video // 20) for video in range(400)]
    hit = (random.random(20) < 0.6).repeat(20)
    scores = np.stack([hit, ~hit], axis=1).astype(float)
    low, high = metrics.measure(scores, labels, groups).accuracy_interval
    # Width of the normal interval of a mean over 20 sources; drawn clip by clip it would be narrower by sqrt(20).
    expected = 2 * 1.96 * np.sqrt(hit.mean() * (1 - hit.mean()) / 20)
    assert high - low == pytest.approx(expected, rel=0.2)
    low, high = metrics.measure(scores, labels).accuracy_interval
    assert high - low == pytest.approx(expected / np.sqrt(20), rel=0.2)


def test_a_single_group_has_no_interval() -> None:
    streams = [dataclasses.replace(scores, groups=("one",) * 80) for scores in both()]
    result = results.evaluate_split(streams, ["average"])
    assert results.as_dict([result])["splits"][0]["rows"][0]["accuracy_interval"] is None


def test_top5_is_shown_only_where_there_are_more_than_five_classes() -> None:
    few = results.evaluate_split(both(), ["average"])
    assert "top5" not in results.mean_rows([few])[0]
    assert "top-5" not in report.render(report.context([few, few], [], {}))
    wide = [
        dataclasses.replace(scores, classes=tuple("abcdef"), softmax=np.pad(scores.softmax, ((0, 0), (0, 2))))
        for scores in both()
    ]
    many = results.evaluate_split(wide, ["average"])
    assert "top5" in results.mean_rows([many])[0]
    assert "top-5" in report.render(report.context([many, many], [], {}))


def test_details_are_about_the_most_accurate_row_or_the_one_asked_for() -> None:
    streams = [certain("spatial", 16), certain("temporal", 80)]
    result = results.evaluate_split(streams, ["weighted"], weights=[2, 1])
    assert results.detailed_row(result).name == "temporal"
    assert results.detailed_row(result, "weighted").name == "fusion by weights"
    assert "Confusion matrix of spatial" in report.render(report.context([result], [], {}, "spatial"))
    with pytest.raises(InputError, match="no such row, only spatial, temporal, weighted"):
        results.detailed_row(result, "svm")
