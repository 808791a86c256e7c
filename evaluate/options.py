"""The options of `python -m evaluate`: one dataclass for each decision, one for each command.

Nothing here loads numpy, torch, scikit-learn or matplotlib, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from evaluate.views import CropCount, Views
from pipeline.options import REQUIRED, DatasetOptions, ShardSetOptions, ShareOptions, argument, option
from pipeline.runs import Fusion, Part, ScoreKind, Stream, SvmScores
from train.models import MODELS


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which runs are evaluated; see `evaluate.runs.choose_runs`."""

    splits: tuple[int, ...] = option(
        (),
        "Splits, as 1 or 1,2,3.",
        flag="split",
        commas=True,
        metavar="NUMBERS",
        shown_default="every split that has runs",
    )
    streams: tuple[Stream, ...] = option(
        (), "Only runs of this stream; may be given twice.", flag="stream", multiple=True
    )
    runs: tuple[str, ...] = option(
        (),
        "Run, by name or by the path of its folder; give it several times, in the order of fusion.",
        flag="run",
        multiple=True,
        metavar="RUN",
        shown_default="<stream>-split<k>, else the only one of a stream",
    )


@dataclass(frozen=True, kw_only=True)
class TrainViewOptions:
    """Views of the training list, which the SVM learns from."""

    train_frames: int | None = option(
        None, "--frames of the training list, for the SVM.", minimum=1, shown_default="--frames"
    )
    train_crops: int | None = option(
        None, "--crops of the training list, for the SVM.", kind=CropCount(), shown_default="--crops"
    )

    def views(self, test: Views) -> Views:
        """Views of the training list: the test list's unless others were given."""
        return Views(self.train_frames or test.frames, self.train_crops or test.crops)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how networks run; `evaluate.inference.computing` resolves it for this machine."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N.", metavar="DEVICE")
    batch: int | None = option(
        None, "Views per call of the network.", minimum=1, shown_default="100 on a CPU, 500 on a GPU"
    )
    workers: int | None = option(
        None,
        "Threads that read and decode, processes that compute flow for new videos; 0: the main process does.",
        minimum=0,
        shown_default="1 on a CPU, all cores up to 16 on a GPU; for new videos the cores",
    )
    bf16: bool = option(False, "bf16 arithmetic: faster on GPUs; scores differ in the third digit.")


@dataclass(frozen=True, kw_only=True)
class ScoredShardsOptions(ShardSetOptions):
    """Which shards are scored."""

    shards: str | None = option(
        None,
        "Shard set of the dataset.",
        metavar="NAME",
        shown_default="the one that the run was trained on, else the only one, else tvl1",
    )
    allow_missing: bool = option(False, "Leave out videos that have no shard, and report how many there are.")


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """How streams are fused, and where the results go."""

    fusions: tuple[Fusion, ...] = option(
        ("average",), "How streams are fused; may be given several times.", flag="fusion", multiple=True
    )
    weights: tuple[float, ...] = option(
        (),
        "Weights of --fusion weighted, one per stream, as 1,1.5.",
        commas=True,
        metavar="NUMBERS",
        shown_default="1 spatial, 1.5 temporal",
    )
    on: ScoreKind = option("softmax", "Scores that average and weighted fuse.")
    svm_scores: SvmScores | None = option(
        None,
        "Scores of the training list that the SVM learns from: held-out by networks trained on folds over groups, "
        "or in-sample by the network that learned from them (paper).",
        shown_default="held-out for training lists under 2,000 clips, else in-sample",
    )
    name: str | None = option(
        None, "Name of the results folder.", metavar="NAME", shown_default="split<k>, or splits-<k>-<l>-..."
    )

    def __post_init__(self) -> None:
        if self.weights and "weighted" not in self.fusions:
            raise click.UsageError("--weights goes with --fusion weighted")
        if self.on != "softmax" and not {"average", "weighted"} & set(self.fusions):
            raise click.UsageError(f"--on {self.on} goes with --fusion average or weighted")
        if self.svm_scores and "svm" not in self.fusions:
            raise click.UsageError("--svm-scores goes with --fusion svm")


def _details() -> Any:
    """The option --details, of the commands that write a report."""
    return option(
        None,
        "Row that the report's details are about, such as temporal or average.",
        metavar="ROW",
        shown_default="the most accurate",
    )


