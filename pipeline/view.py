"""Pictures of shards' flow: `python -m pipeline view`."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.codec import Levels
from pipeline.errors import InputError, command_errors
from pipeline.flow_colours import flow_colours as flow_colours  # the name of version 0.1
from pipeline.flow_colours import full_colour_speed as full_colour_speed
from pipeline.options import CONTEXT, DataOptions, ShardSetOptions, argument, from_options, option, options_of
from pipeline.paths import DatasetPaths, data_root
from pipeline.picture_files import MOVING_SUFFIXES, STILL_SUFFIXES, write_moving, write_still
from pipeline.progress import Progress, progress, reporting_compilation
from pipeline.shard import Shard
from pipeline.shard_file import SUFFIX
from pipeline.shard_index import PACK_SUFFIX
from pipeline.shard_sets import Target, choose_shard_set, targets_at, targets_in
from pipeline.text import many, printable, some, typed
from pipeline.typical_flow import typical_flow

if TYPE_CHECKING:
    from pipeline.flow_pictures import Shown

SHEET = "contact-sheet.png"
LONGEST_GIF = 600
SUFFIXES = (*STILL_SUFFIXES, *MOVING_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(ShardSetOptions, DataOptions):
    """What to show."""

    targets: tuple[Path, ...] = argument((), metavar="[SHARD|PACK|FOLDER|VIDEO]...", multiple=True)
    output: Path | None = option(
        None,
        "The picture to write: .png or .jpg, or .mp4 or .gif for all flows of a clip.",
        metavar="FILE",
        shown_default=f"STEM.flow.png beside the shard, {SHEET} for several",
    )
    dataset: str | None = option(
        None,
        "A contact sheet of this dataset, or of those VIDEOs of it (class/stem) that are named.",
        metavar="NAME",
    )
    against: str | None = option(
        None,
        "Show the flow of this shard, pack or folder as well: the same videos by another method. With --dataset: "
        "another shard set.",
        metavar="SHARD|PACK|FOLDER|SET",
    )
    index: int | None = option(None, "Which flow, from 0.", minimum=0, shown_default="a typical one")
    direction: Literal["forward", "backward"] | None = option(
        None, "Direction of flow.", shown_default="the shard's first"
    )
    full_colour: float | None = option(
        None,
        "Speed shown in full colour, in pixels; gives pictures of several clips one scale.",
        minimum=0.01,
        maximum=100_000,
        shown_default="what nearly all pixels of the clip keep to",
    )
    clips: int = option(24, "Maximum number of clips on a contact sheet.", minimum=1, maximum=1000)

    def __post_init__(self) -> None:
        if not self.targets and not self.dataset:
            raise click.UsageError("name shards, packs or folders, or give --dataset NAME")
        if self.shards and not self.dataset:
            raise click.UsageError("--shards goes with --dataset")
        if self.data is not None and not self.dataset:
            raise click.UsageError("--data goes with --dataset")
        if self.output is not None and self.output.suffix.lower() not in SUFFIXES:
            raise InputError(f"{self.output}: expected a name that ends in {some(SUFFIXES, quoted=False)}")
        if self.moving and self.index is not None:
            raise click.UsageError("--index goes with a PNG or JPEG: an MP4 or GIF shows all flows")

    @property
    def moving(self) -> bool:
        """Whether all flows of a clip are shown, one after another."""
        return self.output is not None and self.output.suffix.lower() in MOVING_SUFFIXES


@dataclass(frozen=True)
class Choice:
    """Shards to show, and of each the one to compare it with, where that is asked."""

    target: Target
    other: Target | None

    @property
    def name(self) -> str:
        """The video's identity, as far as it is known without opening the shard."""
        address = self.target.address
        return self.target.video or address.group.strip("/") or address.file.name.removesuffix(SUFFIX)


# --- which shards ---------------------------------------------------------------------------------------------------


