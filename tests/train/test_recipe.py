"""Recipes: the paper's schedules, overriding, and errors that suggest."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.runs import RunRecord
from train.recipe import KEYS, Recipe, load_recipe, names, nearest, parse, to_toml

PAPER = [name for name in names() if name.startswith(("spatial-", "temporal-"))]


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_makes_a_volume(name: str) -> None:
    recipe = load_recipe(name)
    for stream in ("spatial", "temporal"):
        if recipe.stream in ("either", stream):
            assert recipe.volume(stream).stream == stream
        else:
            with pytest.raises(InputError, match="this recipe is for"):
                recipe.volume(stream)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_recipes_follow_section_4(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.model, recipe.batch, recipe.momentum) == ("cnn_m_2048", 256, 0.9)
    assert (recipe.crop, recipe.short_side, recipe.cut, recipe.scales, recipe.flip) == (
        224,
        256,
        "random",
        (),
        True,
    )
    assert recipe.validation == "0"
    rate = recipe.learning_rate_at
    if recipe.pretrained:
        assert recipe.iterations == 20_000
        assert [rate(t) for t in (0, 13_999)] == [1e-2, 1e-2]
        assert math.isclose(rate(14_000), 1e-3)
        assert math.isclose(rate(19_999), 1e-3)
    else:
        assert recipe.iterations == 80_000
        assert [rate(t) for t in (0, 49_999)] == [1e-2, 1e-2]
        assert math.isclose(rate(50_000), 1e-3)
        assert math.isclose(rate(70_000), 1e-4)


def test_iterations_scale_the_schedule_and_explicit_steps_do_not() -> None:
    recipe = load_recipe("temporal-stack10", {"iterations": 800})
    assert recipe.steps == (500, 700)
    assert load_recipe("temporal-stack10", {"iterations": 800, "steps": [10]}).steps == (10,)


def test_cosine_and_warm_up() -> None:
    recipe = Recipe(schedule="cosine", iterations=110, warmup=10, learning_rate=1.0)
    rates = [recipe.learning_rate_at(t) for t in range(110)]
    assert rates[:10] == pytest.approx([(t + 1) / 11 for t in range(10)])
    assert rates[10:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * t / 100) for t in range(100)])


def test_a_resolved_recipe_repeats_itself(tmp_path: Path) -> None:
    recipe = load_recipe("modern", {"also": ["a", "b"], "learning_rate": 3e-05, "validation": "0.1"})
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe.as_dict(), RunRecord('qu"ote\\', "temporal", 1)))
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch", "64", 64),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", "1", 1.0),
        ("scales", "1,.875", None),
        ("scales", "1.0, 0.875", (1.0, 0.875)),
        ("scales", "[1.0, 0.5]", (1.0, 0.5)),
        ("steps", "10,20", (10, 20)),
        ("steps", "", ()),
        ("also", "ucf101,b", ("ucf101", "b")),
        ("mean_subtraction", "false", False),
        ("validation", "0.2", "0.2"),
        ("model", "resnet50", "resnet50"),
    ],
)
def test_values_of_the_command_line(key: str, text: str, value: object) -> None:
    overrides = {key: parse(key, text)}
    if value is None:
        with pytest.raises(InputError, match=f"{key}: expected a list"):
            load_recipe("modern", overrides)
    else:
        assert getattr(load_recipe("modern", overrides), key) == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1.0}, r"did you mean 'learning_rate'\?"),
        ({"batch": 1.5}, "batch: expected a whole number, found 1.5"),
        ({"batch": True}, "batch: expected a whole number"),
        ({"flip": 1}, "flip: expected true or false"),
        ({"steps": [1.5]}, "steps: expected a list, each a whole number"),
        ({"steps": [5, 3]}, "steps: expected rising"),
        ({"model": "resnet19"}, "model: expected one of"),
        ({"dropout": 1.0}, "dropout: expected 0 or more and less than 1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov: it needs a momentum above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number"),
        ({"iterations": 0}, "iterations: expected at least 1"),
        ({"validation": "half"}, "validation: expected a share"),
        ({"scales": [2.0]}, "scales: expected shares"),
        ({"scales": [1e-9]}, "scales: expected shares"),
        ({"scales": [float("nan")]}, "scales: expected shares"),
        ({"batch": 10**12}, "batch: expected at least 1 and at most"),
        ({"iterations": 10**15}, "iterations: expected at least 1 and at most"),
        ({"steps": [-1, 5]}, "steps: expected rising iterations from 0"),
        ({"steps": [5, 10**15]}, "steps: expected rising iterations from 0"),
        ({"seed": 2**63}, "seed: expected 0 or more, at most"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay: expected 0 or more"),
    ],
)
def test_wrong_values_are_explained(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("temporal-stack10", overrides)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'temporal-stack10'\?"):
        load_recipe("temporal-stack01")
    assert nearest("xyzzy", ["abc"]) == ""


def test_every_key_is_explained() -> None:
    assert all(entry.metadata["help"] for entry in KEYS.values())


def test_the_reference_lists_every_key_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/reference/train.md").read_text()
    for name, entry in KEYS.items():
        default = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        assert f"| `{name}` | `{json.dumps(default)}` |" in page, name
