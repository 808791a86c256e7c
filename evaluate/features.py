"""The penultimate layer's outputs for each video, for other classifiers: one .npy per video, or one HDF5 file.

A folder of features holds `features.json` (attributes as below) and, for each video as it is done, <name>.npy:
float32[F], the mean over its views, or with --per view float32[views,F]. An HDF5 file is made of such a folder, beside
it, which is removed at the end; so either resumes.

HDF5, attrs and texts as in a score file, and `per` ("video" or "view"); /videos str[n], sorted; per video /features
float32[n,F]; per view /features float32[sum of views,F] and /start int64[n+1], video i having rows start[i] to
start[i+1], position after position, the crops of a position in the order of `inference.crop_views`. For videos outside
a dataset /videos holds their paths in the order given, and dataset, split, part and shards are "", 0, "" and "".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from evaluate.inference import computing, features_forward, load_network, view_outputs
from evaluate.new_shards import NewVideo, make_shards
from evaluate.new_videos import Failures, untrained_checkpoint, wanted_request
from evaluate.options import FeaturesOptions, RunOptions, ScoredShardsOptions
from evaluate.result_folder import claim, read_settings
from evaluate.score import Measurement, check_missing, listed_shards
from evaluate.video_sources import dataset_videos, given_videos
from pipeline import atomic, hdf5
from pipeline.errors import DeviceFailed, DiskFull, InputError, OtherFormat, unreadable
from pipeline.ownership import owning_name
from pipeline.paths import fault_of_part
from pipeline.progress import Progress
from pipeline.request import Request
from pipeline.text import many, printable
from train.checkpoint import Checkpoint, find_checkpoint, is_path, load_checkpoint

FORMAT = "two-stream features"
VERSION = 2
HDF5_SUFFIXES = (".h5", ".hdf5")
ABOUT = "features.json"


class FeatureFolder:
    """A folder with one .npy per video; complete files stay when the work is interrupted."""

    def __init__(self, folder: Path, attributes: Mapping[str, Any]) -> None:
        """Open a new folder, or an existing one to continue; InputError as `result_folder.claim`."""
        self.folder, self.attributes = folder, dict(attributes)
        claim(folder, ABOUT, self.attributes)

    def file(self, video: str) -> Path:
        """The file of one video."""
        return self.folder / f"{video}.npy"

    def add(self, video: str, outputs: npt.NDArray[np.float32]) -> None:
        """Write one video's features, from float32[views,F]; InputError if it cannot be written."""
        rows = outputs if self.attributes["per"] == "view" else outputs.mean(axis=0)
        path = self.file(video)
        with atomic.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = io.BytesIO()  # NumPy itself does not report why an array could not be written
            np.save(whole, rows)
            with atomic.writing(path) as temporary:
                temporary.write_bytes(whole.getbuffer())

    def rows(self, video: str) -> npt.NDArray[np.float32]:
        """One video's features as float32[n,F].

        Raises:
            InputError: the file is missing or damaged.
        """
        path = self.file(video)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path}: it existed a moment ago; run the same command again") from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            rows = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: damaged features ({error}); remove the file") from error
        if rows.dtype != np.float32 or rows.ndim not in (1, 2):
            raise InputError(f"{path}: expected float32 features, found {rows.dtype}{list(rows.shape)}")
        return np.atleast_2d(rows)

    def write_hdf5(self, path: Path, videos: Mapping[str, str]) -> None:
        """Write the file that the module's docstring describes, a video at a time, and remove the folder.

        Args:
            path: of the file.
            videos: the name of each video's .npy -> its name in /videos, in order.

        Raises:
            InputError: it cannot be written.
        """
        shapes = [self.rows(name).shape for name in videos]
        start = np.cumsum([0, *(rows for rows, _ in shapes)]).astype(np.int64)
        names = hdf5.encoded(list(videos.values()))
        with atomic.writing(path) as temporary, hdf5.new_file(temporary) as file:
            hdf5.write_texts(file, "videos", names)
            whole = (int(start[-1]), shapes[0][1] if shapes else 0)
            features = file.create_dataset("features", whole, np.float32, fillvalue=None)
            crc = hdf5.crc32([names])
            for at, name in zip(start.tolist(), videos, strict=False):
                rows = self.rows(name)
                features[at : at + len(rows)] = rows
                crc = hdf5.crc32([rows], crc)
            if self.attributes["per"] == "view":
                file.create_dataset("start", data=start)
                crc = hdf5.crc32([start], crc)
            about = {"format": FORMAT, "version": VERSION, **self.attributes, "crc32": crc}
            hdf5.write_attributes(file, about)
        shutil.rmtree(self.folder)


