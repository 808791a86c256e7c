"""A training run: its name, its folder, the files in it, and what its recipe.toml records about it.

Nothing here loads torch, so that listing runs, choosing one and submitting jobs stay quick.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError, unreadable
from pipeline.paths import NAME, DatasetPaths, check_name
from pipeline.text import some, typed

Stream = Literal["spatial", "temporal"]
Fusion = Literal["average", "weighted", "svm", "none"]
Part = Literal["test", "train", "held-out"]
"""The lists of a split; "held-out" is the part of the training list that the run of a fold did not learn from."""
ScoreKind = Literal["softmax", "logits"]
"""The class scores that a run's score files hold for each video."""

SvmScores = Literal["held-out", "in-sample"]
"""Which scores of the training list an SVM learns from."""

STREAMS: tuple[Stream, ...] = ("spatial", "temporal")

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{8})\.pt")


def default_run_name(stream: str, split: int | None) -> str:
    """The name of a run for which none was given: "temporal-split1"; split None is a run on a folder of images."""
    return f"{stream}-images" if split is None else f"{stream}-split{split}"


def chain_run_name(prefix: str, stream: str, split: int) -> str:
    """The name of one of the runs that a chain of jobs trains under a common prefix."""
    return f"{prefix}-{default_run_name(stream, split)}"


def fold_run_name(run: str, fold: int, folds: int) -> str:
    """The name of the run that repeats another without one fold of its training list."""
    return f"{run}-fold{fold}of{folds}"


@dataclass(frozen=True)
class RunPaths:
    """Every file of a run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def recipe(self) -> Path:
        """The resolved recipe and, in its table [run], a `RunRecord`."""
        return self.folder / "recipe.toml"

    @property
    def log(self) -> Path:
        """One JSON object per line: an iteration or a validation."""
        return self.folder / "log.jsonl"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def best(self) -> Path:
        """The checkpoint that validated best, if the run validates."""
        return self.folder / "best.pt"

    def checkpoint(self, iteration: int) -> Path:
        return self.folder / f"checkpoint-{iteration:08d}.pt"

    def checkpoints(self) -> list[Path]:
        """The existing numbered checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (path for path in self.folder.iterdir() if iteration_of(path) is not None), reverse=True
        )

    def scoring_checkpoint(self) -> Path:
        """The checkpoint to score with: the best by validation if there is one, else the newest.

        Raises:
            InputError: the folder holds none.
        """
        if self.best.is_file():
            return self.best
        found = self.checkpoints()
        if not found:
            raise InputError(
                f"{self.folder}: no checkpoint there yet; train first: {typed('train')} --run {self.name} ..."
            )
        return found[0]

    @property
    def scores_folder(self) -> Path:
        return self.folder / "scores"

    def scores(self, part: str, other: str | None = None) -> Path:
        """One score file, named after its part, for example `test` or `test-task-3`.

        Args:
            part: of the split, with whatever distinguishes it from others.
            other: the dataset that is scored, where it is not the run's own; its files have a folder of their own.
        """
        return self._scores_of(other) / f"{check_name(part, 'score file')}.h5"

    def score_parts(self, part: str, other: str | None = None) -> Path:
        """The folder of scores that are not yet merged into `scores(part, other)`."""
        return self._scores_of(other) / f"{check_name(part, 'score file')}.parts"

    def _scores_of(self, other: str | None) -> Path:
        return self.scores_folder / check_name(other, "dataset") if other else self.scores_folder