def choices(options: ViewOptions) -> list[Choice]:
    """The shards that are named, each with its partner.

    Raises:
        InputError: nothing there, or nothing to compare it with.
    """
    targets = _of_dataset(options) if options.dataset else _of_paths(options.targets)
    if options.against is None:
        return [Choice(target, None) for target in targets]
    others = _others(options)
    if len(targets) == len(others) == 1:
        return [Choice(targets[0], others[0])]
    by_name = {Choice(other, None).name: other for other in others}
    pairs = [Choice(target, by_name.get(Choice(target, None).name)) for target in targets]
    pairs = [pair for pair in pairs if pair.other is not None]
    if not pairs:
        raise InputError(
            f"{options.against}: expected shards of the same videos, found {some(by_name, 3)}; "
            f"wanted {some((Choice(target, None).name for target in targets), 3)}"
        )
    return pairs


def _of_dataset(options: ViewOptions) -> list[Target]:
    folder = _shard_folder(options)
    found = targets_in(folder, named=True)
    if not found:
        raise InputError(
            f"{folder}: expected shards, found none; make them with: "
            f"{typed('extract_flow')} --dataset {options.dataset}"
        )
    if not options.targets:
        return found
    by_video = {target.video: target for target in found}
    wanted = [target.as_posix().removesuffix(SUFFIX) for target in options.targets]
    if missing := [video for video in wanted if video not in by_video]:
        for target in found:
            if target.error is not None:  # where they may be
                raise target.error
        raise InputError(f"{folder}: expected a shard of {some(missing, 3)}, found {some(by_video, 3)}")
    return [by_video[video] for video in wanted]


def _of_paths(paths: Sequence[Path]) -> list[Target]:
    found = []
    for path in paths:
        below = targets_in(path, named=True) if path.is_dir() else targets_at(path)
        if not below:
            raise InputError(
                f"{path}: expected shards ({SUFFIX} or {PACK_SUFFIX} files), found none; "
                f"make some with: {typed('extract_flow')} VIDEO... --output FOLDER"
            )
        found += below
    return found


def _others(options: ViewOptions) -> list[Target]:
    """The shards of `--against`."""
    if not options.dataset:
        return _of_paths([Path(str(options.against))])
    paths = DatasetPaths(data_root(options.data), options.dataset)
    return targets_in(paths.shards(choose_shard_set(paths, options.against)), named=True)


