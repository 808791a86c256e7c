"""Shards of flow that other tools left as images, .flo or .npy files: `python -m pipeline import-flow`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np

from pipeline import atomic, jpeg_scan
from pipeline.catalog import load_dataset
from pipeline.codec import Codec, Levels, Quantised, codec, dequantise, field_quantiser, image_size
from pipeline.errors import DiskFull, InputError, command_errors, reading
from pipeline.export import inside
from pipeline.failures import file_beside, report_failures
from pipeline.flow_files import (
    FRAME_ARRAY,
    FlowNumbers,
    add_file,
    flow_numbers,
    flow_places,
    frame_array,
)
from pipeline.manifest import Facts, Stamp, read_shard_set, record
from pipeline.options import CONTEXT, REQUIRED, DataOptions, argument, from_options, option, options_of
from pipeline.outcome import Outcome, OutcomeLog
from pipeline.paths import DatasetPaths, data_root
from pipeline.progress import progress
from pipeline.request import Request, other_ways, request_of
from pipeline.shard import Source, open_shard
from pipeline.shard_file import SUFFIX
from pipeline.shard_writer import ShardWriter, encode_frame
from pipeline.text import many, some

FLOW_IMAGE = re.compile(
    r"(?:flow_)?(?P<component>[xy])_(?:(?P<sign>[pm])(?P<step>\d+)_)?(?P<number>\d+)\.(?:jpe?g|png)",
    re.IGNORECASE,
)
"""p2 and m2 are denseflow's words for flow over two frames, to a later or to an earlier one."""
FRAMES_QUALITY = 95
FRAME_IMAGE = re.compile(r"(?:img|image)_(?P<number>\d+)\.jpe?g", re.IGNORECASE)
LARGEST_IMAGE_FILE = 1 << 28


def flow_folders(root: Path) -> dict[str, Path]:
    """Folders of flow, and files of a video each, at or below `root` by the video they stand for: their path from
    `root`, or its name.
    """
    folders = {}
    below = []
    for parent, names, _ in os.walk(root, onerror=_unreadable):
        # A link to a folder is looked into, but not below it.
        below += [Path(parent), *(path for name in names if (path := Path(parent, name)).is_symlink())]
    for folder in sorted(below):
        if atomic.is_temporary(folder.name):
            continue
        for name, place in {"": folder}.items() if has_images(folder) else flow_places(folder).items():
            inside_root = folder.relative_to(root) / name
            folders[root.name if inside_root == Path() else inside_root.as_posix()] = place
    return folders


def has_images(place: Path) -> bool:
    """Whether a place is a folder of flow images."""
    return place.is_dir() and any(FLOW_IMAGE.fullmatch(path.name) for path in place.iterdir())


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def image_pairs(folder: Path, step: int, direction: str) -> list[tuple[Path, Path]]:
    """The (x, y) images of a folder in order.

    Raises:
        InputError: an x without its y or vice versa, a number twice, a gap in the numbers, or names that give another
            step or direction.
    """
    found: dict[str, dict[int, Path]] = {"x": {}, "y": {}}
    first = 1
    for path in sorted(folder.iterdir()):
        if match := FLOW_IMAGE.fullmatch(path.name):
            if match["sign"]:
                named = (int(match["step"]), "forward" if match["sign"].lower() == "p" else "backward")
                if named != (step, direction):
                    raise InputError(
                        f"{path}: its name gives step {named[0]}, {named[1]}: give --step {named[0]} --direction "
                        f"{named[1]}, and keep images of other steps in folders of their own"
                    )
                first = (
                    1 if direction == "forward" else 1 + step
                )  # named after the frame that a flow starts from
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
    if numbers[0] > first or missing:
        missing = missing or list(range(numbers[0]))
        raise InputError(
            f"{folder}: expected numbers from 0 or 1 without gaps, missing {some(map(str, missing))}"
        )
    return [(found["x"][number], found["y"][number]) for number in numbers]


