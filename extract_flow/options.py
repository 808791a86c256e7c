"""Options of `python -m extract_flow`: the command's own, and the parameters of the flow method that is named."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from extract_flow.methods import MODULES, module
from pipeline.options import DataOptions, ShareOptions, argument, option, options_of, spec_of
from pipeline.paths import DEFAULT_METHOD
from pipeline.text import typed

CHOSEN = "extract_flow.options.chosen_method"
FRAMES_QUALITY = 90
"""JPEG quality of RGB frames unless another is given."""


class ShortSide(click.ParamType):
    """A number of pixels, or "none"."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or "none"."""
        if value == "none" or isinstance(value, int):
            return value
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is neither a number of pixels nor none", param, ctx)


class FrameSize(click.ParamType):
    """Width and height as in 340x256."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(width, height)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size: write it as 340x256", param, ctx)
        return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class SourceOptions(ShareOptions, DataOptions):
    """Which videos are extracted, and where their shards go."""

    videos: tuple[Path, ...] = argument((), metavar="[VIDEO_OR_FOLDER]...", multiple=True)
    list: tuple[Path, ...] = option(
        (),
        "File that names one video or folder a line, relative to its folder or the working folder; also @FILE.",
        metavar="FILE",
        multiple=True,
    )
    follow_links: bool = option(False, "Look into links that lead outside a given folder too.")
    keep_suffix: bool = option(
        False, "Keep the suffix of a file in its shard's name, so that a.avi and a.mp4 are two videos."
    )
    output: Path | None = option(None, "Folder for the shards of VIDEO_OR_FOLDER...", metavar="DIR")
    dataset: str | None = option(
        None, f"Dataset instead of videos, as listed by {typed('pipeline')} datasets.", metavar="NAME"
    )
    shards: str | None = option(
        None,
        "Name of the shard set in the dataset.",
        metavar="NAME",
        shown_default="the method's name",
        replaces="--set",
    )

    def __post_init__(self) -> None:
        """Refuse options that contradict each other (click.UsageError)."""
        super().__post_init__()
        videos = bool(self.videos or self.list)
        if videos == bool(self.dataset):
            raise click.UsageError(
                "name what to extract: either VIDEO_OR_FOLDER... with --output DIR, or --dataset NAME"
            )
        if videos and self.output is None:
            raise click.UsageError("--output DIR is missing: the folder for the shards")
        if self.dataset and self.output is not None:
            raise click.UsageError(
                "--output goes with VIDEO_OR_FOLDER...; a dataset's shards go below the data root (--data)"
            )
        if self.dataset and (self.follow_links or self.keep_suffix):
            raise click.UsageError(
                "--follow-links and --keep-suffix go with VIDEO_OR_FOLDER...; a dataset's videos were found by python "
                "-m pipeline import, which has both"
            )
        if videos and (self.data is not None or self.shards is not None):
            raise click.UsageError(
                "--data and --shards go with --dataset; with VIDEO_OR_FOLDER... --output is where shards go"
            )


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What is in the shards; `extract_flow.settings.ExtractionSettings` is made of it."""

    method: str = option(DEFAULT_METHOD, "Flow method.", choices=tuple(MODULES))
    preset: str | None = option(
        None, "Named set of the method's options, which single options override.", metavar="NAME"
    )
    direction: Literal["forward", "backward", "both"] = option(
        "forward", "Flow to the later frame, to the earlier one, or both."
    )
    step: int = option(1, "Frames between the two of a pair.", minimum=1)
    rgb: bool = option(True, "Store RGB frames beside the flow.")
    short_side: int | str | None = option(
        None,
        "Smaller side of frames and flow in pixels; none keeps the source's size.",
        kind=ShortSide(),
        shown_default="the dataset's, usually 256",
    )
    size: tuple[int, int] | None = option(None, "Exact size instead of --short-side.", kind=FrameSize())
    every: int = option(1, "Keep every Nth frame.", minimum=1, metavar="N")
    start: float = option(0.0, "Time to start at, in seconds.", minimum=0, shown_default="0")
    end: float | None = option(
        None, "Time to end at, exclusive, in seconds.", above=0, shown_default="the video's end"
    )
    codec: str = option(
        "default",
        "How flow is stored: default, high-fidelity, linear, paper, field or lossless.",
        metavar="PRESET",
    )
    bound: float | None = option(
        None,
        "Largest flow component in pixels; the default codec stretches it for fields of faster motion.",
        shown_default="20",
    )
    bound_fixed: bool = option(
        False, "Use the default codec with the same bound, counted from zero, in every field."
    )
    quality: int | None = option(
        None, "JPEG quality of flow.", minimum=1, maximum=100, shown_default="the codec's"
    )
    rgb_quality: int | None = option(
        None, "JPEG quality of frames.", minimum=1, maximum=100, shown_default=str(FRAMES_QUALITY)
    )
    on_corrupt: Literal["fail", "keep"] = option(
        "fail", "A video that cannot be decoded to its end fails, or the frames before the error are kept."
    )
    overwrite: bool = option(False, "Replace shards that were made with other options.")

    def __post_init__(self) -> None:
        """Refuse options that would have no effect (click.UsageError)."""
        if self.size is not None and self.short_side is not None:
            raise click.UsageError("--size and --short-side both give the size of frames: use one of them")
        if self.rgb_quality is not None and not self.rgb:
            raise click.UsageError("--rgb-quality has no effect with --no-rgb, which stores no frames")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How an extraction is executed; nothing here changes what is in the shards.

    Attributes:
        overlap: run a worker's stages in threads; None does so on a GPU. Not an option of the command.
    """

    device: str = option("auto", "auto (a usable GPU, else the CPU), cpu, cuda or cuda:N.", metavar="DEVICE")
    jobs: int | None = option(
        None,
        "CPU cores to use: worker processes on a CPU; on GPUs, threads that decode and encode.",
        minimum=1,
        shown_default="all usable ones",
    )
    processes: int | None = option(
        None,
        "Worker processes for each GPU, which share it and the cores.",
        minimum=1,
        shown_default="1 to 8, one for every 2 cores",
    )
    threads: int = option(1, "Threads of each process's method on a CPU.", minimum=1)
    patience: float = option(
        300.0,
        "Seconds without a decoded frame after which a video fails; 0 waits forever.",
        minimum=0,
    )
    overlap: bool | None = None

    def __post_init__(self) -> None:
        """Refuse options that would have no effect (click.UsageError)."""
        if self.processes is not None and self.device == "cpu":
            raise click.UsageError(
                "--processes is for GPUs; on a CPU --jobs is the number of worker processes"
            )


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """Every option of the command but the method's parameters."""

    source: SourceOptions
    shards: ShardOptions
    execution: Execution


