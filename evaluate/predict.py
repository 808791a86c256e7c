"""Classifying videos outside any dataset: frames and flow on the fly, as the runs' own shards were made."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from evaluate import fusion, timeline
from evaluate.inference import (
    Compute,
    Forward,
    computing,
    load_network,
    logits_forward,
    video_scores,
    view_outputs,
)
from evaluate.new_shards import Made, NewVideo, make_shards
from evaluate.new_videos import Failures, wanted_request
from evaluate.options import PredictOptions
from evaluate.result_folder import claim
from evaluate.result_lines import Best, ResultLines
from evaluate.timeline import TimeLine
from evaluate.video_sources import dataset_videos, given_videos
from evaluate.views import Views
from extract_flow.settings import ExtractionSettings
from pipeline.errors import DeviceFailed, DiskFull, InputError
from pipeline.ownership import owning_name
from pipeline.progress import Progress
from pipeline.request import Request
from pipeline.shard import ShardAddress
from pipeline.text import many
from train.checkpoint import Checkpoint, find_checkpoint, is_path, load_checkpoint

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Classifier:
    """One or several runs whose scores are fused.

    Attributes:
        checkpoints: of the runs.
        columns: name of each run in results.
        classes: in the order of the scores.
        weights: of each run in the fusion.
        forwards: each run's network, from crops to logits in the order of `classes`.
        compute: where the networks run.
    """

    checkpoints: tuple[Checkpoint, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    weights: tuple[float, ...]
    forwards: tuple[Forward, ...]
    compute: Compute

    def softmax(self, shards: Sequence[ShardAddress], views: Views) -> list[Scores]:
        """Mean softmax over the views of one video for each run, float32[C]; one shard for each run.

        Raises:
            InputError: a damaged shard, or a video too short for a stream.
        """
        found = []
        for forward, checkpoint, shard in zip(self.forwards, self.checkpoints, shards, strict=True):
            (outputs,) = view_outputs(forward, checkpoint.volume, [shard], views, self.compute)
            found.append(video_scores(outputs.outputs)[1])
        return found

    def named(self, softmax: Sequence[Scores]) -> dict[str, Scores]:
        """The scores of each run by its column, and of their fusion if there are several."""
        scores = dict(zip(self.columns, softmax, strict=True))
        return scores if len(softmax) == 1 else {**scores, "fusion": self.fused(softmax)}

    def fused(self, softmax: Sequence[Scores]) -> Scores:
        """The weighted mean of the runs' scores.

        Raises:
            InputError: weights of which no mean can be formed.
        """
        try:
            return fusion.weighted(softmax, self.weights)
        except ValueError as error:
            raise InputError(f"--weights: {error}") from error

    def settings(self, *others: object) -> str:
        """A short digest of everything that decides the scores: networks, weights, and whatever else is given."""
        about = [*(checkpoint.digest for checkpoint in self.checkpoints), self.weights, *map(str, others)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def predict(options: PredictOptions, console: Console, notes: Console) -> None:
    """Classify videos: print the best classes of each, or write them to --output as they come.

    Args:
        options: the command's.
        console: for the results.
        notes: for assumptions and progress.

    Raises:
        InputError: runs that do not fit together, or videos that failed; the others are classified first.
        Stopped: a signal came; what was written stays, and the same command continues.
    """
    if options.dataset.dataset and (options.videos or options.new.list) and all(map(is_path, options.runs)):
        raise click.UsageError("--dataset goes with a --run that is a name; every --run is a path")

    def say(line: str) -> None:
        notes.print(line, markup=False, highlight=False, soft_wrap=True)

    classifier = load_classifier(options)
    head = common_classes(classifier.checkpoints)[0]
    if options.new.like and all(head in checkpoint.requests for checkpoint in classifier.checkpoints):
        raise click.UsageError(
            "--like is for runs whose checkpoint does not record how their shards were made"
        )
    wanted = [wanted_request(checkpoint, head, options.new, say) for checkpoint in classifier.checkpoints]
    videos = chosen_videos(options)
    if options.window is not None:
        time_lines(classifier, wanted, videos, options, console, notes)
        return
    with contextlib.ExitStack() as stack:
        lines = None
        if options.output is not None:
            stack.enter_context(owning_name(options.output))
            settings = classifier.settings(options.views, options.top)
            lines = stack.enter_context(ResultLines(options.output, settings))
            if done := sum(video.name in lines.done for video in videos):
                say(f"{options.output}: {done} of {many(len(videos), 'video')} in it already")
            videos = [video for video in videos if video.name not in lines.done]
        failures = Failures(say, options.output)
        shown = stack.enter_context(Progress("predict", len(videos)))
        stack.enter_context(shown.compiling())
        made_shards = stack.enter_context(
            contextlib.closing(
                make_shards(
                    videos,
                    wanted,
                    options.compute.device,
                    options.compute.workers,
                    options.new.keep_shards,
                    shown,
                )
            )
        )
        for made in made_shards:
            best = best_of(classifier, made, options, failures)
            if best is not None and lines is not None:
                lines.add(made.video.name, best)
            elif best is not None:
                with shown.aside():
                    show(made.video.name, best, options.json, console)
            shown.finish(made.number, failed=made.video.name in failures.reasons)
    failures.check(len(videos))


def time_lines(
    classifier: Classifier,
    wanted: Sequence[Request],
    videos: Sequence[NewVideo],
    options: PredictOptions,
    console: Console,
    notes: Console,
) -> None:
    """Write the time line of each video, <identity>.csv and .png below --output, and --overlay; prints their paths.

    Raises:
        InputError: a folder of other results, several videos for one overlay, or videos that failed.
        Stopped: a signal came; what was written stays, and the same command continues.
    """
    assert options.output is not None
    assert options.window is not None
    if options.overlay is not None and len(videos) != 1:
        raise click.UsageError(f"--overlay FILE is of one video, but there are {len(videos)}")
    stride = options.stride or options.window / 2
    settings = classifier.settings(options.views, options.window, stride)
    claim(options.output, "timeline.json", {"settings": settings})

    def say(line: str) -> None:
        notes.print(line, markup=False, highlight=False, soft_wrap=True)

    todo = [
        video
        for video in videos
        if options.overlay or not (options.output / f"{video.identity}.csv").exists()
    ]
    if done := len(videos) - len(todo):
        say(f"{options.output}: time lines of {done:,} of {many(len(videos), 'video')} in it already")
    failures = Failures(say, options.output)
    with (
        owning_name(options.output),
        Progress("time line", len(todo)) as shown,
        shown.compiling(),
        contextlib.closing(
            make_shards(
                todo,
                wanted,
                options.compute.device,
                options.compute.workers,
                options.new.keep_shards,
                shown,
            )
        ) as made_shards,
    ):
        for made in made_shards:
            try:
                written = write_time_line(classifier, made, wanted, options, stride)
                with shown.aside():
                    lines = "\n".join(f"saved {path}" for path in written)
                    console.print(lines, markup=False, highlight=False, soft_wrap=True)
            except (DeviceFailed, DiskFull):
                raise
            except InputError as error:
                failures.add(made.video.name, str(error))
            shown.finish(made.number, failed=made.video.name in failures.reasons)
    failures.check(len(todo))


def write_time_line(
    classifier: Classifier,
    made: Made,
    wanted: Sequence[Request],
    options: PredictOptions,
    stride: float,
) -> list[Path]:
    """Write what is wanted of one video: its CSV, its picture and the overlay; their paths.

    Raises:
        InputError: its shards could not be made, or a file cannot be written.
    """
    assert options.output is not None
    assert options.window is not None
    if made.fault:
        raise InputError(made.fault)
    table, picture = (options.output / f"{made.video.identity}{ending}" for ending in (".csv", ".png"))
    line = time_line(classifier, made.shards, options.views, options.window, stride)
    timeline.write_picture(picture, line, made.video.path.name)
    if options.overlay is not None:
        flow = next((s for s, r in zip(made.shards, wanted, strict=True) if r.directions), None)
        selection = ExtractionSettings.from_request(wanted[0]).selection
        timeline.write_overlay(options.overlay, made.video.path, line, flow, selection)
    timeline.write_csv(table, line)  # last: it marks the video as done
    return [table, picture, *([options.overlay] if options.overlay else [])]


def time_line(
    classifier: Classifier, shards: Sequence[ShardAddress], views: Views, window: float, stride: float
) -> TimeLine:
    """Fused scores of each window of one video; one shard for each run.

    Raises:
        InputError: a damaged shard, or one without what a stream needs.
    """
    found = [
        timeline.position_scores(forward, checkpoint.volume, shard, views, window, classifier.compute)
        for forward, checkpoint, shard in zip(
            classifier.forwards, classifier.checkpoints, shards, strict=True
        )
    ]
    duration = max(seconds for _, seconds in found)
    starts, ends = timeline.windows(duration, window, stride)
    fused = [
        classifier.fused([positions.mean(start, end) for positions, _ in found])
        for start, end in zip(starts, ends, strict=True)
    ]
    return TimeLine(starts, ends, np.stack(fused), classifier.classes, duration)


def chosen_videos(options: PredictOptions) -> list[NewVideo]:
    """The VIDEOs, or every video of the dataset where none is given.

    Raises:
        InputError: no such path or dataset.
        click.UsageError: neither is given.
    """
    if options.videos or options.new.list:
        return given_videos(
            options.videos,
            options.new,
            distinct=options.new.keep_shards is not None or options.window is not None,
        )
    if options.dataset.dataset is None:
        raise click.UsageError("say what to classify: VIDEO..., or --dataset NAME for all its videos")
    return dataset_videos(options.dataset)


def load_classifier(options: PredictOptions) -> Classifier:
    """The runs that are named, their networks on the device.

    Raises:
        InputError: no such run, or runs that do not fit together.
    """
    paths = [find_checkpoint(run, options.dataset) for run in options.runs]
    checkpoints = [load_checkpoint(path) for path in paths]
    head, classes = common_classes(checkpoints)
    weights = options.weights or (1.0,) * len(paths)
    if len(weights) != len(paths):
        raise InputError(f"--weights: {len(paths)} runs need as many weights, found {len(weights)}")
    compute = dataclasses.replace(computing(options.compute, most=1)[0], workers=0)
    return Classifier(
        tuple(checkpoints),
        tuple(column(path, checkpoint) for path, checkpoint in zip(paths, checkpoints, strict=True)),
        classes,
        tuple(weights),
        tuple(
            logits_forward(load_network(checkpoint), checkpoint.columns(head, classes), compute)
            for checkpoint in checkpoints
        ),
        compute,
    )


def best_of(classifier: Classifier, made: Made, options: PredictOptions, failures: Failures) -> Best | None:
    """The best classes of a video; None if it failed, which is then among the failures."""
    if made.fault:
        failures.add(made.video.name, made.fault)
        return None
    try:
        softmax = classifier.softmax(made.shards, options.views)
    except InputError as error:
        failures.add(made.video.name, str(error))
        return None
    return best_classes(classifier.named(softmax), classifier.classes, options.top)


def common_classes(checkpoints: Sequence[Checkpoint]) -> tuple[str, tuple[str, ...]]:
    """The head (dataset) that all runs were trained for, and its classes.

    Raises:
        InputError: none in common, or its classes differ.
    """
    first = checkpoints[0]
    main = first.run.dataset
    head = main if main in first.heads else next(iter(first.heads))
    for other in checkpoints[1:]:
        if head not in other.heads:
            raise InputError(
                f"{first.path} was trained for {head}, {other.path} for {', '.join(other.heads)}: nothing in common"
            )
        if set(other.heads[head]) != set(first.heads[head]):
            raise InputError(
                f"{first.path} knows {len(first.heads[head])} classes of {head}, {other.path} "
                f"{len(other.heads[head])}: they cannot be fused"
            )
    return head, first.heads[head]


def column(path: Path, checkpoint: Checkpoint) -> str:
    """The name of a run in results: its stream and folder."""
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    return f"{checkpoint.volume.stream} ({folder.name})"


def best_classes(
    scores: Mapping[str, Scores], classes: Sequence[str], count: int
) -> dict[str, dict[str, float]]:
    """For each column the best classes with their scores, best first."""
    return {
        name: {classes[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[:count]}
        for name, row in scores.items()
    }


def show(video: str, best: Best, as_json: bool, console: Console) -> None:
    """Print one video's classes: a JSON object, or a table."""
    if as_json:
        print(json.dumps({"video": video, **best}, ensure_ascii=False), flush=True)
        return
    console.print(video, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for name in best:
        table.add_column(name)
    for row in zip(*(top.items() for top in best.values()), strict=True):
        table.add_row(*(f"{label} {100 * score:.1f}%" for label, score in row))
    console.print(table)
