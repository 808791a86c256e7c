"""Shards in other tools' layouts: `python -m pipeline export`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from pipeline import atomic
from pipeline.codec import (
    DEFAULT_BOUND,
    Floats,
    Levels,
)
from pipeline.errors import DiskFull, InputError, command_errors
from pipeline.failures import file_beside, report_failures
from pipeline.options import CONTEXT, REQUIRED, from_options, option, options_of
from pipeline.progress import Progress
from pipeline.shard import Shard, open_shard
from pipeline.shard_sets import ShardArguments, Target, gather

FLO_TAG = np.float32(202021.25).tobytes()  # "PIEH", the Middlebury format's mark
BATCH = 16


def field_levels(flow: Floats, bound: float) -> Levels:
    """The literature's bytes: cvRound(255 (v + bound) / (2 bound)), clipped to 0..255; any shape.

    Rounding is half to even, in float64 as OpenCV's cvRound has it, so that still pixels are 128.
    """
    scaled = np.rint(255 * (flow.astype(np.float64) + bound) / (2 * bound))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def write_images(shard: Shard, folder: Path, first: int, direction: str, bound: float, quality: int) -> None:
    """img_, flow_x_ and flow_y_ JPEGs with five digits, numbered from `first` (TSN: 1, denseflow: 0)."""
    write_frames(shard, folder, first)
    for index, flow in each_flow(shard, direction):
        for component, levels in zip("xy", field_levels(flow, bound), strict=True):
            write_jpeg(folder / f"flow_{component}_{first + index:05d}.jpg", levels, quality)


def write_flo(shard: Shard, folder: Path, direction: str) -> None:
    """flow_00000.flo, ... in the Middlebury format, and the frames as img_00000.jpg, ..."""
    write_frames(shard, folder, 0)
    for index, flow in each_flow(shard, direction):
        with (folder / f"flow_{index:05d}.flo").open("wb") as file:
            file.write(FLO_TAG + np.array([shard.width, shard.height], np.int32).tobytes())
            file.write(np.ascontiguousarray(flow.transpose(1, 2, 0)).tobytes())


def write_npy(shard: Shard, folder: Path, direction: str) -> None:
    """flow.npy, float32[n,2,H,W] in pixels, and frames.npy, uint8[n,H,W,3], written a piece at a time."""
    flow_shape = (len(shard.part(direction)), 2, shard.height, shard.width)
    with npy_file(folder / "flow.npy", np.float32, flow_shape) as file:
        for start in range(0, flow_shape[0], BATCH):
            file.write(shard.flows(start, min(start + BATCH, flow_shape[0]), direction).tobytes())
    if shard.has_frames:
        frame_shape = (shard.frame_count, shard.height, shard.width, 3)
        with npy_file(folder / "frames.npy", np.uint8, frame_shape) as file:
            for start in range(0, shard.frame_count, BATCH):
                file.write(shard.frames(start, min(start + BATCH, shard.frame_count)).tobytes())


def npy_file(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A file in NumPy's format with its header written, to which the values go."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    return file


def write_frames(shard: Shard, folder: Path, first: int) -> None:
    """The frames' JPEGs as the shard holds them, bit for bit."""
    if shard.has_frames:
        for index in range(shard.frame_count):
            (folder / f"img_{first + index:05d}.jpg").write_bytes(
                shard.streams(index, index + 1, "frames")[0]
            )


def each_flow(shard: Shard, direction: str) -> Any:
    """(index, flow float32[2,H,W]) of each flow, decoded a few at a time."""
    count = len(shard.part(direction))
    for start in range(0, count, BATCH):
        yield from enumerate(shard.flows(start, min(start + BATCH, count), direction), start)


def write_jpeg(path: Path, image: Levels, quality: int) -> None:
    """A gray JPEG as OpenCV writes it, which is what the field's tools do."""
    import cv2

    done, stream = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise InputError(f"{path}: flow of {image.shape[1]}x{image.shape[0]} cannot be written as JPEG")
    path.write_bytes(stream.tobytes())


Layout = Literal["tsn", "denseflow", "flo", "npy"]
FIRST_NUMBER = {"tsn": 1, "denseflow": 0}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ShardArguments):
    """Which shards to write, where and how."""

    output: Path = option(REQUIRED, "Folder in which a folder per video is made.")
    layout: Layout = option(REQUIRED, "File names and formats of which tool.")
    direction: Literal["forward", "backward"] = option("forward", "Direction of flow.")
    bound: float | None = option(
        None, "tsn, denseflow: pixels of level 255.", above=0, shown_default=f"{DEFAULT_BOUND:g}"
    )
    quality: int | None = option(
        None, "tsn, denseflow: of the flow JPEGs.", minimum=1, maximum=100, shown_default="95"
    )
    overwrite: bool = option(False, "Replace folders that are there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in FIRST_NUMBER and (self.bound is not None or self.quality is not None):
            raise click.UsageError(
                f"--bound and --quality go with tsn and denseflow: {self.layout} holds float32 pixels"
            )


def write_layout(shard: Shard, folder: Path, options: ExportOptions) -> None:
    """Everything of one shard in the wanted layout, into an empty folder."""
    if options.layout == "flo":
        write_flo(shard, folder, options.direction)
    elif options.layout == "npy":
        write_npy(shard, folder, options.direction)
    else:
        bound, quality = options.bound or DEFAULT_BOUND, options.quality or 95
        write_images(shard, folder, FIRST_NUMBER[options.layout], options.direction, bound, quality)


def export_shard(target: Target, options: ExportOptions) -> bool:
    """Write one shard as the folder `output/<video>`; False if it is there already and may not be overwritten."""
    with open_shard(target.address) as shard:
        folder = inside(options.output, shard.video)
        if folder.exists() and not options.overwrite:
            return False
        with atomic.writing_folder(folder) as temporary:
            write_layout(shard, temporary, options)
    return True


def inside(root: Path, video: str) -> Path:
    """`root/video`, or InputError where a shard's video would lead out of `root`."""
    parts = video.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InputError(f"{video!r} is not a valid video id: it would lead out of {root}")
    return root.joinpath(*parts)


@click.command(context_settings=CONTEXT)
@options_of(ExportOptions)
@command_errors
def command(**values: Any) -> None:
    """Write shards in another tool's layout.

    tsn: img_00001.jpg, flow_x_00001.jpg, flow_y_00001.jpg, counted from 1. denseflow: the same from 00000. Flow is
    mapped as the field does, round(255 (v + bound) / (2 bound)). flo: Middlebury files; npy: one float32 array
    per video.
    """
    options = from_options(ExportOptions, values)
    found = gather(options)
    atomic.sweep(options.output)
    there = 0
    failed: list[tuple[str, str]] = []
    with Progress("export", len(found)) as shown, shown.compiling():
        for target in found:
            before = len(failed)
            try:
                there += not export_shard(target, options)
            except DiskFull:
                raise
            except InputError as error:
                failed.append((target.video or str(target.address), str(error)))
            shown.advance(failed=len(failed) > before)
    for line in report_failures(failed, file_beside(options.output)):
        click.echo(line, err=True)
    done = len(found) - there - len(failed)
    click.echo(
        f"{options.output}: {done} exported, {there} there already (--overwrite replaces them), {len(failed)} failed"
    )
    if failed:
        sys.exit(1)