def spread(choices: Sequence[Choice], count: int) -> list[Choice]:
    """At most this many of them, spread evenly over the classes and within each, in order."""
    classes = [
        list(members)
        for _, members in itertools.groupby(choices, key=lambda choice: choice.name.rpartition("/")[0])
    ]
    if len(classes) > count:
        classes = [classes[place * len(classes) // count] for place in range(count)]
    shares = [0] * len(classes)
    left = min(count, len(choices))
    while left:
        for place, members in enumerate(classes):
            if left and shares[place] < len(members):
                shares[place] += 1
                left -= 1
    return [
        members[i * len(members) // share]
        for members, share in zip(classes, shares, strict=True)
        for i in range(share)
    ]


# --- what is shown of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """An open shard, the direction that is shown of it, and how it is labelled."""

    shard: Shard
    direction: str
    label: str

    @property
    def count(self) -> int:
        """Flows of the direction."""
        return self.shard.flow_counts[self.direction]


@dataclass(frozen=True)
class View:
    """One clip: its sources, the flow that is shown, and the speed of full colour in pixels."""

    sources: list[Source]
    index: int
    fastest: float


@contextlib.contextmanager
def opened(choice: Choice, options: ViewOptions) -> Iterator[View]:
    """Open what is shown of a clip; two flows of it have the first one's scale.

    Raises:
        InputError: a shard that cannot be read, or has no such flow.
    """
    with contextlib.ExitStack() as stack:
        targets = [choice.target, choice.other] if choice.other else [choice.target]
        shards = [stack.enter_context(target.open()) for target in targets]
        directions = [_direction(shard, options) for shard in shards]
        sources = [
            Source(*each) for each in zip(shards, directions, _labels(shards, directions), strict=True)
        ]
        for source in sources:
            if (options.index or 0) >= source.count:
                raise InputError(
                    f"{source.shard.address}: holds {many(source.count, f'{source.direction} flow')}, so there is no "
                    f"flow {options.index or 0} to show"
                )
        typical = typical_flow(sources[0].shard, sources[0].direction)
        index = options.index
        if index is None:
            index = min(typical.index, *(source.count - 1 for source in sources))
        yield View(sources, index, options.full_colour or typical.fastest)


def _direction(shard: Shard, options: ViewOptions) -> str:
    if not shard.directions:
        raise InputError(
            f"{shard.address}: expected flow to show, found frames only; extract again with a --method"
        )
    direction = options.direction or shard.directions[0]
    shard.part(direction)  # raises where there is none
    return direction


def _labels(shards: Sequence[Shard], directions: Sequence[str]) -> list[str]:
    """The method of each shard; where both have the same, the folder in which they differ as well."""
    methods = [
        str(shard.contents.flow[direction].attributes["method"])
        for shard, direction in zip(shards, directions, strict=True)
    ]
    if len(set(methods)) == len(methods):
        return methods
    parts = [shard.address.file.resolve().parts for shard in shards]
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            return [f"{method}, {name}" for method, name in zip(methods, names, strict=True)]
    return methods


def shown(view: View, index: int) -> list[Shown]:
    """A flow of each source, and the frame of the first one that has frames."""
    from pipeline.flow_pictures import Shown

    found = []
    for source in view.sources:
        frame = frame_number(source.shard, index, source.direction)
        picture = source.shard.frames(frame, frame + 1)[0] if source.shard.has_frames else None
        flow = source.shard.flows(index, index + 1, source.direction)[0]
        found.append(Shown(f"flow by {source.label}", flow, picture, f"frame {frame}"))
    return found


def frame_number(shard: Shard, index: int, direction: str) -> int:
    """The frame that a flow starts from."""
    later = shard.step(direction) if direction == "backward" else 0
    return min(index + later, shard.frame_count - 1)


def picture_of(view: View, index: int) -> Levels:
    """The labelled picture of a flow: uint8[H,W,3]."""
    from pipeline.flow_pictures import clip_picture

    shard, direction = view.sources[0].shard, view.sources[0].direction
    seconds = f" at {frame_number(shard, index, direction) / shard.fps:.2f} s" if shard.fps else ""
    note = f"{direction} flow {index} of 0 to {view.sources[0].count - 1}{seconds}, {shard.width}x{shard.height} pixels"
    if (step := shard.step(direction)) > 1:
        note += f", over {step} frames"
    return clip_picture(shard.video, note, shown(view, index), view.fastest)


# --- the command ----------------------------------------------------------------------------------------------------


def view_clip(choice: Choice, options: ViewOptions) -> None:
    """Write the picture of a clip, or of all its flows."""
    output = options.output or _beside(choice)
    with opened(choice, options) as view:
        shard, direction = view.sources[0].shard, view.sources[0].direction
        if len({source.shard.source.sha256 for source in view.sources}) > 1:
            other = view.sources[1].shard.address
            note = f"note: {shard.address} and {other} were made of different videos"
            print(printable(note), file=sys.stderr)
        if options.moving:
            what = many(write_all(view, output), f"{direction} flow")
        else:
            with _elsewhere(options):
                write_still(output, picture_of(view, view.index))
            what = f"{direction} flow {view.index}"
        typical = "" if options.moving or options.index is not None else ", a typical one"
        click.echo(
            f"{printable(str(output))}: {what} of {printable(shard.video)}{typical}; "
            f"full colour is {view.fastest:.1f} pixels"
        )


def write_all(view: View, output: Path) -> int:
    """Write all flows of a clip as a moving picture; returns how many."""
    count = min(source.count for source in view.sources)
    if output.suffix.lower() == ".gif" and count > LONGEST_GIF:
        raise InputError(
            f"{output}: expected at most {LONGEST_GIF} flows for a GIF, found {count:,}; name an .mp4"
        )
    with Progress("view", count, "picture") as bar:
        write_moving(output, _each_picture(view, count, bar), view.sources[0].shard.fps or 25)
    return count


def _each_picture(view: View, count: int, bar: Progress) -> Iterator[Levels]:
    for index in range(count):
        yield picture_of(view, index)
        bar.advance()


def view_sheet(found: Sequence[Choice], options: ViewOptions) -> int:
    """Write a contact sheet; returns how many clips could not be shown, which are reported."""
    from pipeline.flow_pictures import Clip, contact_sheet

    chosen = spread(found, options.clips)
    clips, failed = [], 0
    labels: set[str] = set()
    for choice in progress(chosen, "view", noun="clip", compiles=True):
        try:
            with opened(choice, options) as view:
                note = f"flow {view.index}, full colour: {view.fastest:.1f} px"
                clips.append(Clip((choice.name, note), tuple(shown(view, view.index)), view.fastest))
                labels.add(" beside ".join(source.label for source in view.sources))
        except InputError as error:
            print(f"left out: {printable(str(error))}", file=sys.stderr)
            failed += 1
    if not clips:
        raise InputError(f"{_title(options)}: none of its {many(len(chosen), 'clip')} can be shown")
    classes = len({choice.name.rpartition("/")[0] for choice in chosen})
    held = f"{len(clips):,} of {many(len(found), 'clip')}" + (f", {classes} classes" if classes > 1 else "")
    picture = contact_sheet(_title(options), f"{held}; flow by {some(sorted(labels), quoted=False)}", clips)
    output = options.output or _sheet_beside(options)
    with _elsewhere(options):
        write_still(output, picture)
    click.echo(f"{printable(str(output))}: {held}")
    return failed


def _title(options: ViewOptions) -> str:
    if options.dataset:
        return f"{options.dataset}, shards {_shard_folder(options).name}"
    return some(map(str, options.targets), 3, quoted=False)


def _shard_folder(options: ViewOptions) -> Path:
    """The folder of the dataset's shard set."""
    paths = DatasetPaths(data_root(options.data), str(options.dataset))
    return paths.shards(choose_shard_set(paths, options.shards))


def _beside(choice: Choice) -> Path:
    stem = choice.name.rpartition("/")[2]
    return choice.target.address.file.parent / f"{stem}.{'comparison' if choice.other else 'flow'}.png"


def _sheet_beside(options: ViewOptions) -> Path:
    if options.dataset:
        return _shard_folder(options) / SHEET
    first = options.targets[0]
    return (first if first.is_dir() else first.parent) / SHEET


@contextlib.contextmanager
def _elsewhere(options: ViewOptions) -> Iterator[None]:
    """For a picture that cannot be written to the default place: adds how to name another."""
    try:
        yield
    except InputError as error:
        if options.output is not None:
            raise
        raise InputError(f"{error}; --output FILE names another place for the picture") from error


@click.command(context_settings=CONTEXT)
@options_of(ViewOptions)
@command_errors
def command(**values: Any) -> None:
    """Show flow beside its frames: one clip as PNG, JPEG, MP4 or GIF, many as a contact sheet.

    Of one shard (a file, FILE.h5pack/class/stem, or --dataset NAME class/stem), from left to right: the frame if
    there is one, the flow in Middlebury's colours (hue is direction, saturation speed), and its x and y as in the
    paper's figure 2 (gray is none, white is right or down). All pictures of a clip have one scale.

    Of a folder, a pack or a dataset: a contact sheet of clips spread over the classes. --against shows two ways to
    compute the flow of the same videos.
    """
    options = from_options(ViewOptions, values)
    found = choices(options)
    if len(found) == 1:
        with reporting_compilation():
            view_clip(found[0], options)
        return
    if options.moving or options.index is not None:
        what = "--index" if options.index is not None else "an MP4 or GIF"
        raise InputError(
            f"{_title(options)}: expected one clip for {what}, found {len(found):,}; name one of them"
        )
    sys.exit(1 if view_sheet(found, options) else 0)