def list_features(measurement: Measurement, options: FeaturesOptions, console: Console) -> Path:
    """Write the features of one run on one list; returns the file or folder.

    Raises:
        InputError: shards are missing and that was not allowed, or the file is there or cannot be written.
    """
    name = f"features-{measurement.part}-{measurement.views}-{options.per}"
    path = options.output or measurement.run.scores(name, measurement.other)
    with owning_name(path):
        if options.output is None:
            atomic.sweep(path.parent)
        prepare(path, options.overwrite)
        return _list_features(path, measurement, options, console)


def _list_features(path: Path, measurement: Measurement, options: FeaturesOptions, console: Console) -> Path:
    shards, missing = listed_shards(measurement)
    check_missing(measurement, missing, options.shard_set.allow_missing)
    folder = feature_folder(
        path,
        measurement.checkpoint,
        options,
        {
            "dataset": measurement.dataset.name,
            "split": measurement.split,
            "part": measurement.part,
            "run": measurement.run.name,
            "shards": measurement.shards.name,
        },
    )
    videos = sorted(shards)
    todo = [video for video in videos if not folder.file(video).exists()]
    compute = computing(options.compute, most=1)[0]
    forward = features_forward(load_network(measurement.checkpoint), compute)
    with Progress("features", len(todo)) as shown, shown.compiling():
        spec = measurement.checkpoint.volume
        for index, outputs in view_outputs(
            forward, spec, [shards[video] for video in todo], options.views, compute
        ):
            folder.add(todo[index], outputs)
            shown.advance()
    return finish(path, folder, {video: video for video in videos}, console)


def video_features(options: FeaturesOptions, console: Console, notes: Console) -> Path:
    """Write features of videos outside any dataset, by one run or by weights alone; returns the file or folder.

    Raises:
        InputError: no such run or weights, a checkpoint that does not record how its shards were made, a file that is
            there or cannot be written, or videos that failed; the others are done first.
        Stopped: a signal came; what was written stays, and the same command continues.
    """
    check_options_of_videos(options)
    assert options.output is not None

    def say(line: str) -> None:
        notes.print(line, markup=False, highlight=False, soft_wrap=True)

    checkpoint, run = network_of(options, say)
    if options.new.like and checkpoint.run.dataset in checkpoint.requests:
        raise click.UsageError(
            "--like is for a run whose checkpoint does not record how its shards were made"
        )
    wanted = wanted_request(checkpoint, checkpoint.run.dataset, options.new, say)
    with owning_name(options.output):
        prepare(options.output, options.overwrite)
        return _video_features(options, checkpoint, run, wanted, console, say)


def _video_features(
    options: FeaturesOptions,
    checkpoint: Checkpoint,
    run: str,
    wanted: Request,
    console: Console,
    say: Callable[[str], None],
) -> Path:
    assert options.output is not None
    attributes = {"dataset": "", "split": 0, "part": "", "run": run, "shards": ""}
    folder = feature_folder(options.output, checkpoint, options, attributes)
    videos = videos_of(options)
    todo = [video for video in videos if not folder.file(video.identity).exists()]
    if len(todo) < len(videos):
        say(f"{options.output}: {len(videos) - len(todo)} of {many(len(videos), 'video')} done already")
    compute = dataclasses.replace(computing(options.compute, most=1)[0], workers=0)
    forward = features_forward(load_network(checkpoint), compute)
    failures = Failures(say, options.output)
    with (
        Progress("features", len(todo)) as shown,
        shown.compiling(),
        contextlib.closing(
            make_shards(
                todo,
                [wanted],
                options.compute.device,
                options.compute.workers,
                options.new.keep_shards,
                shown,
            )
        ) as made_shards,
    ):
        for made in made_shards:
            try:
                if made.fault:
                    raise InputError(made.fault)
                (outputs,) = view_outputs(forward, checkpoint.volume, made.shards, options.views, compute)
                folder.add(made.video.identity, outputs.outputs)
            except (DeviceFailed, DiskFull):
                raise
            except InputError as error:
                failures.add(made.video.name, str(error))
            shown.finish(made.number, failed=made.video.name in failures.reasons)
    if done := {video.identity: video.name for video in videos if folder.file(video.identity).exists()}:
        finish(options.output, folder, done, console)
    failures.check(len(todo))
    return options.output


