"""From score files to results: single streams and their fusions on one split, and the mean over splits.

Pure: arrays in, rows out. `write` saves them as JSON and CSV, `tables` renders them for the terminal.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from evaluate import caveats, metrics
from evaluate import fusion as fusing
from evaluate.metrics import Metrics
from evaluate.score_file import Scores, aligned
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.runs import Fusion, Part, ScoreKind
from pipeline.text import many, spreadsheet_cell, typed

TOP5_CLASSES = 5
FIELD_WEIGHTS = {"spatial": 1.0, "temporal": 1.5}


@dataclass(frozen=True)
class Row:
    """One stream or one fusion on one split.

    Attributes:
        name: of the stream or fusion.
        scores: class scores float[n,C].
        metrics: of these scores.
        note: how they were made.
        training: accuracy on the videos that were learned from, where they were scored: of a stream's network, or of
            a fusion by SVM on the scores it was fitted on.
        cross_validated: accuracy on videos of the training list that were held out: of the networks of a stream's
            folds, or of a fusion by SVM in the cross-validation that chose its C.
        kind: of fusion; None for a stream.
        temperature: None where the scores are probabilities; else the temperature that turns them into shares, see
            `fusion.shares`.
    """

    name: str
    scores: npt.NDArray[np.floating]
    metrics: Metrics
    note: str = ""
    training: float | None = None
    cross_validated: float | None = None
    kind: Fusion | None = None
    temperature: float | None = None

    @property
    def shares(self) -> npt.NDArray[np.floating]:
        """The scores as shares of one, float[n,C]: mean softmax, or calibrated ones in the same order."""
        return self.scores if self.temperature is None else fusing.shares(self.scores, self.temperature)


@dataclass(frozen=True)
class SplitResult:
    """Results on one split.

    Attributes:
        split: its number.
        streams: the streams' scores, their videos in one order.
        rows: the streams, then the fusions.
        warnings: what a reader must know before trusting the rows; see `evaluate.caveats`.
    """

    split: int
    streams: tuple[Scores, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def shows_top5(self) -> bool:
        """Whether top-5 accuracy means anything: among five classes or fewer it is always 100%."""
        return len(self.classes) > TOP5_CLASSES

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[n], in the order of `videos`."""
        return self.streams[0].labels

    @property
    def videos(self) -> tuple[str, ...]:
        """The videos, sorted by name."""
        return self.streams[0].videos

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, by index."""
        return self.streams[0].classes


def evaluate_split(
    test: Sequence[Scores],
    fusions: Sequence[Fusion],
    train: Sequence[Scores] = (),
    weights: Sequence[float] | None = None,
    on: ScoreKind = "softmax",
    unfinished: Sequence[str] = (),
) -> SplitResult:
    """Metrics of every stream and of every fusion asked for.

    Args:
        test: scores on the test list, one for each stream, in the order of fusion.
        fusions: "none" adds nothing; the others need at least two streams.
        train: scores of the same runs on the training list; "svm" is fitted on them alone.
        weights: of "weighted"; by default the field's 1 for a spatial and 1.5 for a temporal stream.
        on: whether "average" and "weighted" work on softmax scores or on logits.
        unfinished: warnings about the runs, which join those about the results.

    Raises:
        InputError: streams that do not belong together, too few of them, or no scores for the SVM to learn from.
    """
    streams = aligned(test)
    labels = streams[0].labels
    if not len(labels):
        raise InputError(f"the test list of split {streams[0].split} holds no scored video")
    names = stream_names(streams)
    rows = [
        Row(
            name,
            stream.softmax,
            metrics.measure(stream.softmax, labels, streams[0].groups),
            f"run {stream.run}",
            _accuracy_on(train, stream.run, "train"),
            _accuracy_on(train, stream.run, "held-out"),
        )
        for name, stream in zip(names, streams, strict=True)
    ]
    for kind in fusions:
        if kind == "none":
            continue
        if len(streams) < 2:
            raise InputError(
                f"fusion {kind!r} needs at least two streams, found only {names[0]}: "
                "train the other stream, or give --fusion none"
            )
        rows.append(_svm_row(streams, train) if kind == "svm" else _mean_row(kind, streams, weights, on))
    found = caveats.of_results(rows[: len(streams)], rows[len(streams) :], labels, streams[0].classes)
    return SplitResult(streams[0].split, tuple(streams), tuple(rows), (*unfinished, *found))


def stream_names(streams: Sequence[Scores]) -> list[str]:
    """Each stream's kind, with the run's name where several of one kind are fused."""
    kinds = [stream.stream for stream in streams]
    return [
        stream.stream if kinds.count(stream.stream) == 1 else f"{stream.stream} ({stream.run})"
        for stream in streams
    ]


def detailed_row(result: SplitResult, wanted: str | None = None) -> Row:
    """The row to show in detail: the one wanted, by its name or kind of fusion, else the most accurate.

    Raises:
        InputError: no such row; the message names those there are.
    """
    if wanted is None:
        return max(reversed(result.rows), key=lambda row: row.metrics.accuracy)
    for row in result.rows:
        if wanted in (row.name, row.kind):
            return row
    there = ", ".join(row.kind or row.name for row in result.rows)
    raise InputError(f"--details {wanted}: split {result.split} has no such row, only {there}")


def detailed_rows(results: Sequence[SplitResult], wanted: str | None = None) -> list[Row]:
    """The row to show in detail of each split: where none is wanted, the one that is most accurate in the mean over
    splits, so that all are about the same; the most accurate of each split if they have no row in common.

    Raises:
        InputError: no such row; the message names those there are.
    """
    means = mean_rows(results)
    if wanted is None and means:
        wanted = max(reversed(means), key=lambda entry: entry["accuracy"])["name"]
    return [detailed_row(result, wanted) for result in results]


def mean_rows(results: Sequence[SplitResult]) -> list[dict[str, Any]]:
    """Mean over splits and spread of each row that every split has: accuracy, mean class recall and, where it means
    anything, both top-5.
    """
    rows = []
    for row in results[0].rows:
        of_name = [[other for other in result.rows if other.name == row.name] for result in results]
        if not all(of_name):
            continue
        entry: dict[str, Any] = {"name": row.name, "splits": [result.split for result in results]}
        keys = ["accuracy", "mean_class_recall"]
        for key in keys + (["top5", "mean_class_top5"] if results[0].shows_top5 else []):
            mean, spread = metrics.mean_and_spread([getattr(found[0].metrics, key) for found in of_name])
            entry[key], entry[f"{key}_spread"] = mean, spread
        rows.append(entry)
    return rows


def as_dict(results: Sequence[SplitResult]) -> dict[str, Any]:
    """The results as plain values for JSON; rates are fractions."""
    first = results[0]
    return {
        "dataset": first.streams[0].dataset,
        "classes": list(first.classes),
        "splits": [_split_as_dict(result) for result in results],
        "mean": mean_rows(results),
    }


def write(folder: Path, results: Sequence[SplitResult]) -> list[Path]:
    """Save `metrics.json`, `metrics.csv`, and for every split `predictions-split<k>.csv`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.sweep(folder)
    texts = {
        "metrics.json": json.dumps(as_dict(results), indent=1, ensure_ascii=False) + "\n",
        "metrics.csv": _metrics_csv(results),
        **{f"predictions-split{result.split}.csv": _predictions_csv(result) for result in results},
    }
    for name, text in texts.items():
        with atomic.writing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def tables(results: Sequence[SplitResult]) -> list[Table]:
    """Tables for the terminal: one for each split, and the mean where there are several."""
    made = []
    for result in results:
        table = Table(
            title=f"{result.streams[0].dataset}, split {result.split}: {many(len(result.videos), 'video')}, %"
        )
        columns = _columns(result)
        for column in columns:
            table.add_column(column, justify="left" if column in ("", "how") else "right")
        for row in result.rows:
            table.add_row(*(cell(row) for cell in columns.values()))
        made.append(table)
    if len(results) > 1:
        table = Table(
            title=f"mean over splits {', '.join(str(result.split) for result in results)}, % (spread)"
        )
        shown = {"accuracy": "accuracy", "top5": "top-5", "mean_class_recall": "mean class recall"}
        if not results[0].shows_top5:
            del shown["top5"]
        for column in ("", *shown.values()):
            table.add_column(column, justify="right" if column else "left")
        for entry in mean_rows(results):
            cells = [f"{_percent(entry[key])} ({_percent(entry[f'{key}_spread'])})" for key in shown]
            table.add_row(entry["name"], *cells)
        made.append(table)
    return made


