"""Status: what shards and outcome records together say about each video."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_shards import make_shard

from pipeline import catalog, status
from pipeline.catalog import Dataset, Video
from pipeline.outcome import Outcome, OutcomeLog
from pipeline.paths import DatasetPaths, OutputPaths

IDS = ["a/1", "a/2", "a/3", "a/x y.z", "b/1", "b/2"]


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    """A dataset with three shards, one of them not recorded, two failures, one of them over an earlier shard."""
    videos = {video: Video(video, tmp_path / "films" / f"{video}.avi", video[0], "g") for video in IDS}
    for video in videos.values():
        video.path.parent.mkdir(parents=True, exist_ok=True)
        video.path.touch()
    catalog.save(Dataset("mine", ("a", "b"), videos, {}), tmp_path / "films", tmp_path)
    paths = DatasetPaths(tmp_path, "mine")
    for video, size in (("a/1", 100), ("a/x y.z", 1_000), ("b/2", 10), ("b/foreign", 5)):
        paths.shard("dis", video).parent.mkdir(parents=True, exist_ok=True)
        paths.shard("dis", video).write_bytes(b"x" * size)
    made = {"shard_set": "dis", "bytes": 100}
    OutcomeLog(paths.outcomes("flow"), 0).append(
        Outcome("a/1", "done", flows=30, seconds=2.0, time=1, **made),
        Outcome("a/2", "failed", "the file is empty", time=1, shard_set="dis"),
        Outcome("a/gone", "failed", "no such file", time=1, shard_set="dis"),
    )
    OutcomeLog(paths.outcomes("flow"), 1).append(
        Outcome("a/x y.z", "failed", "killed by signal 9", time=1, shard_set="dis"),
        Outcome("a/x y.z", "done", flows=70, seconds=3.0, time=2, **made),
        Outcome("a/1", "skipped", time=3, shard_set="dis"),
        Outcome("b/2", "failed", "made with other parameters", time=4, shard_set="dis"),
        Outcome("b/1", "failed", "no GPU", time=4, shard_set="brox"),
    )
    return paths


def test_each_video_is_done_missing_or_failed_by_its_shard_and_last_outcome(paths: DatasetPaths) -> None:
    found = status.set_status(catalog.load_dataset("mine", paths.data), paths, "dis")
    assert (found.videos, found.done) == (6, 3)
    assert found.failed == {"a/2": "the file is empty"}
    assert found.stale == {"b/2": "made with other parameters"}
    assert found.missing == ("a/3", "b/1")
    assert found.foreign == ("b/foreign",)
    assert found.done + len(found.failed) + len(found.missing) == found.videos


def test_flows_bytes_and_speed_are_those_of_the_shards_that_are_there(paths: DatasetPaths) -> None:
    dataset = catalog.load_dataset("mine", paths.data)
    found = status.set_status(dataset, paths, "dis")
    assert (found.flows, found.bytes, found.unrecorded) == (100, 1_110, 1)
    assert found.speed == pytest.approx(100 / 5.0)
    paths.shard("dis", "a/1").unlink()
    assert status.set_status(dataset, paths, "dis").flows == 70


def test_flows_that_no_record_tells_are_counted_in_the_shards(paths: DatasetPaths) -> None:
    make_shard(paths.shard("dis", "b/2"), "b/2", flows=3)
    dataset = catalog.load_dataset("mine", paths.data)
    assert status.set_status(dataset, paths, "dis").flows == 100
    found = status.set_status(dataset, paths, "dis", count=True)
    assert (found.flows, found.unrecorded) == (103, 0)
    assert found.speed == pytest.approx(100 / 5.0)
    paths.shard("dis", "b/2").write_bytes(b"damaged")
    assert status.set_status(dataset, paths, "dis", count=True).unrecorded == 1


def test_a_set_that_only_failed_is_told_too(paths: DatasetPaths) -> None:
    assert status.reported_shard_sets(paths) == ["brox", "dis"]
    found = status.set_status(catalog.load_dataset("mine", paths.data), paths, "brox")
    assert (found.done, found.failed, found.speed) == (0, {"b/1": "no GPU"}, None)


def test_the_command_tells_reasons_and_limits_their_number(paths: DatasetPaths) -> None:
    call = ["--dataset", "mine", "--data", str(paths.data)]
    told = CliRunner().invoke(status.command, call)
    assert told.exit_code == 0
    assert "dis: 3 of 6 done, 2 missing, 1 failed" in told.output
    assert "failed: a/2: the file is empty" in told.output
    assert "100 flows, 1.1 kB, 20.0 pairs/s" in told.output
    brief = CliRunner().invoke(status.command, [*call, "--shards", "dis", "--show", "0"])
    assert "brox" not in brief.output
    assert "1 more" in brief.output
    assert "a/2" not in brief.output
    unknown = CliRunner().invoke(status.command, [*call, "--shards", "tvl1"])
    assert unknown.exit_code == 1
    assert "it has: brox, dis" in unknown.output


def test_json_holds_every_name(paths: DatasetPaths) -> None:
    told = CliRunner().invoke(status.command, ["--dataset", "mine", "--data", str(paths.data), "--json"])
    by_set = {entry["shard_set"]: entry for entry in json.loads(told.output)}
    assert by_set["dis"]["missing"] == ["a/3", "b/1"]
    assert by_set["dis"]["pairs_per_second"] == pytest.approx(20)
    assert by_set["brox"]["failed"] == {"b/1": "no GPU"}


def test_datasets_are_listed_with_what_is_there(paths: DatasetPaths) -> None:
    (paths.data / "films/b/1.avi").unlink()
    told = CliRunner().invoke(status.datasets_command, ["--data", str(paths.data)])
    assert told.exit_code == 0
    assert "mine (folder): 5 of 6 videos are there" in told.output
    assert "1 are gone since it was imported, for example" in told.output
    assert "shards dis: 3 of 6 videos" in told.output


def test_a_damaged_record_is_told_after_the_good_ones(paths: DatasetPaths) -> None:
    broken = DatasetPaths(paths.data, "broken").record
    broken.parent.mkdir()
    broken.write_text("{")
    told = CliRunner().invoke(status.datasets_command, ["--data", str(paths.data)])
    assert told.exit_code == 1
    assert "mine (folder)" in told.output
    assert f"{broken}: damaged record" in told.output


def test_without_datasets_the_next_step_is_told(tmp_path: Path) -> None:
    told = CliRunner().invoke(status.datasets_command, ["--data", str(tmp_path)])
    assert told.exit_code == 0
    assert "python -m pipeline demo" in told.output


def test_a_folder_of_output_has_a_status_too(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.h5", "a", flows=3)
    log = OutcomeLog(OutputPaths(tmp_path).outcomes)
    log.append(Outcome("a", "done", flows=3, bytes=100, seconds=1.5))
    log.append(*(Outcome(f"v{number}", "failed", f"/v/v{number}.avi: it is empty") for number in range(12)))
    log.close()
    shown = CliRunner().invoke(status.command, [str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"{tmp_path}: 1 of 13 done, 0 missing, 12 failed" in shown.output
    assert "3 flows" in shown.output
    assert "2.0 pairs/s" in shown.output
    assert shown.output.count("it is empty") == 1, "one reason, one line"
    assert "12 videos (v0, v1, v10, v11, v2 and 7 more)" in shown.output
    both = CliRunner().invoke(status.command, [str(tmp_path), "--dataset", "mine"])
    assert both.exit_code == 2
    (tmp_path / "empty").mkdir()
    nothing = CliRunner().invoke(status.command, [str(tmp_path / "empty")])
    assert nothing.exit_code == 1
    assert "expected shards" in nothing.output
