"""What a run writes as it trains: log.jsonl, curves.png and, where tensorboard is installed, events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import atomic
from pipeline.errors import reading
from pipeline.runs import RunPaths
from train.recipe import MOST_ITERATIONS

LARGEST = 1e300
"""Of the numbers in a log; anything smaller can be plotted."""


class RunLog:
    """The log of a run folder, one JSON object per line: an iteration ("loss") or a validation ("validation")."""

    def __init__(self, folder: Path, resumed_at: int, tensorboard: bool) -> None:
        """Open the log; records of iterations after `resumed_at`, which will be repeated, are dropped."""
        self.path = RunPaths(folder).log
        kept = [record for record in read_log(folder) if record.get("iteration", 0) <= resumed_at]
        with atomic.writing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._events = open_events(folder, resumed_at) if tensorboard else None

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one record, as one write, so that a reader never sees half a line."""
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(record) + "\n").encode())
        if self._events is not None and "iteration" in record:
            for name, value in flat(record):
                self._events.add_scalar(name, value, record["iteration"])

    def close(self) -> None:
        """Flush what is still buffered."""
        if self._events is not None:
            self._events.close()


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested record under names like validation/demo/accuracy, without the iteration."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "iteration":
            found.append((prefix + name, float(value)))
    return found


def open_events(folder: Path, resumed_at: int) -> Any:
    """A TensorBoard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(RunPaths(folder).tensorboard), purge_step=resumed_at + 1)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Records of a run's log in order; lines that are not records, such as a last one cut short by a crash, are left
    out.
    """
    path = RunPaths(folder).log
    if not path.is_file():
        return []
    records = []
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def _is_record(value: Any) -> bool:
    """Whether a line holds what `RunLog.add` is given: the numbers of an iteration, or of a validation."""
    if not isinstance(value, dict) or type(value.get("iteration")) is not int:
        return False
    if not 0 <= value["iteration"] <= MOST_ITERATIONS:
        return False
    if "validation" in value:
        heads = value["validation"]
        return isinstance(heads, dict) and all(
            isinstance(head, dict) and _are_numbers(head, ("loss", "accuracy")) for head in heads.values()
        )
    return _are_numbers({"seconds": 0, **value}, ("loss", "accuracy", "learning_rate", "seconds"))


def _are_numbers(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    found: list[Any] = [values.get(name) for name in names]
    return all(type(value) in (int, float) and abs(value) < LARGEST for value in found)


def draw_curves(folder: Path) -> Path:
    """Loss, accuracy and learning rate over iterations as curves.png; the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_log(folder)
    steps = [record for record in records if "loss" in record]
    checks = [record for record in records if "validation" in record]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right, rate = figure.subplot_mosaic(
        [["loss", "accuracy"], ["rate", "rate"]], height_ratios=[3, 1]
    ).values()
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.plot(
            [record["iteration"] for record in steps],
            [record[name] for record in steps],
            lw=0.8,
            label="training",
        )
        if checks:
            for head in checks[0]["validation"]:
                of_head = [record for record in checks if head in record["validation"]]
                axes.plot(
                    [record["iteration"] for record in of_head],
                    [record["validation"][head][name] for record in of_head],
                    marker="o",
                    ms=3,
                    label=f"validation {head}",
                )
        axes.set(xlabel="iteration", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    right.set_ylim(0, 1.02)
    rate.plot([record["iteration"] for record in steps], [record["learning_rate"] for record in steps])
    rate.set(xlabel="iteration", ylabel="learning rate", yscale="log")
    path = RunPaths(folder).curves
    with atomic.writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path


def training_seconds(folder: Path) -> float:
    """How long the iterations of a run took, by its log; 0 if the log does not say."""
    return float(sum(record.get("seconds", 0.0) for record in read_log(folder)))
