"""Shards of flow that other tools left as images: `python -m pipeline import-flow`."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.codec import Codec, Levels, Quantised, codec, dequantise, field_quantiser, image_size
from pipeline.errors import InputError, command_errors
from pipeline.export import inside, progress
from pipeline.outcome import Outcome, OutcomeLog
from pipeline.paths import DatasetPaths, data_root
from pipeline.request import Request, request_of
from pipeline.shard import SUFFIX, Source, open_shard
from pipeline.shard_writer import ShardWriter
from pipeline.text import some

FLOW_IMAGE = re.compile(r"flow_(?P<component>[xy])_(?P<number>\d+)\.(?:jpe?g|png)", re.IGNORECASE)
FRAME_IMAGE = re.compile(r"(?:img|image)_(?P<number>\d+)\.jpe?g", re.IGNORECASE)
LARGEST_IMAGE_FILE = 1 << 28


def flow_folders(root: Path) -> dict[str, Path]:
    """Folders of flow images at or below `root` by the video they stand for: their path from `root`, or its name."""
    folders = {}
    for folder in sorted([root, *(path for path in root.rglob("*") if path.is_dir())]):
        if not atomic.is_temporary(folder.name) and any(
            FLOW_IMAGE.fullmatch(path.name) for path in folder.iterdir()
        ):
            folders[root.name if folder == root else folder.relative_to(root).as_posix()] = folder
    return folders


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


def import_folder(
    folder: Path,
    video: str,
    path: Path,
    bound: float,
    chosen: Codec | None,
    fps: float,
    overwrite: bool = False,
    step: int = 1,
    direction: str = "forward",
) -> bool:
    """Make the shard `path` of a folder of flow images (and frames); False if it is there already, made the same way.

    Args:
        folder: with flow_x_*, flow_y_* and perhaps img_* images, counted from 0 or 1.
        video: the shard's video id.
        path: the shard.
        bound: pixels that level 255 stands for in the images.
        chosen: recode the flow; None keeps the images' bytes exactly.
        fps: of the video, which the images do not tell.
        overwrite: replace a shard that was made differently.
        step: frames between the two of a pair, which the images do not tell.
        direction: of the flow, likewise.

    Raises:
        InputError: images missing or of different sizes, or a different shard is there.
    """
    pairs, pictures = image_pairs(folder), frame_images(folder)
    if pictures and len(pictures) - len(pairs) not in (0, step):
        raise InputError(
            f"{folder}: expected as many frames as flows, or {step} more (--step), found {len(pictures)} frames "
            f"and {len(pairs)} flows"
        )
    images = [image for pair in pairs for image in pair]
    first = read_gray(pairs[0][0])
    height, width = first.shape
    coding = chosen or exact_codec(bound)
    total = sum(image.stat().st_size for image in [*images, *pictures])
    request = Request(
        source_bytes=total,
        directions=(direction,),
        method="imported",
        parameters={"bound": bound},
        step=step,
        quantiser=coding.quantiser.name,
        image=coding.image,
        quality=coding.quality,
        frames=bool(pictures),
        frames_quality=95 if pictures else None,
    )
    if path.exists() and not overwrite:
        with open_shard(path) as shard:
            differences = request.differences(request_of(shard))
        if differences:
            raise InputError(
                f"{path}: is there, but made otherwise ({'; '.join(differences)}); use --overwrite or another --output"
            )
        return False
    digest = hashlib.sha256()
    with ShardWriter(path, request, coding) as writer:
        for x_path, y_path in pairs:
            levels = np.stack([read_gray_of_size(image, height, width, digest) for image in (x_path, y_path)])
            writer.add_flows(direction, requantise(levels[None], bound, chosen))
        for picture in pictures:
            data = picture.read_bytes()
            digest.update(data)
            writer.add_streams("frames", [frame_stream(picture, data, height, width)])
        writer.finish(
            video=video,
            source=Source(total, digest.hexdigest(), width, height),
            fps=fps,
            frames=len(pictures) or len(pairs) + step,
            width=width,
            height=height,
        )
    return True


def read_gray_of_size(path: Path, height: int, width: int, digest: Any) -> Levels:
    """An image that must have the size of the first; its file goes into the digest."""
    image = read_gray(path)
    if image.shape != (height, width):
        raise InputError(
            f"{path}: expected {width}x{height} as the first image, found {image.shape[1]}x{image.shape[0]}"
        )
    digest.update(path.read_bytes())
    return image


def requantise(levels: Levels, bound: float, chosen: Codec | None) -> Quantised:
    """Imported levels uint8[n,2,H,W] as they are, or through another codec's quantiser."""
    count = len(levels)
    ones, zeros = np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32)
    flow = dequantise(levels, field_quantiser(bound).table, ones, zeros)
    if chosen is not None:
        return chosen.quantiser.quantise(flow)
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


