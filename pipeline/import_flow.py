"""Shards of flow that other tools left as images: `python -m pipeline import-flow`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.codec import Codec, Levels, Quantised, codec, dequantise, field_quantiser, image_size
from pipeline.errors import DiskFull, InputError, command_errors
from pipeline.export import inside
from pipeline.manifest import Facts, Stamp, record
from pipeline.options import CONTEXT, REQUIRED, DataOptions, argument, from_options, option, options_of
from pipeline.outcome import Outcome, OutcomeLog
from pipeline.paths import DatasetPaths, data_root
from pipeline.progress import progress
from pipeline.request import Request, request_of
from pipeline.shard import SUFFIX, Source, open_shard
from pipeline.shard_writer import ShardWriter
from pipeline.text import printable, some

FLOW_IMAGE = re.compile(r"flow_(?P<component>[xy])_(?P<number>\d+)\.(?:jpe?g|png)", re.IGNORECASE)
FRAME_IMAGE = re.compile(r"(?:img|image)_(?P<number>\d+)\.jpe?g", re.IGNORECASE)
LARGEST_IMAGE_FILE = 1 << 28


def flow_folders(root: Path) -> dict[str, Path]:
    """Folders of flow images at or below `root` by the video they stand for: their path from `root`, or its name."""
    folders = {}
    below = []
    for parent, names, _ in os.walk(root, onerror=_unreadable):
        # A link to a folder is looked into, but not below it.
        below += [Path(parent), *(path for name in names if (path := Path(parent, name)).is_symlink())]
    for folder in sorted(below):
        if not atomic.is_temporary(folder.name) and any(
            FLOW_IMAGE.fullmatch(path.name) for path in folder.iterdir()
        ):
            folders[root.name if folder == root else folder.relative_to(root).as_posix()] = folder
    return folders


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def image_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The (x, y) images of a folder in order.

    Raises:
        InputError: an x without its y or the other way, a number twice, or a gap in the numbers.
    """
    found: dict[str, dict[int, Path]] = {"x": {}, "y": {}}
    for path in sorted(folder.iterdir()):
        if match := FLOW_IMAGE.fullmatch(path.name):
            images, number = found[match["component"].lower()], int(match["number"])
            if number in images:
                raise InputError(f"{path}: the same number as {images[number].name}; remove one of them")
            images[number] = path
    unpaired = sorted(found["x"].keys() ^ found["y"].keys())
    if unpaired:
        raise InputError(
            f"{folder}: expected an x and a y image of each number, found only one for {some(map(str, unpaired))}"
        )
    numbers = sorted(found["x"])
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if numbers[0] > 1 or missing:
        missing = missing or list(range(numbers[0]))
        raise InputError(
            f"{folder}: expected numbers from 0 or 1 without gaps, missing {some(map(str, missing))}"
        )
    return [(found["x"][number], found["y"][number]) for number in numbers]


def frame_images(folder: Path) -> list[Path]:
    """The RGB frames of a folder in the order of their numbers, which may be none."""
    matches = [(FRAME_IMAGE.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted((int(match["number"]), path) for match, path in matches if match)]


def read_gray(path: Path) -> Levels:
    """A gray image uint8[H,W]; InputError if it cannot be decoded or its file is far too large for one."""
    import cv2

    if path.stat().st_size > LARGEST_IMAGE_FILE:
        raise InputError(f"{path}: {path.stat().st_size} bytes is too much for a flow image")
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE) if path.stat().st_size else None
    if image is None:
        raise InputError(
            f"{path}: expected a JPEG or PNG image, found {path.stat().st_size} bytes that are none"
        )
    return np.asarray(image, np.uint8)


def exact_codec(bound: float) -> Codec:
    """Keeps imported bytes as they are: the literature's table, coded without loss."""
    return Codec(field_quantiser(bound), "png", None)


