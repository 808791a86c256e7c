"""The report: one self-contained HTML file with every table and picture, readable on a phone, without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from evaluate import figures, metrics
from evaluate.published import published_rows
from evaluate.results import Row, SplitResult, detailed_row, mean_rows
from pipeline import atomic
from pipeline.runs import RunPaths
from pipeline.shard import ShardAddress, open_shard
from pipeline.view import flow_colours, full_colour_speed
from train.checkpoint import Checkpoint
from train.log import read_log
from train.volume_spec import VolumeSpec

EXAMPLES = 3
MISTAKES = 4
TOP = 5


@dataclass(frozen=True)
class RunStory:
    """What the report shows of a training run beside its scores.

    Attributes:
        run: its name.
        recipe: its network and schedule, in a few words.
        volume: the network's input.
        log: the training log's entries with `iteration` and `loss`.
        filters: first-layer weights float32[N,C,k,k].
    """

    run: str
    recipe: str
    volume: VolumeSpec
    log: Sequence[Mapping[str, float]]
    filters: npt.NDArray[np.float32]


def run_story(paths: RunPaths, recipe: str, checkpoint: Checkpoint) -> RunStory:
    """A run's log and first layer; `recipe` describes it in a few words."""
    losses = [record for record in read_log(paths.folder) if "loss" in record and "iteration" in record]
    filters = checkpoint.weights[f"{checkpoint.model().first}.weight"].numpy().astype(np.float32)
    return RunStory(paths.name, recipe, checkpoint.volume, losses, filters)