def frame_images(folder: Path) -> list[Path]:
    """The RGB frames of a folder in the order of their numbers; may be empty."""
    matches = [(FRAME_IMAGE.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted((int(match["number"]), path) for match, path in matches if match)]


def check_whole(path: Path, data: bytes) -> None:
    """Raise InputError for a JPEG that is cut short or damaged, which decoders fill with gray."""
    if data.startswith(b"\xff\xd8") and (fault := jpeg_scan.fault(data)):
        raise InputError(f"{path}: is damaged: {fault}")


def read_gray(path: Path) -> Levels:
    """A gray image uint8[H,W]; InputError if it cannot be decoded or its file is far too large for one."""
    import cv2

    with reading(path):
        if path.stat().st_size > LARGEST_IMAGE_FILE:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for a flow image")
        data = path.read_bytes()
    check_whole(path, data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if image is None:
        raise InputError(f"{path}: expected a JPEG or PNG image, found {len(data)} bytes that are none")
    return np.asarray(image, np.uint8)


def exact_codec(bound: float) -> Codec:
    """Keeps imported bytes as they are: the literature's table, coded without loss."""
    return Codec(field_quantiser(bound), "png", None)


@dataclass(frozen=True, kw_only=True)
class ImportFlowOptions(DataOptions):
    """Which images to import, what they mean, and where the shards go."""

    folders: tuple[Path, ...] = argument(REQUIRED, metavar="FOLDERS...", multiple=True)
    bound: float | None = option(
        None,
        "Flow in pixels that level 255 of an image stands for; required for images, which do not record it.",
        minimum=0.01,
        maximum=10000,
    )
    output: Path | None = option(None, "Folder for the shards, one per video below it.")
    dataset: str | None = option(
        None, "Make them a shard set of this dataset, instead of --output.", metavar="NAME"
    )
    shards: str = option(
        "imported", "Name of the shard set, with --dataset.", metavar="NAME", replaces="--set"
    )
    preset: Literal["default", "high-fidelity", "linear", "paper"] | None = option(
        None,
        "Recode images, smaller but not exact; how numbers are coded.",
        shown_default="the images' bytes exactly; default for .flo and .npy",
    )
    fps: float = option(25.0, "Frames per second of the videos.", above=0)
    step: int = option(1, "Frames between the two of a pair.", minimum=1)
    direction: Literal["forward", "backward"] = option("forward", "Direction of the flow.")
    overwrite: bool = option(False, "Replace shards that were made with other options.")

    def __post_init__(self) -> None:
        if (self.output is None) == (self.dataset is None):
            raise click.UsageError("give either --output FOLDER or --dataset NAME")
        if not self.dataset and (self.shards != "imported" or self.data is not None):
            raise click.UsageError("--data and --shards go with --dataset")

    @property
    def given_bound(self) -> float:
        """The bound of images; InputError where none was given."""
        if self.bound is None:
            raise InputError(
                "images of flow do not record what their levels mean: give --bound PIXELS, often 20"
            )
        return self.bound


class Images(NamedTuple):
    """The images of one video.

    Attributes:
        pairs: (x, y) files of each flow, in order.
        frames: files of the RGB frames; may be empty.
        height, width: of all of them, in pixels.
    """

    pairs: list[tuple[Path, Path]]
    frames: list[Path]
    height: int
    width: int

    @property
    def bytes(self) -> int:
        """Bytes of all the files together."""
        files = [*(image for pair in self.pairs for image in pair), *self.frames]
        return sum(file.stat().st_size for file in files)


class Numbers(NamedTuple):
    """The flow of one video as .flo or .npy files.

    Attributes:
        flow: the fields.
        frames: files of the RGB frames; may be empty; a single .npy file holds all of them.
    """

    flow: FlowNumbers
    frames: list[Path]

    @property
    def height(self) -> int:
        return self.flow.height

    @property
    def width(self) -> int:
        return self.flow.width

    @property
    def bytes(self) -> int:
        """Bytes of all the files together."""
        return sum(file.stat().st_size for file in (*self.flow.files, *self.frames))


def source_of(place: Path, step: int, direction: str) -> Images | Numbers:
    """What there is to import at a place that `flow_folders` found.

    Raises:
        InputError: something is missing, or a number of frames that does not fit that of the flows at that step.
    """
    if has_images(place):
        return images_of(place, step, direction)
    flow = flow_numbers(place)
    frames: list[Path] = []
    if place.is_dir():
        frames = [place / FRAME_ARRAY] if (place / FRAME_ARRAY).is_file() else frame_images(place)
    if frames:
        is_array = frames[0].name == FRAME_ARRAY
        count = frame_array(frames[0], flow.height, flow.width).shape[0] if is_array else len(frames)
        check_frames(place, count, flow.count, step)
    return Numbers(flow, frames)


def check_frames(place: Path, frames: int, flows: int, step: int) -> None:
    """InputError unless there are as many frames as flows, or as many more as a step needs."""
    if frames - flows not in (0, step):
        raise InputError(
            f"{place}: expected as many frames as flows, or {step} more (--step), found {frames} frames "
            f"and {flows} flows"
        )


def images_of(folder: Path, step: int, direction: str) -> Images:
    """The flow images and frames of a folder.

    Raises:
        InputError: images missing, or a number of frames that does not fit that of the flows at that step.
    """
    pairs, frames = image_pairs(folder, step, direction), frame_images(folder)
    if frames:
        check_frames(folder, len(frames), len(pairs), step)
    height, width = read_gray(pairs[0][0]).shape
    return Images(pairs, frames, height, width)


def codec_of(source: Images | Numbers, options: ImportFlowOptions) -> Codec:
    """The codec of a shard: that of the wanted preset; else the images' bytes exactly, or the default for numbers."""
    if options.preset is None and isinstance(source, Images):
        return exact_codec(options.given_bound)
    return codec(options.preset or "default")


def request_for(source: Images | Numbers, options: ImportFlowOptions) -> Request:
    """What a shard of these files must match to count as imported already."""
    coding = codec_of(source, options)
    means = {"bound": options.given_bound} if isinstance(source, Images) else {"format": source.flow.format}
    return Request(
        source_bytes=source.bytes,
        directions=(options.direction,),
        method="imported",
        parameters=means,
        step=options.step,
        quantiser=coding.quantiser.name,
        image=coding.image,
        quality=coding.quality,
        frames=bool(source.frames),
        frames_quality=FRAMES_QUALITY if source.frames else None,
    )


def check_one_way(found: Mapping[str, Path], videos: Collection[str], options: ImportFlowOptions) -> None:
    """Refuse to add shards to a set whose shards were made in another way: training takes no mixture.

    Args:
        found: video -> where its flow lies.
        videos: of the set.
        options: what is asked; with `overwrite`, nothing is refused.

    Raises:
        InputError: some shards differ while others are missing; shows how, and the ways on.
    """
    if options.overwrite:
        return
    folder = shards_folder(options)
    there = read_shard_set(folder)
    there.learn(videos)
    made = {video: there.facts[video].request for video in videos if video in there.facts}
    left = [video for video in found if video not in made]
    for place in map(found.__getitem__, left):
        try:
            asked = request_for(source_of(place, options.step, options.direction), options)
        except InputError:
            continue  # reported when it is imported
        if ways := other_ways(asked, made):
            way, others = ways[0], sum(len(way.videos) for way in ways)
            raise InputError(
                f"{folder}: expected shards made as these would be, since a set is made in one way and training "
                f"refuses a mixture; found {many(others, 'shard')} made otherwise (for example "
                f"{way.videos[0]}: {'; '.join(way.differences)}); {many(len(left), 'video')} of {len(found)} would be "
                "added, and nothing was made. Give the options that the others were made with, name another "
                f"{'--shards' if options.dataset else '--output'}, or replace them with --overwrite"
            )
        return


def import_folder(
    folder: Path, video: str, path: Path, options: ImportFlowOptions
) -> tuple[Stamp, Facts] | None:
    """Make the shard `path` of a place that holds flow (and frames); None if it exists already, made the same way.

    Args:
        folder: with images, .flo or .npy files, or a .npy file of all flow of the video.
        video: the shard's video id.
        path: the shard.
        options: what the files mean, and how they are stored.

    Returns:
        What the set's manifest records of the shard.

    Raises:
        InputError: files missing, damaged or of different sizes, or a different shard is there.
    """
    source = source_of(folder, options.step, options.direction)
    request = request_for(source, options)
    if path.exists() and not options.overwrite:
        with open_shard(path) as shard:
            differences = request.differences(request_of(shard))
        if differences:
            raise InputError(
                f"{path}: exists, but was made with other options ({'; '.join(differences)}); use --overwrite or "
                "another --output"
            )
        return None
    digest = hashlib.sha256()
    flows = frames = 0
    with ShardWriter(path, request, codec_of(source, options)) as writer:
        for quantised in each_flow(source, options, digest):
            writer.add_flows(options.direction, quantised)
            flows += 1
        for stream in each_frame(source, digest):
            writer.add_streams("frames", [stream])
            frames += 1
        return writer.finish(
            video=video,
            source=Source(request.source_bytes, digest.hexdigest(), source.width, source.height),
            fps=options.fps,
            frames=frames or flows + options.step,
            width=source.width,
            height=source.height,
        )


def each_flow(source: Images | Numbers, options: ImportFlowOptions, digest: Any) -> Iterator[Quantised]:
    """The flows in order, one at a time; the bytes they are read from go into the digest."""
    if isinstance(source, Images):
        for pair in source.pairs:
            levels = np.stack(
                [read_gray_of_size(image, source.height, source.width, digest) for image in pair]
            )
            yield requantise(levels[None], options)
        return
    for file in source.flow.files:
        add_file(digest, file)
    quantiser = codec_of(source, options).quantiser
    for field in source.flow.fields():
        yield quantiser.quantise(field[None])


def each_frame(source: Images | Numbers, digest: Any) -> Iterator[bytes]:
    """The frames in order as JPEGs, those of image files as they are; their bytes go into the digest."""
    if source.frames and source.frames[0].name == FRAME_ARRAY:
        add_file(digest, source.frames[0])
        for frame in frame_array(source.frames[0], source.height, source.width).items():
            yield encode_frame(np.ascontiguousarray(frame), FRAMES_QUALITY)
        return
    for picture in source.frames:
        with reading(picture):
            data = picture.read_bytes()
        digest.update(data)
        yield frame_stream(picture, data, source.height, source.width)


def read_gray_of_size(path: Path, height: int, width: int, digest: Any) -> Levels:
    """An image that must have the size of the first; its file goes into the digest."""
    image = read_gray(path)
    if image.shape != (height, width):
        raise InputError(
            f"{path}: expected {width}x{height} as the first image, found {image.shape[1]}x{image.shape[0]}"
        )
    add_file(digest, path)
    return image


def requantise(levels: Levels, options: ImportFlowOptions) -> Quantised:
    """Imported levels uint8[n,2,H,W] as they are, or through the quantiser of the wanted preset."""
    count = len(levels)
    ones, zeros = np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32)
    flow = dequantise(levels, field_quantiser(options.given_bound).table, ones, zeros)
    if options.preset is not None:
        return codec(options.preset).quantiser.quantise(flow)
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
    check_whole(path, data)
    return data


@click.command(context_settings=CONTEXT)
@options_of(ImportFlowOptions)
@command_errors
def command(**values: Any) -> None:
    """Make shards of flow that other tools made.

    Looks in and below FOLDERS for flow_x_*.jpg and flow_y_*.jpg (TSN or denseflow names, JPEG or PNG; x_*.jpg and
    y_*.jpg too), with img_*.jpg beside them if there are frames. Their bytes are kept
    exactly; --bound says what they mean.

    Also for .flo files, numbered; for .npy files float [n,2,H,W] or [n,H,W,2], one per video, or [2,H,W] or [H,W,2],
    one per field; for flow.npy with frames.npy, as export writes them. The path below a given folder becomes the
    video's name.
    """
    options = from_options(ImportFlowOptions, values)
    known = load_dataset(options.dataset, options.data).videos if options.dataset else None
    found = videos_of(options.folders)
    images = [place for place in found.values() if has_images(place)]
    if images and options.bound is None:
        raise click.UsageError(
            f"{images[0]}: images of flow do not record what their levels mean; give --bound PIXELS, often 20"
        )
    if not images and options.bound is not None:
        raise click.UsageError("--bound goes with images of flow, and there are only .flo and .npy files")
    check_one_way(found, known or found, options)
    log = None
    if options.dataset:
        log = OutcomeLog(DatasetPaths(data_root(options.data), options.dataset).outcomes("import-flow"))
    there = 0
    failed: list[tuple[str, str]] = []
    written: dict[str, tuple[Stamp, Facts]] = {}
    for video, folder in progress(found.items(), "import-flow", compiles=True):
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
            failed.append((video, str(error)))
    record(shards_folder(options), written)
    for line in report_failures(failed, file_beside(shards_folder(options))):
        click.echo(line, err=True)
    click.echo(f"{len(found) - there - len(failed)} imported, {there} there already, {len(failed)} failed")
    if failed:
        sys.exit(1)


def videos_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Where flow lies at or below the given folders, by video.

    Raises:
        InputError: none, or two that would be the same video.
    """
    found: dict[str, Path] = {}
    for root in folders:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder of flow")
        for video, folder in flow_folders(root).items():
            if found.setdefault(video, folder) != folder:
                raise InputError(
                    f"{folder}: would be the same video {video!r} as {found[video]}; import them separately"
                )
    if not found:
        raise InputError(
            f"{some(map(str, folders))}: expected flow_x_00001.jpg and the like, .flo or .npy files, found none"
        )
    return found


def shards_folder(options: ImportFlowOptions) -> Path:
    """The folder of all shards."""
    if options.output is not None:
        return options.output
    return DatasetPaths(data_root(options.data), str(options.dataset)).shards(options.shards)


def shard_path(video: str, options: ImportFlowOptions) -> Path:
    """Where the shard of a video goes; InputError where its name would lead out of that folder."""
    if options.output is not None:
        return inside(options.output, video + SUFFIX)
    return DatasetPaths(data_root(options.data), str(options.dataset)).shard(options.shards, video)


def outcome_of(video: str, path: Path, options: ImportFlowOptions) -> Outcome:
    """The record of an imported shard, which `status` reads."""
    with open_shard(path) as shard:
        flows = shard.flow_counts[options.direction]
    size = path.stat().st_size
    return Outcome(video, "done", flows=flows, bytes=size, method="imported", shard_set=options.shards)
