"""The paper's tables as data: complete, planned in an order that works, honest about what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from evaluate import reproduce
from evaluate.__main__ import main
from evaluate.published import experiments, published_rows
from evaluate.reproduce import Reproduction
from pipeline.paths import DatasetPaths
from train.recipe import load_recipe

TABLES = experiments()["tables"]


def setting(dataset: str = "ucf101", **changes: object) -> Reproduction:
    values: dict[str, object] = {"dataset": dataset, "splits": (1,), "data": Path("/nowhere"), **changes}
    return Reproduction(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("run", experiments()["runs"])
def test_every_run_of_the_paper_has_its_recipe(run: str) -> None:
    recipe = load_recipe(run)
    about = experiments()["runs"][run]
    assert recipe.stream in ("either", about["stream"])
    assert recipe.pretrained == ("init" in about)
    assert ("needs_backward" in about) == (recipe.direction == "both")


def test_published_figures_are_the_papers() -> None:
    """Spot checks against the paper's tables 1 to 4."""
    found = {
        (name, row["name"], column): cell.get("published")
        for name, table in TABLES.items()
        for row in table["rows"]
        for column, cell in zip(table["columns"], row["cells"], strict=True)
    }
    assert found["1a", "pre-trained + last layer", "dropout 0.5"] == 72.7
    assert found["1b", "stacking, L = 10", "mean subtraction on"] == 81.0
    assert found["2", "multi-task with UCF-101", "accuracy"] == 55.4
    assert found["3", "pre-trained + last layer; uni-directional, multi-task; SVM", "accuracy"] == 87.0
    assert found["4", "two-stream, fusion by SVM", "accuracy"] == {"ucf101": 88.0, "hmdb51": 59.4}


@pytest.mark.parametrize("table", TABLES)
def test_whatever_a_step_needs_comes_before_it(table: str) -> None:
    full = setting(other="hmdb51", imagenet=Path("weights.pt"))
    steps = reproduce.plan(reproduce.cells(TABLES[table], full), full)
    trained: set[str] = set()
    assert len({str(step) for step in steps}) == len(steps)
    assert steps[0].words[0] == "extract_flow"
    for step in steps:
        run = next((word.removeprefix("--run=") for word in step.words if word.startswith("--run=")), "")
        init = next((word.removeprefix("--init=") for word in step.words if word.startswith("--init=")), "")
        if step.words[0] == "train":
            assert init in ("", "weights.pt") or Path(init).name in trained
            trained.add(run)
        if step.words[0] == "evaluate":
            assert run in trained


def test_cells_that_lack_something_say_what_to_give() -> None:
    rows = dict(reproduce.cells(TABLES["1a"], setting()))
    assert "--imagenet FILE" in rows["pre-trained + last layer"][0].lacking
    assert not rows["from scratch"][0].lacking
    rows = dict(reproduce.cells(TABLES["2"], setting("hmdb51")))
    assert "--other DATASET" in rows["multi-task with UCF-101"][0].lacking


def test_the_svm_cells_score_the_training_list_and_the_others_do_not() -> None:
    full = setting(other="hmdb51", imagenet=Path("weights.pt"))
    parts = {
        table: {
            word for step in reproduce.plan(reproduce.cells(TABLES[table], full), full) for word in step.words
        }
        for table in ("3", "1b")
    }
    assert "--part=train" in parts["3"]
    assert "--part=train" not in parts["1b"]


def test_figures_of_the_paper_are_not_shown_for_other_datasets() -> None:
    published = [
        cell.published for _, made in reproduce.cells(TABLES["1b"], setting("demo")) for cell in made
    ]
    assert set(published) == {None}
    assert published_rows("demo", 1) == {}
    assert published_rows("ucf101", None)["fusion by SVM"] == "88.0"


def test_miniatures_keep_what_the_table_compares_and_yield_to_the_user() -> None:
    small = setting("demo", miniature=True, keep=("dropout",), overrides=("iterations=7",))
    words = [step.words for step in reproduce.plan(reproduce.cells(TABLES["1a"], small), small)]
    train = next(one for one in words if one[0] == "train")
    assert "model=resnet18" in train
    assert not any(word.startswith("dropout=") for word in train)
    assert [word for word in train if word.startswith("iterations=")] == ["iterations=7"]


def test_a_dry_run_prints_commands_that_exist(own_data: DatasetPaths) -> None:
    result = CliRunner().invoke(
        main, ["reproduce", "--table", "1b", "--dataset", "tiny", "--data", str(own_data.data), "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    assert "python -m train --dataset=tiny" in result.output
    assert "--direction=both" in result.output
