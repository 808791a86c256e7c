"""Runs: names and paths, and what a run records about itself, in both directions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, Unreadable
from pipeline.paths import DatasetPaths
from pipeline.runs import (
    STREAMS,
    RunPaths,
    RunRecord,
    chain_run_name,
    default_run_name,
    find_run,
    iteration_of,
    read_run,
    runs_in,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
RECORDS = st.builds(
    RunRecord,
    dataset=NAMES,
    stream=st.sampled_from(STREAMS),
    split=st.none() | st.integers(1, 99),
    shard_sets=st.dictionaries(NAMES, NAMES, max_size=3),
    images=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    init=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    videos=st.none() | NAMES,
)


@given(RECORDS)
def test_a_record_survives_its_checkpoint_and_its_recipe_file(record: RunRecord) -> None:
    assert RunRecord.from_dict(record.as_dict()) == record
    assert RunRecord.from_dict(tomllib.loads(record.as_toml())["run"]) == record


def test_a_path_whose_bytes_are_not_text_does_not_spoil_the_recipe_file() -> None:
    record = RunRecord("d", "spatial", init=b"w\xff.pt".decode(errors="surrogateescape"))
    assert tomllib.loads(record.as_toml())["run"]["init"] == r"w\udcff.pt"


def test_the_packed_shard_sets_of_earlier_runs_are_read_as_a_mapping(tmp_path: Path) -> None:
    written = '[run]\ndataset = "ucf101"\nsplit = 2\nstream = "temporal"\nshards = "ucf101=tvl1,hmdb51=dis"\n'
    RunPaths(tmp_path).recipe.write_text(written)
    record = read_run(tmp_path)
    assert record.shard_sets == {"ucf101": "tvl1", "hmdb51": "dis"}
    assert (record.shard_set, record.split) == ("tvl1", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"dataset: expected a name, found None"),
        ('[run]\ndataset = "d"\nstream = "spatial"\nsplit = "1"\n', "split: expected a number, found '1'"),
        (
            '[run]\ndataset = "d"\nstream = "spatial"\nshard_sets = "d=tvl1"\n',
            "shard_sets: expected the name",
        ),
        ("[run", "expected a run's resolved recipe"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_file_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    RunPaths(tmp_path).recipe.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_run(tmp_path)
    assert str(RunPaths(tmp_path).recipe) in str(caught.value)


@given(st.integers(0, 99_999_999))
def test_the_name_of_a_checkpoint_gives_its_iteration_back(iteration: int) -> None:
    assert iteration_of(RunPaths(Path("run")).checkpoint(iteration)) == iteration


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    for name in ("best.pt", "checkpoint-1.pt", "checkpoint-00000001.pt.tmp", "recipe.toml"):
        (tmp_path / name).touch()
        assert iteration_of(tmp_path / name) is None
    for iteration in (9, 100):
        run.checkpoint(iteration).touch()
    assert run.checkpoints() == [run.checkpoint(100), run.checkpoint(9)]
    assert run.scoring_checkpoint() == run.best
    run.best.unlink()
    assert run.scoring_checkpoint() == run.checkpoint(100)


def test_a_run_is_found_by_name_and_by_path_and_else_the_known_ones_are_listed(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "d")
    for name in ("a", "temporal-split1"):
        paths.run(name).mkdir(parents=True)
        RunPaths(paths.run(name)).recipe.touch()
    assert runs_in(paths) == ["a", "temporal-split1"]
    assert find_run(paths, "a").folder == paths.run("a")
    (tmp_path / "copied").mkdir()
    assert find_run(paths, tmp_path / "copied").folder == tmp_path / "copied"
    with pytest.raises(InputError, match="a, temporal-split1"):
        find_run(paths, "b")


def test_names_of_runs() -> None:
    assert default_run_name("temporal", 2) == "temporal-split2"
    assert default_run_name("spatial", None) == "spatial-images"
    assert chain_run_name("big", "temporal", 2) == "big-temporal-split2"


def test_a_recipe_that_cannot_be_read_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Unreadable, match=r"recipe\.toml: could not be read: Permission denied"):
        read_run(tmp_path)
