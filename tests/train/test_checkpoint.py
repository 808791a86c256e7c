"""Checkpoints: nothing is lost, nothing damaged is used, nothing in a file is executed."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError, Unreadable
from pipeline.request import Request
from pipeline.runs import RunPaths, RunRecord
from train.checkpoint import (
    Checkpoint,
    link_best,
    load_checkpoint,
    read_archive,
    remove_old_checkpoints,
    save_checkpoint,
    weights_digest,
)
from train.models import build
from train.recipe import Recipe
from train.volume import VolumeSpec

HEADS = {"a": ("x", "y"), "b": ("y", "z", "x")}
SPEC = VolumeSpec(crop=32, short_side=36, length=2)


def checkpoint(iteration: int = 7, seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    recipe = Recipe(model="resnet18", width=0.125, crop=32, short_side=36, length=2)
    network = build("resnet18", SPEC.channels, 5, recipe.dropout, 32, recipe.width)
    optimiser = {
        "state": {0: {"momentum_buffer": torch.randn(3)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    return Checkpoint(
        network.state_dict(),
        recipe.as_dict(),
        RunRecord("a", "temporal", 1),
        SPEC,
        HEADS,
        iteration,
        optimiser=optimiser,
        progress={"best": 0.5},
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = checkpoint()
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path, optimiser=True)
    for name, tensor in saved.weights.items():
        assert torch.equal(loaded.weights[name], tensor)
    assert loaded.optimiser["state"][0]["momentum_buffer"].equal(
        saved.optimiser["state"][0]["momentum_buffer"]
    )
    for name in ("recipe", "run", "volume", "heads", "iteration", "digest", "progress"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert load_checkpoint(path).optimiser == {}
    assert list(tmp_path.iterdir()) == [path]
    network = loaded.model()
    assert not network.training
    assert network(torch.zeros(1, 4, 32, 32)).shape == (1, 5)


def test_columns_pick_the_classes_of_a_head_in_any_order() -> None:
    assert checkpoint().columns("b", ("x", "z")).tolist() == [4, 3]
    assert checkpoint().columns("a", ("x", "y")).tolist() == [0, 1]
    with pytest.raises(InputError, match="trained for a, b, not for c"):
        checkpoint().columns("c", ("x",))
    with pytest.raises(InputError, match="2 classes and lacks 1 of the 2 asked for: q"):
        checkpoint().columns("a", ("x", "q"))


def test_the_digest_follows_what_decides_scores() -> None:
    first = weights_digest(checkpoint())
    assert weights_digest(checkpoint(iteration=9)) == first
    assert weights_digest(checkpoint(seed=1)) != first
    other = checkpoint()
    other.heads = {"b": HEADS["b"], "a": HEADS["a"]}
    changed = checkpoint()
    changed.weights["fc.bias"] = changed.weights["fc.bias"] + 1e-6
    assert len({first, weights_digest(changed)}) == 2


@pytest.mark.parametrize("place", [0.02, 0.3, 0.7, 0.999])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, place: float) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)
    try:
        loaded = load_checkpoint(path)
    except InputError as error:
        told = str(error)
    else:
        # The archive has padding that means nothing.
        assert weights_digest(loaded) == loaded.digest == weights_digest(checkpoint())
        return
    assert str(path) in told


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_file_cut_short_is_found(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(InputError, match=r"checkpoint-00000007\.pt"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(
        InputError, match=r"notes\.txt: expected a file of weights .* found a file of another kind"
    ):
        load_checkpoint(tmp_path / "notes.txt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "weights.pt"
    if writer == "torch":
        torch.save({"format": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"format": Bomb()}, protocol=2))
    with pytest.raises(InputError, match="expected a file of weights"):
        read_archive(path)


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Files may grow to 100,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    before = path.read_bytes()
    assert len(before) > 100_000
    request.getfixturevalue("_small_files")
    with pytest.raises(InputError, match=r"checkpoint-00000007\.pt.*(disk full|no space)"):
        save_checkpoint(path, checkpoint(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_is_scored_with_and_else_the_newest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint there yet"):
        RunPaths(tmp_path).scoring_checkpoint()
    for iteration in (3, 12):
        save_checkpoint(tmp_path / f"checkpoint-{iteration:08d}.pt", checkpoint(iteration))
    assert load_checkpoint(tmp_path).iteration == 12
    assert [path.name for path in RunPaths(tmp_path).checkpoints()] == [
        "checkpoint-00000012.pt",
        "checkpoint-00000003.pt",
    ]
    save_checkpoint(tmp_path / "best.pt", checkpoint(5))
    assert load_checkpoint(tmp_path).iteration == 5


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected a checkpoint of `python -m train`"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="expected a mapping"):
        load_checkpoint(path)
    with pytest.raises(InputError, match=r"expected a checkpoint.* found no such file"):
        load_checkpoint(tmp_path / "none.pt")


def test_how_the_shards_were_made_comes_back(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.requests = {
        "a": Request(0, size=(340, 256), method="brox", parameters={"alpha": 0.2, "levels": [1, 2]}, step=2),
        "b": Request(0, directions=(), frames=True, frames_quality=90),
    }
    save_checkpoint(tmp_path / "checkpoint-00000007.pt", saved)
    assert load_checkpoint(tmp_path).requests == saved.requests


def test_a_checkpoint_of_version_1_has_no_requests_and_its_shard_sets_are_migrated(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    values = torch.load(path, weights_only=True)
    del values["requests"]
    values |= {
        "version": 1,
        "run": {"dataset": "a", "split": 1, "stream": "temporal", "shards": "a=tvl1,b=x"},
    }
    torch.save(values, path)
    loaded = load_checkpoint(path)
    assert loaded.requests == {}
    assert loaded.run == RunRecord("a", "temporal", 1, {"a": "tvl1", "b": "x"})
    torch.save({**values, "version": 3}, path)
    with pytest.raises(InputError, match="expected a checkpoint of version 1 or 2, found version 3"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("run", {"dataset": "a"}), ("requests", {"a": {"source_bytes": "x"}}), ("requests", [1]), ("heads", 3)],
)
def test_damaged_values_are_an_error_that_names_the_file(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    torch.save({**torch.load(path, weights_only=True), key: value}, path)
    with pytest.raises(InputError, match=r"checkpoint-00000007\.pt: damaged checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("links", [True, False])
def test_the_best_stays_when_its_checkpoint_is_removed(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no links on this file system")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    run = RunPaths(tmp_path)
    for iteration in (1, 2, 3):
        save_checkpoint(run.checkpoint(iteration), checkpoint(iteration))
    link_best(run, 1)
    remove_old_checkpoints(run, keep=1, newest=3)
    assert run.checkpoints() == [run.checkpoint(3)]
    assert load_checkpoint(tmp_path).iteration == 1


def test_damaged_checkpoints_that_a_run_went_back_from_do_not_displace_the_good_ones(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    for iteration in (10, 15):
        save_checkpoint(run.checkpoint(iteration), checkpoint(iteration))
    for iteration in (20, 30):
        run.checkpoint(iteration).write_bytes(b"damaged")
    remove_old_checkpoints(run, keep=2, newest=15)
    assert load_checkpoint(run.checkpoint(15)).iteration == 15
    assert load_checkpoint(run.checkpoint(10)).iteration == 10


def replaced(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, **changes}


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {name: value for name, value in values.items() if name != key}


def changed(key: str, **changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, key: {**values[key], **changes}}


TAMPERED = {
    **{f"no {key}": without(key) for key in ("weights", "recipe", "run", "volume", "heads", "iteration")},
    **{f"no {key}": without(key) for key in ("digest", "optimiser", "progress")},
    "weights are a list": replaced(weights=[1]),
    "a weight is a number": changed("weights", **{"fc.bias": 3}),
    "a weight has another shape": changed("weights", **{"fc.bias": torch.zeros(6)}),
    "a weight has another type": changed("weights", **{"fc.bias": torch.zeros(5, dtype=torch.float64)}),
    "a weight is not finite": changed("weights", **{"fc.bias": torch.tensor([0, 0, 0, 0, torch.nan])}),
    "a weight is sparse": changed("weights", **{"fc.bias": torch.ones(5).to_sparse()}),
    "a weight claims more than is stored": changed("weights", **{"fc.bias": torch.zeros(1).expand(10**12)}),
    "a weight is another's": changed("weights", **{"fc.bias": torch.ones(5)}),
    "an unknown weight": changed("weights", extra=torch.zeros(1)),
    "a weight's name is a number": lambda values: {
        **values,
        "weights": {**values["weights"], 3: torch.zeros(1)},
    },
    "the model is unknown": changed("recipe", model="resnet19"),
    "the model is another": changed("recipe", model="resnet34"),
    "the model is a number": changed("recipe", model=3),
    "the width is huge": changed("recipe", width=1e9),
    "the dropout is text": changed("recipe", dropout="x"),
    "the crop is huge": changed("volume", crop=10**12),
    "the crop is text": changed("volume", crop="x"),
    "the length is huge": changed("volume", length=10**12),
    "the length is real": changed("volume", length=2.5),
    "the flow scale is infinite": changed("volume", flow_scale=float("inf")),
    "colours are two": changed("volume", colour_mean=[1.0, 2.0]),
    "the stream is unknown": changed("volume", stream="audio"),
    "an unknown key of the volume": changed("volume", more=1),
    "heads are a list": replaced(heads=[1]),
    "a head is a number": replaced(heads={"a": 3}),
    "a class is a number": replaced(heads={"a": [1, 2], "b": [1, 2, 3]}),
    "a class twice": replaced(heads={"a": ["x", "x"], "b": ["y", "z", "x"]}),
    "classes in another order": replaced(heads={"a": ["y", "x"], "b": ["y", "z", "x"]}),
    "no head": replaced(heads={}),
    "the iteration is text": replaced(iteration="7"),
    "the iteration is negative": replaced(iteration=-1),
    "the run is a list": replaced(run=[]),
    "the run's split is text": changed("run", split="1"),
    "the progress is text": replaced(progress={"best_accuracy": "x"}),
    "the optimiser is a list": replaced(optimiser=[1]),
    "the optimiser has no state": replaced(optimiser={"param_groups": []}),
    "the momentum is not finite": replaced(
        optimiser={"state": {0: {"momentum_buffer": torch.tensor([torch.inf])}}, "param_groups": []}
    ),
    "a request is a number": replaced(requests={"a": 3}),
    "the digest is another": replaced(digest="0" * 64),
    "the version is a list": replaced(version=[2]),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_whatever_is_tampered_with_is_one_message_that_names_the_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    torch.save(TAMPERED[how](torch.load(path, weights_only=True)), path)
    with pytest.raises(InputError, match=r"checkpoint-00000007\.pt: ") as error:
        load_checkpoint(path, optimiser=True)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_torch_s_advice_to_load_in_an_unsafe_way_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"format": Bomb()}, path)
    with pytest.raises(InputError, match="which may run code and is not loaded") as error:
        read_archive(path)
    assert "weights_only" not in str(error.value)
    assert "options" not in str(error.value)


def test_a_checkpoint_that_may_not_be_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())

    def refuse(self: zipfile.ZipFile) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", refuse)
    with pytest.raises(Unreadable, match="could not be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("reader", ["zipfile.ZipFile", "torch.load"])
def test_an_error_of_the_system_is_known_whatever_a_library_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """The open file is replaced by one that may only be written; zipfile takes the error for a file of another kind."""
    path = tmp_path / "checkpoint-00000007.pt"
    save_checkpoint(path, checkpoint())
    module, name = {"zipfile": zipfile, "torch": torch}[reader.split(".")[0]], reader.split(".")[1]
    whole = getattr(module, name)

    def lost(file: Any, *options: Any, **named: Any) -> Any:
        handle = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
        os.ftruncate(handle, 100_000)
        os.dup2(handle, file.fileno())
        os.close(handle)
        return whole(file, *options, **named)

    monkeypatch.setattr(module, name, lost)
    with pytest.raises(Unreadable, match="could not be read: Bad file descriptor"):
        load_checkpoint(path)
