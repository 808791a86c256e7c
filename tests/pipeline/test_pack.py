"""Packs hold the same shards, lose none, and are read like loose files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import make_shard

from pipeline import pack
from pipeline.errors import InputError
from pipeline.shard import open_shard
from pipeline.shard_index import index_shards

VIDEOS = ["A/a.b", "A/c;d#e", "B/ü", "B/v 2", "B/v1"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, video in enumerate(VIDEOS):
        make_shard(tmp_path / f"{video}.h5", video=video, flows=2, frames=True, seed=seed)
    return tmp_path


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(pack.command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def contents(folder: Path) -> dict:
    found = {}
    for video, address in index_shards(folder).items():
        with open_shard(address) as shard:
            assert shard.video == video
            found[video] = (
                shard.flows(0, 2).tobytes(),
                shard.frames(0, 3).tobytes(),
                shard.contents.attributes,
            )
    return found


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_packs_by_class_hold_what_the_loose_files_held_and_unpack_to_the_same_bytes(folder):
    before, data = contents(folder), {name: (folder / name).read_bytes() for name in files(folder)}
    run(folder)
    assert files(folder) == ["A.h5pack", "B.h5pack"]
    assert contents(folder) == before
    assert list(before) == sorted(VIDEOS)
    run(folder, "--unpack")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == data


def test_packs_by_number_of_videos(folder):
    before = contents(folder)
    run(folder, "--videos", 2)
    assert files(folder) == ["00001.h5pack", "00002.h5pack", "00003.h5pack"]
    assert contents(folder) == before


def test_new_shards_join_the_pack_of_their_class_and_redone_ones_replace_theirs(folder):
    run(folder)
    make_shard(folder / "A" / "new.h5", video="A/new", flows=2, frames=True, seed=9)
    make_shard(folder / "A" / "a.b.h5", video="A/a.b", flows=2, frames=True, seed=10)
    expected = contents(folder)
    untouched = (folder / "B.h5pack").stat().st_mtime_ns
    run(folder)
    assert files(folder) == ["A.h5pack", "B.h5pack"]
    assert contents(folder) == expected
    assert (folder / "B.h5pack").stat().st_mtime_ns == untouched
    assert "0 shards in 0 packs" in run(folder)


def test_keep_leaves_the_loose_files_which_then_count(folder):
    run(folder, "--keep")
    assert len(files(folder)) == len(VIDEOS) + 2
    assert all(address.group == "/" for address in index_shards(folder).values())


def test_a_damaged_shard_stops_its_pack_and_stays(folder):
    with open_shard(folder / "B" / "v1.h5") as shard:
        place = shard.part("forward").begin
    with (folder / "B" / "v1.h5").open("r+b") as file:
        file.seek(place + 5)
        file.write(b"\xff\xff\xff")
    assert "checksum" in run(folder, status=1)
    assert "B/v1.h5" in files(folder)
    assert "B.h5pack" not in files(folder)


def test_any_range_of_a_packed_shard_is_read(folder):
    with open_shard(folder / "B" / "v1.h5") as shard:
        expected = shard.levels(0, 2)
    run(folder)
    with open_shard(index_shards(folder)["B/v1"]) as shard:
        assert np.array_equal(shard.levels(1, 2), expected[1:])


def test_a_file_that_is_no_pack_is_an_input_error(folder):
    (folder / "C.h5pack").write_bytes((folder / "A" / "a.b.h5").read_bytes())
    with pytest.raises(InputError, match="not a two-stream pack"):
        index_shards(folder)


def test_a_folder_without_shards_is_an_error(tmp_path):
    assert "expected shards" in run(tmp_path, status=1)
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_told(folder):
    run(status=2)
    run(folder, "--dataset", "demo", status=2)
    run(folder, "--unpack", "--videos", 3, status=2)
