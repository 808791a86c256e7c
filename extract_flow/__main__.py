"""python -m extract_flow: frames and optical flow of videos, one shard for each."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Any

import click

from extract_flow.methods import MODULES
from extract_flow.options import MethodCommand, given_parameters
from pipeline.errors import InputError, command_errors

STAGE = "extract_flow"
STOPPED = 128


class ShortSide(click.ParamType):
    """A number of pixels, or "none"."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or "none"."""
        if value == "none" or isinstance(value, int):
            return value
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is neither a number of pixels nor none", param, ctx)


class FrameSize(click.ParamType):
    """Width and height as in 340x256."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(width, height)."""
        match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", str(value))
        if match is None:
            self.fail(f"{value!r} is no size: write it as 340x256", param, ctx)
        return int(match[1]), int(match[2])


@click.command(
    cls=MethodCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.argument("videos", nargs=-1, type=click.Path(path_type=Path), metavar="[VIDEO_OR_FOLDER]...")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the shards of VIDEO_OR_FOLDER...")
@click.option("--dataset", help="A known dataset instead of videos (python -m pipeline datasets).")
@click.option(
    "--data", type=click.Path(path_type=Path), help="The data root [default: $TWO_STREAM_DATA, else ./data]."
)
@click.option(
    "--set", "shard_set", help="Name of the set of shards in the dataset [default: the method's name]."
)
@click.option(
    "--task", type=int, default=0, show_default=True, help="Which of --tasks shares of the work this is."
)
@click.option(
    "--tasks",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Into how many shares it is split.",
)
@click.option(
    "--method", type=click.Choice(list(MODULES)), default="tvl1", show_default=True, help="Flow method."
)
@click.option("--preset", help="A named set of the method's options; single options go over it.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto (a usable GPU, else the CPU), cpu, cuda or cuda:N.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="CPU cores to use: worker processes on a CPU, threads that decode and encode on GPUs, which have one process "
    "each [default: all usable ones].",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of each process's method on a CPU.",
)
@click.option(
    "--direction",
    type=click.Choice(["forward", "backward", "both"]),
    default="forward",
    show_default=True,
    help="Flow to the later frame, to the earlier one, or both.",
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Frames between the two of a pair.",
)
@click.option("--rgb/--no-rgb", default=True, show_default=True, help="Store RGB frames beside the flow.")
@click.option(
    "--short-side",
    type=ShortSide(),
    help="Smaller side of frames and flow; none keeps the source's size. [default: the dataset's, usually 256]",
)
@click.option("--size", type=FrameSize(), help="Exact size instead of --short-side.")
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Keep each Nth frame."
)
@click.option(
    "--start", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Second to begin at."
)
@click.option(
    "--end",
    type=click.FloatRange(min=0, min_open=True),
    help="Second to end before [default: the video's end].",
)
@click.option(
    "--codec",
    "codec_preset",
    default="default",
    show_default=True,
    help="How flow is stored: default, high-fidelity, linear, paper, field or lossless.",
)
@click.option("--bound", type=float, help="Largest flow component in pixels [default: 20].")
@click.option("--quality", type=click.IntRange(1, 100), help="JPEG quality of flow [default: the codec's].")
@click.option(
    "--rgb-quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="JPEG quality of frames.",
)
@click.option(
    "--on-corrupt",
    type=click.Choice(["fail", "keep"]),
    default="fail",
    show_default=True,
    help="A video that cannot be decoded to its end fails, or its frames up to there are kept.",
)
@click.option("--overwrite", is_flag=True, help="Make shards anew that were made with other options.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds without a decoded frame after which a video is given up; 0 waits for ever.",
)
@command_errors
def main(
    videos: tuple[Path, ...],
    output: Path | None,
    dataset: str | None,
    data: Path | None,
    shard_set: str | None,
    task: int,
    tasks: int,
    method: str,
    preset: str | None,
    device: str,
    jobs: int | None,
    threads: int,
    direction: str,
    step: int,
    rgb: bool,
    short_side: int | str | None,
    size: tuple[int, int] | None,
    every: int,
    start: float,
    end: float | None,
    codec_preset: str,
    bound: float | None,
    quality: int | None,
    rgb_quality: int,
    on_corrupt: str,
    overwrite: bool,
    patience: float,
    **method_parameters: Any,
) -> None:
    """Frames and optical flow of videos, one shard (HDF5 file) for each.

    Either VIDEO_OR_FOLDER... with --output DIR: video files, folders that hold them at any depth, and folders of
    numbered pictures, each of which counts as a video. Or --dataset NAME. Videos whose shards are there are skipped, so
    the same command goes on after an interruption.
    """
    began = time.monotonic()
    for stream in (sys.stdout, sys.stderr):  # names may hold bytes that no encoding has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = given_parameters(method, method_parameters)
    if bool(videos) == bool(dataset):
        raise click.UsageError(
            "say what to extract: either VIDEO_OR_FOLDER... with --output DIR, or --dataset NAME"
        )
    if videos and output is None:
        raise click.UsageError("--output DIR is missing: the folder for the shards")
    if dataset and output is not None:
        raise click.UsageError(
            "--output goes with VIDEO_OR_FOLDER...; a dataset's shards go below the data root (--data)"
        )
    if videos and (data is not None or shard_set is not None):
        raise click.UsageError(
            "--data and --set go with --dataset; with VIDEO_OR_FOLDER... --output says where shards go"
        )
    if not 0 <= task < tasks:
        raise click.UsageError(f"--task {task}: expected 0 to {tasks - 1}, since there are --tasks {tasks}")

    from dataclasses import asdict

    from extract_flow import run
    from extract_flow.extract import Settings, Task
    from extract_flow.methods import resolve
    from pipeline.catalog import SHORT_SIDE, load_dataset
    from pipeline.paths import DatasetPaths, OutputPaths, data_root
    from pipeline.video import Selection

    record = load_dataset(dataset, data) if dataset else None
    usual = record.short_side if record else SHORT_SIDE
    smaller_side = usual if short_side is None else None if short_side == "none" else int(short_side)
    try:
        selection = Selection(smaller_side, size, every, start, end)
    except ValueError as error:
        raise InputError(str(error)) from error
    settings = Settings(
        method=method,
        parameters=asdict(resolve(method, preset, **given)),
        selection=selection,
        directions=("forward", "backward") if direction == "both" else (direction,),
        step=step,
        codec_preset=codec_preset,
        bound=bound,
        quality=quality,
        rgb=rgb,
        rgb_quality=rgb_quality,
        on_corrupt="keep" if on_corrupt == "keep" else "fail",
        overwrite=overwrite,
    )
    _ = settings.codec  # a wrong codec option is told before any work
    if dataset and record:
        from pipeline.plan import share

        paths = DatasetPaths(data_root(data), dataset)
        shard_set = shard_set or method
        chosen = share(record.videos.values(), task, tasks)
        work = [Task(video.id, video.path, paths.shard(shard_set, video.id)) for video in chosen]
        folder, outcomes = paths.shards(shard_set), paths.outcomes(STAGE)
    else:
        assert output is not None
        shard_set = ""
        below = OutputPaths(output)
        work = run.find_videos(videos, below)[task::tasks]
        folder, outcomes = output, below.outcomes
    how = run.Run(device, jobs, threads, patience or None, task)
    try:
        ended = run.run(work, settings, how, folder, outcomes, shard_set)
    except run.Stopped as stopped:
        print(f"{stopped}: finished videos are kept; the same command goes on", file=sys.stderr)
        sys.exit(STOPPED + stopped.number)
    for line in run.summary_lines(ended, began):
        print(line)
    if any(outcome.status == "failed" for outcome in ended):
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m extract_flow")
