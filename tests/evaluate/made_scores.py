"""Score files of made-up networks on any number of classes, written and read by the project, for tests of the report.

`python tests/evaluate/made_scores.py FOLDER` writes the reports of 2, 9 and 101 classes there, of one split
and of three, to be looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate import report, results
from evaluate.provenance import Provenance, ScoredSet
from evaluate.report import RunStory
from evaluate.results import SplitResult
from evaluate.score_file import Scores, read_scores, write_scores
from pipeline.runs import STREAMS, Fusion
from pipeline.shard import ShardAddress
from train.volume_spec import VolumeSpec

ACTIONS = (
    "Basketball",
    "Billiards",
    "Boxing",
    "Diving",
    "Drum",
    "Fencing",
    "FieldHockey",
    "Guitar",
    "Rope",
    "Surf",
)
MANNERS = (
    "Dunk",
    "Shot",
    "PunchingBag",
    "FromTheCliff",
    "Playing",
    "Lunge",
    "Penalty",
    "Solo",
    "Climb",
    "Ride",
)


def class_names(count: int) -> tuple[str, ...]:
    """Different names as long as those of UCF-101."""
    names = [f"{action}{manner}" for manner in MANNERS for action in ACTIONS] + ["YoYo"]
    return tuple(sorted(names[:count]))


def scores(
    folder: Path, stream: str, classes: int, split: int = 1, part: str = "test", videos: int = 8
) -> Scores:
    """A score file of some videos of each class: some classes are hard, and each is taken for its neighbour.

    Args:
        folder: for the file.
        stream: each errs in its own way.
        classes: how many.
        split, part: of which list.
        videos: of each class.
    """
    random = np.random.default_rng([STREAMS.index(stream), split, part == "train", classes])  # type: ignore[arg-type]
    names, labels = class_names(classes), np.repeat(np.arange(classes), videos)
    ease = np.random.default_rng([STREAMS.index(stream), classes]).uniform(0.5, 4.5, classes)  # type: ignore[arg-type]
    logits = random.normal(0, 1, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += ease[labels]
    logits[np.arange(len(labels)), (labels + 1) % classes] += 1
    powers = np.exp(logits)
    made = Scores(
        dataset="made",
        split=split,
        part=part,
        stream=stream,
        run=f"{stream}-split{split}",
        checkpoint=f"{split}{STREAMS.index(stream)}" * 32,  # type: ignore[arg-type]
        shards="tvl1",
        settings={"frames": 25, "crops": 10, "crop": 224},
        classes=names,
        videos=tuple(f"{names[label]}/v_{part}_s{split}_{row:04d}" for row, label in enumerate(labels)),
        groups=tuple(f"{names[label]} {row // 4}" for row, label in enumerate(labels)),
        labels=labels.astype(np.int32),
        logits=logits.astype(np.float32),
        softmax=(powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        views=np.full(len(labels), 250, np.int32),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stream}-{split}-{part}.h5"
    write_scores(path, made)
    return read_scores(path)


def split_result(
    folder: Path, classes: int, split: int = 1, fusions: Sequence[Fusion] = ("average",), videos: int = 8
) -> SplitResult:
    """Both streams on one split, and their fusions."""
    test = [scores(folder, stream, classes, split, videos=videos) for stream in STREAMS]
    train = (
        [scores(folder, stream, classes, split, "train", videos) for stream in STREAMS]
        if "svm" in fusions
        else []
    )
    return results.evaluate_split(test, fusions, train)


def story(scored: Scores) -> RunStory:
    """A run that could have made such scores."""
    random = np.random.default_rng(scored.split)
    channels = 3 if scored.stream == "spatial" else 20
    return RunStory(
        scored.run,
        "resnet18, 300 iterations of 32",
        VolumeSpec(stream=scored.stream),  # type: ignore[arg-type]
        [{"iteration": i, "loss": 2 / (1 + i / 20) + random.normal(0, 0.05)} for i in range(300)],
        random.normal(size=(64, channels, 7, 7)).astype(np.float32),
        digest=scored.checkpoint,
        iteration=300,
        seed=7,
        init="imagenet" if scored.stream == "spatial" else None,
    )


def write_example(
    folder: Path,
    classes: int,
    splits: Sequence[int] = (1,),
    fusions: Sequence[Fusion] = ("average", "svm"),
    videos: int = 8,
) -> Path:
    """A report with pictures; returns its path."""
    from made_shards import make_shard, request

    folder.mkdir(parents=True, exist_ok=True)
    found = [split_result(folder, classes, split, fusions, videos) for split in splits]
    shards = {}
    for result, best in zip(found, results.detailed_rows(found), strict=True):
        for video in [*report.pick_examples(result, best), *report.pick_mistakes(result, best)]:
            name = result.videos[video]
            path = folder / "shards" / f"{name}.h5"
            make_shard(path, name, frames=True, height=180, width=240, seed=video)
            shards[name] = ShardAddress(path)
    provenance = Provenance(
        "python -m evaluate report --dataset made --fusion average --fusion svm",
        "2026-11-25 12:00 UTC",
        {"two-stream": "0.2.0", "Python": "3.11.2"},
        {"kind": "ucf101", "listed": 13320},
        {split: (2 * classes * videos, classes * videos) for split in splits},
        [
            ScoredSet(
                "tvl1",
                request(short_side=256, method="tvl1", parameters={"scales": 5, "warps": 5}),
                found[0].videos[0],
            )
        ],
    )
    path = folder / "report.html"
    report.write_report(
        path,
        found,
        [story(stream) for result in found for stream in result.streams],
        shards,
        provenance=provenance,
    )
    return path


if __name__ == "__main__":
    for name, (count, of_splits) in {
        "2": (2, [1]),
        "9": (9, [1]),
        "9x3": (9, [1, 2, 3]),
        "101": (101, [1]),
        "101x3": (101, [1, 2, 3]),
    }.items():
        print(write_example(Path(sys.argv[1]) / name, count, of_splits))
