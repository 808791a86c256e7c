"""Classifying videos outside of any dataset: frames and flow on the fly, as the runs' own shards were made."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from evaluate import fusion
from evaluate import score as scoring
from evaluate.score import Views
from evaluate.stages import computing
from extract_flow import methods, worker
from extract_flow.extract import Settings, Task
from pipeline import codec
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.request import Request, request_of
from pipeline.shard import ShardAddress, index_shards, open_shard
from pipeline.video import Selection
from train.checkpoint import Checkpoint, load_checkpoint


def run(videos: Sequence[Path], runs: Sequence[Path], options: Mapping[str, Any], console: Console) -> None:
    """Print the best classes of each video, one column for each run and one for their fusion.

    Raises:
        InputError: runs that do not fit together, or a video that cannot be decoded; the others are classified first.
    """
    checkpoints = [load_checkpoint(path) for path in runs]
    head, classes = common_classes(checkpoints)
    if options["weights"] and len(options["weights"]) != len(runs):
        raise InputError(f"--weights: {len(runs)} runs need as many weights, found {len(options['weights'])}")
    views = Views(options["frames"], options["crops"])
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="two-stream-predict-") as folder:
        shards = make_shards(videos, checkpoints, Path(folder), options["device"], faults)
        made = [place for place, of_video in enumerate(shards) if of_video]
        softmax = [
            _softmax(checkpoint, head, classes, [shards[place][number] for place in made], views, options)
            for number, checkpoint in enumerate(checkpoints)
        ]
    for row, place in enumerate(made):
        scores = {
            _column(runs[number], checkpoint): softmax[number][row]
            for number, checkpoint in enumerate(checkpoints)
        }
        if len(runs) > 1:
            fused = fusion.weighted(list(scores.values()), options["weights"] or [1.0] * len(runs))
            scores["fusion"] = fused
        _show(videos[place], scores, classes, options, console)
    if faults:
        raise InputError("; ".join(faults))


def common_classes(checkpoints: Sequence[Checkpoint]) -> tuple[str, tuple[str, ...]]:
    """The head (dataset) that all runs were trained for, and its classes.

    Raises:
        InputError: none in common, or its classes differ.
    """
    first = checkpoints[0]
    main = first.run.get("dataset")
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


def make_shards(
    videos: Sequence[Path], checkpoints: Sequence[Checkpoint], folder: Path, device: str, faults: list[str]
) -> list[list[ShardAddress]]:
    """For each video one shard per checkpoint (shared where they want the same), or none if it cannot be decoded."""
    wanted = [settings_of(checkpoint) for checkpoint in checkpoints]
    kinds = _merged(wanted)
    shards: list[list[ShardAddress]] = [[] for _ in videos]
    made: dict[tuple[int, int], Path] = {}
    broken: set[int] = set()
    for number, settings in enumerate(kinds):
        method = methods.load(settings.method, device, **settings.parameters)
        for place, video in enumerate(videos):
            if place in broken:
                continue
            path = folder / f"{place}-{number}.h5"
            result = worker.make(
                0, Task(f"video/{place}", video, path), settings, method, method.device, None
            )
            if result.outcome.status == "failed":
                broken.add(place)
                faults.append(str(result.outcome.reason))
            else:
                made[place, number] = path
    for place in range(len(videos)):
        if place not in broken:
            kind = [next(n for n, one in enumerate(kinds) if _covers(one, want)) for want in wanted]
            shards[place] = [ShardAddress(made[place, number]) for number in kind]
    return shards


def settings_of(checkpoint: Checkpoint) -> Settings:
    """How to extract for a run: as the shards were made that it was trained on, if they are still there.

    Otherwise the defaults of `python -m extract_flow`, at the size that the network was trained for.
    """
    spec = checkpoint.volume
    directions = spec.directions
    request = _training_request(checkpoint)
    if request is None:
        selection = Selection(short_side=spec.short_side or 256)
        return Settings(
            "tvl1", _plain(methods.resolve("tvl1")), selection, directions, rgb=spec.stream == "spatial"
        )
    words = request.size.split()
    selection = Selection(
        short_side=int(words[-1]) if words[0] == "short" else None,
        size=None if "x" not in request.size else tuple(map(int, request.size.split("x"))),  # type: ignore[arg-type]
        every=request.every,
    )
    preset = next(
        (name for name in codec.PRESETS if codec.codec(name).quantiser.name == request.quantiser), "default"
    )
    method = request.method or "tvl1"
    parameters = dict(request.parameters) if request.method else _plain(methods.resolve(method))
    return Settings(
        method, parameters, selection, directions, request.step, preset, rgb=spec.stream == "spatial"
    )


def _training_request(checkpoint: Checkpoint) -> Request | None:
    """What the shards of the run's own dataset answer, taken from the first one there is; None if there is none."""
    if checkpoint.path is None:
        return None
    folder = checkpoint.path.resolve().parent
    dataset = checkpoint.run.get("dataset", "")
    sets = dict(
        entry.split("=", 1) for entry in str(checkpoint.run.get("shards", "")).split(",") if "=" in entry
    )
    # DATA/<dataset>/runs/<run>: the data root that the run lies in.
    paths = DatasetPaths(folder.parent.parent.parent, folder.parent.parent.name)
    if paths.dataset != dataset or dataset not in sets:
        return None
    for address in index_shards(paths.shards(sets[dataset])).values():
        with open_shard(address) as shard:
            return request_of(shard)
    return None