def iteration_of(checkpoint: Path) -> int | None:
    """The iteration in a checkpoint's file name, or None for any other name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class RunRecord:
    """What a run records about itself beside its recipe.

    Attributes:
        dataset: its name ("images" or the name given for a folder of images).
        stream: "spatial" or "temporal".
        split: number of the dataset's split; None for a folder of images.
        shard_sets: dataset -> the shard set that was read, for the run's dataset and those of the recipe's `also`.
        images: the folder of images, where the run learns from one.
        init: what the weights started from, as given to --init.
        videos: digest of the list of training videos.
        fold, folds: which fold of the training list it did not learn from, counted from 1, and of how many; None for
            a run on the whole list.
    """

    dataset: str
    stream: str
    split: int | None = None
    shard_sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: str | None = None
    init: str | None = None
    videos: str | None = None
    fold: int | None = None
    folds: int | None = None

    @property
    def shard_set(self) -> str | None:
        """The shard set of the run's own dataset."""
        return self.shard_sets.get(self.dataset)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; what is None is left out."""
        values = {**dataclasses.asdict(self), "shard_sets": dict(self.shard_sets)}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record in a checkpoint or recipe.toml, of this or an earlier version.

        Raises:
            ValueError: not such a record; the message names the first wrong value.
        """
        sets = values.get("shard_sets", {})
        if "shards" in values and not sets:  # until version 0.1: "ucf101=tvl1,hmdb51=tvl1"
            pairs = [entry.partition("=") for entry in str(values["shards"]).split(",")]
            sets = {name: shard_set for name, equals, shard_set in pairs if equals}
        if not isinstance(sets, Mapping) or not all(isinstance(item, str) for item in sets.values()):
            raise ValueError(f"shard_sets: expected the name of a shard set per dataset, found {sets!r}")
        for key in ("dataset", "stream"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"{key}: expected a name, found {values.get(key)!r}")
        split = values.get("split")
        if split is not None and (not isinstance(split, int) or isinstance(split, bool)):
            raise ValueError(f"split: expected a number, found {split!r}")
        texts = {
            key: None if values.get(key) is None else str(values[key]) for key in ("images", "init", "videos")
        }
        fold, folds = values.get("fold"), values.get("folds")
        if (fold, folds) != (None, None) and not (
            type(fold) is int and type(folds) is int and 1 <= fold <= folds and folds >= 2
        ):
            raise ValueError(
                f"fold, folds: expected a fold's number and how many there are, found {fold!r}, {folds!r}"
            )
        return cls(values["dataset"], values["stream"], split, dict(sets), **texts, fold=fold, folds=folds)

    def as_toml(self) -> str:
        """The table [run] of recipe.toml."""
        lines = ["[run]"]
        for key, value in self.as_dict().items():
            if isinstance(value, Mapping):
                pairs = ", ".join(f"{_quoted(name)} = {_quoted(item)}" for name, item in value.items())
                lines.append(f"{key} = {{ {pairs} }}" if pairs else f"{key} = {{}}")
            else:
                lines.append(f"{key} = {_quoted(value) if isinstance(value, str) else value}")
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string. It differs from JSON's: no pairs of surrogates, and DEL is escaped.

    Bytes of a file name that are not UTF-8, which TOML cannot hold, are spelled out.
    """
    whole = text.encode("utf-8", "backslashreplace").decode()
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_run(folder: Path) -> RunRecord:
    """What the run in a folder records about itself.

    Raises:
        InputError: the folder holds no run, or its recipe.toml is damaged.
    """
    path = RunPaths(folder).recipe
    try:
        return RunRecord.from_dict(read_recipe(folder).get("run", {}))
    except ValueError as error:
        raise InputError(f"{path}: damaged table [run]: {error}; train the run again") from error


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run as plain values, its table [run] under "run".

    Raises:
        InputError: the folder holds no run, or its recipe.toml is damaged.
    """
    path = RunPaths(folder).recipe
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: expected the folder of a training run, found no {path.name}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected a run's resolved recipe, found {error}") from error


def runs_in(paths: DatasetPaths) -> list[str]:
    """Names of a dataset's runs: the folders that hold a resolved recipe."""
    if not paths.runs.is_dir():
        return []
    return sorted(
        folder.name
        for folder in paths.runs.iterdir()
        if NAME.fullmatch(folder.name) and RunPaths(folder).recipe.is_file()
    )


def find_run(paths: DatasetPaths, name_or_path: str | Path) -> RunPaths:
    """The run that --run names: one of the dataset's runs by its name, else a run folder by its path.

    Raises:
        InputError: neither; the message lists the dataset's runs.
    """
    text = str(name_or_path)
    if NAME.fullmatch(text) and paths.run(text).is_dir():
        return RunPaths(paths.run(text))
    if Path(text).is_dir():
        return RunPaths(Path(text))
    known = some(runs_in(paths), most=20, quoted=False) or "none"
    raise InputError(
        f"--run {text}: expected a run of {paths.dataset} ({known}) or the path of a run's folder, found neither"
    )
