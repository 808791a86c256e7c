"""What happened to each video: one record each, in JSON lines that survive a crash.

Every process that runs a stage appends to its own file, because appends to one file from many nodes are not atomic on
network file systems; `read_outcomes` merges them. A record is flushed to the disk before the next video begins, and a
line cut short by a crash is ignored when read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pipeline import atomic, checked_json
from pipeline.errors import reading
from pipeline.failures import reason_lines
from pipeline.machine import making_what_stays
from pipeline.text import duration, many, size_in_bytes

Status = Literal["done", "skipped", "failed"]
LONGEST_LINE = 1 << 20
LARGEST_AMOUNT = 1 << 60


WAIT_FOR_FRAMES, WAIT_FOR_WRITERS = "waiting for frames", "waiting for writers"
"""Stages of an extraction in which nothing is computed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one video ended in one stage.

    Attributes:
        video: its identity, `class/stem`.
        status: "done", "skipped" (already valid) or "failed".
        reason: why it failed; what, where, and what to do.
        notes: what the user should know although it did not fail, for example frames that the header promised.
        frames, flows, bytes: written to the shard.
        seconds: from opening the video to the renamed shard.
        stages: seconds per stage ("decode", "flow", "encode", "write"), added over threads; where stages overlap, also
            how long computing waited for the stage before it and for the one after it.
        method: what made it, for example "tvl1 on cuda:0".
        shard_set: the shard set it belongs to.
        time: when it ended, seconds since 1970.
    """

    video: str
    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    frames: int = 0
    flows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    stages: Mapping[str, float] = dataclasses.field(default_factory=dict)
    method: str = ""
    shard_set: str = ""
    time: float = dataclasses.field(default_factory=time.time)


FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))
TEXTS = ("video", "status", "reason", "method", "shard_set")
COUNTS, TIMES = ("frames", "flows", "bytes"), ("seconds", "time")
STATUSES = get_args(Status)
_decode = json.JSONDecoder().decode


class OutcomeLog:
    """Appends outcomes to this process's own file below a folder; the file is made with the first record.

    Args:
        folder: `DatasetPaths.outcomes(stage)`.
        task: the array task, part of the file's name.
    """

    def __init__(self, folder: Path, task: int = 0) -> None:
        host = "".join(c if c.isalnum() or c in "-_" else "_" for c in socket.gethostname())
        self.path = folder / f"task{task}-{host}-{os.getpid()}-{time.time_ns():x}.jsonl"
        self._file: IO[bytes] | None = None

    def append(self, *outcomes: Outcome) -> None:
        """Write the records and wait until they are on the disk.

        Raises:
            InputError: they cannot be written, for example because the disk is full.
        """
        if not outcomes:
            return
        lines = "".join(checked_json.encoded(vars(outcome)) + "\n" for outcome in outcomes)
        data = memoryview(lines.encode())
        with atomic.disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("xb", buffering=0)
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@making_what_stays()
def read_outcomes(folder: Path, shard_set: str | None = None) -> dict[str, Outcome]:
    """The last outcome of each video, over all processes' files; empty if there are none.

    Lines that are not records are left out, whatever is in them; OSError if a file cannot be read.

    "skipped" only means that an earlier run's shard was still good, so it does not replace that run's "done".

    Args:
        folder: `DatasetPaths.outcomes(stage)`.
        shard_set: only records of that set.
    """
    return _latest(record for record in _records(folder) if shard_set in (None, record.shard_set))


@making_what_stays()
def read_outcomes_by_set(folder: Path) -> dict[str, dict[str, Outcome]]:
    """`read_outcomes` of each shard set, by its name, with one reading of the files."""
    by_set: dict[str, list[Outcome]] = {}
    for record in _records(folder):
        by_set.setdefault(record.shard_set, []).append(record)
    return {shard_set: _latest(records) for shard_set, records in by_set.items()}


def _records(folder: Path) -> Iterator[Outcome]:
    # Not glob, which takes a folder that may not be listed for an empty one.
    for path in (
        sorted(path for path in folder.iterdir() if path.suffix == ".jsonl") if folder.is_dir() else []
    ):
        with reading(path), path.open("rb") as file:
            yield from (record for line in _lines(file) if (record := _parse(line)) is not None)


def _latest(records: Iterable[Outcome]) -> dict[str, Outcome]:
    latest: dict[str, Outcome] = {}
    for record in sorted(records, key=lambda record: record.time):
        before = latest.get(record.video)
        if record.status == "skipped" and before is not None and before.status == "done":
            continue
        latest[record.video] = record
    return latest


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file except those longer than any record, which are never held in memory whole."""
    whole = True
    while line := file.readline(LONGEST_LINE):
        ends = line.endswith(b"\n")
        if whole and (ends or len(line) < LONGEST_LINE):
            yield line
        whole = ends


