"""Which dataset and which shard set a command takes when none is named: one rule in all commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import catalog
from pipeline.catalog import Dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.shard_sets import choose_shard_set, shard_sets, targets_at


@pytest.mark.parametrize(
    ("there", "wanted", "taken"),
    [
        (["dis"], None, "dis"),
        (["dis", "tvl1"], None, "tvl1"),
        (["dis", "tvl1"], "dis", "dis"),
        (["dis", "brox"], "brox", "brox"),
    ],
)
def test_the_named_set_else_the_only_one_else_the_default_methods(
    tmp_path: Path, there: list[str], wanted: str | None, taken: str
) -> None:
    paths = DatasetPaths(tmp_path, "d")
    for name in there:
        paths.shards(name).mkdir(parents=True)
    assert shard_sets(paths) == sorted(there)
    assert choose_shard_set(paths, wanted) == taken


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        ([], None, "no shards yet"),
        (["dis", "brox"], None, "there are brox, dis: choose one with --shards NAME"),
        (["dis", "brox"], "tvl1", "expected a shard set 'tvl1', found brox, dis"),
    ],
)
def test_without_a_choice_the_error_lists_the_sets(
    tmp_path: Path, there: list[str], wanted: str | None, message: str
) -> None:
    paths = DatasetPaths(tmp_path, "d")
    for name in there:
        paths.shards(name).mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        choose_shard_set(paths, wanted)


def known(root: Path, *names: str) -> None:
    for name in names:
        catalog.save(Dataset(name, ("a",), {}, {}), root, root)


def test_the_named_dataset_else_the_only_known_one_else_the_demo(tmp_path: Path) -> None:
    assert catalog.choose_dataset("mine", tmp_path) == "mine"
    with pytest.raises(InputError, match="no dataset is known"):
        catalog.choose_dataset(None, tmp_path)
    known(tmp_path, "hmdb51")
    assert catalog.choose_dataset(None, tmp_path) == "hmdb51"
    known(tmp_path, "ucf101")
    with pytest.raises(InputError, match=r"hmdb51, ucf101.*--dataset"):
        catalog.choose_dataset(None, tmp_path)
    known(tmp_path, "demo")
    assert catalog.choose_dataset(None, tmp_path) == "demo"


@pytest.mark.parametrize("name", ["clip.mp4", "notes.txt", "x.h5.damaged"])
def test_a_file_of_another_kind_is_no_shard_to_repair_or_delete(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name}: expected a shard .* found a file of another kind"):
        targets_at(tmp_path / name)
