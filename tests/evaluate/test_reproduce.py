"""The paper's tables as data: complete, planned in an order that works, honest about what they lack."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_dataset import make_dataset as make_motions

from evaluate import reproduce, score_file
from evaluate.__main__ import main
from evaluate.published import experiments, published_rows
from evaluate.reproduce import Reproduction
from evaluate.score import Measurement
from evaluate.views import Views
from pipeline.catalog import load_dataset
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths
from train.__main__ import main as train_main
from train.checkpoint import load_checkpoint
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
    assert "--init FILE" in rows["pre-trained + last layer"][0].lacking
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


def test_a_network_of_two_datasets_is_trained_once_and_scored_for_both(tmp_path: Path) -> None:
    """Table 4: its scores of the second dataset do not replace those of the first."""
    for number, name in enumerate(("first", "second")):
        make_motions(tmp_path, name, seed=number)
    tiny = ("width=0.125", "crop=32", "short_side=36", "length=4", "iterations=1", "batch=4", "workers=0")
    known, trained, found = experiments()["runs"], [], {}
    for dataset, other in (("first", "second"), ("second", "first")):
        about = Reproduction(dataset, (1,), tmp_path, other, miniature=True, overrides=tiny[:-1])
        rows = dict(reproduce.cells(TABLES["4"], about))
        cell = rows["temporal stream"][0]
        for step in reproduce.plan([("", [cell])], about):
            if step.words[0] == "extract_flow":
                continue
            command, words = (
                (train_main, step.words[1:]) if step.words[0] == "train" else (main, step.words[1:])
            )
            done = CliRunner().invoke(command, [*words, "--device=cpu", "--workers=0"])
            assert done.exit_code == 0, done.output
            trained += ["complete" not in done.stderr] if step.words[0] == "train" else []
        assert 0 <= reproduce.accuracy(cell, about) <= 100
        side = reproduce.home("temporal-multitask", about)
        run = RunPaths(reproduce.run_folder("temporal-multitask", 1, side))
        found[dataset] = score_file.score_path(run, side.dataset, dataset, "test-5x5")
    assert known["temporal-multitask"]["also"] == "other"
    assert trained == [True, False]
    assert [score_file.read_scores(path).dataset for path in found.values()] == ["first", "second"]
    assert found["first"].parent == found["second"].parent.parent


def test_scores_of_a_second_dataset_in_their_earlier_place_are_read(own_data: DatasetPaths) -> None:
    run = RunPaths(own_data.run("spatial-split1"))
    scores = dataclasses.replace(
        Measurement(
            load_dataset("tiny", own_data.data),
            run,
            load_checkpoint(run.folder),
            1,
            "test",
            own_data.root,
            Views(1, 1),
        ).empty(),
        dataset="another",
    )
    earlier = run.scores("test-1x1")
    score_file.write_scores(earlier, scores)
    assert score_file.score_path(run, "tiny", "another", "test-1x1") == earlier
    assert score_file.score_path(run, "tiny", "third", "test-1x1") == run.scores("test-1x1", "third")


def test_a_dry_run_prints_commands_that_exist(own_data: DatasetPaths) -> None:
    result = CliRunner().invoke(
        main, ["reproduce", "--table", "1b", "--dataset", "tiny", "--data", str(own_data.data), "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    assert "python -m train --dataset=tiny" in result.output
    assert "--direction=both" in result.output