def _parse(line: bytes) -> Outcome | None:
    """One record, or None for a line that a crash cut short, or that is not a record."""
    try:
        values = _decode(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("status") not in STATUSES:
        return None
    if not isinstance(values.get("video"), str):
        return None
    if not checked_json.is_intact(line.rstrip()) and checked_json.fault(values, FIELDS) is not None:
        return None
    known: dict[str, Any] = {"time": 0.0}  # a record without a time is older than any other
    for name, value in values.items():
        kind = type(value)
        if kind is str and name in TEXTS:
            known[name] = value
        elif (kind is int and name in COUNTS) or (kind in (int, float) and name in TIMES):
            if 0 <= value <= LARGEST_AMOUNT:  # NaN is outside
                known[name] = value
        elif kind is list and name == "notes":
            known[name] = tuple(map(str, value))
        elif kind is dict and name == "stages":
            known[name] = {stage: float(seconds) for stage, seconds in value.items() if _is_amount(seconds)}
    return Outcome(**known)


def _is_amount(value: Any) -> bool:
    """Whether a value can be a count or a time; NaN cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_AMOUNT


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts and totals of a run's outcomes."""

    done: int
    skipped: int
    failed: Mapping[str, str]
    notes: Mapping[str, tuple[str, ...]]
    flows: int
    bytes: int
    stages: Mapping[str, float]


def summarise(outcomes: Iterable[Outcome]) -> Summary:
    """Counts, totals, failures by video with their reasons, and notes by video."""
    records = list(outcomes)
    done = [record for record in records if record.status == "done"]
    stages: dict[str, float] = {}
    for record in done:
        for stage, seconds in record.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return Summary(
        done=len(done),
        skipped=sum(record.status == "skipped" for record in records),
        failed={record.video: record.reason for record in records if record.status == "failed"},
        notes={record.video: record.notes for record in records if record.notes},
        flows=sum(record.flows for record in done),
        bytes=sum(record.bytes for record in done),
        stages=stages,
    )


def describe(
    summary: Summary, seconds: float, frames_included: bool = True, failures: Sequence[str] | None = None
) -> list[str]:
    """The lines that end a run: counts, amounts, speed, milliseconds per pair and stage, notes and failures.

    Videos with the same note, or that failed for the same reason, share a line.

    Args:
        summary: of this run's outcomes.
        seconds: wall time of the work.
        frames_included: whether the shards hold frames beside the flow.
        failures: lines about what failed; None: `reason_lines` of all that failed.
    """
    lines = [
        f"{summary.done:,} done, {summary.skipped:,} skipped (already valid), {len(summary.failed):,} failed"
    ]
    if summary.flows:
        rate = summary.flows / max(seconds, 1e-9)
        included = " (frames included)" if frames_included else ""
        lines.append(
            f"{many(summary.flows, 'flow')}, {size_in_bytes(summary.bytes)}{included} "
            f"in {duration(seconds)}, {rate:,.1f} pairs/s"
        )
        stages = ", ".join(f"{name} {1e3 * s / summary.flows:.2f}" for name, s in summary.stages.items())
        if stages:
            lines.append(f"milliseconds per flow and worker: {stages}")
        lines += _bound(summary.stages)
    notes = [(video, note) for video, notes in summary.notes.items() for note in notes]
    lines += reason_lines(notes, word="note")
    return [*lines, *(reason_lines(list(summary.failed.items())) if failures is None else failures)]


def seconds_of_work(outcomes: Iterable[Outcome]) -> float:
    """Wall time from the first video that was worked on to the last; neither loading nor compiling is part of it."""
    worked = [outcome for outcome in outcomes if outcome.seconds > 0]
    return max((o.time for o in worked), default=0.0) - min((o.time - o.seconds for o in worked), default=0.0)


def _bound(stages: Mapping[str, float]) -> list[str]:
    """What an extraction with overlapping stages was bound by: the three are times of the one thread that computes."""
    if WAIT_FOR_FRAMES not in stages:
        return []
    bounds = {"flow": "flow", WAIT_FOR_FRAMES: "decoding", WAIT_FOR_WRITERS: "encoding and writing"}
    times = {name: stages.get(name, 0.0) for name in bounds}
    total = max(sum(times.values()), 1e-9)
    shares = ", ".join(f"{seconds / total:.0%} {name}" for name, seconds in times.items())
    return [f"computing: {shares}; bound by {bounds[max(times, key=lambda name: times[name])]}"]
