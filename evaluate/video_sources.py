"""The videos that `predict` and `features` are given: files, folders, lists, or a dataset's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from evaluate.new_shards import NewVideo
from evaluate.options import NewVideoOptions
from extract_flow.clip import VideoTask
from extract_flow.sources import find_videos
from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from pipeline.options import DatasetOptions
from pipeline.paths import OutputPaths


def given_videos(paths: Sequence[Path], options: NewVideoOptions, distinct: bool) -> list[NewVideo]:
    """The videos that paths and lists name; each is called by its path, its files as `extract_flow` calls its shard.

    Args:
        paths: files, folders of pictures, folders of both, and `@FILE` for a list of them.
        options: further lists, and how folders are read.
        distinct: identities must differ; the videos are then sorted by them, else in the order given.

    Raises:
        InputError: no such path, a folder without videos, or identities that do not differ.
        click.UsageError: a video is named twice.
    """

    def found_in(some_paths: Sequence[Path], lists: Sequence[Path], keep_suffix: bool) -> list[VideoTask]:
        return find_videos(
            some_paths,
            OutputPaths(Path()),
            lists=lists,
            follow_links=options.follow_links,
            keep_suffix=keep_suffix,
        )

    if distinct:
        found = found_in(paths, options.list, options.keep_suffix)
    else:
        found = [task for path in paths for task in found_in([path], [], True)]
        found += [task for path in options.list for task in found_in([], [path], True)]
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
