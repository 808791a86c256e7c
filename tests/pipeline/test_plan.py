"""Shares of work: every video in exactly one, the same everywhere, and even."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline import catalog, plan
from pipeline.catalog import Dataset, Video
from pipeline.errors import InputError


def videos(frames: list[int | None], size: tuple[int, int] | None = (4, 3)) -> list[Video]:
    width, height = size or (None, None)
    return [
        Video(f"a/{index:05d}", Path(f"a/{index}"), "a", "g", count, width, height)
        for index, count in enumerate(frames)
    ]


def loads(parts: list[list[Video]]) -> list[int]:
    return [sum(video.frames or 0 for video in part) for part in parts]


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_video_is_in_one_share_whatever_their_order(
    frames: list[int], tasks: int, shuffle: random.Random
) -> None:
    every = videos(list(frames))
    parts = plan.shares(every, tasks)
    assert sorted(video.id for part in parts for video in part) == [video.id for video in every]
    shuffle.shuffle(every)
    assert plan.shares(every, tasks) == parts
    assert [plan.share(every, task, tasks) for task in range(tasks)] == parts


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 9))
def test_the_largest_share_obeys_grahams_bound(frames: list[int], tasks: int) -> None:
    # Graham 1966: a list plan never exceeds the mean share plus what the longest job can hang over.
    largest = max(loads(plan.shares(videos(list(frames)), tasks)))
    assert max(sum(frames) / tasks, max(frames)) <= largest + 1e-9
    assert largest <= sum(frames) / tasks + max(frames) * (1 - 1 / tasks) + 1e-9


def test_pixels_count_as_much_as_frames() -> None:
    small = Video("a/small", Path("s"), "a", "g", 100, 10, 10)
    large = Video("a/large", Path("l"), "a", "g", 100, 40, 10)
    assert plan.costs([small, large]) == {"a/small": 10_000, "a/large": 40_000}
    many = [Video(f"a/{index}", Path("s"), "a", "g", 100, 10, 10) for index in range(4)]
    assert sorted(map(len, plan.shares([large, *many], 2))) == [1, 4]


def test_what_is_not_known_counts_as_the_median() -> None:
    known = videos([10, 20, 30])
    unknown = Video("a/x", Path("x"), "a", "g")
    assert plan.costs([*known, unknown])["a/x"] == 20 * 12
    assert set(plan.costs(videos([None, None], None)).values()) == {1}


def test_more_tasks_than_videos_leave_some_without_work() -> None:
    assert sorted(map(len, plan.shares(videos([5, 6]), 4))) == [0, 0, 1, 1]


@pytest.mark.parametrize(("task", "tasks"), [(-1, 4), (4, 4), (0, 0), (1, 0)])
def test_a_task_outside_the_array_is_an_error(task: int, tasks: int) -> None:
    with pytest.raises(InputError, match="expected"):
        plan.share(videos([1, 2]), task, tasks)


@pytest.mark.realdata
@pytest.mark.parametrize(("tasks", "most"), [(8, 1.01), (64, 1.01), (1000, 1.1)])
def test_shares_of_ucf101_are_even(test_data: Path, tasks: int, most: float) -> None:
    lines = (test_data / "splits/ucf101/flow_counts.tsv").read_text().splitlines()[1:]
    shares = loads(plan.shares(videos([int(line.split("\t")[1]) for line in lines], (320, 240)), tasks))
    assert len(lines) == 13_320
    assert max(shares) <= most * sum(shares) / tasks


def test_the_command_lists_a_tasks_videos_and_tells_how_even_the_plan_is(tmp_path: Path) -> None:
    every = {video.id: video for video in videos([10, 10, 10, 90])}
    made = Dataset(
        "mine", ("a",), {k: Video(k, tmp_path / k, "a", "g", v.frames) for k, v in every.items()}, {}
    )
    catalog.save(made, tmp_path, tmp_path)
    call = ["--dataset", "mine", "--data", str(tmp_path), "--tasks", "2"]
    told = CliRunner().invoke(plan.command, call)
    assert told.exit_code == 0
    assert "4 videos over 2 tasks: 1 to 3 videos each" in told.output
    assert "largest share 1.500 times the mean" in told.output
    assert "a/00003, is 1.500 times the mean" in told.output
    listed = CliRunner().invoke(plan.command, [*call, "--task", "0"])
    assert listed.output.split() == ["a/00003"]
    assert CliRunner().invoke(plan.command, [*call, "--task", "2"]).exit_code == 1