def network_of(options: FeaturesOptions, say: Any) -> tuple[Checkpoint, str]:
    """The network whose features are wanted, and what it is called: a run, or weights by --init."""
    if options.init is not None:
        return untrained_checkpoint(options.init, options.model, say), options.init
    source = find_checkpoint(options.choose.runs[0], options.dataset)
    folder = source.absolute() if source.is_dir() else source.absolute().parent
    return load_checkpoint(source), folder.name


def videos_of(options: FeaturesOptions) -> list[NewVideo]:
    """The videos; their identities are the names of their .npy."""
    if not (options.videos or options.new.list):
        return dataset_videos(options.dataset)
    assert options.output is not None
    if is_hdf5(options.output) and options.new.keep_shards is None:
        # Nobody sees the files, and any two videos may be in one HDF5 file.
        videos = given_videos(options.videos, options.new, distinct=False)
        return [dataclasses.replace(video, identity=_digest(video.name)) for video in videos]
    videos = given_videos(options.videos, options.new, distinct=True)
    for video in videos:
        if fault := next(filter(None, map(fault_of_part, video.identity.split("/"))), None):
            raise InputError(f"{video.path}: {fault}")
    return videos


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def is_hdf5(path: Path) -> bool:
    """Whether --output names an HDF5 file, not a folder."""
    return path.suffix.lower() in HDF5_SUFFIXES


def prepare(path: Path, overwrite: bool) -> None:
    """Remove what is in the way of new features: InputError if an HDF5 file exists and may not be replaced; a later
    version's never may.

    With --overwrite, what an earlier run left is removed.
    """
    if is_hdf5(path):
        if path.exists() and not overwrite:
            raise InputError(
                f"{path}: already exists: replace it with --overwrite, or name another with --output"
            )
        _check_version(path)
        path = parts_of(path)
    if overwrite and read_settings(path / ABOUT) is not None:
        shutil.rmtree(path)


def _check_version(path: Path) -> None:
    """Raise OtherFormat if an HDF5 file that is there holds features of a later version."""
    try:
        with hdf5.reading(path) as (file, _):
            root = hdf5.subgroup(file, "/")
            later = (
                hdf5.attribute(root, "format", str) == FORMAT
                and hdf5.attribute(root, "version", int) > VERSION
            )
    except (hdf5.Invalid, FileNotFoundError):
        return
    if later:
        raise OtherFormat(
            f"{path}: features of a later version than {VERSION}; it was left as it is: name another with --output"
        )


def parts_of(path: Path) -> Path:
    """The folder that an HDF5 file is made of."""
    return path.with_name(f"{path.name}.parts")


def feature_folder(
    path: Path, checkpoint: Checkpoint, options: FeaturesOptions, attributes: Mapping[str, Any]
) -> FeatureFolder:
    """The folder that features are written to: `path`, or the parts of an HDF5 file."""
    views = {"frames": options.views.frames, "crops": options.views.crops, "crop": checkpoint.volume.crop}
    return FeatureFolder(
        parts_of(path) if is_hdf5(path) else path,
        {
            **attributes,
            "stream": checkpoint.volume.stream,
            "checkpoint": checkpoint.digest,
            "views": json.dumps(views),
            "per": options.per,
        },
    )


def finish(path: Path, folder: FeatureFolder, videos: Mapping[str, str], console: Console) -> Path:
    """Make the HDF5 file of its parts, if one was asked for; prints what was written."""
    if is_hdf5(path):
        folder.write_hdf5(path, videos)
    saved = printable(f"saved {path}: features of {many(len(videos), 'video')}")
    console.print(saved, highlight=False, markup=False, soft_wrap=True)
    return path


def check_options_of_videos(options: FeaturesOptions) -> None:
    """Refuse options that have no meaning for videos outside a dataset, and require those that only they need."""
    of_lists: Sequence[object] = (
        options.choose.splits,
        options.choose.streams,
        options.part,
        options.shard_set,
    )
    if list(of_lists) != [RunOptions().splits, RunOptions().streams, "test", ScoredShardsOptions()]:
        raise click.UsageError(
            "--split, --stream, --part, --shards and --allow-missing choose videos of a dataset; leave them out "
            "where VIDEOs or --init are given"
        )
    if (len(options.choose.runs) + (options.init is not None)) != 1 or options.output is None:
        raise click.UsageError("features of VIDEOs need one --run, or --init, and --output FILE")
    if (
        options.dataset.dataset
        and (options.videos or options.new.list)
        and (options.init or is_path(options.choose.runs[0]))
    ):
        raise click.UsageError("--dataset goes with a --run that is a name, but it is a path")
