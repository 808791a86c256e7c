"""The overlapped worker, with a method on the CPU standing in for a device."""

from __future__ import annotations

import queue
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rendered_clips import clip

from extract_flow.clip import VideoTask
from extract_flow.flow_method import DeviceMemoryError, FlowMethod
from extract_flow.methods import load, resolve
from extract_flow.settings import ExtractionSettings
from extract_flow.worker import Overlapped, make
from pipeline.codec import codec
from pipeline.outcome import Outcome
from pipeline.shard import open_shard
from pipeline.video import Selection


class Device(FlowMethod):
    """DIS with the moods of a device: a limit to its memory, and frames it cannot stand.

    Args:
        batch_pairs: pairs it likes to get at once.
        memory: most pairs it can hold.
        refuses: width of frames that make it fail.
        seconds: that a call takes at least.
    """

    def __init__(
        self, batch_pairs: int = 32, memory: int = 1000, refuses: int = 0, seconds: float = 0.0
    ) -> None:
        self._seconds = seconds
        self._method = load("dis", preset="ultrafast")
        self.name, self.device, self.parameters = "dis", "cuda:0", self._method.parameters
        self.batch_pairs, self._memory, self._refuses = batch_pairs, memory, refuses
        self.calls: list[int] = []

    def flow(self, frames: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        if frames.shape[2] == self._refuses:
            raise RuntimeError("a kernel failed")
        if len(pairs) > self._memory:
            raise DeviceMemoryError(f"{len(pairs)} pairs")
        self.calls.append(len(pairs))
        time.sleep(self._seconds)
        return self._method.flow(frames, pairs)


class Pipe:
    """A link whose other end is this test."""

    def __init__(self, tasks: list[VideoTask]) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for message in [*enumerate(tasks), None]:
            self._tasks.put(message)
        self.results: dict[int, Outcome] = {}
        self.busy_now: set[int] = set()

    def receive(self) -> Any:
        return self._tasks.get()

    def busy(self, task: int, watched: bool) -> None:
        (self.busy_now.add if watched else self.busy_now.discard)(task)

    def progress(self, task: int, report: Any) -> None:
        assert report[0] >= 0
        assert 0 <= report[1] <= 1

    def finish(self, task: int, result: Any) -> None:
        assert task not in self.results
        self.results[task] = result.outcome
        self.busy_now.discard(task)


SETTINGS = ExtractionSettings(
    "dis",
    asdict(resolve("dis", "ultrafast")),
    Selection(None),
    ("forward", "backward"),
    codec=codec("lossless"),
)


def tasks_of(folder: Path, sizes: list[tuple[int, int]]) -> list[VideoTask]:
    """Clips of (frames, width)."""
    tasks = []
    for i, (frames, width) in enumerate(sizes):
        path = clip(folder / f"{i}.avi", frames=frames, width=width, seed=i)
        tasks.append(VideoTask(f"c/{i}", path, folder / f"out/{i}.h5"))
    return tasks


def run(
    tasks: list[VideoTask], device: Device, threads: int = 3, settings: ExtractionSettings = SETTINGS
) -> Pipe:
    link = Pipe(tasks)
    Overlapped(link, settings, device, "a device", threads).run()  # type: ignore[arg-type]
    assert sorted(link.results) == list(range(len(tasks)))
    assert not link.busy_now
    return link


def assert_same_as_one_by_one(tasks: list[VideoTask], folder: Path) -> None:
    method = load("dis", preset="ultrafast")
    for task in tasks:
        alone = task._replace(shard=folder / task.shard.name)
        assert make(0, alone, SETTINGS, method, "cpu").outcome.status == "done"
        with open_shard(task.shard) as one, open_shard(alone.shard) as other:
            for direction in ("forward", "backward"):
                count = other.flow_counts[direction]
                assert one.streams(0, count, direction) == other.streams(0, count, direction)
                assert np.array_equal(one.mean(direction), other.mean(direction))
            assert one.streams(0, one.frame_count, "frames") == other.streams(0, other.frame_count, "frames")


def test_batches_over_several_clips_give_what_one_by_one_gives(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, [(6, 48), (40, 48), (5, 64), (1, 48), (7, 64), (23, 48)])
    link = run(tasks, Device())
    assert {outcome.status for outcome in link.results.values()} == {"done"}
    assert [link.results[i].flows for i in range(6)] == [10, 78, 8, 0, 12, 44]
    assert_same_as_one_by_one(tasks, tmp_path / "alone")


def test_waiting_clips_of_one_size_share_a_batch(tmp_path: Path) -> None:
    device = Device(batch_pairs=1000, seconds=0.2)
    run(tasks_of(tmp_path, [(4, 48)] * 12), device, threads=6)
    assert sum(device.calls) == 12 * 6
    assert max(device.calls) > 6


@pytest.mark.parametrize("memory", [1, 2, 3, 11])
def test_too_little_memory_halves_the_batch_and_changes_nothing(tmp_path: Path, memory: int) -> None:
    tasks = tasks_of(tmp_path, [(9, 48), (6, 48)])
    device = Device(memory=memory)
    link = run(tasks, device)
    assert {outcome.status for outcome in link.results.values()} == {"done"}
    assert max(device.calls) <= memory
    assert_same_as_one_by_one(tasks, tmp_path / "alone")


def test_a_single_pair_too_large_for_the_device_costs_its_clip(tmp_path: Path) -> None:
    link = run(tasks_of(tmp_path, [(3, 48)]), Device(memory=0))
    assert link.results[0].status == "failed"
    assert "DeviceMemoryError: 1 pairs" in link.results[0].reason


def test_an_error_of_one_clip_costs_that_clip(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, [(6, 48), (6, 64), (6, 48), (90, 64), (6, 48)])
    tasks[2].path.write_bytes(b"no video")
    link = run(tasks, Device(refuses=64))
    assert [link.results[i].status for i in range(5)] == ["done", "failed", "failed", "failed", "done"]
    assert "a kernel failed" in link.results[1].reason
    assert "is not a video" in link.results[2].reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.h5", "4.h5"]


def test_what_is_done_is_skipped(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, [(4, 48), (5, 48)])
    run(tasks[:1], Device())
    link = run(tasks, Device())
    assert [link.results[i].status for i in range(2)] == ["skipped", "done"]


def test_pieces_are_bounded_whatever_the_length_of_the_video(tmp_path: Path) -> None:
    device = Device(batch_pairs=8)
    link = run(tasks_of(tmp_path, [(120, 32)]), device)
    assert link.results[0].flows == 238
    assert max(device.calls) <= 8


def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    """Levels of the 280 more frames, both directions, would be 21 MB."""
    method = load("dis", preset="ultrafast")
    peaks = []
    for frames in (40, 40, 320):
        path = clip(tmp_path / f"{frames}.avi", frames=frames, width=160, height=120)
        task = VideoTask(f"c/{frames}", path, tmp_path / f"out/{len(peaks)}.h5")
        tracemalloc.start()
        assert make(0, task, SETTINGS, method, "cpu").outcome.frames == frames
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 8e6  # a block of COPY_BLOCK while streams are copied
