"""Options of `python -m train`; the recipe's keys are options as well, see `train.recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import click

from pipeline.machine import cores_per_process
from pipeline.options import REQUIRED, DatasetOptions, ShardSetOptions, argument, option
from pipeline.runs import Stream

MOST_WORKERS = 16
DEFAULT_FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a run is carried out; nothing here changes what it learns, except for rounding.

    None stands for a default that depends on the run or the machine: see the methods, and `Trainer` for `micro_batch`.
    """

    resume: Literal["auto", "no"] = option(
        "auto", "auto: resume from the run's newest checkpoint; no: refuse a run that has one."
    )
    workers: int | None = option(
        None, "Threads per training process that read; 0 reads in the training loop.", metavar="N", minimum=0,
        shown_default="its share of the cores, at most 16",
    )  # fmt: skip
    micro_batch: int | None = option(
        None, "Samples per forward pass and process; gradients are accumulated over the batch.", metavar="N",
        minimum=1, shown_default="all on a GPU, 32 on a CPU",
    )  # fmt: skip
    checkpoint_every: int | None = option(
        None, "Iterations between checkpoints.", metavar="N", minimum=1, shown_default="a tenth, at most 1000"
    )
    validate_every: int | None = option(
        None, "Iterations between validations.", metavar="N", minimum=1, shown_default="a twentieth"
    )
    log_every: int = option(
        10, "Iterations between writes of the log, which has every iteration.", metavar="N", minimum=1
    )
    keep: int = option(3, "Newest checkpoints to keep, beside the best.", metavar="N", minimum=1)
    compiled: bool = option(False, "Use torch.compile.", flag="compile")
    tensorboard: bool = option(True, "Write TensorBoard events, if tensorboard is installed.")
    stop_after: int = 0
    """Stop as if signalled after this iteration; 0 never. Not an option of the command: tests of resuming use it."""

    def worker_count(self, processes_here: int) -> int:
        """Threads that read for each of several training processes on this machine."""
        if self.workers is not None:
            return self.workers
        return min(MOST_WORKERS, cores_per_process(processes_here))

    def checkpoint_interval(self, iterations: int) -> int:
        """Iterations between checkpoints of a run of so many iterations."""
        return self.checkpoint_every or max(1, min(1000, iterations // 10))

    def validation_interval(self, iterations: int) -> int:
        """Iterations between validations of a run of so many iterations."""
        return self.validate_every or max(1, iterations // 20)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DatasetOptions, ShardSetOptions):
    """What to train, on what, and how to carry it out."""

    images: Path | None = option(
        None,
        "Train on a folder of images instead: DIR/train/<class>/*, DIR/val/<class>/*; --dataset then names it.",
        metavar="DIR",
    )
    split: int = option(1, "Number of the split.", metavar="K")
    fold: int | None = option(
        None, "Leave this fold of the training list out, counted from 1; whole groups are left out.", metavar="K",
        minimum=1,
    )  # fmt: skip
    folds: int = option(
        DEFAULT_FOLDS, "Number of folds, of which --fold leaves one out.", metavar="N", minimum=2
    )
    stream: Stream | None = option(
        None, "Stream to train.", shown_default="the recipe's, else temporal (spatial for images)"
    )
    recipe: str | None = option(
        None, "A shipped recipe (--list-recipes) or a TOML file.", metavar="NAME|FILE",
        shown_default="by stream and dataset",
    )  # fmt: skip
    run: str | None = option(
        None, "Name of the run, or the folder of one to resume. Under torchrun use --name: it takes --run for its own.",
        short="--name", metavar="NAME", shown_default="STREAM-splitK",
    )  # fmt: skip
    init: str | None = option(
        None,
        "Initial weights: imagenet for torchvision's published ones, a state dict, a checkpoint, a run folder, or "
        "MatConvNet's imagenet-vgg-m-2048.mat.",
        metavar="imagenet|PATH",
    )
    settings: tuple[str, ...] = option(
        (), "Override a key of the recipe; may be repeated.", flag="set", metavar="KEY=VALUE", multiple=True
    )
    allow_missing: bool = option(
        False, "Train on the videos whose shards are usable; the others are left out."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", metavar="DEVICE")
    threads: int | None = option(
        None,
        "CPU threads of the network.",
        metavar="N",
        minimum=1,
        shown_default="torch's default: the cores",
    )
    loop: LoopOptions = field(default_factory=LoopOptions)
    list_recipes: bool = option(False, "Print the shipped recipes and exit.")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other, or would have no effect (click.UsageError)."""
        if self.fold is not None and self.images:
            raise click.UsageError("--fold leaves out groups of a dataset's videos; --images has none")
        if self.images and (self.shards is not None or self.split != 1 or self.allow_missing):
            raise click.UsageError(
                "--split, --shards and --allow-missing choose videos of a dataset; leave them out with --images"
            )
        if self.fold is None and self.folds != DEFAULT_FOLDS:
            raise click.UsageError(f"--folds {self.folds} goes with --fold, the one to leave out")
        if self.fold is not None and self.fold > self.folds:
            raise click.UsageError(f"--fold {self.fold}: there are {self.folds} folds (--folds)")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """`python -m train convert`."""

    file: Path = argument(REQUIRED, metavar="FILE")
    output: Path | None = option(
        None,
        "State dict to write.",
        metavar="FILE",
        shown_default="FILE with the suffix .pth, or -converted.pth",
    )
    overwrite: bool = option(False, "Replace an existing file.")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`python -m train export`."""

    run: str = argument(REQUIRED, metavar="RUN")
    dataset: DatasetOptions
    onnx: Path | None = option(None, "ONNX file to write (needs the extra `onnx`).", metavar="FILE")
    torchscript: Path | None = option(None, "TorchScript file to write.", metavar="FILE")
    overwrite: bool = option(False, "Replace existing files.")

    def __post_init__(self) -> None:
        if self.onnx is None and self.torchscript is None:
            raise click.UsageError("name what to write: --onnx FILE, --torchscript FILE or both")
