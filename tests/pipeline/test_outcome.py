"""Rules of pipeline/outcome.py: records survive crashes, and merge by time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pipeline import checked_json
from pipeline.outcome import (
    FIELDS,
    Outcome,
    OutcomeLog,
    describe,
    read_outcomes,
    seconds_of_work,
    summarise,
)
from pipeline.text import duration, size_in_bytes


def log(folder: Path, *outcomes: Outcome, task: int = 0) -> Path:
    writer = OutcomeLog(folder, task)
    writer.append(*outcomes)
    writer.close()
    return writer.path


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    record = Outcome(
        'A/é "x"\n',
        "failed",
        "reason;\nwith lines",
        ("note",),
        3,
        2,
        10,
        0.5,
        {"flow": 0.25},
        "dis on cpu",
        "dis",
        12.5,
    )
    log(tmp_path, record)
    assert read_outcomes(tmp_path) == {record.video: record}


def test_no_record_makes_no_file_and_no_folder_is_no_record(tmp_path: Path) -> None:
    writer = OutcomeLog(tmp_path / "outcomes")
    writer.append()
    writer.close()
    assert read_outcomes(tmp_path / "outcomes") == {}
    assert not (tmp_path / "outcomes").exists()


def test_the_last_record_counts_over_all_files(tmp_path: Path) -> None:
    log(tmp_path, Outcome("a", "done", time=2), Outcome("b", "failed", "x", time=1), task=1)
    log(tmp_path, Outcome("a", "failed", "y", time=1), Outcome("b", "done", time=3), task=0)
    assert {video: o.status for video, o in read_outcomes(tmp_path).items()} == {"a": "done", "b": "done"}


def test_skipped_keeps_what_done_said_and_ends_a_failure(tmp_path: Path) -> None:
    log(tmp_path, Outcome("a", "done", flows=7, time=1), Outcome("b", "failed", "x", time=1))
    log(tmp_path, Outcome("a", "skipped", time=2), Outcome("b", "skipped", time=2))
    outcomes = read_outcomes(tmp_path)
    assert (outcomes["a"].status, outcomes["a"].flows, outcomes["b"].status) == ("done", 7, "skipped")


def test_sets_of_shards_are_kept_apart(tmp_path: Path) -> None:
    log(
        tmp_path,
        Outcome("a", "done", shard_set="dis", time=1),
        Outcome("a", "failed", shard_set="tvl1", time=2),
    )
    assert read_outcomes(tmp_path, "dis")["a"].status == "done"
    assert read_outcomes(tmp_path, "tvl1")["a"].status == "failed"


def test_a_torn_line_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = log(tmp_path, Outcome("a", "done", time=1), Outcome("b", "done", time=1))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        lines = whole.splitlines()
        complete = (cut >= len(lines[0])) + (cut >= len(whole) - 1)
        assert len(read_outcomes(tmp_path)) == complete
    path.write_bytes(
        b'[1]\n{"video": 3, "status": "done"}\n{"video": "c", "status": "odd"}\n\xff\xfe\n' + whole
    )
    assert set(read_outcomes(tmp_path)) == {"a", "b"}


def test_values_of_the_wrong_kind_do_not_pass(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"video": "a", "status": "done", "flows": "many", "stages": {"flow": "x"}}\n'
    )
    record = read_outcomes(tmp_path)["a"]
    assert (record.flows, record.stages, record.time) == (0, {}, 0.0)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"video": "a", "status": "done", "time": NaN, "flows": 5}',
        b'{"video": "a", "status": "done", "time": -Infinity, "flows": 5}',
        b'{"video": "a", "status": "done", "flows": 1e999, "bytes": -3, "stages": {"flow": 1'
        + b"0" * 400
        + b"}}",
        b'{"video": "a", "status": "done", "flows": 1' + b"0" * 5000 + b"}",
        b'{"video": "a", "status": ["done"]}',
        b'{"video": "a", "status": "done", "reason": "' + b"x" * (3 << 20) + b'"}',
    ],
)
def test_no_line_stops_the_reading(tmp_path: Path, line: bytes) -> None:
    path = log(tmp_path, Outcome("b", "done", time=1, flows=3))
    path.write_bytes(line + b"\n" + path.read_bytes())
    outcomes = read_outcomes(tmp_path)
    assert outcomes["b"].flows == 3
    assert summarise(outcomes.values()).flows in (3, 8)
    assert describe(summarise(outcomes.values()), 1.0)


def test_a_flipped_bit_changes_no_record(tmp_path: Path) -> None:
    path = log(tmp_path, Outcome("a", "failed", "why", time=1, flows=3), Outcome("b", "done", time=1))
    whole, expected = path.read_bytes(), read_outcomes(tmp_path)
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        assert read_outcomes(tmp_path).items() <= expected.items()


def die_after_a_record(folder: str) -> None:
    OutcomeLog(Path(folder)).append(Outcome("a", "done"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_record_is_there_when_append_returns(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die_after_a_record, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_outcomes(tmp_path)["a"].status == "done"


def test_the_summary_counts_and_names_every_failure() -> None:
    outcomes = [
        Outcome("a", "done", flows=10, bytes=2000, stages={"flow": 1.0, "decode": 0.5}),
        Outcome("b", "done", notes=("odd",), flows=30, bytes=6000, stages={"flow": 3.0, "decode": 0.5}),
        Outcome("c", "skipped", flows=99),
        Outcome("d", "failed", "no video", flows=99),
    ]
    summary = summarise(outcomes)
    assert (summary.done, summary.skipped, summary.flows, summary.bytes) == (2, 1, 40, 8000)
    assert summary.stages == {"flow": 4.0, "decode": 1.0}
    lines = describe(summary, seconds=4.0)
    assert lines[0] == "2 done, 1 skipped (already valid), 1 failed"
    assert "40 flows" in lines[1]
    assert "10.0 pairs/s" in lines[1]
    assert "flow 100.00" in lines[2]
    assert lines[-2:] == ["note: b: odd", "failed: d: no video"]


def test_videos_that_failed_for_one_reason_share_a_line() -> None:
    videos = {f"v{number}": "other settings" for number in range(7)} | {"w": "no video"}
    outcomes = [Outcome(video, "failed", reason) for video, reason in videos.items()]
    lines = describe(summarise(outcomes), seconds=1.0)
    assert lines[0].endswith("8 failed")
    assert lines[1:] == [
        "failed: 7 videos (v0, v1, v2, v3, v4 and 2 more): other settings",
        "failed: w: no video",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (2130, "2.1 kB"), (3.2e15, "3200.0 TB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert size_in_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2 s"), (75.2, "1 min 15 s"), (7384, "2 h 3 min")])
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("flow", "frames", "writers", "bound"),
    [(3.0, 1.0, 0.0, "flow"), (1.0, 2.0, 1.0, "decoding"), (1.0, 0.5, 2.5, "encoding and writing")],
)
def test_overlapped_stages_end_with_what_bound_them(
    flow: float, frames: float, writers: float, bound: str
) -> None:
    stages = {"decode": 9.0, "flow": flow, "waiting for frames": frames, "waiting for writers": writers}
    lines = describe(summarise([Outcome("a", "done", flows=10, stages=stages)]), 4.0)
    assert lines[-1] == (
        f"computing: {flow / 4:.0%} flow, {frames / 4:.0%} waiting for frames, {writers / 4:.0%} waiting for writers; "
        f"bound by {bound}"
    )


def test_stages_one_after_the_other_have_no_bound() -> None:
    lines = describe(summarise([Outcome("a", "done", flows=10, stages={"decode": 9.0, "flow": 1.0})]), 4.0)
    assert "bound by" not in "".join(lines)


def test_the_time_of_work_begins_with_the_first_video_worked_on_also_if_it_failed() -> None:
    outcomes = [
        Outcome("A/known", "failed", "no such file", time=50.0),  # known before any work
        Outcome("A/skipped", "skipped", time=51.0),
        Outcome("A/torn", "failed", "torn", seconds=10.0, time=110.0),
        Outcome("A/good", "done", seconds=4.0, time=112.0),
    ]
    assert seconds_of_work(outcomes) == 12.0
    assert seconds_of_work(outcomes[:2]) == 0.0


def test_a_line_is_checked_by_its_bytes_as_by_its_values(tmp_path: Path) -> None:
    path = log(
        tmp_path, Outcome('A/é "x"\n\udc80', "done", notes=("crc32",), stages={"flow": 0.25}, time=12.5)
    )
    line = path.read_bytes().rstrip()
    values = json.loads(line)
    assert checked_json.is_intact(line)
    assert checked_json.fault(values, FIELDS) is None
    for place in range(len(line)):
        damaged = bytearray(line)
        damaged[place] ^= 1
        assert not checked_json.is_intact(bytes(damaged)), place
    assert not checked_json.is_intact(line[:-1])
    assert not checked_json.is_intact(b"")
    assert not checked_json.is_intact(b'{"a": 1}')


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    record = Outcome("a/b", "done", time=1.0)
    written = checked_json.with_checksum(dataclasses.asdict(record))  # unsorted, as they were
    (tmp_path / "task0.jsonl").write_text(
        json.dumps(written) + "\n" + json.dumps({**written, "flows": 1}) + "\n"
    )
    assert read_outcomes(tmp_path) == {"a/b": record}
