"""The command's options: what is taken where none is given, and what is given twice."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_dataset import make_dataset

from pipeline.errors import InputError
from pipeline.ownership import owning_folder
from pipeline.paths import DatasetPaths
from pipeline.runs import Stream
from train.__main__ import chosen_recipe, chosen_stream, main, overrides, run_folder
from train.default_recipe import default_recipe
from train.models import build
from train.options import TrainOptions
from train.recipe import KEYS, Recipe, load_recipe

PROJECT = Path(__file__).resolve().parents[2]
SMALL = {
    "recipe": "small",
    "width": 0.125,
    "crop": 32,
    "short-side": 36,
    "length": 4,
    "batch": 4,
    "iterations": 1,
    "workers": 0,
    "device": "cpu",
    "threads": 1,
}


def train(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with the options of a tiny network, to the end."""
    options = (*options, "--no-tensorboard", *(f"--{name}={value}" for name, value in SMALL.items()))
    return subprocess.run(
        [sys.executable, "-m", "train", *options], cwd=PROJECT, capture_output=True, text=True, check=False
    )


def test_help_lists_every_recipe_key() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    for key in KEYS:
        assert f"--{key.replace('_', '-')} " in text, key


def test_without_a_dataset_the_only_one_is_taken_and_named_and_a_run_folder_resumes(tmp_path: Path) -> None:
    paths = make_dataset(tmp_path)
    done = train("--data", str(tmp_path), "--name", "first")
    assert done.returncode == 0, done.stderr
    assert f"Dataset: tiny (in {tmp_path})" in done.stderr
    assert "shard set tvl1" in done.stderr
    done = train("--data", str(tmp_path), "--run", str(paths.run("first")))
    assert done.returncode == 0, done.stderr
    assert "complete, 1 iteration" in done.stderr


def test_recipe_keys_given_both_ways_must_agree() -> None:
    assert overrides({"batch": 8}, ("clip=1.5", "learning-rate = 0.1")) == {
        "batch": 8,
        "clip": 1.5,
        "learning_rate": 0.1,
    }
    assert overrides({"batch": 8}, ("batch=8",)) == {"batch": 8}
    with pytest.raises(InputError, match="batch is given twice: 8 and 9"):
        overrides({"batch": 8}, ("batch=9",))
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        overrides({}, ("batch",))


def test_the_recipe_and_stream_of_a_run_that_names_neither() -> None:
    def name(dataset: str, stream: Stream | None = None, init: str | None = None, **about: bool) -> str:
        return default_recipe(
            dataset, stream, init, clips=about.pop("clips", 9537), **{"gpu": True, **about}
        ).name

    assert name("demo") == "demo"
    assert name("x") == "temporal-stack10"
    assert name("x", "spatial") == "spatial-scratch-dropout9"
    assert name("x", "spatial", "w.pt") == "spatial-lastlayer-dropout5"
    assert name("images", images=True) == "imagenet"
    assert chosen_stream(TrainOptions(), Recipe()) == "temporal"
    assert chosen_stream(TrainOptions(images=Path("i")), Recipe()) == "spatial"
    assert chosen_stream(TrainOptions(), load_recipe("spatial-scratch-dropout9")) == "spatial"
    with pytest.raises(InputError, match="--images has no flow"):
        chosen_stream(TrainOptions(images=Path("i"), stream="temporal"), Recipe())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "4"], "--folds 4 goes with --fold"),
        (["--images", "i", "--split", "2"], "choose videos of a dataset; leave them out with --images"),
        (["--images", "i", "--shards", "x"], "choose videos of a dataset"),
        (["--images", "i", "--allow-missing"], "choose videos of a dataset"),
        (["--images", "i", "--fold", "1"], "--fold leaves out groups of a dataset's videos"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert message in result.output


def test_few_clips_or_a_cpu_take_the_small_recipes_and_the_reason_is_given() -> None:
    assert default_recipe("x", None, None, clips=1999, gpu=True) == ("small", "1,999 clips, fewer than 2,000")
    assert default_recipe("x", "spatial", None, clips=2000, gpu=False) == ("small", "on a CPU")
    assert default_recipe("x", "temporal", None, clips=2000, gpu=True) == ("temporal-stack10", "")
    for init in ("imagenet", "weights.pth"):
        assert default_recipe("x", "spatial", init, clips=72, gpu=True).name == "small-pretrained"
        assert default_recipe("x", "temporal", init, clips=72, gpu=True).name == "small-pretrained-temporal"
    assert default_recipe("x", "spatial", "imagenet", clips=9537, gpu=True).name == "modern"


def test_the_network_that_small_data_starts_from_is_that_of_its_weights(tmp_path: Path) -> None:
    import torch

    paths = make_dataset(tmp_path)
    file = tmp_path / "vgg16_features.pth"
    torch.save(build("vgg16", 3, 2).features.state_dict(prefix="features."), file)
    options = TrainOptions(data=tmp_path, stream="spatial", init=str(file), device="cpu")
    assert chosen_recipe(options, paths.dataset, {})[0].model == "vgg16_gap"
    assert chosen_recipe(options, paths.dataset, {"model": "vgg16"})[0].model == "vgg16"
    flow = tmp_path / "flow.pth"
    torch.save(build("resnet18", 10, 3, width=1.0).state_dict(), flow)
    temporal = dataclasses.replace(options, stream="temporal", init=str(flow))
    assert chosen_recipe(temporal, paths.dataset, {})[0].length == 5
    published = dataclasses.replace(options, init="imagenet")
    recipe, name, _ = chosen_recipe(published, paths.dataset, {})
    assert name.startswith("small-pretrained (24 clips")
    assert (recipe.model, recipe.width) == ("resnet18", 1.0)


def test_a_run_that_has_begun_keeps_its_recipe_whatever_would_be_the_default(tmp_path: Path) -> None:
    paths = make_dataset(tmp_path)
    done = train("--data", str(tmp_path), "--stream", "spatial", "--run", "mine")
    assert done.returncode == 0, done.stderr
    again = subprocess.run(
        [sys.executable, "-m", "train", "--data", str(tmp_path), "--run", "mine", "--no-tensorboard"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "spatial stream, recipe of the run so far" in again.stderr
    assert "complete, 1 iteration" in again.stderr
    assert paths.run("mine").is_dir()


def test_a_run_is_named_or_is_the_folder_of_one(tmp_path: Path) -> None:
    runs = DatasetPaths(tmp_path, "d").runs

    def folder(**options: object) -> Path:
        return run_folder(TrainOptions(data=tmp_path, **options), "d", "temporal")  # type: ignore[arg-type]

    assert folder() == runs / "temporal-split1"
    assert folder(images=Path("i")) == runs / "temporal-images"
    assert folder(run="mine") == runs / "mine"
    moved = tmp_path / "elsewhere" / "run"
    with pytest.raises(InputError, match="cannot be the name of a run"):
        folder(run=str(moved))
    moved.mkdir(parents=True)
    (moved / "recipe.toml").write_text("")
    assert folder(run=str(moved)) == moved


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    paths = make_dataset(tmp_path)
    with owning_folder(paths.run("mine")):
        done = train("--data", str(tmp_path), "--dataset", "tiny", "--run", "mine")
    assert done.returncode == 1
    assert "another process works on it" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not paths.run("mine").exists()
