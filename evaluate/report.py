"""The report: one self-contained HTML file with every table and picture, readable on a phone, without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from evaluate import figures, fusion, metrics
from evaluate.class_charts import class_order, class_view
from evaluate.provenance import Provenance, ScoredSet
from evaluate.published import published_rows
from evaluate.results import Row, SplitResult, detailed_rows, mean_rows
from evaluate.score_file import Scores
from pipeline import atomic
from pipeline.flow_colours import flow_colours
from pipeline.request import Request
from pipeline.runs import RunPaths
from pipeline.shard import ShardAddress, open_shard
from pipeline.text import many
from pipeline.typical_flow import typical_flow
from pipeline.view import frame_number
from train.checkpoint import Checkpoint
from train.log import read_log
from train.volume_spec import VolumeSpec

EXAMPLES = 3
MISTAKES = 6
TOP = 3
CLIP_WIDTH = 320


@dataclass(frozen=True)
class RunStory:
    """What the report shows of a training run beside its scores.

    Attributes:
        run: its name.
        recipe: its network and schedule, in a few words.
        volume: the network's input.
        log: the training log's entries with `iteration` and `loss`.
        filters: first-layer weights float32[N,C,k,k].
        digest: of its checkpoint, as score files record it; empty for none.
        iteration: iterations done; None where that is not known.
        seed: of every random choice of the training.
        init: what the weights started from, if not from random ones.
        requests: dataset -> how the shards it learned from were made.
    """

    run: str
    recipe: str
    volume: VolumeSpec
    log: Sequence[Mapping[str, float]]
    filters: npt.NDArray[np.float32]
    digest: str = ""
    iteration: int | None = None
    seed: int | None = None
    init: str | None = None
    requests: Mapping[str, Request] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipPictures:
    """A frame uint8[H,W,3] of a clip and the flow float32[2,H,W] from there on, a typical one of the clip, None where
    there is none; and the speed of full colour that suits the clip, in pixels.
    """

    frame: npt.NDArray[np.uint8] | None
    flow: npt.NDArray[np.float32] | None
    fastest: float = 0.0


def run_story(paths: RunPaths, recipe: str, checkpoint: Checkpoint) -> RunStory:
    """A run's log, first layer and origin; `recipe` describes it in a few words."""
    losses = [record for record in read_log(paths.folder) if "loss" in record and "iteration" in record]
    filters = checkpoint.weights[f"{checkpoint.model().first}.weight"].numpy().astype(np.float32)
    return RunStory(
        paths.name,
        recipe,
        checkpoint.volume,
        losses,
        filters,
        checkpoint.digest,
        checkpoint.iteration,
        checkpoint.recipe.get("seed"),
        checkpoint.run.init,
        checkpoint.requests,
    )