@dataclass(frozen=True, kw_only=True)
class ImportFlowOptions(DataOptions):
    """Which images to import, what they mean, and where the shards go."""

    folders: tuple[Path, ...] = argument(REQUIRED, metavar="FOLDERS...", multiple=True)
    bound: float = option(
        REQUIRED, "Pixels that level 255 stands for in the images.", minimum=0.01, maximum=10000
    )
    output: Path | None = option(None, "Folder for the shards, one per video below it.")
    dataset: str | None = option(
        None, "Make them a shard set of this dataset, instead of --output.", metavar="NAME"
    )
    shards: str = option(
        "imported", "Name of the shard set, with --dataset.", metavar="NAME", replaces="--set"
    )
    preset: Literal["default", "high-fidelity", "linear", "paper"] | None = option(
        None, "Recode, smaller but not exact.", shown_default="the images' bytes exactly"
    )
    fps: float = option(25.0, "Frames per second of the videos.", above=0)
    step: int = option(1, "Frames between the two of a pair.", minimum=1)
    direction: Literal["forward", "backward"] = option("forward", "Direction of the flow.")
    overwrite: bool = option(False, "Replace shards that were made with other options.")

    def __post_init__(self) -> None:
        if (self.output is None) == (self.dataset is None):
            raise click.UsageError("give either --output FOLDER or --dataset NAME")

    @property
    def codec(self) -> Codec:
        """The codec of the shards."""
        return codec(self.preset) if self.preset else exact_codec(self.bound)


class Images(NamedTuple):
    """The images of one video.

    Attributes:
        pairs: (x, y) files of each flow, in order.
        frames: files of the RGB frames, which may be none.
        height, width: of all of them, in pixels.
    """

    pairs: list[tuple[Path, Path]]
    frames: list[Path]
    height: int
    width: int

    @property
    def bytes(self) -> int:
        """Of all the files together."""
        files = [*(image for pair in self.pairs for image in pair), *self.frames]
        return sum(file.stat().st_size for file in files)


def images_of(folder: Path, step: int) -> Images:
    """The flow images and frames of a folder.

    Raises:
        InputError: images missing, or a number of frames that does not fit that of the flows at that step.
    """
    pairs, frames = image_pairs(folder), frame_images(folder)
    if frames and len(frames) - len(pairs) not in (0, step):
        raise InputError(
            f"{folder}: expected as many frames as flows, or {step} more (--step), found {len(frames)} frames "
            f"and {len(pairs)} flows"
        )
    height, width = read_gray(pairs[0][0]).shape
    return Images(pairs, frames, height, width)


def request_for(images: Images, options: ImportFlowOptions) -> Request:
    """What a shard of these images must match to count as imported already."""
    coding = options.codec
    return Request(
        source_bytes=images.bytes,
        directions=(options.direction,),
        method="imported",
        parameters={"bound": options.bound},
        step=options.step,
        quantiser=coding.quantiser.name,
        image=coding.image,
        quality=coding.quality,
        frames=bool(images.frames),
        frames_quality=95 if images.frames else None,
    )


def import_folder(
    folder: Path, video: str, path: Path, options: ImportFlowOptions
) -> tuple[Stamp, Facts] | None:
    """Make the shard `path` of a folder of flow images (and frames); None if it is there already, made the same way.

    Args:
        folder: with flow_x_*, flow_y_* and perhaps img_* images, numbered from 0 or 1.
        video: the shard's video id.
        path: the shard.
        options: what the images mean, and how they are stored.

    Returns:
        What the set's manifest records of the shard.

    Raises:
        InputError: images missing or of different sizes, or a different shard is there.
    """
    images = images_of(folder, options.step)
    request = request_for(images, options)
    if path.exists() and not options.overwrite:
        with open_shard(path) as shard:
            differences = request.differences(request_of(shard))
        if differences:
            raise InputError(
                f"{path}: is there, but made with other options ({'; '.join(differences)}); use --overwrite or "
                "another --output"
            )
        return None
    digest = hashlib.sha256()
    with ShardWriter(path, request, options.codec) as writer:
        for pair in images.pairs:
            levels = np.stack(
                [read_gray_of_size(image, images.height, images.width, digest) for image in pair]
            )
            writer.add_flows(options.direction, requantise(levels[None], options))
        for picture in images.frames:
            data = picture.read_bytes()
            digest.update(data)
            writer.add_streams("frames", [frame_stream(picture, data, images.height, images.width)])
        return writer.finish(
            video=video,
            source=Source(request.source_bytes, digest.hexdigest(), images.width, images.height),
            fps=options.fps,
            frames=len(images.frames) or len(images.pairs) + options.step,
            width=images.width,
            height=images.height,
        )


