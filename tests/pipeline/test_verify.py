"""verify names every bad shard and repairs by deleting; whole ones are left alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import make_shard

from pipeline import atomic, pack, verify
from pipeline.shard import ShardAddress, open_shard
from pipeline.shard_index import index_shards
from pipeline.shard_sets import Target


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(verify.command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def flip(path: Path, part: str = "forward", index: int = 1, group: str = "/") -> None:
    """Change one byte of a stream in the file."""
    with open_shard(path, group) as shard:
        place = shard.part(part).begin + int(shard.part(part).start[index]) + 3
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def folder(tmp_path) -> Path:
    for video in ("A/one", "A/two", "B/three"):
        make_shard(tmp_path / f"{video}.h5", video=video, flows=3, frames=True)
    return tmp_path


def test_good_shards_pass_both_ways(folder):
    assert "3 shards: 3 good, 0 bad" in run(folder)
    assert "3 shards: 3 good, 0 bad" in run("--deep", folder)


def test_each_bad_shard_is_named_with_its_fault_and_repair_deletes_only_those(folder):
    flip(folder / "A" / "one.h5", "frames", 2)
    (folder / "B" / "three.h5").write_bytes(b"")
    output = run(folder, status=1)
    assert "frames 2 fails its checksum" in output
    assert "A/one.h5" in output
    assert "B/three.h5" in output
    assert "two.h5" not in output
    assert "1 good, 2 bad (run with --repair" in output
    run(folder, "--repair", status=1)
    assert [path.name for path in folder.rglob("*.h5")] == ["two.h5"]
    run(folder)


def test_repair_takes_a_bad_shard_out_of_its_pack(folder):
    CliRunner().invoke(pack.command, [str(folder)])
    flip(folder / "A.h5pack", group="/A/two")
    assert "A.h5pack:/A/two" in run(folder, status=1)
    run(folder, "--repair", status=1)
    assert list(index_shards(folder)) == ["A/one", "B/three"]
    run(folder, "--deep")


def test_repair_removes_a_pack_that_cannot_be_opened(folder):
    CliRunner().invoke(pack.command, [str(folder)])
    (folder / "A.h5pack").write_bytes((folder / "A.h5pack").read_bytes()[:500])
    assert "A.h5pack" in run(folder, "--repair", status=1)
    assert list(index_shards(folder)) == ["B/three"]


def test_single_shards_packs_and_their_members_can_be_named(folder):
    assert "1 shard: " in run(folder / "A" / "one.h5")
    CliRunner().invoke(pack.command, [str(folder)])
    assert "2 shards" in run(folder / "A.h5pack")
    assert "1 shard: " in run(folder / "A.h5pack" / "A" / "one")
    assert "'A/none'" in run(folder / "A.h5pack" / "A" / "none", status=1)


def test_only_deep_finds_images_whose_check_sum_agrees_but_that_do_not_decode(folder):
    """As a writer with a fault of its own would leave them."""
    import zlib

    from pipeline.shard_file import FLOW_TABLES, STREAM_TABLES, tables_crc32

    path = folder / "A" / "one.h5"
    with h5py.File(path, "r+") as file:
        part = file["flow/forward"]
        start, stop = part["start"][1:3]
        garbage = np.zeros(stop - start, np.uint8)
        part["jpeg"][start:stop] = garbage
        part["crc32"][1] = zlib.crc32(garbage)
        tables = {name: part[name][...] for name in [*STREAM_TABLES, *FLOW_TABLES]}
        part.attrs.modify("tables_crc32", tables_crc32(tables))
    run(folder)
    assert "forward 1" in run(folder, "--deep", status=1)


def test_a_shard_in_another_videos_place_is_bad(folder):
    address = ShardAddress(folder / "A" / "one.h5")
    assert verify.verify_shard(Target("A/one", address)).faults == []
    assert "'A/one'" in verify.verify_shard(Target("A/two", address)).faults[0]


def test_deep_compares_the_videos_digest(folder, tmp_path):
    video = tmp_path / "video.avi"
    video.write_bytes(b"another video")
    target = Target("", ShardAddress(folder / "A" / "one.h5"))
    assert "SHA-256" in verify.verify_shard(target, deep=True, source=video).faults[0]
    assert verify.verify_shard(target, deep=False, source=video).faults == []
    assert verify.verify_shard(target, deep=True, source=tmp_path / "gone.avi").faults == []


def test_repair_sweeps_what_dead_runs_left(folder):
    mine = atomic.temporary_path(folder / "A" / "x.h5")
    dead = mine.with_name(".tmp-elsewhere-12345678-1-1-1.h5")
    for path in (mine, dead):
        path.write_bytes(b"")
    import os

    os.utime(dead, (0, 0))
    run(folder)
    assert dead.exists()
    assert "0 bad (nothing to do)" in run(folder, "--repair")
    assert not dead.exists()
    assert mine.exists()


def test_nothing_to_verify_is_an_error_that_says_so(tmp_path):
    assert "found none" in run(tmp_path, status=1)
    assert "no such" in run(tmp_path / "x.h5", status=1)
    run(status=2)


def test_a_dataset_without_the_set_lists_the_sets(tmp_path):
    (tmp_path / "some" / "shards" / "dis").mkdir(parents=True)
    (tmp_path / "some" / "shards" / "farneback").mkdir(parents=True)
    assert "there are dis, farneback" in run("--dataset", "some", "--data", tmp_path, status=1)
    assert "'brox'" in run("--dataset", "some", "--shards", "brox", "--data", tmp_path, status=1)