@click.command(name="import-flow")
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--bound", required=True, type=click.FloatRange(0.01, 10000), help="Pixels that level 255 stands for."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The folder for the shards, one per video below it."
)
@click.option("--dataset", help="Make them a set of this dataset's shards instead of --output.")
@click.option(
    "--set", "shard_set", default="imported", show_default=True, help="The set's name, with --dataset."
)
@click.option("--data", help="The data root; else $TWO_STREAM_DATA, else ./data.")
@click.option(
    "--preset",
    type=click.Choice(["default", "high-fidelity", "linear", "paper"]),
    help="Recode, smaller but not exact.",
)
@click.option(
    "--fps", type=click.FloatRange(0, min_open=True), default=25.0, show_default=True, help="Of the videos."
)
@click.option(
    "--step",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Frames between the two of a pair.",
)
@click.option("--direction", type=click.Choice(["forward", "backward"]), default="forward", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace shards that were made otherwise.")
@command_errors
def command(
    folders: tuple[Path, ...],
    bound: float,
    output: Path | None,
    dataset: str | None,
    shard_set: str,
    data: str | None,
    preset: str | None,
    fps: float,
    step: int,
    direction: str,
    overwrite: bool,
) -> None:
    """Make shards from folders of flow images.

    Looks in and below FOLDERS for flow_x_*.jpg and flow_y_*.jpg (TSN or denseflow names, JPEG or PNG), with img_*.jpg
    beside them if there are frames. The path below a given folder becomes the video's name. Bytes are kept exactly.
    """
    if (output is None) == (dataset is None):
        raise click.UsageError("give either --output FOLDER or --dataset NAME")
    paths = DatasetPaths(data_root(data), dataset) if dataset else None
    chosen = codec(preset) if preset else None
    known = load_dataset(dataset, data).videos if dataset else None
    found: dict[str, Path] = {}
    for root in folders:
        for video, folder in flow_folders(root).items():
            if found.setdefault(video, folder) != folder:
                raise InputError(
                    f"{folder}: would be the same video {video!r} as {found[video]}; import them apart"
                )
    if not found:
        raise InputError(f"{some(map(str, folders))}: expected flow_x_00001.jpg and the like, found none")
    log = OutcomeLog(paths.outcomes("import-flow")) if paths else None
    failed = there = 0
    for video, folder in progress(list(found.items()), "import"):
        try:
            if known is not None and video not in known:
                raise InputError(
                    f"{folder}: {video!r} is no video of {dataset}; give the folder that holds its classes"
                )
            path = paths.shard(shard_set, video) if paths else inside(Path(str(output)), video + SUFFIX)
            if not import_folder(folder, video, path, bound, chosen, fps, overwrite, step, direction):
                there += 1
            elif log is not None:
                made = Outcome(
                    video,
                    "done",
                    flows=len(image_pairs(folder)),
                    bytes=path.stat().st_size,
                    method="imported",
                    shard_set=shard_set,
                )
                with atomic.disk_errors(log.path):
                    log.append(made)
        except InputError as error:
            failed += 1
            click.echo(f"failed: {error}", err=True)
    click.echo(f"{len(found) - there - failed} imported, {there} there already, {failed} failed")
    if failed:
        sys.exit(1)