def _columns(result: SplitResult) -> dict[str, Callable[[Row], str]]:
    """The columns of a split's table and what each shows of a row."""

    def interval(row: Row) -> str:
        low, high = row.metrics.accuracy_interval
        return "-" if np.isnan(low) else f"{_percent(low)} to {_percent(high)}"

    columns: dict[str, Callable[[Row], str]] = {"": lambda row: row.name}
    if any(row.training is not None for row in result.rows):
        columns["training accuracy"] = lambda row: _percent(row.training)
    if any(row.cross_validated is not None for row in result.rows):
        columns["cross-validated"] = lambda row: _percent(row.cross_validated)
    learned = len(columns) > 1
    columns["test accuracy" if learned else "accuracy"] = lambda row: _percent(row.metrics.accuracy)
    columns["95% interval"] = interval
    if result.shows_top5:
        columns["top-5"] = lambda row: _percent(row.metrics.top5)
    columns["mean class recall"] = lambda row: _percent(row.metrics.mean_class_recall)
    columns["how"] = lambda row: row.note
    return columns


def _accuracy_on(lists: Sequence[Scores], run: str, part: Part) -> float | None:
    found = [scores for scores in lists if (scores.run, scores.part) == (run, part) and len(scores.labels)]
    if not found:
        return None
    return float((metrics.predictions(found[0].softmax) == found[0].labels).mean())