def _check_train_views(train_views: TrainViewOptions, fusion: FusionOptions) -> None:
    if train_views != TrainViewOptions() and "svm" not in fusion.fusions:
        raise click.UsageError("--train-frames and --train-crops go with --fusion svm")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """`python -m evaluate`: score, fuse, print and save."""

    dataset: DatasetOptions
    choose: RunOptions
    views: Views
    train_views: TrainViewOptions
    fusion: FusionOptions
    compute: ComputeOptions
    shard_set: ScoredShardsOptions
    overwrite: bool = option(False, "Rescore videos that already have scores.")
    report: bool = option(False, "Write the report as one HTML file too.")
    details: str | None = _details()

    def __post_init__(self) -> None:
        _check_train_views(self.train_views, self.fusion)
        if self.details is not None and not self.report:
            raise click.UsageError("--details goes with --report")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """`python -m evaluate score`."""

    dataset: DatasetOptions
    choose: RunOptions
    part: Part = option("test", "List of the split; the SVM learns from train.")
    views: Views
    compute: ComputeOptions
    shard_set: ScoredShardsOptions
    overwrite: bool = option(False, "Rescore videos that already have scores.")
    length: int | None = option(None, "Refuse temporal runs that were not trained with this L.", minimum=1)
    share: ShareOptions


@dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """`python -m evaluate fuse`: from existing scores."""

    dataset: DatasetOptions
    choose: RunOptions
    views: Views
    train_views: TrainViewOptions
    fusion: FusionOptions

    def __post_init__(self) -> None:
        _check_train_views(self.train_views, self.fusion)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(FuseOptions):
    """`python -m evaluate report`: from existing scores."""

    details: str | None = _details()


ScoreFormat = Literal["csv", "mmaction2"]


@dataclass(frozen=True, kw_only=True)
class ExportScoresOptions:
    """`python -m evaluate export-scores`."""

    files: tuple[Path, ...] = argument((), metavar="[FILE]...", multiple=True)
    dataset: DatasetOptions
    choose: RunOptions
    part: Part = option("test", "List of the split.")
    views: Views
    format: ScoreFormat = option(
        "csv",
        "csv: a probability of each class; mmaction2: the pickle of its --dump, for its report_accuracy.py.",
    )
    output: Path | None = option(
        None, "Folder for the files.", metavar="DIR", shown_default="beside the score files"
    )