def _plain(parameters: Any) -> dict[str, Any]:
    return dataclasses.asdict(parameters)


def _same_but_for_parts(first: Settings, second: Settings) -> bool:
    return dataclasses.replace(first, directions=(), rgb=False) == dataclasses.replace(
        second, directions=(), rgb=False
    )


def _covers(kind: Settings, want: Settings) -> bool:
    return (
        _same_but_for_parts(kind, want)
        and set(want.directions) <= set(kind.directions)
        and want.rgb <= kind.rgb
    )


def _merged(wanted: Sequence[Settings]) -> list[Settings]:
    """The fewest extractions that serve all: runs that want frames and runs that want flow share one decoding."""
    kinds: list[Settings] = []
    for want in wanted:
        for place, kind in enumerate(kinds):
            if _same_but_for_parts(kind, want):
                both = tuple(d for d in ("forward", "backward") if d in (*kind.directions, *want.directions))
                kinds[place] = dataclasses.replace(kind, directions=both, rgb=kind.rgb or want.rgb)
                break
        else:
            kinds.append(want)
    return kinds


def _softmax(
    checkpoint: Checkpoint,
    head: str,
    classes: Sequence[str],
    shards: Sequence[ShardAddress],
    views: Views,
    options: Mapping[str, Any],
) -> list[npt.NDArray[np.float32]]:
    places, batch, workers = computing(options)
    forward = scoring.network_forward(
        checkpoint, checkpoint.columns(head, classes), places[0], options["bf16"]
    )
    scored = scoring.score_views(forward, checkpoint.volume, shards, views, places[0], batch, workers)
    by_video = {index: scoring.video_scores(outputs)[1] for index, outputs in scored}
    return [by_video[index] for index in range(len(shards))]


def _column(path: Path, checkpoint: Checkpoint) -> str:
    name = path.name if path.is_dir() else path.parent.name
    return f"{checkpoint.volume.stream} ({name})"


def _show(
    video: Path,
    scores: Mapping[str, npt.NDArray[np.floating]],
    classes: Sequence[str],
    options: Mapping[str, Any],
    console: Console,
) -> None:
    best = {
        name: [
            (classes[index], float(row[index])) for index in np.argsort(-row, kind="stable")[: options["top"]]
        ]
        for name, row in scores.items()
    }
    if options["as_json"]:
        print(
            json.dumps(
                {"video": str(video), **{name: dict(top) for name, top in best.items()}}, ensure_ascii=False
            )
        )
        return
    console.print(str(video), markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for name in best:
        table.add_column(name)
    for row in zip(*best.values(), strict=True):
        table.add_row(*(f"{label} {100 * score:.1f}%" for label, score in row))
    console.print(table)