def _mean_row(kind: Fusion, streams: Sequence[Scores], weights: Sequence[float] | None, on: ScoreKind) -> Row:
    used = [getattr(stream, on) for stream in streams]
    if kind == "average":
        scores, note = fusing.average(used), f"mean of {on}"
    else:
        weights = weights or [FIELD_WEIGHTS[stream.stream] for stream in streams]
        try:
            scores = fusing.weighted(used, weights)
        except ValueError as error:
            raise InputError(f"--weights: {error}") from error
        note = f"{':'.join(f'{weight:g}' for weight in weights)} on {on}"
    return Row(
        _fusion_name(kind, on),
        scores,
        metrics.measure(scores, streams[0].labels, streams[0].groups),
        note,
        kind=kind,
        temperature=None if on == "softmax" else 1.0,
    )


def _svm_row(streams: Sequence[Scores], train: Sequence[Scores]) -> Row:
    learned = _training_scores(streams, train)
    try:
        fitted = fusing.fit_svm([scores.softmax for scores in learned], learned[0].labels, learned[0].groups)
    except ValueError as error:
        raise InputError(f"fusion by SVM: {error}") from error
    scores = fusing.svm_scores(fitted, [stream.softmax for stream in streams])
    source = "held-out" if learned[0].part == "held-out" else "in-sample"
    chosen = (
        f" by {fitted.folds}-fold cross-validation over groups"
        if fitted.accuracies
        else ", too few groups to choose"
    )
    return Row(
        _fusion_name("svm", "softmax"),
        scores,
        metrics.measure(scores, streams[0].labels, streams[0].groups),
        f"C = {fitted.cost:g}{chosen}, {source} scores",
        fitted.training_accuracy,
        fitted.accuracies.get(fitted.cost),
        kind="svm",
        temperature=fitted.temperature,
    )


def _training_scores(streams: Sequence[Scores], train: Sequence[Scores]) -> list[Scores]:
    """What an SVM over these streams learns from, in their order: in-sample scores by the same checkpoints, or held-out
    ones by networks of their folds.
    """
    by_run = {scores.run: scores for scores in train}
    missing = [stream.run for stream in streams if stream.run not in by_run]
    if missing:
        raise InputError(
            f"fusion by SVM learns from scores on the training list, and {', '.join(missing)} has none: "
            f"make them with: {typed('evaluate')} score --part train"
        )
    learned = aligned([by_run[stream.run] for stream in streams])
    for stream, source in zip(streams, (by_run[stream.run] for stream in streams), strict=True):
        held_out = source.part == "held-out" and source.split == stream.split
        if not held_out and (source.part, source.split, source.checkpoint) != (
            "train",
            stream.split,
            stream.checkpoint,
        ):
            raise InputError(
                f"run {stream.run}: its training scores are of the {source.part} list of split {source.split}, "
                f"checkpoint {source.checkpoint[:12]}; expected the train list of split {stream.split}, checkpoint "
                f"{stream.checkpoint[:12]}. Score it again with: {typed('evaluate')} score --part train --overwrite"
            )
    seen = set(learned[0].videos) & set(streams[0].videos)
    if seen:
        raise InputError(f"{len(seen)} test videos are in the training scores too, such as {min(seen)}")
    return learned


