"""The training loop in one process: it learns, it is exact, and it survives what happens to long runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import write_image
from tiny_dataset import RECIPE, make_dataset
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths, RunRecord
from pipeline.shard import Shard
from train.checkpoint import VERSION, load_checkpoint, save_checkpoint
from train.distributed import Place, World
from train.interrupt import RESUME_LATER
from train.loader import network_input
from train.log import read_log
from train.losses import Samples, head_losses, join, split
from train.meter import Meter
from train.models import build
from train.options import LoopOptions
from train.recipe import Recipe, load_recipe
from train.sampler import Schedule, TrainingReader
from train.trainer import Trainer, train
from train.training_data import TrainingData, gather, gather_images

ALONE = World(Place(), torch.device("cpu"))
NO_NORM = dataclasses.replace(
    RECIPE, model="cnn_m_2048", width=1.0, crop=64, short_side=72, dropout=0.5, learning_rate=0.01
)


def run(
    folder: Path,
    material: TrainingData,
    recipe: Recipe = RECIPE,
    stream: str = "temporal",
    about: Mapping[str, Any] | None = None,
    init: Path | None = None,
    said: list[str] | None = None,
    **options: Any,
) -> int:
    """Train quietly in this process."""
    options = {"workers": 0, "tensorboard": False, "log_every": 1, "checkpoint_every": 1000, **options}
    say = (said if said is not None else []).append
    spec = recipe.volume(stream)
    record = RunRecord(**{"dataset": "tiny", "stream": stream, "split": 1, **(about or {})})
    return train(recipe, spec, material, record, folder, LoopOptions(**options), ALONE, init, say)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(RunPaths(folder).checkpoints()[0]).weights


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_log(folder) if "loss" in record]


@pytest.fixture(scope="module")
def material(tiny: DatasetPaths) -> TrainingData:
    return gather("tiny", 1, RECIPE.volume("temporal"), RECIPE, tiny.data)


# --- learning ---


def test_eight_clips_are_learnt_by_heart(material: TrainingData, tmp_path: Path) -> None:
    """Eight clips with labels that nothing in them explains: only a network that learns can tell them."""
    clips = [item._replace(label=i % 3) for i, item in enumerate(material.train[:8])]
    quick = {"iterations": 160, "batch": 16, "width": 0.25, "learning_rate": 0.02, "warmup": 10, "clip": 5.0}
    recipe = dataclasses.replace(RECIPE, dropout=0.0, flip=False, **quick)  # type: ignore[arg-type]
    run(tmp_path, dataclasses.replace(material, train=clips, validation=clips), recipe, validate_every=160)
    assert read_log(tmp_path)[-1]["validation"]["tiny"]["accuracy"] == 1.0


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_each_stream_learns_the_classes_of_people_it_has_not_seen(
    stream: str, tiny: DatasetPaths, tmp_path: Path
) -> None:
    # Mirrored, motion to the left is motion to the right: with flips no network could tell the two apart.
    quick = {
        "iterations": 40,
        "batch": 12,
        "width": 0.25,
        "dropout": 0.0,
        "flip": False,
        "learning_rate": 0.02,
    }
    recipe = dataclasses.replace(RECIPE, validation="test", **quick)  # type: ignore[arg-type]
    run(
        tmp_path,
        gather("tiny", 1, recipe.volume(stream), recipe, tiny.data),
        recipe,
        stream,
        validate_every=40,
    )
    last = [record for record in read_log(tmp_path) if "validation" in record][-1]
    assert last["validation"]["tiny"]["accuracy"] == 1.0


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
@pytest.mark.parametrize("seed", [0, 1])
def test_recipe_small_trains_stably_on_two_classes(stream: str, seed: int, tmp_path: Path) -> None:
    """Its own learning rate, schedule, clipping and width; only the volumes are those of the tiny videos."""
    tiny = make_dataset(tmp_path / "data", classes=("Left", "Up"), seed=seed)
    volumes = {"crop": 32, "short_side": 36, "length": 4, "mean_subtraction": False}
    recipe = load_recipe("small", {**volumes, "iterations": 40, "validation": "test", "seed": seed})
    material = gather("tiny", 1, recipe.volume(stream), recipe, tiny.data)
    run(tmp_path / "run", material, recipe, stream, validate_every=40)
    found = losses(tmp_path / "run")
    assert max(found[10:]) < 2 * np.log(2), "no worse than chance by much once it has begun"
    assert np.mean(found[-10:]) < 0.2
    last = [record for record in read_log(tmp_path / "run") if "validation" in record][-1]
    assert last["validation"]["tiny"]["accuracy"] == 1.0


def test_the_time_of_a_run_is_reported_before_its_long_part(material: TrainingData, tmp_path: Path) -> None:
    said: list[str] = []
    run(tmp_path, material, dataclasses.replace(RECIPE, iterations=8), said=said)
    lines = [line for line in said if line.startswith("expected time: about ")]
    assert len(lines) == 1
    assert "for 3 more iterations" in lines[0]


# --- exactness ---


def test_the_loss_is_the_mean_over_the_batch(material: TrainingData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(NO_NORM, iterations=1, dropout=0.0, batch=6)
    run(tmp_path, material, recipe)
    spec = recipe.volume("temporal")
    torch.manual_seed(recipe.seed)
    network = build(recipe.model, spec.channels, 3, 0.0, spec.crop).train()
    batch = TrainingReader(material.train, spec, recipe).__getitems__([(0, i) for i in range(6)])
    expected = F.cross_entropy(network(network_input(batch, spec, "cpu").flatten(0, 1)), batch.label)
    assert losses(tmp_path) == [pytest.approx(expected.item(), rel=1e-5)]


@pytest.mark.parametrize("segments", [1, 2])
def test_micro_batches_change_nothing(material: TrainingData, tmp_path: Path, segments: int) -> None:
    """Dropout masks follow from the sample, gradients add up: also at dropout 0.5."""
    recipe = dataclasses.replace(NO_NORM, iterations=2, segments=segments)
    run(tmp_path / "whole", material, recipe, micro_batch=8)
    run(tmp_path / "parts", material, recipe, micro_batch=3)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    other = weights(tmp_path / "parts")
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-4)


def test_snippets_are_averaged_as_logits(material: TrainingData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(NO_NORM, iterations=1, dropout=0.0, segments=3, batch=4)
    run(tmp_path, material, recipe)
    spec = recipe.volume("temporal")
    torch.manual_seed(recipe.seed)
    network = build(recipe.model, spec.channels, 3, 0.0, spec.crop).train()
    batch = TrainingReader(material.train, spec, recipe).__getitems__([(0, i) for i in range(4)])
    inputs = network_input(batch, spec, "cpu")
    logits = torch.stack([network(inputs[:, k]) for k in range(3)]).mean(dim=0)
    assert losses(tmp_path) == [pytest.approx(F.cross_entropy(logits, batch.label).item(), rel=1e-5)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=12), st.integers(1, 4), st.integers(0, 99))
def test_each_head_s_loss_is_the_mean_over_its_own_samples_in_the_whole_batch(
    head: list[int], parts: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ranges = [(0, 3), (3, 8)]
    label = [int(torch.randint(*ranges[h], ())) for h in head]
    logits = torch.randn(len(head), 8, requires_grad=True)
    expected = torch.zeros(())
    for h, (start, stop) in enumerate(ranges):
        mine = [i for i, other in enumerate(head) if other == h]
        if mine:
            own = torch.stack([logits[i, start:stop] for i in mine])
            expected = expected + F.cross_entropy(own, torch.tensor([label[i] - start for i in mine]))
    (gradient,) = torch.autograd.grad(expected, logits)
    counts = [head.count(0), head.count(1)]
    total = torch.zeros(())
    edges = [len(head) * i // parts for i in range(parts + 1)]
    # Parts may lack a head, or even be empty of it everywhere.
    for a, b in itertools.pairwise(edges):
        if a < b:
            loss, stats = head_losses(
                logits[a:b], torch.tensor(label[a:b]), torch.tensor(head[a:b]), ranges, counts
            )
            assert stats[:, 2].tolist() == [head[a:b].count(0), head[a:b].count(1)]
            total = total + loss
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], gradient)


def test_samples_split_and_join_without_loss() -> None:
    samples = Samples(torch.randn(7, 2, 3), torch.arange(7), torch.arange(7) % 2, torch.arange(14).view(7, 2))
    for pieces in (1, 2, 3, 9):
        joined = join(split(samples, pieces))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(joined, samples, strict=True))


def test_several_datasets_train_one_network(tiny: DatasetPaths, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, also=("other",), iterations=2, batch=10)
    run(tmp_path, gather("tiny", 1, RECIPE.volume("temporal"), recipe, tiny.data), recipe)
    loaded = load_checkpoint(tmp_path)
    assert loaded.heads == {"tiny": ("Left", "Right", "Up"), "other": ("Left", "Up")}
    assert loaded.columns("other", ("Up",)).tolist() == [4]
    record = read_log(tmp_path)[0]
    assert record["loss"] == pytest.approx(sum(record["heads"].values()))


# --- scenarios ---


def test_last_layer_training_changes_the_last_layer_only(material: TrainingData, tmp_path: Path) -> None:
    run(tmp_path / "first", material)
    recipe = dataclasses.replace(RECIPE, trained="last", pretrained=True, iterations=2)
    with pytest.raises(InputError, match="starts from pre-trained weights: give --init FILE"):
        run(tmp_path / "second", material, recipe)
    run(tmp_path / "second", material, recipe, init=tmp_path / "first")
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_partial_bn_keeps_the_statistics_of_all_but_the_first(material: TrainingData, tmp_path: Path) -> None:
    run(tmp_path, material, dataclasses.replace(RECIPE, partial_bn=True, iterations=1))
    changed = {name for name, tensor in weights(tmp_path).items() if "running_mean" in name and tensor.any()}
    assert changed == {"bn1.running_mean"}


def test_images_train_the_spatial_stream(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label, colour in (("n1", (200, 0, 0)), ("n2", (0, 0, 200))):
            for i in range(2):
                write_image(tmp_path / part / label / f"{i}.png", 40, 40 + i, colour)
    recipe = dataclasses.replace(RECIPE, iterations=40, learning_rate=0.02, validation="test")
    said: list[str] = []
    run(tmp_path / "run", gather_images(tmp_path, "images"), recipe, "spatial", said=said, validate_every=40)
    assert any("accuracy 100.0%" in line for line in said)


# --- what happens to long runs ---


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    material: TrainingData, tmp_path: Path, stop: int
) -> None:
    recipe = dataclasses.replace(RECIPE, segments=2)
    assert run(tmp_path / "straight", material, recipe) == 0
    assert run(tmp_path / "stopped", material, recipe, stop_after=stop) == RESUME_LATER
    assert run(tmp_path / "stopped", material, recipe, micro_batch=32, checkpoint_every=1) == 0
    other = weights(tmp_path / "stopped")
    for name, tensor in weights(tmp_path / "straight").items():
        assert torch.equal(other[name], tensor), name
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")


@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_a_run_that_a_signal_stops_keeps_the_same_best_and_validates_as_often(
    material: TrainingData, tmp_path: Path, stop: int
) -> None:
    """A signal in an iteration after which validation is due (2, 4), at the end (6), or in another (3)."""
    recipe = dataclasses.replace(RECIPE, validation="test")
    validated = dataclasses.replace(material, validation=material.train[:4])
    assert run(tmp_path / "straight", validated, recipe, validate_every=2, checkpoint_every=1) == 0
    folder = tmp_path / "stopped"
    first = run(folder, validated, recipe, validate_every=2, checkpoint_every=1, stop_after=stop)
    assert first == RESUME_LATER
    assert run(folder, validated, recipe, validate_every=2, checkpoint_every=1) == 0
    for path in [RunPaths(tmp_path / "straight").best, *RunPaths(tmp_path / "straight").checkpoints()]:
        one, other = load_checkpoint(path), load_checkpoint(folder / path.name)
        assert (one.digest, one.progress) == (other.digest, other.progress), path.name
    assert validations(folder) == validations(tmp_path / "straight")


def validations(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(folder) if "validation" in record]


def test_best_is_linked_on_resuming_where_a_kill_came_between(material: TrainingData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, validation="test")
    validated = dataclasses.replace(material, validation=material.train[:4])
    options = {"validate_every": 2, "checkpoint_every": 1}
    run(tmp_path, validated, recipe, **options, stop_after=2)
    run(tmp_path, validated, recipe, **options, stop_after=3)
    best = RunPaths(tmp_path).best
    iteration = load_checkpoint(best).iteration
    for path in RunPaths(tmp_path).checkpoints():
        if path != RunPaths(tmp_path).checkpoint(iteration):
            path.unlink()
    best.unlink()
    run(tmp_path, validated, recipe, **options, stop_after=iteration + 1)
    assert load_checkpoint(best).iteration == iteration


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_used(
    material: TrainingData, tmp_path: Path
) -> None:
    run(tmp_path / "straight", material)
    folder = tmp_path / "run"
    run(folder, material, checkpoint_every=2, stop_after=5)
    newest = RunPaths(folder).checkpoints()[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    said: list[str] = []
    assert run(folder, material, said=said) == 0
    assert any("warning" in line and newest.name in line for line in said)
    assert any("resuming" in line and "after iteration 4" in line for line in said)
    assert all(
        torch.equal(tensor, weights(folder)[name]) for name, tensor in weights(tmp_path / "straight").items()
    )
    # Iteration 5 was done twice, and is logged once.
    assert [record["iteration"] for record in read_log(folder)] == [1, 2, 3, 4, 5, 6]


def test_a_newest_checkpoint_of_a_later_version_is_left_and_no_older_one_used(
    material: TrainingData, tmp_path: Path
) -> None:
    run(tmp_path, material, checkpoint_every=2)
    newest = RunPaths(tmp_path).checkpoints()[0]
    values = torch.load(newest, weights_only=True)
    torch.save({**values, "version": VERSION + 1}, newest)
    before = newest.read_bytes()
    with pytest.raises(InputError, match=f"found version {VERSION + 1}; read it with the program that wrote"):
        run(tmp_path, material)
    assert newest.read_bytes() == before


def test_without_a_valid_checkpoint_nothing_is_overwritten(material: TrainingData, tmp_path: Path) -> None:
    run(tmp_path, material, stop_after=2)
    for path in RunPaths(tmp_path).checkpoints():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of its 1 checkpoints can be read"):
        run(tmp_path, material)


def test_another_configuration_is_refused_with_its_differences(
    material: TrainingData, tmp_path: Path
) -> None:
    run(tmp_path, material, stop_after=2)
    with pytest.raises(InputError) as caught:
        run(tmp_path, material, dataclasses.replace(RECIPE, batch=4, dropout=0.1), about={"split": 2})
    message = str(caught.value)
    for line in (
        "batch: 8 there, 4 asked for",
        "dropout: 0.3 there, 0.1 asked for",
        "split: 1 there, 2 asked for",
    ):
        assert line in message
    assert message.count("asked for") == 3
    with pytest.raises(InputError, match=r"holds 1 checkpoint\(s\)"):
        run(tmp_path, material, resume="no")


def test_shards_that_were_made_again_differently_are_refused_on_resuming(
    material: TrainingData, tmp_path: Path
) -> None:
    run(tmp_path, material, stop_after=2)
    saved = load_checkpoint(tmp_path)
    assert saved.requests == material.requests
    assert saved.requests["tiny"].directions == ("forward",)
    again = dataclasses.replace(material.requests["tiny"], step=2)
    with pytest.raises(InputError, match="shards of tiny: step: "):
        run(tmp_path, dataclasses.replace(material, requests={"tiny": again}))
    # Checkpoints of version 1 do not record it.
    saved = load_checkpoint(RunPaths(tmp_path).checkpoint(2), optimiser=True)
    saved.requests = {}
    save_checkpoint(RunPaths(tmp_path).checkpoint(2), saved)
    assert run(tmp_path, material) == 0
    assert load_checkpoint(tmp_path).requests == material.requests


def test_a_complete_run_is_left_alone(material: TrainingData, tmp_path: Path) -> None:
    run(tmp_path, material)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    said: list[str] = []
    assert run(tmp_path, material, said=said) == 0
    assert any("complete" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run(material: TrainingData, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, schedule="constant", iterations=20)
    with pytest.raises(
        InputError, match=r"(the loss is (nan|inf) at iteration \d+ \(learning rate 1e\+30\))"
    ):
        run(tmp_path, material, recipe, checkpoint_every=20)
    assert RunPaths(tmp_path).checkpoints() == []


def test_a_loss_that_is_not_finite_is_seen_before_the_update(material: TrainingData, tmp_path: Path) -> None:
    spec = RECIPE.volume("temporal")
    record, options = RunRecord("tiny", "temporal", 1), LoopOptions(tensorboard=False)
    trainer = Trainer(
        RECIPE, spec, material, record, RunPaths(tmp_path), options, ALONE, None, None, lambda _: None
    )
    with torch.no_grad():
        trainer.network.last_layer.bias[0] = float("inf")
    before = {name: parameter.clone() for name, parameter in trainer.network.named_parameters()}
    schedule = Schedule(trainer.indices, trainer.micro_batch, 0, 1)
    batches = (trainer.reader.__getitems__(keys) for keys in schedule)
    with pytest.raises(InputError, match=r"the loss is nan at iteration 1 .* stopped before the update"):
        trainer.step(batches, schedule.micro_batches, 0.05, 0.0, Meter(["tiny"], None, print))
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_shard_whose_values_spoil_the_loss_is_named(
    material: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = material.train[3].source
    assert isinstance(bad, Shard)
    flow = bad.contents.flow["forward"]
    spoilt = dataclasses.replace(flow, scale=flow.scale * np.float32(np.inf))
    monkeypatch.setitem(bad.contents.flow, "forward", spoilt)  # type: ignore[arg-type]
    recipe = dataclasses.replace(NO_NORM, batch=32, iterations=1)
    with pytest.raises(InputError, match=f"come from .*{bad.video}"):
        run(tmp_path, material, recipe)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "segments", "changes", "refused"),
    [
        (1, None, 1, {}, True),
        (9, 4, 1, {}, True),
        (1, None, 2, {}, False),
        (1, None, 1, {"trained": "last"}, False),
        (1, None, 1, {"partial_bn": True}, True),
        (8, 4, 1, {}, False),
    ],
)
def test_batch_normalisation_is_not_trained_on_one_sample(
    material: TrainingData,
    tmp_path: Path,
    batch: int,
    micro_batch: int | None,
    segments: int,
    changes: dict[str, Any],
    refused: bool,
) -> None:
    recipe = dataclasses.replace(RECIPE, batch=batch, segments=segments, iterations=1, **changes)
    expected = (
        pytest.raises(InputError, match="cannot be trained on a single sample")
        if refused
        else contextlib.nullcontext()
    )
    with expected:
        run(tmp_path, material, recipe, micro_batch=micro_batch)
    assert bool(RunPaths(tmp_path).checkpoints()) is not refused


@pytest.mark.parametrize(
    "state", [{0: {"momentum_buffer": torch.zeros(3)}}, {999: {}}, {0: {"other": torch.zeros(1)}}]
)
def test_an_optimiser_s_state_of_another_network_is_refused(
    material: TrainingData, tmp_path: Path, state: dict[int, Any]
) -> None:
    recipe = dataclasses.replace(RECIPE, iterations=2)
    run(tmp_path, material, recipe, stop_after=1)
    path = RunPaths(tmp_path).checkpoints()[0]
    values = torch.load(path, weights_only=True)
    values["optimiser"]["state"] = state
    torch.save(values, path)
    with pytest.raises(InputError, match="its optimiser's state is not that of the network"):
        run(tmp_path, material, recipe)


def test_weights_that_are_not_finite_are_not_saved(material: TrainingData, tmp_path: Path) -> None:
    """The loss of the last iteration is finite, what its update made is not."""
    recipe = dataclasses.replace(RECIPE, learning_rate=3e38, schedule="constant", iterations=1, momentum=0.0)
    recipe = dataclasses.replace(recipe, weight_decay=10.0)
    with pytest.raises(
        InputError, match=r"weights are not finite after iteration 1 \(learning rate 3e\+38\)"
    ):
        run(tmp_path, material, recipe)
    assert RunPaths(tmp_path).checkpoints() == []


def test_the_newest_and_the_best_are_kept(tiny: DatasetPaths, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, validation="0.3", iterations=8)
    material = gather("tiny", 1, RECIPE.volume("temporal"), recipe, tiny.data)
    run(tmp_path, material, recipe, checkpoint_every=1, validate_every=2, keep=2)
    assert [path.name for path in RunPaths(tmp_path).checkpoints()] == [
        "checkpoint-00000008.pt",
        "checkpoint-00000007.pt",
    ]
    checks = [record for record in read_log(tmp_path) if "validation" in record]
    assert [record["iteration"] for record in checks] == [2, 4, 6, 8]
    accuracies = [record["validation"]["tiny"]["accuracy"] for record in checks]
    best = load_checkpoint(tmp_path)
    assert best.iteration == checks[accuracies.index(max(accuracies))]["iteration"]


def test_a_run_folder_says_what_was_done(material: TrainingData, tmp_path: Path) -> None:
    run(tmp_path, material, about={"dataset": "tiny", "split": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000006.pt",
        "curves.png",
        "log.jsonl",
        "recipe.toml",
    ]
    assert load_recipe(str(tmp_path / "recipe.toml")) == RECIPE
    assert 'dataset = "tiny"' in (tmp_path / "recipe.toml").read_text()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(1, 7))
    assert [record["learning_rate"] for record in records] == [RECIPE.learning_rate_at(t) for t in range(6)]


def test_tensorboard_events_are_written_where_it_is_installed(material: TrainingData, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run(tmp_path, material, dataclasses.replace(RECIPE, iterations=1), tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.*"))
