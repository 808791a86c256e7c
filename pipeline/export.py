"""Shards in other tools' layouts: `python -m pipeline export`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.codec import (
    DEFAULT_BOUND,
    Floats,
    Levels,
)
from pipeline.errors import DiskFull, InputError, command_errors
from pipeline.failures import file_beside, report_failures
from pipeline.frame_lists import Counts, counts_of_images, unreadable, write_lists
from pipeline.options import CONTEXT, REQUIRED, from_options, option, options_of
from pipeline.progress import Progress
from pipeline.shard import Shard
from pipeline.shard_file import leads_elsewhere
from pipeline.shard_sets import ShardArguments, Target, gather
from pipeline.text import many, printable, size_in_bytes, typed

FLO_TAG = np.float32(202021.25).tobytes()  # "PIEH", the Middlebury format's mark
BATCH = 16


def field_levels(flow: Floats, bound: float) -> Levels:
    """The literature's bytes: cvRound(255 (v + bound) / (2 bound)), clipped to 0..255; any shape.

    Rounding is half to even, in float64 as OpenCV's cvRound has it, so that still pixels are 128.
    """
    scaled = np.rint(255 * (flow.astype(np.float64) + bound) / (2 * bound))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def write_images(shard: Shard, folder: Path, first: int, direction: str, bound: float, quality: int) -> None:
    """flow_x_ and flow_y_ JPEGs with five digits, numbered from `first` (TSN: 1, denseflow: 0)."""
    for index, flow in each_flow(shard, direction):
        for component, levels in zip("xy", field_levels(flow, bound), strict=True):
            write_jpeg(folder / f"flow_{component}_{first + index:05d}.jpg", levels, quality)


def write_flo(shard: Shard, folder: Path, direction: str) -> None:
    """flow_00000.flo, ... in the Middlebury format."""
    for index, flow in each_flow(shard, direction):
        with (folder / f"flow_{index:05d}.flo").open("wb") as file:
            file.write(FLO_TAG + np.array([shard.width, shard.height], np.int32).tobytes())
            file.write(np.ascontiguousarray(flow.transpose(1, 2, 0)).tobytes())


def write_npy(shard: Shard, folder: Path, direction: str, dtype: type[np.floating]) -> None:
    """flow.npy, float32 or float16 [n,2,H,W] in pixels, written a piece at a time."""
    shape = (len(shard.part(direction)), 2, shard.height, shard.width)
    with npy_file(folder / "flow.npy", dtype, shape) as file:
        for start in range(0, shape[0], BATCH):
            flow = shard.flows(start, min(start + BATCH, shape[0]), direction)
            file.write(flow.astype(dtype, copy=False).tobytes())


def write_frames_npy(shard: Shard, folder: Path) -> None:
    """frames.npy, uint8[n,H,W,3] RGB, written a piece at a time."""
    with npy_file(folder / "frames.npy", np.uint8, (shard.frame_count, shard.height, shard.width, 3)) as file:
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
    for index in range(shard.frame_count):
        (folder / f"img_{first + index:05d}.jpg").write_bytes(shard.streams(index, index + 1, "frames")[0])


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
"""The layouts of images, and the number of their first image."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ShardArguments):
    """Which shards to write, where and how."""

    output: Path = option(REQUIRED, "Folder that gets a folder for each video.")
    layout: Layout = option(REQUIRED, "Tool whose file names and formats are used.")
    direction: Literal["forward", "backward"] = option("forward", "Direction of flow.")
    rgb: bool = option(True, "Write the RGB frames too, where the shard holds them.", off="no-rgb")
    float16: bool = option(False, "npy: flow in half the bytes, to three digits.")
    bound: float | None = option(
        None, "tsn, denseflow: pixels of level 255.", above=0, shown_default=f"{DEFAULT_BOUND:g}"
    )
    quality: int | None = option(
        None, "tsn, denseflow: of the flow JPEGs.", minimum=1, maximum=100, shown_default="95"
    )
    overwrite: bool = option(False, "Replace existing folders.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in FIRST_NUMBER and (self.bound is not None or self.quality is not None):
            raise click.UsageError(
                f"--bound and --quality go with tsn and denseflow: {self.layout} holds pixels as numbers"
            )
        if self.float16 and self.layout != "npy":
            raise click.UsageError(f"--float16 goes with npy: {self.layout} is written in its own format")

    @property
    def dtype(self) -> type[np.floating]:
        """Type of the flow in npy files."""
        return np.float16 if self.float16 else np.float32


def write_layout(shard: Shard, folder: Path, options: ExportOptions) -> None:
    """Everything of one shard in the wanted layout, into an empty folder."""
    if options.rgb and shard.has_frames:
        if options.layout == "npy":
            write_frames_npy(shard, folder)
        else:
            write_frames(shard, folder, FIRST_NUMBER.get(options.layout, 0))
    if options.layout == "flo":
        write_flo(shard, folder, options.direction)
    elif options.layout == "npy":
        write_npy(shard, folder, options.direction, options.dtype)
    else:
        bound, quality = options.bound or DEFAULT_BOUND, options.quality or 95
        write_images(shard, folder, FIRST_NUMBER[options.layout], options.direction, bound, quality)


class Exported(NamedTuple):
    """What was done with a shard: its video, what its folder holds of it, and whether it was written now."""

    video: str
    counts: Counts
    written: bool


def export_shard(target: Target, options: ExportOptions) -> Exported:
    """Write one shard as the folder `output/<video>`, unless that exists and may not be overwritten."""
    with target.open() as shard:
        folder = inside(options.output, shard.video)
        counts = Counts(
            shard.frame_count if options.rgb and shard.has_frames else 0, len(shard.part(options.direction))
        )
        if folder.exists() and not options.overwrite:  # perhaps with other options
            return Exported(shard.video, counts_of_images(folder), False)
        with atomic.writing_folder(folder) as temporary:
            write_layout(shard, temporary, options)
    return Exported(shard.video, counts, True)


def uncompressed_bytes(targets: Iterable[Target], options: ExportOptions) -> int:
    """Bytes that the flow, and in npy files the frames, of all folders to be written will take."""
    total = 0
    for target in targets:
        try:
            with target.open() as shard:
                if not options.overwrite and inside(options.output, shard.video).exists():
                    continue
                pixels = shard.height * shard.width
                number = 4 if options.layout == "flo" else np.dtype(options.dtype).itemsize
                total += len(shard.part(options.direction)) * 2 * pixels * number
                if options.layout == "npy" and options.rgb and shard.has_frames:
                    total += shard.frame_count * 3 * pixels
        except InputError:
            continue  # it will be reported when its turn comes
    return total


def announce_size(targets: Sequence[Target], options: ExportOptions) -> None:
    """Print how much space layouts without compression will take, before a byte is written.

    Raises:
        InputError: the disk does not have that much left.
    """
    total = uncompressed_bytes(targets, options)
    place = next(folder for folder in (options.output, *options.output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    hint = ", half of it with --float16" if options.layout == "npy" and not options.float16 else ""
    numbers = "float16" if options.float16 else "float32"
    click.echo(
        f"{printable(str(options.output))}: {size_in_bytes(total)} of {options.layout} to write, flow as {numbers}; "
        f"{size_in_bytes(free)} free on the disk"
    )
    if total > free:
        raise InputError(
            f"{options.output}: needs {size_in_bytes(total)}, and the disk has {size_in_bytes(free)} left: export "
            f"fewer videos, without their frames (--no-rgb){hint}, or choose a layout of images (tsn, denseflow)"
        )


def inside(root: Path, video: str) -> Path:
    """`root/video`, or InputError where a shard's video would lead out of `root`."""
    if leads_elsewhere(video):
        raise InputError(f"{video!r} is not a valid video id: it would lead out of {root}")
    return root / video


@click.command(context_settings=CONTEXT)
@options_of(ExportOptions)
@command_errors
def command(**values: Any) -> None:
    """Write shards in another tool's layout.

    tsn: img_00001.jpg, flow_x_00001.jpg, flow_y_00001.jpg, counted from 1. denseflow: the same from 00000. Flow is
    mapped as the field does, round(255 (v + bound) / (2 bound)). flo: Middlebury files; npy: one array per video.

    With --dataset and a layout of images, the lists of mmaction2, and of TSN for its own layout, are written beside.
    """
    options = from_options(ExportOptions, values)
    found = gather(options)
    dataset = load_dataset(options.dataset, options.data) if options.dataset else None
    if options.layout not in FIRST_NUMBER:
        announce_size(found, options)
    atomic.sweep(options.output)
    there = 0
    exported: dict[str, Counts] = {}
    failed: list[tuple[str, str]] = []
    with Progress("export", len(found)) as shown, shown.compiling():
        for target in found:
            before = len(failed)
            try:
                made = export_shard(target, options)
                exported[made.video] = made.counts
                there += not made.written
            except DiskFull:
                raise
            except InputError as error:
                failed.append((target.video or str(target.address), str(error)))
            shown.advance(failed=len(failed) > before)
    for line in report_failures(failed, file_beside(options.output)):
        click.echo(line, err=True)
    done = len(found) - there - len(failed)
    click.echo(
        f"{printable(str(options.output))}: {done} exported, {there} there already (--overwrite replaces "
        f"them), {len(failed)} failed"
    )
    if dataset is not None and failed:
        click.echo(
            "no lists were written, since they would lack what failed: repeat the command, or take damaged shards out "
            f"of the set with {typed('pipeline')} verify --dataset {dataset.name} --repair",
            err=True,
        )
    elif dataset is not None and exported and options.layout in FIRST_NUMBER:
        lists = write_lists(dataset, exported, options.output, tsn=options.layout == "tsn")
        tools = "mmaction2 and TSN" if options.layout == "tsn" else "mmaction2"
        split_up = sum(map(unreadable, exported))
        left_out = f"; {many(split_up, 'name')} with white space left out" if split_up else ""
        click.echo(printable(f"{options.output}: {many(len(lists), 'list')} for {tools}{left_out}"))
    if failed:
        sys.exit(1)
