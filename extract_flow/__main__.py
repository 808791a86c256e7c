"""python -m extract_flow: frames and optical flow of videos, one shard for each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from extract_flow.methods import module
from extract_flow.options import ExtractionOptions, MethodCommand, SourceOptions
from pipeline import start
from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT, from_options, given_values, options_of

if TYPE_CHECKING:
    from extract_flow.clip import VideoTask
    from extract_flow.extraction import Destination
    from pipeline.catalog import Dataset

STAGE = "extract_flow"
STOPPED = 128


@click.command(cls=MethodCommand, context_settings=CONTEXT)
@options_of(ExtractionOptions)
@command_errors
def main(**values: Any) -> None:
    """Frames and optical flow of videos, one shard (HDF5 file) for each.

    Either VIDEO_OR_FOLDER... with --output DIR: video files, folders that hold them at any depth, folders of numbered
    pictures, each of which counts as a video, and @FILE for a list of them. Or --dataset NAME. Videos whose shards
    exist already are skipped, so the same command resumes after an interruption.
    """
    options = from_options(ExtractionOptions, values)
    parameters = given_values(module(options.shards.method).Parameters, values)

    from extract_flow.extraction import (
        Stopped,
        check_one_way,
        extract,
        failure_report,
        known_outcomes,
        summary_lines,
    )
    from extract_flow.settings import ExtractionSettings
    from pipeline.catalog import SHORT_SIDE, load_dataset
    from pipeline.manifest import read_shard_set

    source = options.source
    dataset = load_dataset(source.dataset, source.data) if source.dataset else None
    settings = ExtractionSettings.from_options(
        options.shards, parameters, dataset.short_side if dataset else SHORT_SIDE
    )
    everything, videos, destination = _work(source, dataset, options.shards.method)
    there = read_shard_set(destination.shards)
    if dataset is not None:  # an --output folder may hold anything
        check_one_way(everything, there, settings, options.execution, destination)
    try:
        known = known_outcomes(videos, settings, options.execution, destination, there)
        failed = [outcome for outcome in known.outcomes.values() if outcome.status == "failed"]
        reported = (
            failed if len(known.outcomes) < len(videos) else []
        )  # else the summary, which follows at once, names them
        for line in failure_report(reported, destination, "before"):
            print(line, file=sys.stderr, flush=True)
        outcomes = extract(videos, settings, options.execution, destination, known)
    except Stopped as stopped:
        print(f"{stopped}: finished videos are kept; the same command resumes", file=sys.stderr)
        sys.exit(STOPPED + stopped.number)
    for line in summary_lines(outcomes, settings, destination, reported):
        print(line)
    if any(outcome.status == "failed" for outcome in outcomes):
        sys.exit(1)


def _work(
    source: SourceOptions, dataset: Dataset | None, method: str
) -> tuple[list[VideoTask], list[VideoTask], Destination]:
    """The videos of all tasks, this task's share of them, and where their shards go."""
    from extract_flow.clip import VideoTask
    from extract_flow.extraction import Destination
    from extract_flow.sources import find_videos
    from pipeline.paths import DatasetPaths, OutputPaths, data_root
    from pipeline.plan import share

    if dataset is not None:
        paths = DatasetPaths(data_root(source.data), dataset.name)
        shard_set = source.shards or method
        tasks = {
            video.id: VideoTask(video.id, video.path, paths.shard(shard_set, video.id))
            for video in dataset.videos.values()
        }
        videos = [tasks[video.id] for video in share(dataset.videos.values(), source.task, source.tasks)]
        return (
            list(tasks.values()),
            videos,
            Destination(paths.shards(shard_set), paths.outcomes(STAGE), shard_set, source.task),
        )
    assert source.output is not None
    if source.output.exists() and not source.output.is_dir():
        raise InputError(
            f"{source.output}: expected a folder for the shards, found a file; name another --output"
        )
    below = OutputPaths(source.output)
    found = find_videos(
        source.videos,
        below,
        lists=source.list,
        follow_links=source.follow_links,
        keep_suffix=source.keep_suffix,
    )
    videos = found[source.task :: source.tasks]
    return found, videos, Destination(source.output, below.outcomes, task=source.task)


if __name__ == "__main__":
    start.run(main, "python -m extract_flow")
