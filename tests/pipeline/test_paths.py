"""Paths: names that are safe folder names, and identities that stay inside the dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, check_name, check_video_id, data_root
from pipeline.runs import RunPaths


def test_data_root_is_the_option_then_the_environment_then_data_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWO_STREAM_DATA", raising=False)
    assert data_root() == tmp_path / "data"
    monkeypatch.setenv("TWO_STREAM_DATA", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere"
    assert data_root("mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", ["demo", "a.b", "tvl1_5-scales", "0", "x" * 64])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_name(name, "dataset") == name


@pytest.mark.parametrize(
    "name", ["", "..", ".a", "-a", "a/b", "a b", "a;b", "$(ls)", "x" * 65, "é", "a\n", "a\0"]
)
def test_names_that_are_no_plain_folder_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="run"):
        check_name(name, "run")


HOSTILE = [
    "two dots/a.b",
    "-rf/--help",
    "100%/50% off",
    'it\'s/"quoted"',
    "a;b/c#d&e",
    "[x]/(y)!",
    "Ringe/Übung – 体操",
    "$(ls)/`ls`",
    "..a/b..",
]


@pytest.mark.parametrize("video", HOSTILE)
def test_hostile_identities_have_a_shard_below_their_set(video: str) -> None:
    paths = DatasetPaths(Path("/data"), "demo")
    assert paths.shard("tvl1", video) == Path("/data/demo/shards/tvl1") / (video + ".h5")


@pytest.mark.parametrize(
    "video",
    ["", "a", "a/", "/a", "a/b/c", "../a", "a/..", "./a", "a/b\0", "a/b\n", "a/\ud800", "a/" + "x" * 201],
)
def test_identities_that_would_leave_the_folder_are_refused(video: str) -> None:
    with pytest.raises(InputError):
        check_video_id(video)


@given(st.text(), st.text())
def test_an_accepted_identity_names_one_file_in_one_folder_of_the_set(label: str, stem: str) -> None:
    paths = DatasetPaths(Path("/data"), "demo")
    try:
        shard = paths.shard("dis", f"{label}/{stem}")
    except InputError:
        return
    assert shard.parent.parent == paths.shards("dis")
    assert (shard.parent.name, shard.name) == (label, f"{stem}.h5")


def test_every_path_of_a_dataset_lies_below_its_root() -> None:
    paths = DatasetPaths(Path("/data"), "ucf101")
    for path in (
        paths.record,
        paths.videos,
        paths.shards("tvl1"),
        paths.outcomes("flow"),
        paths.run("r"),
        RunPaths(paths.run("r")).scores("test"),
        paths.results("r"),
        paths.logs,
    ):
        assert path.is_relative_to("/data/ucf101")
    for build in (paths.shards, paths.outcomes, paths.run, paths.results):
        with pytest.raises(InputError):
            build("../elsewhere")
    with pytest.raises(InputError):
        DatasetPaths(Path("/data"), "..")