@dataclass(frozen=True, kw_only=True)
class NewVideoOptions:
    """How shards of videos outside any dataset are made."""

    like: Path | None = option(
        None,
        "Shard made as the run's shards were, for runs whose checkpoint does not record how (until version 0.1).",
        metavar="SHARD",
    )
    list: tuple[Path, ...] = option(
        (),
        "File that names one video or folder a line, relative to its folder or the working folder; also @FILE.",
        metavar="FILE",
        multiple=True,
    )
    follow_links: bool = option(False, "Look into links that lead outside a given folder too.")
    keep_suffix: bool = option(
        False, "Keep the suffix of a video in the names of its files, so that a.avi and a.mp4 are two."
    )
    keep_shards: Path | None = option(
        None,
        "Keep the videos' shards in this folder; existing ones are reused.",
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """`python -m evaluate predict`."""

    videos: tuple[Path, ...] = argument((), metavar="[VIDEO_OR_FOLDER]...", multiple=True)
    runs: tuple[str, ...] = option(
        REQUIRED,
        "Path of a run's folder or of a checkpoint, or the name of a run of the dataset; several are fused.",
        flag="run",
        multiple=True,
        metavar="RUN",
    )
    dataset: DatasetOptions
    views: Views
    compute: ComputeOptions
    new: NewVideoOptions
    weights: tuple[float, ...] = option(
        (), "Weights of the runs, as 1,1.5.", commas=True, metavar="NUMBERS", shown_default="equal"
    )
    top: int = option(5, "Classes shown for each video.", minimum=1)
    json: bool = option(False, "Print one JSON object per video instead of a table.")
    output: Path | None = option(
        None,
        "Write a line per video as it is done, CSV or JSON by the ending (.csv, .jsonl); with --window, the folder of "
        "the time lines. The same command continues either.",
        metavar="FILE|DIR",
    )
    window: float | None = option(
        None,
        "Time line of each video: scores of windows of this length, as a CSV file and a picture; --frames counts per "
        "window.",
        metavar="SECONDS",
        above=0,
    )
    stride: float | None = option(
        None,
        "Seconds from the start of one window to the start of the next.",
        metavar="SECONDS",
        above=0,
        shown_default="half the --window",
    )
    overlay: Path | None = option(
        None, "MP4 of one video with its time line, and flow, drawn into it.", metavar="FILE.mp4"
    )

    def __post_init__(self) -> None:
        if self.window is None and (self.stride is not None or self.overlay is not None):
            raise click.UsageError("--stride and --overlay go with --window SECONDS")
        if self.window is not None and self.output is None:
            raise click.UsageError("--window needs --output DIR, the folder of the time lines")
        if self.output is not None and self.json:
            raise click.UsageError("--json prints; with --output FILE the ending .jsonl chooses JSON")


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions:
    """`python -m evaluate features`."""

    videos: tuple[Path, ...] = argument((), metavar="[VIDEO_OR_FOLDER]...", multiple=True)
    init: str | None = option(
        None,
        "Instead of a run: imagenet for torchvision's published weights, or a file of weights; of VIDEOs or, with "
        "--dataset, of all its videos.",
        metavar="imagenet|FILE",
    )
    model: str | None = option(
        None, "Network of --init.", choices=MODELS, shown_default="resnet50 for imagenet, else the file's"
    )
    dataset: DatasetOptions
    choose: RunOptions
    part: Part = option("test", "List of the split.")
    views: Views
    compute: ComputeOptions
    shard_set: ScoredShardsOptions
    new: NewVideoOptions
    per: Literal["video", "view"] = option("video", "Mean over the views of a video, or every view.")
    output: Path | None = option(
        None,
        "HDF5 file (.h5), or a folder for one .npy per video; the same command continues either.",
        metavar="FILE|DIR",
        shown_default="beside the run's scores",
    )
    overwrite: bool = option(False, "Replace existing features.")

    def __post_init__(self) -> None:
        if self.model is not None and self.init is None:
            raise click.UsageError("--model goes with --init")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """`python -m evaluate reproduce`."""

    dataset: DatasetOptions
    table: Literal["1a", "1b", "2", "3", "4"] = option(REQUIRED, "Which of the paper's tables.")
    other: str | None = option(
        None, "The second dataset, where a table needs one.", metavar="NAME", shown_default="as in the paper"
    )
    init: Path | None = option(
        None, "ImageNet weights for cells that start from them.", metavar="FILE", replaces="--imagenet"
    )
    miniature: bool | None = option(
        None,
        "Small networks and few iterations instead of the paper's.",
        off="full",
        shown_default="--miniature for the demo",
    )
    splits: tuple[int, ...] = option(
        (),
        "Splits, as 1,2,3.",
        flag="split",
        commas=True,
        metavar="NUMBERS",
        shown_default="the paper's",
    )
    overrides: tuple[str, ...] = option(
        (), "A recipe's value for every run.", flag="set", multiple=True, metavar="KEY=VALUE"
    )
    dry_run: bool = option(False, "Only print which runs each cell needs, in order.")


@dataclass(frozen=True, kw_only=True)
class ReproduceRealOptions:
    """`python -m evaluate reproduce-real`."""

    datasets: tuple[str, ...] = option(
        (),
        "Dataset: a folder of SOURCE with `videos` and `splits`; may be given several times.",
        flag="dataset",
        multiple=True,
        metavar="NAME",
        shown_default="ut_interaction1 and weizmann4",
    )
    source: Path | None = option(
        None,
        "Folder that holds the datasets.",
        metavar="DIR",
        shown_default="$TWO_STREAM_TEST_DATA, else ../shared/data beside the project",
    )
    init: Path | None = option(
        None,
        "Weights that spatial networks start from.",
        metavar="FILE",
        replaces="--weights",
        shown_default="weights/vgg16_features_half.pth in SOURCE",
    )
    data: Path | None = option(
        None, "Data root.", metavar="DIR", shown_default="$TWO_STREAM_DATA, else ./data"
    )
    splits: tuple[int, ...] = option(
        (), "Splits, as 1,2,3.", flag="split", commas=True, metavar="NUMBERS", shown_default="all"
    )
    overrides: tuple[str, ...] = option(
        (), "A recipe's value for every run.", flag="set", multiple=True, metavar="KEY=VALUE"
    )
    dry_run: bool = option(False, "Only print the commands, in order.")