def _fusion_name(kind: Fusion, on: ScoreKind) -> str:
    names = {"average": "fusion by averaging", "weighted": "fusion by weights", "svm": "fusion by SVM"}
    return names[kind] + (" (logits)" if on == "logits" and kind != "svm" else "")


def _row_as_dict(result: SplitResult, row: Row) -> dict[str, Any]:
    classes = result.classes
    return {
        "name": row.name,
        "how": row.note,
        "accuracy": row.metrics.accuracy,
        "accuracy_interval": _interval(row.metrics.accuracy_interval),
        "training_accuracy": row.training,
        "cross_validated_accuracy": row.cross_validated,
        "top5": row.metrics.top5 if result.shows_top5 else None,
        "mean_class_recall": row.metrics.mean_class_recall,
        "mean_class_recall_interval": _interval(row.metrics.mean_class_recall_interval),
        "mean_class_top5": row.metrics.mean_class_top5 if result.shows_top5 else None,
        "class_recall": {
            name: None if np.isnan(value) else value
            for name, value in zip(classes, row.metrics.class_recall.tolist(), strict=True)
        },
        "confusion": row.metrics.confusion.tolist(),
        "most_confused": [
            {
                "true": classes[pair.true],
                "predicted": classes[pair.predicted],
                "videos": pair.videos,
                "share": pair.share,
            }
            for pair in metrics.most_confused(row.metrics.confusion)
        ],
    }


def _split_as_dict(result: SplitResult) -> dict[str, Any]:
    single = len(result.streams)
    return {
        "split": result.split,
        "videos": len(result.videos),
        "groups": len(set(result.streams[0].groups)),
        "warnings": list(result.warnings),
        "streams": [
            {
                "stream": stream.stream,
                "run": stream.run,
                "checkpoint": stream.checkpoint,
                "shards": stream.shards,
                "views": stream.settings,
            }
            for stream in result.streams
        ],
        "rows": [_row_as_dict(result, row) for row in result.rows],
        "disagreement": [
            {
                "first": result.rows[a].name,
                "second": result.rows[b].name,
                **{
                    f"right_{who}": count
                    for who, count in metrics.disagreement(
                        result.rows[a].scores, result.rows[b].scores, result.labels
                    ).items()
                },
            }
            for a in range(single)
            for b in range(a + 1, single)
        ],
    }


def _metrics_csv(results: Sequence[SplitResult]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "dataset",
            "split",
            "row",
            "videos",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "top5",
            "mean_class_recall",
        ]
    )
    for result in results:
        for row in result.rows:
            values = (
                row.metrics.accuracy,
                *row.metrics.accuracy_interval,
                row.metrics.top5 if result.shows_top5 else np.nan,
                row.metrics.mean_class_recall,
            )
            writer.writerow(
                [
                    result.streams[0].dataset,
                    result.split,
                    row.name,
                    row.metrics.videos,
                    *("" if np.isnan(value) else f"{value:.6f}" for value in values),
                ]
            )
    return buffer.getvalue()


def _predictions_csv(result: SplitResult) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["video", "class", *(row.name for row in result.rows)])
    predicted = [metrics.predictions(row.scores) for row in result.rows]
    for index, video in enumerate(result.videos):
        writer.writerow(
            [
                spreadsheet_cell(video),
                spreadsheet_cell(result.classes[result.labels[index]]),
                *(spreadsheet_cell(result.classes[guess[index]]) for guess in predicted),
            ]
        )
    return buffer.getvalue()


def _interval(interval: tuple[float, float]) -> tuple[float, float] | None:
    return None if np.isnan(interval).any() else interval


def _percent(rate: float | None) -> str:
    return "-" if rate is None or np.isnan(rate) else f"{100 * rate:.1f}"
