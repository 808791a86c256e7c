"""What is done, what is missing and what failed: shards by listing folders, the rest from outcome records.

No shard is opened unless asked for, so that a whole dataset is reported in about a second; `verify` reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.catalog import Dataset, choose_dataset, known_datasets, load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.failures import SHOWN, by_reason, reason_lines
from pipeline.machine import making_what_stays
from pipeline.manifest import ShardSet, read_shard_set
from pipeline.options import CONTEXT, DataOptions, DatasetOptions, argument, from_options, option, options_of
from pipeline.outcome import Outcome, read_outcomes, read_outcomes_by_set
from pipeline.paths import NAME, DatasetPaths, OutputPaths, data_root
from pipeline.shard_sets import shard_sets
from pipeline.text import many, size_in_bytes, typed

Outcomes = Mapping[str, Mapping[str, Outcome]]
"""By shard set and video."""


@dataclass(frozen=True)
class SetStatus:
    """How complete one shard set is.

    Attributes:
        shard_set: its name, or the folder of --output.
        videos: in the dataset; of a folder, those that were tried.
        done: videos with a shard.
        failed: videos without a shard whose last attempt failed -> the reason.
        stale: videos with a shard whose last attempt failed, for example with other settings -> the reason.
        missing: videos without a shard that did not fail; not tried yet, or interrupted.
        foreign: shards of videos that the dataset does not have.
        flows: in the shards, as far as they are in records of making them, or were counted.
        unrecorded: shards whose flows are not known that way.
        bytes: of the shards.
        timed_flows, seconds: flows whose time is recorded, and what workers spent on them.
    """

    shard_set: str
    videos: int
    done: int
    failed: Mapping[str, str]
    stale: Mapping[str, str]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    flows: int
    unrecorded: int
    bytes: int
    timed_flows: int
    seconds: float

    @property
    def speed(self) -> float | None:
        """Pairs of frames per second and worker, or None where no time is recorded."""
        return self.timed_flows / self.seconds if self.seconds > 0 else None


def reported_shard_sets(paths: DatasetPaths, outcomes: Outcomes | None = None) -> list[str]:
    """Names of a dataset's shard sets: those that exist, and those of which only failures are recorded."""
    tried = outcomes_by_set(paths) if outcomes is None else outcomes
    return sorted({*shard_sets(paths), *(name for name in tried if NAME.fullmatch(name))})


def outcomes_by_set(paths: DatasetPaths) -> Outcomes:
    """The last outcome of each video in each shard set; InputError for a file that cannot be read."""
    found: dict[str, dict[str, Outcome]] = {}
    with readable(paths.outcomes_root):
        for stage in folders_in(paths.outcomes_root):
            for shard_set, records in read_outcomes_by_set(stage).items():
                found.setdefault(shard_set, {}).update(records)
    return found


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """InputError for outcome records that cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: outcome records cannot be read: {error.strerror}"
        ) from error


def set_status(
    dataset: Dataset,
    paths: DatasetPaths,
    shard_set: str,
    count: bool = False,
    outcomes: Outcomes | None = None,
) -> SetStatus:
    """The state of one shard set of a dataset; reads folders, outcome records and the set's manifest.

    Args:
        dataset: whose videos count.
        paths: of the dataset.
        shard_set: the set's name.
        count: open the shards whose flows are in no record, and count them.
        outcomes: `outcomes_by_set`, where the caller has read them already.
    """
    recorded = (outcomes_by_set(paths) if outcomes is None else outcomes).get(shard_set, {})
    ended = {video: record for video, record in recorded.items() if video in dataset.videos}
    return status_of(shard_set, tuple(dataset.videos), read_shard_set(paths.shards(shard_set)), ended, count)


def folder_status(folder: Path, count: bool = False) -> SetStatus:
    """The state of a folder that an extraction wrote to with `--output`: its videos are those that it has tried.

    Raises:
        InputError: no such folder, or nothing in it that an extraction leaves.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    with readable(folder):
        outcomes = read_outcomes(OutputPaths(folder).outcomes)
    index = read_shard_set(folder)
    if not outcomes and not index:
        raise InputError(
            f"{folder}: expected shards or records of an extraction, found neither; make some with: "
            f"{typed('extract_flow')} VIDEO_OR_FOLDER... --output {folder}"
        )
    return status_of(str(folder), tuple(sorted({*outcomes, *index})), index, outcomes, count)


