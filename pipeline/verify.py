"""Re-read shards and name each bad one: `python -m pipeline verify`."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.errors import Damaged, InputError, Unreadable, command_errors
from pipeline.failures import SHOWN, file_beside, report_failures
from pipeline.machine import usable_cores
from pipeline.manifest import (
    Facts,
    ShardSet,
    Stamp,
    facts_of,
    has_manifest,
    read_shard_set,
    recordable,
    refresh,
    stamp_of,
)
from pipeline.options import CONTEXT, from_options, option, options_of
from pipeline.ownership import owning_folder
from pipeline.pack import write_pack
from pipeline.progress import Progress
from pipeline.shard import Shard, ShardAddress, faults, open_shard, parts
from pipeline.shard_index import PACK_SUFFIX, index_pack
from pipeline.shard_sets import ShardArguments, Target, gather
from pipeline.text import many, printable, shortened, system_reason
from pipeline.video import source_digest


@dataclass(frozen=True)
class Finding:
    """What was found about one shard; it is good if nothing was.

    Attributes:
        target: the shard.
        faults: what is wrong with the bytes that were read.
        unread: why it could not be read or used, which says nothing about its bytes; "" if it could.
        seen: the shard's own name, and what a manifest records of it; None if it does not open.
    """

    target: Target
    faults: list[str]
    unread: str = ""
    seen: tuple[str, Stamp, Facts] | None = None

    @property
    def address(self) -> ShardAddress:
        return self.target.address

    @property
    def reason(self) -> str:
        """What is wrong, in one line."""
        more = f" (and {many(len(self.faults) - 1, 'more fault')})" if len(self.faults) > 1 else ""
        return shortened(printable((self.faults or [self.unread])[0])) + more


def verify_shard(target: Target, deep: bool = False, source: Path | None = None) -> Finding:
    """Check one shard.

    Always: it opens, its tables and parameters are whole, every stream matches its CRC-32, there are as many frames and
    flows as it claims, and it is the video that its place promises. Deep: every stream also decodes to the right
    size, and the video it was made of (`source`, a file or a folder of pictures) still has the recorded SHA-256.
    """
    address = target.address
    if isinstance(target.error, Unreadable):
        return Finding(target, [], str(target.error).removeprefix(f"{address}: "))
    found: list[str] = []
    seen: tuple[str, Stamp, Facts] | None = None
    stamp = stamp_of(address.file)
    try:
        if address.file.suffix == PACK_SUFFIX and address.group == "/":
            index_pack(address.file)  # raises what kept its shards from being listed
        with open_shard(address) as shard:
            if recordable(shard.video, shard):
                seen = shard.video, stamp, facts_of(shard)
            found += faults(shard)
            if target.video and shard.video != target.video:
                found.append(f"it is the shard of {shard.video!r}, expected {target.video!r}")
        if deep and not found:
            found += undecodable(address)
        if deep and source is not None and source.exists() and source_digest(source) != shard.source.sha256:
            found.append(f"{source} is not the video that it was made of: it has another SHA-256")
    except Damaged as error:
        found.append(str(error).removeprefix(f"{address}: "))
    except InputError as error:
        return Finding(target, [], str(error).removeprefix(f"{address}: "))
    except OSError as error:
        return Finding(target, [], f"{source} could not be read: {system_reason(error)}")
    return Finding(target, found, seen=seen)


def undecodable(address: ShardAddress) -> Iterator[str]:
    """What does not decode, one by one, so that memory does not grow with the video."""
    with open_shard(address) as shard:
        for part in parts(shard):
            for index in range(len(shard.part(part))):
                if fault := decoding_fault(shard, part, index):
                    yield fault


def decoding_fault(shard: Shard, part: str, index: int) -> str | None:
    """What is wrong with one frame or flow once it is decoded, or None."""
    try:
        if part == "frames":
            shard.frames(index, index + 1)
        elif not np.isfinite(shard.flows(index, index + 1, part)).all():
            return f"{part} {index} decodes to values that are not finite"
    except Damaged as error:
        return str(error).removeprefix(f"{shard.address}: ")
    return None


def verify(
    targets: Iterable[Target],
    deep: bool = False,
    sources: Mapping[str, Path] | None = None,
    jobs: int | None = None,
) -> Iterator[Finding]:
    """Check many shards on threads, since checksums and decoding run outside Python's lock; in order of completion."""
    from joblib import Parallel, delayed

    sources = sources or {}
    workers = Parallel(n_jobs=jobs or usable_cores(), prefer="threads", return_as="generator_unordered")
    findings: Iterator[Finding] = workers(
        delayed(verify_shard)(target, deep, sources.get(target.video)) for target in targets
    )
    return findings


def repair(bad: Iterable[Finding], check: Callable[[Target], Finding], delete: bool = False) -> Iterator[str]:
    """Take bad shards out, so that the next run recreates them; yields what was done with each file.

    Loose files are set aside under a name that ends in `.damaged`, packs are written again without the bad ones and the
    old pack is set aside. Each shard is checked once more before, and stays where it is unless it is still bad.

    Args:
        bad: what was found.
        check: how it was found.
        delete: instead of setting aside.
    """
    ordered = sorted(bad, key=lambda finding: finding.address)
    for file, findings in itertools.groupby(ordered, key=lambda finding: finding.address.file):
        try:
            again = [check(finding.target) for finding in findings]
            if not all(finding.faults for finding in again):
                raise InputError("it changed a moment ago; run the command again")
            groups = {finding.address.group for finding in again}
            yield f"{file}: {_take_out(file, groups, delete)}"
        except InputError as error:
            yield f"{file}: left as it is: {str(error).removeprefix(f'{file}: ')}"