def write_report(
    path: Path,
    results: Sequence[SplitResult],
    runs: Sequence[RunStory],
    shards: Mapping[str, ShardAddress],
    details: str | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Write the report of some splits of one dataset.

    Args:
        path: the HTML file, replaced as a whole.
        results: one for each split.
        runs: the runs whose scores they hold.
        shards: where to take the pictures of example clips from; a clip without a shard is shown without pictures.
        details: the row that pictures and examples are about; see `results.detailed_rows`.
        provenance: how the results were made, as far as their files do not record it.

    Raises:
        InputError: no such row.
    """
    html = render(context(results, runs, shards, details, provenance))
    with atomic.writing(path) as temporary:
        temporary.write_bytes(html.encode("utf-8", "backslashreplace"))  # file names may hold any bytes


def render(values: Mapping[str, Any]) -> str:
    """The HTML text; everything in `values` is escaped, since names of classes and videos may hold anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda rate: (
        "-" if rate is None or np.isnan(rate) else f"{100 * rate:.1f}"
    )
    environment.filters["interval"] = lambda ends: (
        "-" if np.isnan(ends[0]) else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.get_template("report.html").render(values)


def context(
    results: Sequence[SplitResult],
    runs: Sequence[RunStory],
    shards: Mapping[str, ShardAddress],
    details: str | None = None,
    provenance: Provenance | None = None,
) -> dict[str, Any]:
    """Everything that the template shows, pictures included."""
    dataset, classes = results[0].streams[0].dataset, results[0].classes
    best = detailed_rows(results, details)
    order = class_order(np.sum([row.metrics.confusion for row in best], axis=0))
    picked = [
        (pick_examples(result, row), pick_mistakes(result, row))
        for result, row in zip(results, best, strict=True)
    ]
    pictures = _pictures(
        {
            result.videos[video]
            for result, videos in zip(results, picked, strict=True)
            for part in videos
            for video in part
        },
        shards,
    )
    fastest = _one_scale(pictures)
    return {
        "title": f"Two-stream action recognition: {dataset}",
        "classes": len(classes),
        "best": [row.name for row in best],
        "asked": details is not None,
        "provenance": _making(results, runs, provenance or Provenance()),
        "mean": _mean(results),
        "chances": [100 * metrics.chance(result.labels) for result in results],
        "published": published_rows(dataset, None),
        "splits": [
            _split(
                result,
                row,
                order,
                [[_clip(result, row, video, pictures, fastest) for video in part] for part in videos],
            )
            for result, row, videos in zip(results, best, picked, strict=True)
        ],
        "all_classes": _all_classes(results, best, order),
        "wheel": _embedded(figures.flow_wheel()) if fastest else "",
        "fastest": fastest,
        "curves": _curves(runs),
        "filters": [
            {
                "name": story.run,
                "what": _filters_caption(story.volume),
                "picture": _embedded(
                    figures.filters_picture(story.filters, story.volume.stream == "temporal")
                ),
            }
            for story in runs
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


def _shown(result: SplitResult, best: Row) -> list[Row]:
    """The rows that charts and clips compare: the streams, and the row shown in detail last."""
    return [*(row for row in result.rows[: len(result.streams)] if row is not best), best]


def _split(
    result: SplitResult, best: Row, order: Sequence[int], clips: Sequence[Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    singles = result.rows[: len(result.streams)]
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
        "calibrated": best.temperature,
        "classes": class_view(
            result.classes, order, {row.name: row.metrics.confusion for row in _shown(result, best)}
        ),
        "examples": clips[0],
        "mistakes": clips[1],
    }


def _all_classes(
    results: Sequence[SplitResult], best: Sequence[Row], order: Sequence[int]
) -> dict[str, Any] | None:
    """The classes over the test videos of all splits, with the rows that every split has; None for a single split."""
    if len(results) == 1:
        return None
    confusions = {
        row.name: [
            other.metrics.confusion for result in results for other in result.rows if other.name == row.name
        ]
        for row in _shown(results[0], best[0])
    }
    shared = {name: np.sum(found, axis=0) for name, found in confusions.items() if len(found) == len(results)}
    return class_view(results[0].classes, order, shared) if shared else None


def _mean(results: Sequence[SplitResult]) -> list[dict[str, Any]]:
    """The mean rows, each with the accuracy of every split; none for a single split."""
    if len(results) == 1:
        return []
    return [
        entry
        | {
            "accuracies": [
                row.metrics.accuracy for result in results for row in result.rows if row.name == entry["name"]
            ]
        }
        for entry in mean_rows(results)
    ]


def _clip(
    result: SplitResult, best: Row, video: int, pictures: Mapping[str, ClipPictures], fastest: float
) -> dict[str, Any]:
    name, label = result.videos[video], int(result.labels[video])
    shown = pictures.get(name, ClipPictures(None, None))
    return {
        "video": name,
        "label": result.classes[label],
        "frame": "" if shown.frame is None else _photograph(shown.frame),
        "flow": "" if shown.flow is None else _photograph(flow_colours(shown.flow, fastest)),
        "streams": [
            {"name": row.name, "top": top_classes(row.shares[video], result.classes, label)}
            for row in _shown(result, best)
        ],
    }


def top_classes(shares: npt.NDArray[np.floating], classes: Sequence[str], label: int) -> list[dict[str, Any]]:
    """The classes with the largest shares of one video, and the true one where it is not among them.

    Args:
        shares: float[C], which add up to one.
        classes: C names.
        label: index of the true class.
    """
    ranking = np.argsort(-shares, kind="stable")
    rank = int(np.flatnonzero(ranking == label)[0])
    shown = [*range(min(TOP, len(classes))), *([rank] if rank >= TOP else [])]
    return [
        {
            "name": classes[ranking[place]],
            "place": place + 1,
            "share": round(100 * float(shares[ranking[place]]), 1),
            "text": _percent(float(shares[ranking[place]])),
            "true": place == rank,
        }
        for place in shown
    ]


def _percent(share: float) -> str:
    """A share in whole percent; less than one percent but more than none is shown as such."""
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def _pictures(videos: Iterable[str], shards: Mapping[str, ShardAddress]) -> dict[str, ClipPictures]:
    return {video: _clip_pictures(shards[video]) for video in sorted(videos) if video in shards}


def _clip_pictures(address: ShardAddress) -> ClipPictures:
    with open_shard(address) as shard:
        place = shard.frame_count // 2
        flow, fastest = None, 0.0
        if shard.directions and shard.flow_counts[shard.directions[0]]:
            direction = shard.directions[0]
            typical = typical_flow(shard, direction)
            place, fastest = frame_number(shard, typical.index, direction), typical.fastest
            flow = shard.flows(typical.index, typical.index + 1, direction)[0]
        frame = shard.frames(place, place + 1)[0] if shard.has_frames else None
    return ClipPictures(frame, flow, fastest)


def _one_scale(pictures: Mapping[str, ClipPictures]) -> float:
    """The speed of full colour in all pictures, so that they can be compared: the median of the clips' own; 0 where
    there is no flow.
    """
    speeds = [shown.fastest for shown in pictures.values() if shown.flow is not None]
    return float(np.median(speeds)) if speeds else 0.0


def _making(
    results: Sequence[SplitResult], runs: Sequence[RunStory], provenance: Provenance
) -> dict[str, Any]:
    """How the results were made, from score files, checkpoints and what the command knows; see the template."""
    stories = {story.run: story for story in runs}
    streams = [(result, stream) for result in results for stream in result.streams]
    rows = [_run_row(stream, stories.get(stream.run)) for _, stream in streams]
    return {
        "command": provenance.command,
        "made": provenance.made,
        "software": provenance.software,
        "origin": provenance.origin,
        "lists": [
            {
                "split": result.split,
                "scored": len(result.videos),
                "groups": len(set(result.streams[0].groups)),
                "listed": provenance.lists.get(result.split),
            }
            for result in results
        ],
        "sets": [_set_row(scored) for scored in provenance.sets],
        "unknown_sets": sorted(
            {stream.shards for _, stream in streams} - {scored.name for scored in provenance.sets}
        ),
        "views": sorted({_views_in_words(stream) for _, stream in streams}),
        "runs": rows,
        "warnings": _doubts(streams, stories, provenance),
        "seeds": {
            "training": sorted({row["seed"] for row in rows if row["seed"] is not None}),
            "bootstrap": metrics.SEED,
            "resamples": metrics.RESAMPLES,
            "svm": fusion.SEED
            if any(row.kind == "svm" for result in results for row in result.rows)
            else None,
        },
    }


def _run_row(stream: Scores, story: RunStory | None) -> dict[str, Any]:
    """What is known of a run: its score file's facts, and its checkpoint's where that is the one that was scored."""
    known = story if story is not None and story.digest in ("", stream.checkpoint) else None
    return {
        "run": stream.run,
        "stream": stream.stream,
        "split": stream.split,
        "checkpoint": stream.checkpoint,
        "shards": stream.shards,
        "views": _views_in_words(stream),
        "recipe": known.recipe if known else "",
        "input": _input_in_words(known.volume) if known else "",
        "iteration": known.iteration if known else None,
        "init": (known.init or "random weights") if known else "",
        "seed": known.seed if known else None,
    }


def _views_in_words(stream: Scores) -> str:
    settings = stream.settings
    return f"{settings.get('frames', '?')} x {settings.get('crops', '?')}"


def _input_in_words(volume: VolumeSpec) -> str:
    if volume.stream == "spatial":
        return f"one RGB frame, {volume.crop} px"
    stacking = "trajectories" if volume.stacking == "trajectory" else "stacked"
    mean = "mean subtracted" if volume.mean_subtraction else "mean kept"
    return f"L = {volume.length} {volume.direction} flows, {stacking}, {mean}, {volume.crop} px"


def _set_row(scored: ScoredSet) -> dict[str, Any]:
    """How the shards of a set were made, in words; parameters and codec by name."""
    request = scored.request
    size = request.size_in_words
    return {
        "name": scored.name,
        "video": scored.video,
        "method": request.method or "no flow",
        "size": "the source's size" if size == "source" else size,
        "pairs": f"{' and '.join(request.directions)} flow over {many(request.step, 'frame')}"
        if request.directions
        else "",
        "every": "every frame" if request.every == 1 else f"one frame in {request.every}",
        "parameters": dict(sorted(request.parameters.items())),
        "codec": {
            name: value
            for name, value in (
                ("levels", request.quantiser),
                ("image", request.image),
                ("quality", request.quality),
                ("quality of frames", request.frames_quality),
            )
            if value not in (None, "")
        },
    }


def _doubts(
    streams: Sequence[tuple[SplitResult, Scores]], stories: Mapping[str, RunStory], provenance: Provenance
) -> list[str]:
    """Where the files contradict each other: trained further since scoring, or trained on shards made otherwise."""
    made = {scored.name: scored.request for scored in provenance.sets}
    found = []
    for _, stream in streams:
        story = stories.get(stream.run)
        if story is None or not story.digest:
            continue
        if story.digest != stream.checkpoint:
            found.append(
                f"run {stream.run} has another checkpoint now ({story.digest[:12]}) than the one that was scored "
                f"({stream.checkpoint[:12]}): its training is not described here; score it again"
            )
        learned = story.requests.get(stream.dataset)
        if learned is not None and stream.shards in made:
            differences = [
                line
                for line in learned.differences(made[stream.shards])
                if not line.startswith("source_bytes")
            ]
            if differences:
                found.append(
                    f"run {stream.run} learned from shards that were made otherwise than those of {stream.shards}, "
                    f"which were scored: {'; '.join(differences)}"
                )
    return found


def _curves(runs: Sequence[RunStory]) -> list[dict[str, str]]:
    logs: dict[str, list[tuple[str, Sequence[Mapping[str, float]]]]] = {}
    for story in runs:
        if story.log:
            logs.setdefault(story.volume.stream, []).append((story.run, story.log))
    return [
        {"stream": stream, "picture": _embedded(figures.curves_chart(stream, of_stream))}
        for stream, of_stream in logs.items()
    ]


def _filters_caption(volume: VolumeSpec) -> str:
    if volume.stream == "spatial":
        return "Each picture is one filter in the colours it answers to."
    return (
        f"Each column is one filter: its {volume.length} x components above its {volume.length} y components, "
        "time running down; red is positive, blue negative."
    )


def _photograph(picture: npt.NDArray[np.uint8]) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(figures.jpeg(picture, CLIP_WIDTH)).decode()}"


def _embedded(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
