"""Time lines: windows of seconds, each the mean of its positions, read and drawn a few frames at a time."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from made_shards import make_shard, request
from rendered_clips import write_video
from torch import Tensor

from evaluate import timeline
from evaluate.inference import Compute
from evaluate.timeline import PositionScores, TimeLine
from evaluate.views import Views
from pipeline.codec import codec
from pipeline.shard import ShardAddress, Source
from pipeline.shard_writer import ShardWriter
from pipeline.video import Selection
from train.volume_spec import VolumeSpec

FPS, FRAMES = 10.0, 120
RED, BLUE = (200, 20, 20), (20, 20, 200)
SPEC = VolumeSpec(stream="spatial", crop=16, short_side=24)
CLASSES = ("Red", "Blue")


@pytest.mark.parametrize(
    ("duration", "window", "stride", "starts", "ends"),
    [
        (10, 4, 2, [0, 2, 4, 6], [4, 6, 8, 10]),
        (9, 4, 2, [0, 2, 4, 6], [4, 6, 8, 9]),
        (3, 4, 2, [0], [3]),
        (8, 2, 4, [0, 4, 8], [2, 6, 8]),
        (0.3, 0.1, 0.1, [0, 0.1, 0.2], [0.1, 0.2, 0.3]),
    ],
)
def test_windows_begin_every_stride_until_one_reaches_the_end(
    duration: float, window: float, stride: float, starts: list[float], ends: list[float]
) -> None:
    found = timeline.windows(duration, window, stride)
    np.testing.assert_allclose(found[0], starts)
    np.testing.assert_allclose(found[1], ends)


def test_a_window_is_the_mean_of_its_positions_or_the_nearest_one() -> None:
    scores = PositionScores(np.array([0.0, 1.0, 2.0, 3.0]), np.float32([[1, 0], [0, 1], [0.5, 0.5], [0, 1]]))
    np.testing.assert_allclose(scores.mean(0, 2), [0.5, 0.5])
    np.testing.assert_allclose(scores.mean(1, 4), [1 / 6, 5 / 6])
    np.testing.assert_allclose(scores.mean(2.1, 2.4), [0.5, 0.5])
    np.testing.assert_allclose(scores.mean(8, 9), [0, 1])


def red_or_blue(crops: list[Tensor]) -> Tensor:
    """A network that sees colours: logits of red and of blue."""
    means = torch.cat(crops).mean(dim=(2, 3))
    return 4 * means[:, [0, 2]]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> ShardAddress:
    """A shard of 12 s: red for 6, then blue."""
    path = tmp_path_factory.mktemp("timeline") / "colours.h5"
    asked = dataclasses.replace(request(), directions=(), frames=True, frames_quality=95)
    frames = np.empty((FRAMES, 24, 32, 3), np.uint8)
    frames[: FRAMES // 2], frames[FRAMES // 2 :] = RED, BLUE
    with ShardWriter(path, asked, codec("default")) as writer:
        writer.add_frames(frames)
        writer.finish(
            video="a/colours", source=Source(1, "0" * 64, 32, 24), fps=FPS, frames=FRAMES, width=32, height=24
        )
    return ShardAddress(path)


def test_the_best_class_changes_when_the_video_does(shard: ShardAddress) -> None:
    positions, duration = timeline.position_scores(red_or_blue, SPEC, shard, Views(5, 10), 1.0, Compute())
    assert duration == 12.0
    np.testing.assert_allclose(positions.times, np.arange(0, 12, 0.2))
    starts, ends = timeline.windows(duration, 1.0, 0.5)
    best = [int(positions.mean(start, end).argmax()) for start, end in zip(starts, ends, strict=True)]
    middles = (starts + ends) / 2
    assert all(label == 0 for label, middle in zip(best, middles, strict=True) if middle < 6)
    assert all(label == 1 for label, middle in zip(best, middles, strict=True) if middle > 6)


def test_positions_are_read_a_few_at_a_time_and_once(
    shard: ShardAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    original = timeline.read_volumes

    def watched(opened, spec, positions):  # type: ignore[no-untyped-def]
        read.append(list(positions))
        return original(opened, spec, positions)

    monkeypatch.setattr(timeline, "read_volumes", watched)
    timeline.position_scores(red_or_blue, SPEC, shard, Views(10, 1), 1.0, Compute(batch=7))
    assert max(map(len, read)) <= 7
    assert sorted(position for part in read for position in part) == list(range(FRAMES))


def test_the_time_of_a_volume_is_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "flow.h5"
    make_shard(path, flows=20, height=24, width=32)
    spec = VolumeSpec(stream="temporal", length=4, crop=16, short_side=24)

    def forward(crops: list[Tensor]) -> Tensor:
        return torch.cat(crops).mean(dim=(2, 3))[:, :2]

    positions, _ = timeline.position_scores(forward, spec, ShardAddress(path), Views(1000, 1), 1.0, Compute())
    assert len(positions.times) == 17
    np.testing.assert_allclose(positions.times * 25, np.arange(17) + 2)


def made_line() -> TimeLine:
    starts, ends = timeline.windows(4.0, 1.0, 1.0)
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.25, 0.75]])
    return TimeLine(starts, ends, scores, CLASSES, 4.0)


def test_the_table_and_the_picture_are_written(tmp_path: Path) -> None:
    timeline.write_csv(tmp_path / "below" / "x.csv", made_line())
    with (tmp_path / "below" / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["Red", "Red", "Blue", "Blue"]
    assert [float(row["start"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[3]["Blue"]) == 0.75
    timeline.write_picture(tmp_path / "x.png", made_line(), "x")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_bars_are_as_long_as_the_scores() -> None:
    black = np.zeros((180, 200, 3), np.uint8)
    drawn = timeline.drawn(black, [("Red", 0.75), ("Blue", 0.25)], None)
    rows = np.arange(180)[drawn[:, 140].max(axis=1) > 100]
    assert len(rows) > 3, "the first bar reaches beyond 140 of 200 pixels, and no other does"
    assert (drawn[rows, 155] < 30).all(), "and ends at 150"
    assert (drawn[:120] == 0).all()
    inset = np.full((24, 32, 3), 99, np.uint8)
    corner = timeline.drawn(black, [("Red", 1.0)], inset)[:37, 150:]
    assert (corner == 99).all()


def test_the_overlay_has_every_frame_and_the_flow_of_its_moment(tmp_path: Path) -> None:
    frames = np.zeros((100, 91, 121, 3), np.uint8)
    video = write_video(tmp_path / "grey.mp4", [frame[:90, :120] for frame in frames])
    flow = tmp_path / "flow.h5"
    make_shard(flow, flows=99, height=24, width=32)
    output = tmp_path / "out.mp4"
    timeline.write_overlay(output, video, made_line(), ShardAddress(flow), Selection())
    with av.open(str(output)) as container:
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(pictures) == 100
    assert pictures[0].shape == (90, 120, 3)
    assert pictures[0][:22, 91:].mean() > 60, "flow in the corner"
    assert abs(pictures[0][:22, 91:] - pictures[60][:22, 91:]).mean() > 5, "which moves"
