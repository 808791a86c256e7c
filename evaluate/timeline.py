"""What happens when in a long video: scores of time windows, as CSV, as a picture, and drawn into the video.

Positions (frames, or volumes) lie on one grid over the whole video, so that windows that overlap share them, and each
goes through the network once. Positions are read a few at a time, and frames drawn a few at a time, so that memory
does not grow with the video except by the scores, float32[C] per position.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluate.inference import Compute, Forward, available_positions, crop_views
from evaluate.views import Views
from pipeline import atomic
from pipeline.shard import Shard, ShardAddress, open_shard
from train.batches import read_volumes
from train.volume import VolumeSpec, volume

AT_ONCE = 32
"""Positions that are read at a time."""
SHOWN = 8
"""Classes in the picture: those that are best somewhere, the longest first."""

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TimeLine:
    """Scores of one video over time.

    Attributes:
        starts, ends: of each window, in seconds: float64[W].
        scores: softmax of each window, float[W,C]; the fusion where there are several runs.
        classes: C names.
        duration: of the video in seconds.
    """

    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    scores: Scores
    classes: tuple[str, ...]
    duration: float

    def at(self, seconds: float) -> int:
        """The window whose middle is nearest to a time."""
        return int(np.argmin(np.abs((self.starts + self.ends) / 2 - seconds)))


def windows(
    duration: float, window: float, stride: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Starts and ends of the windows of a video: one every `stride` seconds until one reaches the end, where it is cut.

    Args:
        duration: of the video in seconds.
        window, stride: in seconds.
    """
    count = 1 + max(0, int(np.ceil((duration - window) / stride - 1e-9)))
    starts = stride * np.arange(count, dtype=np.float64)
    return starts, np.minimum(starts + window, max(duration, 1e-9)).astype(np.float64)


@dataclass(frozen=True)
class PositionScores:
    """Softmax of each position on the grid, float32[P,C], mean over its crops, and its time in seconds, float64[P]."""

    times: npt.NDArray[np.float64]
    softmax: npt.NDArray[np.float32]

    def mean(self, start: float, end: float) -> npt.NDArray[np.float64]:
        """Mean over the positions in start <= time < end, or the nearest to its middle if there is none: [C]."""
        first, last = np.searchsorted(self.times, [start - 1e-9, end - 1e-9])
        if first == last:
            first = int(np.argmin(np.abs(self.times - (start + end) / 2)))
            last = first + 1
        mean: npt.NDArray[np.float64] = self.softmax[first:last].mean(axis=0, dtype=np.float64)
        return mean


def position_scores(
    forward: Forward, spec: VolumeSpec, address: ShardAddress, views: Views, window: float, compute: Compute
) -> tuple[PositionScores, float]:
    """Scores of positions `views.frames` to a window of that many seconds, over a whole shard; and its duration.

    The time of a volume is that of its middle.

    Raises:
        InputError: a damaged shard, or one without what the stream needs.
    """
    with open_shard(address) as shard:
        fps = shard.fps or 25.0
        every = max(1, round(window * fps / views.frames))
        grid = np.arange(0, available_positions(shard, spec), every)
        span = 0 if spec.stream == "spatial" else spec.length * shard.step(spec.directions[0])
        rows = [
            _softmax(forward, spec, shard, grid[start : start + AT_ONCE], views.crops, compute)
            for start in range(0, len(grid), AT_ONCE)
        ]
        times = ((grid + span / 2) / fps).astype(np.float64)
        return PositionScores(times, np.concatenate(rows)), shard.frame_count / fps


