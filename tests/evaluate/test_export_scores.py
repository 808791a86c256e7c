"""Scores in the formats of others: CSV that any program reads, and what mmaction2's own tools take."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_scores import scores

from evaluate.__main__ import main
from evaluate.score_file import read_scores
from pipeline.paths import DatasetPaths


def run(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["export-scores", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    scores(tmp_path / "spatial-split1" / "scores", "spatial", 3)
    return tmp_path / "spatial-split1" / "scores" / "spatial-1-test.h5"


def test_a_csv_holds_a_probability_of_every_class(file: Path) -> None:
    assert "24 videos of 3 classes" in run(file)
    expected = read_scores(file)
    with file.with_suffix(".csv").open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert [row["video"] for row in rows] == list(expected.videos)
    assert [row["class"] for row in rows] == [expected.classes[label] for label in expected.labels]
    found = np.array([[float(row[name]) for name in expected.classes] for row in rows])
    np.testing.assert_allclose(found, expected.softmax, rtol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert [row["predicted"] for row in rows] == [expected.classes[best] for best in found.argmax(axis=1)]


def test_a_pickle_holds_what_mmaction2s_report_of_accuracy_reads(file: Path) -> None:
    run(file, "--format", "mmaction2")
    samples = pickle.loads(file.with_suffix(".pkl").read_bytes())
    expected = read_scores(file)
    # As tools/analysis_tools/report_accuracy.py of mmaction2 1.2 takes them.
    found = np.array([sample["pred_score"].numpy() for sample in samples])
    labels = [sample["gt_label"].item() for sample in samples]
    np.testing.assert_array_equal(found, expected.softmax)
    assert labels == expected.labels.tolist()
    assert [sample["pred_label"].item() for sample in samples] == found.argmax(axis=1).tolist()
    assert [sample["video_id"] for sample in samples] == list(expected.videos)
    assert {(sample["gt_label"].dtype, sample["num_classes"]) for sample in samples} == {(torch.int64, 3)}


def test_files_of_several_runs_go_to_one_folder_under_the_names_of_their_runs(
    file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "temporal-split1" / "scores"
    scores(other, "spatial", 3)
    run(file, other / file.name, "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "spatial-split1-spatial-1-test.csv",
        "temporal-split1-spatial-1-test.csv",
    ]


def test_scores_of_a_datasets_runs_are_found_as_fuse_finds_them(own_data: DatasetPaths) -> None:
    given = ["--dataset", "tiny", "--data", own_data.data, "--split", "1"]
    missing = run(*given, "--frames", 1, "--crops", 1, status=1)
    assert "no such score file" in missing
    folder = own_data.run("spatial-split1") / "scores"
    scores(folder, "spatial", 3)
    (folder / "spatial-1-test.h5").rename(folder / "test-1x1.h5")
    run(*given, "--frames", 1, "--crops", 1, "--stream", "spatial")
    assert (folder / "test-1x1.csv").is_file()


def test_options_that_choose_runs_do_not_go_with_files(file: Path) -> None:
    assert "leave it out with score FILEs" in run(file, "--part", "train", status=2)


def test_names_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    import dataclasses

    from evaluate.export_scores import as_csv

    made = scores(tmp_path, "spatial", 2)
    hostile = dataclasses.replace(made, classes=("=1+1", "b"))
    lines = list(csv.reader(as_csv(hostile).decode().splitlines()))
    assert lines[0][3] == "'=1+1"
    assert lines[1][1] == "'=1+1"