def status_of(
    name: str,
    videos: Sequence[str],
    index: ShardSet,
    outcomes: Mapping[str, Outcome],
    count: bool,
) -> SetStatus:
    """The state of a set of shards, from existing shards and what is recorded.

    Args:
        name: of the set.
        videos: that it should have.
        index: the existing shards.
        outcomes: the last record of each video.
        count: open the shards whose flows are in no record, and count them.
    """
    wanted = set(videos)
    there = wanted.intersection(index)
    made = {video: record for video, record in outcomes.items() if record.flows and video in there}
    fails = sorted(video for video, record in outcomes.items() if record.status == "failed")
    failed = {video: outcomes[video].reason for video in fails}
    flows = {video: record.flows for video, record in made.items()}
    if count:
        index.learn(sorted(there - made.keys()))
    flows |= counted(index, there - made.keys())
    timed = [record for record in made.values() if record.seconds > 0]
    return SetStatus(
        shard_set=name,
        videos=len(videos),
        done=len(there),
        failed={video: reason for video, reason in failed.items() if video not in there},
        stale={video: reason for video, reason in failed.items() if video in there},
        missing=tuple(video for video in videos if video not in there and video not in failed),
        foreign=tuple(video for video in index if video not in wanted),
        flows=sum(flows.values()),
        unrecorded=len(there) - len(flows),
        bytes=index.bytes_of(there),
        timed_flows=sum(record.flows for record in timed),
        seconds=sum(record.seconds for record in timed),
    )


def counted(shards: ShardSet, videos: Iterable[str]) -> dict[str, int]:
    """Flows of the shards that are known, in all their directions."""
    known = ((video, shards.facts[video]) for video in videos if video in shards.facts)
    return {video: max(facts.forward, 0) + max(facts.backward, 0) for video, facts in known}


def describe(status: SetStatus, show: int) -> list[str]:
    """Lines for a user; at most `show` names of each kind."""
    lines = [
        f"{status.shard_set}: {status.done:,} of {status.videos:,} done, {len(status.missing):,} missing, "
        f"{len(status.failed):,} failed",
    ]
    if status.done:
        amount = f"  {many(status.flows, 'flow')}, {size_in_bytes(status.bytes)}"
        if status.speed:
            amount += f", {status.speed:,.1f} pairs/s per worker"
        if status.unrecorded:
            amount += f" (flows of {many(status.unrecorded, 'shard')} not recorded: --count opens them)"
        lines.append(amount)
    kinds = (("failed", status.failed), ("failed, an earlier shard is there", status.stale))
    for kind, videos in kinds:
        failures = list(videos.items())
        lines += [f"  {line}" for line in reason_lines(failures, word=kind, most=show)]
        if (hidden := len(by_reason(failures)) - show) > 0:
            lines.append(f"  {kind}: {hidden:,} more (--show N shows more)")
    for kind, names in (("missing", status.missing), ("not in the dataset", status.foreign)):
        if names:
            more = f" and {len(names) - show:,} more" if len(names) > show else ""
            lines.append(f"  {kind}: {', '.join(names[:show])}{more}")
    return lines