class MethodCommand(click.Command):
    """A command that takes the chosen method's parameters as options, and lists every method's in its help.

    Only the chosen method's module is loaded, unless an option is not among its own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse with the chosen method's options; an option that other methods have is an error that names them."""
        ctx.meta[CHOSEN] = chosen_method(args)
        if (
            ctx.meta[CHOSEN] is None
        ):  # the value of --method is the error to report, not options of an unknown method
            ctx.ignore_unknown_options = True
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            having = [name for name in MODULES if error.option_name in _flags(name)]
            if not having:
                raise
            raise click.UsageError(
                f"{error.option_name} is not an option of the method {ctx.meta[CHOSEN]}; {', '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} it",
                ctx,
            ) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, then the chosen method's."""
        chosen = ctx.meta.get(CHOSEN)
        return super().get_params(ctx) + (list(method_options(chosen)) if chosen else [])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then a section for each method with its defaults."""
        chosen, ctx.meta[CHOSEN] = ctx.meta.get(CHOSEN), None
        super().format_options(ctx, formatter)
        ctx.meta[CHOSEN] = chosen
        for name in MODULES:
            fields = {field.name: field for field in dataclasses.fields(module(name).Parameters)}
            rows = []
            for parameter in method_options(name):
                assert parameter.name is not None
                field, record = fields[parameter.name], parameter.get_help_record(ctx)
                assert record is not None
                rows.append((record[0], f"{spec_of(field).help}  [default: {field.default}]"))
            with formatter.section(
                f"Options of --method {name} (presets: {', '.join(module(name).PRESETS)})"
            ):
                formatter.write_dl(rows)


def chosen_method(args: Sequence[str], default: str = DEFAULT_METHOD) -> str | None:
    """The value of --method among words of the command line; None if there is no such method."""
    chosen = default
    for word, following in itertools.pairwise([*args, ""]):
        if word == "--":
            break
        if word == "--method":
            chosen = following
        elif word.startswith("--method="):
            chosen = word.removeprefix("--method=")
    return chosen if chosen in MODULES else None


@functools.cache
def method_options(name: str) -> tuple[click.Parameter, ...]:
    """The options for a method's parameters; their values are None where they are not given."""

    def holder() -> None:
        pass

    decorated: Callable[..., Any] = options_of(module(name).Parameters, given_only=True)(holder)
    return tuple(reversed(getattr(decorated, "__click_params__", [])))


def _flags(method: str) -> set[str]:
    return {
        flag for parameter in method_options(method) for flag in (*parameter.opts, *parameter.secondary_opts)
    }
