"""The videos that `predict` and `features` are given: files, folders, lists, or a dataset's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from evaluate.new_shards import NewVideo
from extract_flow.extraction import find_videos
from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from pipeline.options import DatasetOptions
from pipeline.paths import OutputPaths


def given_videos(paths: Sequence[Path], distinct: bool) -> list[NewVideo]:
    """The videos that paths name; each is called by its path, its files as `extract_flow --output` calls its shard.

    Args:
        paths: files, folders of pictures, and folders of both.
        distinct: identities must differ; the videos are then sorted by them, else in the order given.

    Raises:
        InputError: no such path, a folder without videos, or identities that do not differ.
        click.UsageError: a video is named twice.
    """
    below = OutputPaths(Path())
    if distinct:
        found = find_videos(paths, below)
    else:
        found = [task for path in paths for task in find_videos([path], below)]
        if len({task.path for task in found}) != len(found):
            raise click.UsageError("a VIDEO is named twice")
    return [NewVideo(str(task.path), task.path, task.video) for task in found]


def dataset_videos(options: DatasetOptions) -> list[NewVideo]:
    """Every video of the dataset that --dataset names, by its identity; those without a file are left out.

    Raises:
        InputError: no such dataset, or no video of it is there.
    """
    assert options.dataset is not None
    dataset = load_dataset(options.dataset, options.data)
    videos = [
        NewVideo(video.id, video.path, video.id) for video in dataset.videos.values() if video.path.exists()
    ]
    if not videos:
        raise InputError(f"{dataset.name}: none of its {len(dataset.videos)} videos is there")
    return sorted(videos, key=lambda video: video.name)
