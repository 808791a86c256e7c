"""The manifest of a shard set: it saves opening shards, and is never believed against them."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import make_shard

from pipeline import manifest, pack, verify
from pipeline.errors import InputError
from pipeline.manifest import NAME, RecordedShard, facts_of, read_shard_set, refresh, stamp_of
from pipeline.shard import ShardAddress, open_shard

VIDEOS = ("A/one", "A/two", "B/three")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of three shards of different lengths, without a manifest."""
    for number, video in enumerate(VIDEOS):
        make_shard(tmp_path / "set" / f"{video}.h5", video, flows=3 + number, seed=number)
    return tmp_path / "set"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that the manifest opens from now on."""
    names: list[str] = []

    def counting(address: ShardAddress):
        names.append(
            f"{address.file.parent.name}/{address.file.stem}" if address.group == "/" else address.group[1:]
        )
        return open_shard(address)

    monkeypatch.setattr(manifest, "open_shard", counting)
    return names


def truth(folder: Path) -> dict[str, manifest.Facts]:
    """The facts from the shards themselves."""
    found = {}
    for video, address in manifest.read_shard_set(folder).items():
        with open_shard(address) as shard:
            found[video] = facts_of(shard)
    return found


def rewrite(path: Path, **columns: object) -> None:
    """Change columns of a manifest, with a checksum that fits: a lie, not damage."""
    with h5py.File(path, "r+") as file:
        for name, values in columns.items():
            file[name][...] = values
        from pipeline.hdf5 import crc32

        arrays = [np.asarray(file[name][...]) for name in (*manifest.TEXTS, *manifest.ARRAYS)]
        texts = [
            np.array([value for value in array.tolist()], file[name].dtype.str.replace("O", "S"))
            if array.dtype.kind in "SO"
            else array
            for name, array in zip((*manifest.TEXTS, *manifest.ARRAYS), arrays, strict=True)
        ]
        file.attrs["crc32"] = np.int64(crc32(texts))


def test_what_was_learned_once_is_not_opened_again(folder: Path, opened: list[str]) -> None:
    first = read_shard_set(folder)
    assert not first.facts
    assert first.learn(VIDEOS) == {}
    assert sorted(opened) == list(VIDEOS)
    opened.clear()
    again = read_shard_set(folder)
    assert again.facts == truth(folder)
    again.learn(VIDEOS)
    assert opened == []


def test_an_interruption_keeps_what_was_learned_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(address: ShardAddress):
        if address.file.stem == "three":
            raise KeyboardInterrupt
        return open_shard(address)

    for name, value in (("open_shard", interrupted), ("CHUNK", 1), ("SAVE_EVERY", -1)):
        monkeypatch.setattr(manifest, name, value)
    with pytest.raises(KeyboardInterrupt):
        read_shard_set(folder).learn(VIDEOS)
    assert read_shard_set(folder).facts.keys() == {"A/one", "A/two"}


def test_looking_into_very_many_shards_shows_its_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifest, "MANY", 1)
    monkeypatch.setattr("pipeline.progress.FIRST_LINE", 0)
    read_shard_set(folder).learn(VIDEOS, jobs=1)
    assert "looking into shards: " in capsys.readouterr().err


def test_only_shards_whose_size_or_time_changed_are_opened_again(folder: Path, opened: list[str]) -> None:
    refresh(folder)
    opened.clear()
    os.utime(folder / "A/two.h5", ns=(0, 5))
    make_shard(folder / "B/four.h5", "B/four")
    (folder / "B/three.h5").unlink()
    found = read_shard_set(folder)
    assert found.learn(found) == {}
    assert sorted(opened) == ["A/two", "B/four"]
    assert read_shard_set(folder).facts == truth(folder)


def test_the_set_lists_loose_and_packed_shards_as_the_index_does(folder: Path) -> None:
    pack.write_pack(folder / "B.h5pack", [ShardAddress(folder / "B/three.h5")])
    refresh(folder)
    for _ in range(2):  # with the manifest, and with the packs opened
        found = read_shard_set(folder)
        assert dict(found) == pack.index_shards(folder)
        assert found["B/three"] == ShardAddress(folder / "B/three.h5")
        (folder / "B/three.h5").unlink()
        found = read_shard_set(folder)
        assert dict(found) == pack.index_shards(folder)
        assert found["B/three"] == ShardAddress(folder / "B.h5pack", "/B/three")
        shutil.copy(folder / "A/one.h5", folder / "B/three.h5")
        (folder / NAME).unlink(missing_ok=True)


def test_a_known_pack_is_not_opened_and_a_changed_one_is(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    CliRunner().invoke(pack.command, [str(folder)], catch_exceptions=False)
    refresh(folder)
    opened.clear()
    listed: list[Path] = []
    index_pack = manifest.index_pack_or_report

    def listing(path: Path, unusable: dict[ShardAddress, InputError] | None) -> dict[str, ShardAddress]:
        listed.append(path)
        return index_pack(path, unusable)

    monkeypatch.setattr(manifest, "index_pack_or_report", listing)
    found = read_shard_set(folder)
    assert list(found) == sorted(VIDEOS)
    assert not listed
    pack.write_pack(folder / "A.h5pack", [found["A/two"]])
    changed = read_shard_set(folder)
    assert listed == [folder / "A.h5pack"]
    assert list(changed) == ["A/two", "B/three"]
    changed.learn(changed)
    assert opened == ["A/two"]


@pytest.mark.parametrize("at", [0, 9, 0.3, 0.6, 0.9])
def test_a_damaged_manifest_is_rebuilt(folder: Path, at: float) -> None:
    refresh(folder)
    path, expected = folder / NAME, truth(folder)
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if at < 1 else int(at)] ^= 0xFF
    path.write_bytes(data)
    found = read_shard_set(folder)
    found.learn(found)
    assert found.facts == expected
    assert read_shard_set(folder).facts == expected


@pytest.mark.parametrize("cut", [0, 1, 100, 1000])
def test_a_manifest_that_was_cut_short_or_is_a_folder_does_not_matter(folder: Path, cut: int) -> None:
    refresh(folder)
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:cut])
    assert read_shard_set(folder).facts in ({}, truth(folder))
    path.unlink()
    path.mkdir()
    found = read_shard_set(folder)
    assert found.learn(found) == {}
    assert found.facts == truth(folder)


def test_a_manifest_of_another_version_or_program_is_left_as_it_is(folder: Path) -> None:
    for name, value in (("version", 2), ("format", np.bytes_("another"))):
        refresh(folder)
        with h5py.File(folder / NAME, "r+") as file:
            file.attrs[name] = value
        before = (folder / NAME).read_bytes()
        found = read_shard_set(folder)
        assert not found.facts
        found.learn(found)
        assert found.facts == truth(folder)
        assert (folder / NAME).read_bytes() == before
        (folder / NAME).unlink()


@pytest.mark.parametrize(
    "lie",
    [
        {"frame_count": 9},
        {"forward": 8},
        {"width": 34},
        {"height": 5},
        {"tables": 1},
        {"source_bytes": 7},
    ],
)
def test_a_lie_is_found_out_when_the_shard_is_read(folder: Path, lie: dict[str, int]) -> None:
    refresh(folder)
    rewrite(folder / NAME, **lie)
    found = read_shard_set(folder)
    assert found.facts, "the lie is believed until the shard is read"
    shard = found.shard("A/one")
    with pytest.raises(InputError, match=rf"A/one\.h5: expected the shard .*{NAME} .*; found A/one"):
        shard.flows(0, 1)
    with pytest.raises(InputError, match="expected the shard"):
        shard.read_into(
            "forward", np.arange(1), np.arange(1), np.empty((1, 2, shard.height, shard.width), np.uint8)
        )


def test_verify_replaces_a_lie_by_the_truth(folder: Path) -> None:
    refresh(folder)
    rewrite(folder / NAME, forward=8, tables=3)
    assert CliRunner().invoke(verify.command, [str(folder)]).exit_code == 0
    assert read_shard_set(folder).facts == truth(folder)


@pytest.mark.parametrize(
    "lie", [{"forward": -1}, {"request": 5}, {"pack": 2}, {"height": 0}, {"width": 1 << 20}]
)
def test_a_manifest_whose_values_cannot_be_is_not_used(folder: Path, lie: dict[str, int]) -> None:
    refresh(folder)
    rewrite(folder / NAME, **lie)
    assert not read_shard_set(folder).facts


def test_a_shard_that_was_replaced_after_the_start_is_an_error(folder: Path) -> None:
    refresh(folder)
    shard = read_shard_set(folder).shard("A/one")
    make_shard(folder / "A/one.h5", "A/one", flows=3, seed=77)
    with pytest.raises(InputError, match="expected the shard found at the start"):
        shard.levels(0, 1)


def test_a_recorded_shard_reads_what_the_shard_itself_reads(folder: Path) -> None:
    refresh(folder)
    recorded = read_shard_set(folder).shard("B/three")
    assert isinstance(recorded, RecordedShard)
    with open_shard(folder / "B/three.h5") as shard:
        for name in (
            "video",
            "frame_count",
            "fps",
            "width",
            "height",
            "corrupt",
            "has_frames",
            "directions",
            "flow_counts",
            "flow_count",
            "method",
            "source",
        ):
            assert getattr(recorded, name) == getattr(shard, name), name
        assert recorded.step() == shard.step()
        np.testing.assert_array_equal(recorded.flows(0, 5), shard.flows(0, 5))
        with pytest.raises(InputError, match="has no backward flow"):
            recorded.flows(0, 1, "backward")
    recorded.forget()
    assert recorded.levels(0, 1).any()


def test_a_shard_in_another_s_place_is_never_recorded(folder: Path) -> None:
    shutil.copy(folder / "A/one.h5", folder / "A/copy.h5")
    refresh(folder)
    found = read_shard_set(folder)
    assert sorted(found.facts) == list(VIDEOS)
    found.learn(found)
    assert found.shard("A/copy").video == "A/one"


def test_shards_that_do_not_open_are_named_and_not_recorded(folder: Path) -> None:
    (folder / "A/two.h5").write_bytes(b"no shard")
    found = read_shard_set(folder)
    assert "A/two.h5: damaged shard" in found.learn(found)["A/two"]
    assert sorted(read_shard_set(folder).facts) == ["A/one", "B/three"]


def test_a_folder_that_cannot_be_written_works_without_a_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.atomic.temporary_path", refused)
    found = read_shard_set(folder)
    assert found.learn(found) == {}
    assert found.facts == truth(folder)
    assert not (folder / NAME).exists()


def test_two_writers_at_once_leave_a_whole_manifest(folder: Path) -> None:
    made = {}
    for number in range(40):
        path = make_shard(folder / f"C/{number:02}.h5", f"C/{number:02}", flows=1)
        with open_shard(path) as shard:
            made[shard.video] = stamp_of(path), facts_of(shard)
    halves = [dict(list(made.items())[:20]), dict(list(made.items())[20:])]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: [manifest.record(folder, {v: half[v]}) for v in half], halves))
    found = read_shard_set(folder)
    assert found.facts  # some rows may be lost to the other writer; none is wrong
    assert found.facts.items() <= truth(folder).items()
    found.learn(found)
    assert read_shard_set(folder).facts == truth(folder)


def test_more_ways_of_making_shards_than_a_manifest_holds_are_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MOST_REQUESTS", 0)
    refresh(folder)
    assert not (folder / NAME).exists()


def test_opening_in_processes_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MANY", 2)
    monkeypatch.setattr(manifest, "CHUNK", 1)
    (folder / "A/two.h5").write_bytes(b"no shard")
    found = read_shard_set(folder)
    assert list(found.learn(found, jobs=2)) == ["A/two"]
    assert {video: found.facts[video] for video in ("A/one", "B/three")} == found.facts