@dataclass(frozen=True, kw_only=True)
class StatusOptions(DatasetOptions):
    """What to show."""

    folder: Path | None = argument(None, metavar="[FOLDER]")
    shards: str | None = option(
        None, "Report only this shard set.", metavar="NAME", shown_default="all there are", replaces="--set"
    )
    show: int = option(SHOWN, "Names shown of each kind.", minimum=0)
    count: bool = option(False, "Open shards whose number of flows is not recorded, and count them.")
    json: bool = option(False, "Everything, as JSON.")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other (click.UsageError)."""
        if self.folder is not None and (self.dataset or self.data or self.shards):
            raise click.UsageError(
                "give either FOLDER, which an extraction wrote to with --output, or --dataset and its options"
            )
        if self.json and self.show != SHOWN:
            raise click.UsageError("--show has no effect with --json, which holds every name")


@click.command(context_settings=CONTEXT)
@options_of(StatusOptions)
@command_errors
def command(**values: Any) -> None:
    """Show what is done, missing and failed, and why, for each shard set.

    Of a dataset, or of a FOLDER that an extraction wrote to with --output.
    """
    options = from_options(StatusOptions, values)
    statuses = (
        _of_dataset(options) if options.folder is None else [folder_status(options.folder, options.count)]
    )
    if options.json:
        click.echo(
            json.dumps([{**dataclasses.asdict(s), "pairs_per_second": s.speed} for s in statuses], indent=1)
        )
        return
    for status in statuses:
        click.echo("\n".join(describe(status, options.show)))


@making_what_stays()
def _of_dataset(options: StatusOptions) -> list[SetStatus]:
    """The wanted shard sets of a dataset; says so where there is none."""
    dataset = choose_dataset(options.dataset, options.data)
    if options.dataset is None:
        click.echo(f"dataset: {dataset}", err=True)
    known = load_dataset(dataset, options.data)
    paths = DatasetPaths(data_root(options.data), dataset)
    outcomes = outcomes_by_set(paths)
    names = reported_shard_sets(paths, outcomes)
    if options.shards is not None and options.shards not in names:
        raise InputError(
            f"dataset {dataset} has no shard set {options.shards!r} (it has: {', '.join(names) or 'none'}); "
            f"make one with: {typed('extract_flow')} --dataset {dataset}"
        )
    if not names and not options.json:
        click.echo(f"{dataset}: no shards yet; make them with: {typed('extract_flow')} --dataset {dataset}")
    wanted = [options.shards] if options.shards else names
    return [set_status(known, paths, name, options.count, outcomes) for name in wanted]


@click.command(context_settings=CONTEXT)
@options_of(DataOptions)
@command_errors
def datasets_command(**values: Any) -> None:
    """List the known datasets and how complete they are."""
    data = from_options(DataOptions, values).data
    names = known_datasets(data)
    if not names:
        click.echo(
            f"no dataset is known in {data_root(data)}; make one known with: {typed('pipeline')} demo, or "
            f"{typed('pipeline')} import --help"
        )
    damaged = []
    for name in names:
        try:
            click.echo(
                "\n".join(describe_dataset(load_dataset(name, data), DatasetPaths(data_root(data), name)))
            )
        except InputError as error:
            damaged += error.lines
    if damaged:
        raise InputError(*damaged)


def describe_dataset(dataset: Dataset, paths: DatasetPaths) -> list[str]:
    """Lines for a user: how many of a dataset's videos are there, and its shard sets."""
    there = sum(video.path.exists() for video in dataset.videos.values())
    listed = len(dataset.videos) + len(dataset.missing)
    lines = [
        f"{dataset.name} ({dataset.origin['kind']}): {there:,} of {many(listed, 'video')} "
        f"{'is' if listed == 1 else 'are'} there, "
        f"{many(len(dataset.classes), 'class')}, splits: {', '.join(map(str, dataset.splits)) or 'none'}"
    ]
    if dataset.missing:
        lines.append(f"  {len(dataset.missing):,} were missing when it was imported and are left out")
    if there < len(dataset.videos):
        lost = next(video for video in dataset.videos.values() if not video.path.exists())
        lines.append(
            f"  {len(dataset.videos) - there:,} are gone since it was imported, for example {lost.path}"
        )
    for shard_set in shard_sets(paths):
        done = len(read_shard_set(paths.shards(shard_set)).keys() & dataset.videos.keys())
        lines.append(f"  shards {shard_set}: {done:,} of {many(len(dataset.videos), 'video')}")
    return lines
