"""Files of predictions: a line per video, continued after a crash, never of two settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from evaluate.result_lines import ResultLines
from pipeline.errors import InputError

BEST = {"spatial (a)": {"Bow": 0.75, "Kick, high": 0.25}, "fusion": {"Kick, high": 0.5, "Bow": 0.5}}
NAMES = ("a b.mp4", 'q"uote,.mp4', "line\u2028break.mp4", "bytes\udcff.mp4")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_is_continued_where_a_crash_left_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "folder" / f"results.{ending}"
    with ResultLines(path, "x") as lines:
        for name in NAMES:
            lines.add(name, BEST)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    again = ResultLines(path, "x")
    assert again.done == frozenset(NAMES[:-1])
    with again:
        again.add(NAMES[-1], BEST)
    assert path.read_bytes() == whole


def test_a_json_line_has_every_column(tmp_path: Path) -> None:
    with ResultLines(tmp_path / "r.jsonl", "x") as lines:
        lines.add("v", BEST)
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {"video": "v", **BEST, "settings": "x"}


def test_a_csv_line_has_classes_and_scores_best_first(tmp_path: Path) -> None:
    with ResultLines(tmp_path / "r.csv", "x") as lines:
        lines.add("v", BEST)
        lines.add("w", BEST)
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["v", "w"]
    assert rows[0]["spatial (a) 1"] == "Bow"
    assert float(rows[0]["spatial (a) 1 score"]) == 0.75
    assert rows[1]["spatial (a) 2"] == "Kick, high"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_results_of_other_settings_are_not_mixed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"r.{ending}"
    with ResultLines(path, "x") as lines:
        lines.add("v", BEST)
    with pytest.raises(InputError, match="holds results of other runs, views or weights"):
        ResultLines(path, "y")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.txt", "", "expected a name that ends with .csv or .jsonl"),
        ("r.csv", "a,b\n1,2\n", "expected results of this command"),
        ("r.jsonl", "[1]\n", "expected results of this command"),
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        ResultLines(path, "x")
    assert path.read_text() == text


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("text", ["notes", "name,age\nAnn,3", "[1]\n[2", "[" * 5000 + "\n"])
def test_another_file_is_refused_and_stays_as_it_is(tmp_path: Path, ending: str, text: str) -> None:
    """A last line without an end is not cut off before the file is known to be of this command."""
    path = tmp_path / f"r.{ending}"
    path.write_text(text)
    with pytest.raises(InputError, match="expected results of this command"):
        ResultLines(path, "x")
    assert path.read_text() == text