def read_gray_of_size(path: Path, height: int, width: int, digest: Any) -> Levels:
    """An image that must have the size of the first; its file goes into the digest."""
    image = read_gray(path)
    if image.shape != (height, width):
        raise InputError(
            f"{path}: expected {width}x{height} as the first image, found {image.shape[1]}x{image.shape[0]}"
        )
    digest.update(path.read_bytes())
    return image


def requantise(levels: Levels, options: ImportFlowOptions) -> Quantised:
    """Imported levels uint8[n,2,H,W] as they are, or through the quantiser of the wanted preset."""
    count = len(levels)
    ones, zeros = np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32)
    flow = dequantise(levels, field_quantiser(options.bound).table, ones, zeros)
    if options.preset is not None:
        return options.codec.quantiser.quantise(flow)
    mean = flow.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
    return Quantised(levels, ones, zeros, mean, np.zeros(count, np.float32))


def frame_stream(path: Path, data: bytes, height: int, width: int) -> bytes:
    """A frame's JPEG as it is; InputError unless it has the flow's size."""
    try:
        found = image_size(data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if found != (height, width):
        raise InputError(f"{path}: expected {width}x{height} as the flow, found {found[1]}x{found[0]}")
    return data


@click.command(context_settings=CONTEXT)
@options_of(ImportFlowOptions)
@command_errors
def command(**values: Any) -> None:
    """Make shards from folders of flow images.

    Looks in and below FOLDERS for flow_x_*.jpg and flow_y_*.jpg (TSN or denseflow names, JPEG or PNG), with img_*.jpg
    beside them if there are frames. The path below a given folder becomes the video's name. Bytes are kept exactly.
    """
    options = from_options(ImportFlowOptions, values)
    known = load_dataset(options.dataset, options.data).videos if options.dataset else None
    found = videos_of(options.folders)
    log = None
    if options.dataset:
        log = OutcomeLog(DatasetPaths(data_root(options.data), options.dataset).outcomes("import-flow"))
    failed = there = 0
    written: dict[str, tuple[Stamp, Facts]] = {}
    for video, folder in progress(list(found.items()), "import"):
        try:
            if known is not None and video not in known:
                raise InputError(
                    f"{folder}: {video!r} is not a video of {options.dataset}; give the folder that holds its classes"
                )
            path = shard_path(video, options)
            made = import_folder(folder, video, path, options)
            if made is None:
                there += 1
                continue
            written[video] = made
            if log is not None:
                log.append(outcome_of(video, path, options))
        except DiskFull:
            raise
        except InputError as error:
            failed += 1
            click.echo(f"failed: {printable(str(error))}", err=True)
    record(set_folder(options), written)
    click.echo(f"{len(found) - there - failed} imported, {there} there already, {failed} failed")
    if failed:
        sys.exit(1)


def videos_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders of flow images at or below the given ones, by video.

    Raises:
        InputError: none, or two that would be the same video.
    """
    found: dict[str, Path] = {}
    for root in folders:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of flow images")
        for video, folder in flow_folders(root).items():
            if found.setdefault(video, folder) != folder:
                raise InputError(
                    f"{folder}: would be the same video {video!r} as {found[video]}; import them apart"
                )
    if not found:
        raise InputError(f"{some(map(str, folders))}: expected flow_x_00001.jpg and the like, found none")
    return found


def shard_path(video: str, options: ImportFlowOptions) -> Path:
    """Where the shard of a video goes; InputError where its name would lead out of that folder."""
    if options.output is not None:
        return inside(options.output, video + SUFFIX)
    return DatasetPaths(data_root(options.data), str(options.dataset)).shard(options.shards, video)


def set_folder(options: ImportFlowOptions) -> Path:
    """The folder below which the shards go."""
    if options.output is not None:
        return options.output
    return DatasetPaths(data_root(options.data), str(options.dataset)).shards(options.shards)


def outcome_of(video: str, path: Path, options: ImportFlowOptions) -> Outcome:
    """The record of an imported shard, which `status` reads."""
    with open_shard(path) as shard:
        flows = shard.flow_count(options.direction)
    size = path.stat().st_size
    return Outcome(video, "done", flows=flows, bytes=size, method="imported", shard_set=options.shards)