def _softmax(
    forward: Forward,
    spec: VolumeSpec,
    shard: Shard,
    positions: npt.NDArray[np.int64],
    crops: int,
    compute: Compute,
) -> npt.NDArray[np.float32]:
    import torch

    most = max(1, compute.batch // crops)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(positions), most):
            raw = read_volumes(shard, spec, positions[start : start + most])
            volumes = volume(raw.to(compute.device), spec)
            logits = forward(crop_views(volumes, spec, crops))
            parts.append(logits.softmax(1).reshape(crops, len(volumes), -1).mean(0).cpu().numpy())
    return np.concatenate(parts)


def write_csv(path: Path, line: TimeLine) -> None:
    """One row per window: start, end (seconds), best class, and the score of every class.

    Raises:
        InputError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["start", "end", "class", *line.classes])
    for start, end, row in zip(line.starts, line.ends, line.scores, strict=True):
        best = line.classes[int(row.argmax())]
        writer.writerow([f"{start:.3f}", f"{end:.3f}", best, *(f"{score:.6f}" for score in row)])
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def write_picture(path: Path, line: TimeLine, title: str) -> None:
    """Scores over time as PNG: the classes that are best somewhere as lines, and below them which one is best.

    Raises:
        InputError: it cannot be written.
    """
    from matplotlib.figure import Figure

    best = line.scores.argmax(axis=1)
    found, counts = np.unique(best, return_counts=True)
    shown = found[np.argsort(-counts, kind="stable")][:SHOWN]
    colours = {int(index): f"C{place}" for place, index in enumerate(shown)}
    middles = (line.starts + line.ends) / 2
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    for index, colour in colours.items():
        style = {"marker": "."} if len(middles) < 100 else {}
        above.plot(middles, 100 * line.scores[:, index], color=colour, label=line.classes[index], **style)
    above.set(ylim=(0, 100), ylabel="score, %", title=title)
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    above.grid(alpha=0.3)
    half = np.concatenate([[0.0], (middles[1:] + middles[:-1]) / 2, [line.duration]])
    for start, end, index in zip(half[:-1], half[1:], best, strict=True):
        below.axvspan(start, end, color=colours.get(int(index), "0.7"), linewidth=0)
    below.set(yticks=(), xlabel="seconds", ylabel="best", xlim=(0, max(line.duration, 1e-9)))
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path) as temporary:
            figure.savefig(temporary, format="png")


# --- drawn into the video -------------------------------------------------------------------------------------------

FRAMES_AT_ONCE = 8
TALLEST = 720
"""Smaller side of the written video in pixels, at most."""
BARS = 3
"""Classes shown with their scores."""


def write_overlay(path: Path, video: Path, line: TimeLine, flow: ShardAddress | None, selection: Any) -> None:
    """The video with the best classes of each moment, their scores as bars, and its flow in a corner; no sound.

    Args:
        path: MP4 to write (H.264).
        video: file or folder of pictures.
        line: its scores.
        flow: a shard of it that has flow, if there is one.
        selection: the part of the video that the scores are of, a `pipeline.video.Selection`.

    Raises:
        InputError: it cannot be decoded or written.
    """
    import contextlib
    import dataclasses

    from pipeline.picture_files import encode_video
    from pipeline.video import Selection, VideoReader

    whole = Selection(None, None, 1, selection.start, selection.end)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(VideoReader(video, whole, rgb=True))
        if min(reader.width, reader.height) > TALLEST:
            whole = dataclasses.replace(whole, short_side=TALLEST)
            reader = stack.enter_context(VideoReader(video, whole, rgb=True))
        shard = None if flow is None else stack.enter_context(open_shard(flow))
        encode_video(path, _pictures(reader, line, shard), reader.fps)


def _pictures(reader: Any, line: TimeLine, shard: Shard | None) -> Iterator[npt.NDArray[np.uint8]]:
    from pipeline.flow_colours import flow_colours, full_colour_speed

    inset: npt.NDArray[np.uint8] | None = None
    fastest, shown_flow, number = 1.0, -1, 0
    direction = shard.directions[0] if shard is not None and shard.directions else None
    if shard is not None and direction is not None:
        sample = np.unique(np.linspace(0, shard.flow_counts[direction] - 1, 16).astype(int))
        fastest = full_colour_speed(np.concatenate([shard.flows(i, i + 1, direction) for i in sample]))
    while len(frames := reader.read(FRAMES_AT_ONCE).rgb):
        for frame in frames:
            seconds = number / reader.fps
            if shard is not None and direction is not None:
                index = min(int(seconds * shard.fps + 1e-6), shard.flow_counts[direction] - 1)
                if index != shown_flow:
                    inset = flow_colours(shard.flows(index, index + 1, direction)[0], fastest)
                    shown_flow = index
            row = line.scores[line.at(seconds)]
            best = np.argsort(-row, kind="stable")[:BARS]
            yield drawn(frame, [(line.classes[index], float(row[index])) for index in best], inset)
            number += 1


def drawn(
    frame: npt.NDArray[np.uint8],
    best: Sequence[tuple[str, float]],
    inset: npt.NDArray[np.uint8] | None,
) -> npt.NDArray[np.uint8]:
    """A frame uint8[H,W,3] with class names and score bars at its foot and a picture in its upper right corner."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(frame)
    width, height = picture.size
    line = max(12, height // 18)
    draw = ImageDraw.Draw(picture, "RGBA")
    font = ImageFont.load_default(size=0.75 * line)
    top = height - line * len(best) - line // 4
    draw.rectangle((0, top - line // 4, width, height), fill=(0, 0, 0, 150))
    for place, (name, score) in enumerate(best):
        y = top + place * line
        colour = (255, 200, 60, 200) if place == 0 else (160, 160, 160, 160)
        draw.rectangle((0, y + 1, score * width, y + line - 2), fill=colour)
        draw.text((line // 3, y), f"{name}  {100 * score:.0f}%", fill=(255, 255, 255, 255), font=font)
    if inset is not None:
        wide = width // 4
        tall = max(1, round(wide * inset.shape[0] / inset.shape[1]))
        picture.paste(Image.fromarray(inset).resize((wide, tall)), (width - wide, 0))
    return np.asarray(picture)
