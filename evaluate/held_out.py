"""Scores of the training list by networks that did not learn from the videos they score.

A network is almost certain of the videos it was trained on, so an SVM fitted on such scores learns to trust the
wrong stream, and its cross-validation promises more than the test list confirms. Here the run is repeated without one
fold of its training list at a time (whole groups, `pipeline.groups.training_folds`), each network scores the fold that
it did not see, and the folds together give every video a score like those of the test list (stacking, Wolpert 1992).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console

from evaluate import score_file
from evaluate.runs import TrainedRun
from evaluate.score_file import Scores
from evaluate.views import Views
from pipeline.catalog import Dataset
from pipeline.errors import InputError
from pipeline.groups import training_folds
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths, SvmScores, fold_run_name, read_recipe, read_run
from pipeline.text import duration, many, typed
from train.log import training_seconds

FOLDS = 3
"""Networks per stream; fewer where there are too few groups; each learns from two thirds of the training list."""
SMALL = 2000
"""Training lists of fewer clips use held-out scores unless the user decides otherwise."""


def wanted(asked: SvmScores | None, dataset: Dataset, split: int, runs: Sequence[TrainedRun]) -> bool:
    """Whether the SVM over some runs learns from held-out scores: as asked, else where the training list is small and
    can be divided into folds.
    """
    if asked:
        return asked == "held-out"
    own = all(run.record.dataset == dataset.name for run in runs)
    return own and len(dataset.split(split).train) < SMALL and fold_count(dataset, split) > 0


def fold_count(dataset: Dataset, split: int) -> int:
    """How many folds the training list of a split is divided into; 0 if it has too few groups for two."""
    train = dataset.split(split).train
    for folds in range(FOLDS, 1, -1):
        if all(training_folds(dataset.videos, train, folds)):
            return folds
    return 0


def fold_runs(run: TrainedRun, dataset: Dataset, paths: DatasetPaths) -> list[RunPaths]:
    """The folders of the runs that repeat `run` without a fold, beside the dataset's runs; they need not exist.

    Raises:
        InputError: the training list has too few groups, or the run is of another dataset, whose folds it would leave.
    """
    assert run.record.split is not None
    if run.record.dataset != dataset.name:
        raise InputError(
            f"run {run.name}: its folds would be of {run.record.dataset}, so it gives no held-out scores of "
            f"{dataset.name}; fuse with --svm-scores in-sample"
        )
    folds = fold_count(dataset, run.record.split)
    if not folds:
        raise InputError(
            f"{dataset.name}, split {run.record.split}: no class of the training list has two groups, so none can be "
            "held out; fuse with --svm-scores in-sample"
        )
    return [RunPaths(paths.run(fold_run_name(run.name, fold, folds))) for fold in range(1, folds + 1)]


def training_command(
    run: TrainedRun, fold: int, folds: int, paths: DatasetPaths, device: str, allow_missing: bool
) -> list[str]:
    """The words after `python -m` that repeat a run without one fold: its recipe, initial weights and shards."""
    record, sets = run.record, set(run.record.shard_sets.values())
    return [
        "train",
        f"--dataset={record.dataset}",
        f"--data={paths.data}",
        f"--split={record.split}",
        f"--stream={record.stream}",
        f"--recipe={run.paths.recipe}",
        f"--run={fold_run_name(run.name, fold, folds)}",
        f"--fold={fold}",
        f"--folds={folds}",
        f"--device={device}",
        *([f"--shards={min(sets)}"] if len(sets) == 1 else []),
        *([f"--init={record.init}"] if record.init else []),
        *(["--allow-missing"] if allow_missing else []),
    ]


def train_folds(
    run: TrainedRun,
    dataset: Dataset,
    paths: DatasetPaths,
    device: str,
    allow_missing: bool,
    console: Console,
) -> list[TrainedRun]:
    """Train the networks of a run's folds that are not trained yet, one after another; prints commands and cost.

    Raises:
        InputError: a network could not be trained, or the folder of one holds another run.
    """
    folders = fold_runs(run, dataset, paths)
    todo = [fold for fold, folder in enumerate(folders, 1) if not _is_trained(run, folder)]
    if todo:
        cost = training_seconds(run.paths.folder)
        expected = f", about {duration(cost * len(todo))} on the machine that trained it" if cost else ""
        _say(
            console,
            f"{run.name}: training {many(len(todo), 'network')} on parts of the training list, so that the SVM learns "
            f"from scores of videos they have not seen{expected} (--svm-scores in-sample needs none)",
        )
    for fold in todo:
        words = training_command(run, fold, len(folders), paths, device, allow_missing)
        _say(console, f"{typed(words[0])} {shlex.join(words[1:])}")
        status = subprocess.run([sys.executable, "-P", "-m", *words], check=False).returncode
        if status:
            raise InputError(
                f"{folders[fold - 1].folder}: training ended with exit status {status} (see above); "
                "the same command resumes, or fuse with --svm-scores in-sample"
            )
    return [_fold_of(run, folder) for folder in folders]


def read_held_out(run: TrainedRun, dataset: Dataset, paths: DatasetPaths, views: Views) -> Scores | None:
    """Scores of a run's training list by the networks of its folds; None where a fold has none.

    Raises:
        InputError: a score file is damaged, or a fold's network was trained in another way than the run.
    """
    folders = fold_runs(run, dataset, paths)
    files = [folder.scores(f"held-out-{views}") for folder in folders]
    if not all(file.is_file() for file in files):
        return None
    for folder in folders:
        _check_alike(run, folder)
    return as_one(run.name, [score_file.read_scores(file) for file in files])


def as_one(run: str, folds: Sequence[Scores]) -> Scores:
    """The scores of all folds as those of one run; their checkpoint is a digest of the folds' checkpoints."""
    digest = hashlib.sha256("".join(scores.checkpoint for scores in folds).encode()).hexdigest()
    return score_file.joined([dataclasses.replace(scores, run=run, checkpoint=digest) for scores in folds])


def _fold_of(run: TrainedRun, folder: RunPaths) -> TrainedRun:
    return dataclasses.replace(
        run, paths=folder, record=read_run(folder.folder), checkpoint=folder.scoring_checkpoint()
    )


def _is_trained(run: TrainedRun, folder: RunPaths) -> bool:
    if not folder.recipe.is_file():
        return False
    _check_alike(run, folder)
    return folder.checkpoint(int(read_recipe(folder.folder)["iterations"])).is_file()


def _check_alike(run: TrainedRun, folder: RunPaths) -> None:
    """Refuse a fold's network that was trained by another recipe, from other weights or shards than the run."""
    whole, part = read_recipe(run.paths.folder), read_recipe(folder.folder)
    differing = [key for key in sorted({*whole, *part} - {"run"}) if whole.get(key) != part.get(key)]
    records = [run.record, read_run(folder.folder)]
    first, second = (
        dataclasses.replace(record, videos=None, fold=None, folds=None).as_dict() for record in records
    )
    differing += [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
    if differing:
        raise InputError(
            f"{folder.folder}: expected run {run.name} repeated without a fold, but {', '.join(differing)} "
            "differs; remove that folder, so that it is trained again"
        )


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