def _take_out(file: Path, groups: set[str], delete: bool) -> str:
    """Take groups out of a pack, or a file with all that is in it out of its folder; says what was done."""
    members = [] if groups == {"/"} else index_pack(file, {}).values()
    kept = [address for address in members if address.group not in groups]
    with atomic.disk_errors(file):
        if kept:
            old = None if delete else atomic.set_aside(file, keep=True)
            write_pack(file, kept)
            return f"{many(len(kept), 'good shard')} kept" + (f", the old pack is {old.name}" if old else "")
        if delete:
            file.unlink(missing_ok=True)
            return "deleted"
        return f"set aside as {atomic.set_aside(file).name}"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShardArguments):
    """What to check, and what to do about it."""

    deep: bool = option(False, "Also decode every image, and compare the videos' SHA-256 (with --dataset).")
    repair: bool = option(
        False, "Rename bad shards to NAME.damaged, so that the next extraction recreates them."
    )
    delete: bool = option(False, "Delete bad shards instead of renaming them.")
    complete: bool = option(False, "A video without a shard is a fault as well (with --dataset).")
    jobs: int | None = option(None, "Threads.", minimum=1, shown_default="one per usable core")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.complete and self.dataset is None:
            raise click.UsageError("--complete goes with --dataset, which lists the videos")


@click.command(context_settings=CONTEXT)
@options_of(VerifyOptions)
@command_errors
def command(**values: Any) -> None:
    """Re-read shards, check their checksums and name each bad one.

    Reads every byte of the shards at the given paths, or of a dataset's set. Exit status 1 if one is bad.
    """
    options = from_options(VerifyOptions, values)
    with contextlib.ExitStack() as owned:
        if options.repair or options.delete:
            for folder in options.folders:
                owned.enter_context(owning_folder(folder))
        _verify(options)


def _verify(options: VerifyOptions) -> None:
    if options.repair or options.delete:
        for folder in options.folders:
            for path in atomic.sweep(folder):
                click.echo(printable(f"{path}: left by a dead run, deleted"))
    found = gather(options)
    videos = load_dataset(options.dataset, options.data).videos if options.dataset else {}
    sources = {video.id: video.path for video in videos.values()} if options.deep else {}
    sets = [
        read_shard_set(folder, {}) for folder in options.folders if options.dataset or has_manifest(folder)
    ]
    findings = sorted(_findings(found, options, sources, sets), key=by_address)
    bad = [finding for finding in findings if finding.faults]
    failed = [(str(finding.address), finding.reason) for finding in findings]
    file = file_beside((options.folders or options.targets)[0])
    for line in report_failures(failed, file, noun="shard", word=""):
        click.echo(line)
    if options.repair or options.delete:

        def check(target: Target) -> Finding:
            return verify_shard(target, options.deep, sources.get(target.video))

        repaired = list(repair(bad, check, options.delete))
        for line in repaired[:SHOWN]:
            click.echo(line)
        if len(repaired) > SHOWN:
            click.echo(f"and {len(repaired) - SHOWN:,} more")
        for shards in sets:
            refresh(shards.folder)
    missing = sorted(videos.keys() - {target.video for target in found}) if options.complete else []
    lacking = [(video, "no shard; run the extraction again") for video in missing]
    for line in report_failures(lacking, file.with_suffix(".missing.txt"), word=""):
        click.echo(line)
    then = "run with --repair to rename them to NAME.damaged, or with --delete to remove them"
    if not bad:
        then = "nothing to do"
    elif options.repair or options.delete:
        then = f"{'deleted' if options.delete else 'renamed to NAME.damaged'}; run the extraction again"
    unread = len(findings) - len(bad)
    click.echo(
        f"{many(len(found), 'shard')}: {len(found) - len(findings)} good, {len(bad)} bad ({then})"
        + (f", {unread} could not be read or used (left as they are)" if unread else "")
        + (f", {len(missing)} missing" if options.complete else "")
    )
    if findings or missing:
        sys.exit(1)


def _findings(
    found: Sequence[Target],
    options: VerifyOptions,
    sources: Mapping[str, Path],
    sets: Sequence[ShardSet],
) -> Iterator[Finding]:
    """What is wrong with shards, with the progress on stderr; nothing about those that are good.

    At the end the manifests of the sets hold what was read of their shards.
    """
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(Progress("verify", len(found), "shard"))
        if options.deep:
            stack.enter_context(shown.compiling())
        for finding in verify(found, options.deep, sources, options.jobs):
            wrong = bool(finding.faults or finding.unread)
            shown.advance(wrong)
            if finding.seen is not None:
                for shards in sets:
                    shards.see(finding.address, *finding.seen)
            if wrong:
                yield finding
    for shards in sets:
        shards.save()


def by_address(finding: Finding) -> ShardAddress:
    return finding.address
