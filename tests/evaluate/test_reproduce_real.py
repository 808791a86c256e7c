"""The claim on real videos: its commands exist, what matters most comes first, and its table holds what was scored."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_dataset import make_dataset

from evaluate import held_out, reproduce, reproduce_real
from evaluate.__main__ import main
from evaluate.reproduce_real import Setting, experiments
from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from train.__main__ import main as train_main
from train.recipe import parse

ABOUT = experiments()
TINY = ("width=0.125", "crop=32", "short_side=36", "length=4", "iterations=1", "batch=4", "segments=1")


def test_keys_that_a_run_sets_are_keys_of_recipes() -> None:
    for run in ABOUT["runs"].values():
        for setting in run.get("set", ()):
            key, _, value = setting.partition("=")
            parse(key, value)
    assert set(ABOUT["fused"]) <= set(ABOUT["runs"])
    assert {ABOUT["runs"][name]["stream"] for name in ABOUT["fused"]} == {"spatial", "temporal"}


def test_a_folder_without_the_dataset_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ut_interaction1/videos: no such folder"):
        reproduce_real.import_step("ut_interaction1", Setting(tmp_path, tmp_path / "w.pth", tmp_path))


def test_everything_is_trained_scored_fused_and_tabled_and_repeating_it_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_dataset(tmp_path / "data")
    given = [
        "--data",
        str(paths.data),
        "--dataset",
        "tiny",
        "--device=cpu",
        "--workers=0",
        "--no-tensorboard",
    ]
    words = [word for value in TINY for word in ("--set", value)]
    done = CliRunner().invoke(
        train_main, [*given, "--recipe=small", "--stream=spatial", "--run=weights", *words]
    )
    assert done.exit_code == 0, done.output
    trained = []

    def call(words: list[str], check: bool) -> Any:
        """What a new process would do, in this one."""
        command, *arguments = words[words.index("-m") + 1 :]
        if command in ("pipeline", "extract_flow"):
            return subprocess.CompletedProcess(words, 0)
        if command == "train":
            arguments += ["--device=cpu", "--no-tensorboard"]
        result = CliRunner().invoke(train_main if command == "train" else main, [*arguments, "--workers=0"])
        if command == "train" and "complete" not in result.stderr:
            trained.append(next(word for word in arguments if word.startswith("--run=")))
        return subprocess.CompletedProcess(words, result.exit_code)

    monkeypatch.setattr(reproduce.subprocess, "run", call)
    monkeypatch.setattr(held_out.subprocess, "run", call)
    monkeypatch.setattr(held_out, "FOLDS", 2)
    monkeypatch.setitem(ABOUT["views"], "frames", 1)
    monkeypatch.setitem(ABOUT["views"], "crops", 1)
    monkeypatch.setattr(reproduce_real, "experiments", lambda: ABOUT)
    for part in ("videos", "splits"):
        (tmp_path / "source" / "tiny" / part).mkdir(parents=True)
    options = ["reproduce-real", "--dataset", "tiny", "--source", str(tmp_path / "source"), *words]
    options += ["--init", str(paths.run("weights")), "--data", str(paths.data)]
    first = CliRunner().invoke(main, options)
    assert first.exit_code == 0, (first.output, first.exception)
    assert len(trained) == len(ABOUT["runs"]) + 2 * len(ABOUT["fused"])
    assert sorted(trained[:2]) == sorted(f"--run=real-{name}-split1" for name in ABOUT["fused"])
    table = json.loads((paths.results("real") / "table.json").read_text())
    titles = [run["title"] for run in ABOUT["runs"].values()]
    assert [row["name"] for row in table["rows"]] == [*titles, "fusion by averaging", "fusion by SVM"]
    assert all(0 <= row["accuracy"]["1"] <= 1 for row in table["rows"])
    again = CliRunner().invoke(main, options)
    assert again.exit_code == 0, (again.output, again.exception)
    assert len(trained) == len(ABOUT["runs"]) + 2 * len(ABOUT["fused"])
    assert json.loads((paths.results("real") / "table.json").read_text()) == table


def test_the_commands_follow_from_the_splits_that_there_are(tmp_path: Path) -> None:
    paths = make_dataset(tmp_path)
    dataset = load_dataset("tiny", paths.data)
    setting = Setting(tmp_path, tmp_path / "w.pth", tmp_path)
    steps = reproduce_real.steps(dataset, setting)
    assert steps[0].words[0] == "extract_flow"
    assert "--direction=both" in steps[0].words
    assert len([step for step in steps if step.words[0] == "train"]) == len(ABOUT["runs"])
    with pytest.raises(InputError, match="split 7"):
        reproduce_real.steps(dataset, Setting(tmp_path, tmp_path, tmp_path, splits=(7,)))