def write_report(
    path: Path,
    results: Sequence[SplitResult],
    runs: Sequence[RunStory],
    shards: Mapping[str, ShardAddress],
    details: str | None = None,
) -> None:
    """Write the report of some splits of one dataset.

    Args:
        path: the HTML file, replaced as a whole.
        results: one for each split.
        runs: the runs whose scores they hold.
        shards: where to take the pictures of example clips from; a clip without a shard is shown without pictures.
        details: the row that pictures and examples are about; see `results.detailed_row`.

    Raises:
        InputError: no such row.
    """
    html = render(context(results, runs, shards, details))
    with atomic.writing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(values: Mapping[str, Any]) -> str:
    """The HTML text; everything in `values` is escaped, since names of classes and videos may hold anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["percent"] = lambda rate: (
        "-" if rate is None or np.isnan(rate) else f"{100 * rate:.1f}"
    )
    return environment.get_template("report.html").render(values)


def context(
    results: Sequence[SplitResult],
    runs: Sequence[RunStory],
    shards: Mapping[str, ShardAddress],
    details: str | None = None,
) -> dict[str, Any]:
    """Everything that the template shows, pictures included."""
    dataset = results[0].streams[0].dataset
    stories = {story.run: story for story in runs}
    return {
        "title": f"Two-stream action recognition: {dataset}",
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "mean": mean_rows(results) if len(results) > 1 else [],
        "published": published_rows(dataset, None),
        "splits": [_split(result, detailed_row(result, details), shards) for result in results],
        "curves": _curves(runs),
        "filters": [
            {
                "name": story.run,
                "what": _filters_caption(story.volume),
                "picture": _embedded(figures.filters_chart(story.filters, story.volume.stream == "temporal")),
            }
            for story in runs
        ],
        "runs": [
            {
                "run": stream.run,
                "stream": stream.stream,
                "split": stream.split,
                "recipe": stories[stream.run].recipe if stream.run in stories else "",
                "views": f"{stream.settings.get('frames')} x {stream.settings.get('crops')}",
                "checkpoint": stream.checkpoint,
            }
            for result in results
            for stream in result.streams
        ],
    }


def pick_examples(result: SplitResult, best: Row) -> list[int]:
    """Videos worth showing: first those where the streams disagree and the best row is right, then others that it gets
    right; at most one of each class.
    """
    right = metrics.rank_of_label(best.scores, result.labels) == 0
    streams = [metrics.predictions(row.scores) for row in result.rows[: len(result.streams)]]
    divided = np.any([guess != streams[0] for guess in streams], axis=0)
    order = np.lexsort((np.arange(len(right)), ~divided))
    picked: list[int] = []
    for video in order[right[order]]:  # one clip for each class, so that the examples differ
        if result.labels[video] not in {result.labels[other] for other in picked}:
            picked.append(int(video))
    return picked[:EXAMPLES]


def pick_mistakes(result: SplitResult, best: Row) -> list[int]:
    """The best row's worst mistakes, those first whose true class scores furthest below the predicted one."""
    scores = best.scores
    behind = scores.max(axis=1) - np.take_along_axis(scores, result.labels[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(metrics.rank_of_label(scores, result.labels) > 0)
    return wrong[np.argsort(-behind[wrong], kind="stable")][:MISTAKES].tolist()


def _split(result: SplitResult, best: Row, shards: Mapping[str, ShardAddress]) -> dict[str, Any]:
    singles = result.rows[: len(result.streams)]
    shown = [*singles, best] if best not in singles else list(singles)
    return {
        "number": result.split,
        "videos": len(result.videos),
        "rows": result.rows,
        "top5": result.shows_top5,
        "warnings": result.warnings,
        "learned": any(row.training is not None or row.cross_validated is not None for row in result.rows),
        "published": published_rows(result.streams[0].dataset, result.split),
        "disagreement": [
            {"first": first.name, "second": second.name}
            | {
                f"right_{who}": count
                for who, count in metrics.disagreement(first.scores, second.scores, result.labels).items()
            }
            for place, first in enumerate(singles)
            for second in singles[place + 1 :]
        ],
        "best": best.name,
        "recall_chart": _embedded(
            figures.class_recall_chart(result.classes, {row.name: row.metrics.class_recall for row in shown})
        ),
        "confusion_chart": _embedded(figures.confusion_chart(result.classes, best.metrics.confusion)),
        "confused": [
            {
                "true": result.classes[pair.true],
                "predicted": result.classes[pair.predicted],
                "videos": pair.videos,
                "share": pair.share,
            }
            for pair in metrics.most_confused(best.metrics.confusion)
        ],
        "examples": [_clip(result, best, video, shards) for video in pick_examples(result, best)],
        "mistakes": [_clip(result, best, video, shards) for video in pick_mistakes(result, best)],
    }


def _clip(result: SplitResult, best: Row, video: int, shards: Mapping[str, ShardAddress]) -> dict[str, Any]:
    name = result.videos[video]
    frame, flow = _pictures(shards[name]) if name in shards else ("", "")
    singles = result.rows[: len(result.streams)]
    return {
        "video": name,
        "label": result.classes[result.labels[video]],
        "frame": frame,
        "flow": flow,
        "streams": [
            {"name": row.name, "top": top_classes(row.scores[video], result.classes)}
            for row in [*singles, *([best] if best not in singles else [])]
        ],
    }


def top_classes(scores: npt.NDArray[np.floating], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The best classes of one video: name, score as text, and a share for its bar (0 for scores that are no shares)."""
    best = np.argsort(-scores, kind="stable")[:TOP]
    shares = scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3
    return [
        {
            "name": classes[index],
            "text": f"{100 * scores[index]:.0f}%" if shares else f"{scores[index]:.2f}",
            "share": float(scores[index]) if shares else 0.0,
        }
        for index in best
    ]


def _pictures(address: ShardAddress) -> tuple[str, str]:
    """The middle frame and the flow that starts there, where the shard holds them, as embedded pictures."""
    frame = flow = ""
    with open_shard(address) as shard:
        middle = shard.frame_count // 2
        if shard.has_frames:
            frame = _embedded(figures.png(shard.frames(middle, middle + 1)[0]))
        for direction in shard.directions[:1]:
            middle = min(middle, shard.flow_counts[direction] - 1)
            if middle >= 0:
                field = shard.flows(middle, middle + 1, direction)[0]
                flow = _embedded(figures.png(flow_colours(field, full_colour_speed(field))))
    return frame, flow


def _curves(runs: Sequence[RunStory]) -> str:
    logs = {story.run: story.log for story in runs if story.log}
    return _embedded(figures.curves_chart(logs)) if logs else ""


def _filters_caption(volume: VolumeSpec) -> str:
    if volume.stream == "spatial":
        return "Each picture is one filter in the colours it answers to."
    return (
        f"Each column is one filter: its {volume.length} x components above its {volume.length} y components, "
        "time running down; red is positive, blue negative."
    )


def _embedded(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
