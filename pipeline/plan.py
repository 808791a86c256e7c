"""How the work on a dataset splits over array tasks.

Every task computes its own share from the dataset alone, so tasks need no coordinator and no plan file: the same
dataset and number of tasks give the same shares everywhere.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from pipeline.catalog import Video, choose_dataset, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT, REQUIRED, DatasetOptions, from_options, option, options_of
from pipeline.text import many


def costs(videos: Iterable[Video]) -> dict[str, int]:
    """Work per video id: frames times pixels; where a header gives neither, the median of the others is used."""
    videos = list(videos)
    frames = [video.frames for video in videos if video.frames]
    pixels = [video.width * video.height for video in videos if video.width and video.height]
    usual_frames = int(statistics.median(frames)) if frames else 1
    usual_pixels = int(statistics.median(pixels)) if pixels else 1
    return {
        video.id: (video.frames or usual_frames)
        * (video.width * video.height if video.width and video.height else usual_pixels)
        for video in videos
    }


def shares(videos: Iterable[Video], tasks: int) -> list[list[Video]]:
    """The videos of each task, the costliest first in each.

    Longest processing time first (Graham 1969): videos in falling order of cost, each to the task with the least so
    far. Ties go by id and by task, so that the result does not depend on the order of `videos`.

    Raises:
        InputError: fewer than one task.
    """
    if tasks < 1:
        raise InputError(f"expected at least 1 task, found {tasks}")
    videos = list(videos)
    cost = costs(videos)
    loads = [(0, task) for task in range(tasks)]
    result: list[list[Video]] = [[] for _ in range(tasks)]
    for video in sorted(videos, key=lambda video: (-cost[video.id], video.id)):
        load, task = loads[0]
        result[task].append(video)
        heapq.heapreplace(loads, (load + cost[video.id], task))
    return result


def share(videos: Iterable[Video], task: int, tasks: int) -> list[Video]:
    """The videos of one task, counted from 0, of `tasks`; see `shares`.

    Raises:
        InputError: a task that is not in 0..tasks-1.
    """
    if not 0 <= task < max(tasks, 1):
        raise InputError(f"task {task} of {tasks}: expected a task from 0 to {tasks - 1}")
    return shares(videos, tasks)[task]


def describe(cost: Mapping[str, int], parts: Sequence[Sequence[Video]]) -> list[str]:
    """Lines on how even the shares are, and what prevents them from being more even."""
    loads = [sum(cost[video.id] for video in part) for part in parts]
    mean = max(sum(loads) / len(loads), 1e-9)
    lines = [
        f"{many(sum(map(len, parts)), 'video')} over {many(len(parts), 'task')}: {min(map(len, parts)):,} to "
        f"{many(max(map(len, parts)), 'video')} each",
        f"work (frames x pixels): largest share {max(loads) / mean:.3f} times the mean, "
        f"smallest {min(loads) / mean:.3f} times",
    ]
    if cost and max(cost.values()) == max(loads) > 1.01 * mean:
        longest = max(cost, key=lambda video_id: (cost[video_id], video_id))
        lines.append(
            f"the longest video alone, {longest}, is {cost[longest] / mean:.3f} times the mean: "
            "no plan with so many tasks can be more even"
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class PlanOptions(DatasetOptions):
    """Which plan to show."""

    tasks: int = option(REQUIRED, "Number of tasks that share the videos.", minimum=1)
    task: int | None = option(None, "List the videos of this task only, one a line.", minimum=0)


@click.command(context_settings=CONTEXT)
@options_of(PlanOptions)
@command_errors
def command(**values: Any) -> None:
    """Show how the work on a dataset splits over array tasks."""
    options = from_options(PlanOptions, values)
    dataset = choose_dataset(options.dataset, options.data)
    if options.dataset is None:
        click.echo(f"dataset: {dataset}", err=True)
    videos = load_dataset(dataset, options.data).videos.values()
    if options.task is not None:
        for video in share(videos, options.task, options.tasks):
            click.echo(video.id)
        return
    cost = costs(videos)
    for line in describe(cost, shares(videos, options.tasks)):
        click.echo(line)
    for what, known in (
        ("frames", [video.frames for video in videos]),
        ("the size", [video.width and video.height for video in videos]),
    ):
        if unknown := sum(not value for value in known):
            click.echo(
                f"note: {what} of {many(unknown, 'video')} not known: the median of the others is used"
            )
