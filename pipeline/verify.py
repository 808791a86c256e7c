"""Re-read shards and name each bad one: `python -m pipeline verify`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.machine import usable_cores
from pipeline.options import CONTEXT, from_options, option, options_of
from pipeline.pack import write_pack
from pipeline.progress import progress
from pipeline.shard import Shard, ShardAddress, faults, index_pack, open_shard, parts
from pipeline.shard_sets import ShardArguments, Target, gather
from pipeline.text import many
from pipeline.video import source_digest


@dataclass(frozen=True)
class Finding:
    """What was found about one shard; it is good if it has no faults."""

    address: ShardAddress
    faults: list[str]


def verify_shard(target: Target, deep: bool = False, source: Path | None = None) -> Finding:
    """Check one shard.

    Always: it opens, its tables and parameters are whole, every stream matches its CRC-32, there are as many frames and
    flows as it claims, and it is the video that its place promises. Deep: every stream also decodes to the right
    size, and the video it was made of (`source`, a file or a folder of pictures) still has the recorded SHA-256.
    """
    address = target.address
    try:
        with open_shard(address) as shard:
            found = list(faults(shard))
            if target.video and shard.video != target.video:
                found.append(f"it is the shard of {shard.video!r}, expected {target.video!r}")
        if deep and not found:
            found = list(undecodable(address))
        if deep and source is not None and source.exists() and source_digest(source) != shard.source.sha256:
            found.append(f"{source} is not the video that it was made of: it has another SHA-256")
    except InputError as error:
        found = [str(error).removeprefix(f"{address}: ")]
    return Finding(address, found)


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
    except InputError as error:
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


def repair(bad: Iterable[Finding]) -> None:
    """Remove bad shards, so that the next run makes them again: loose files are deleted, packs rewritten without."""
    ordered = sorted(bad, key=lambda finding: finding.address)
    for file, findings in itertools.groupby(ordered, key=lambda finding: finding.address.file):
        groups = {finding.address.group for finding in findings}
        kept = [] if groups == {"/"} else [a for a in index_pack(file).values() if a.group not in groups]
        if kept:
            write_pack(file, kept)
        else:
            file.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShardArguments):
    """What to check, and what to do about it."""

    deep: bool = option(False, "Also decode every image, and compare the videos' SHA-256 (with --dataset).")
    repair: bool = option(False, "Delete bad shards, so that the next extraction makes them again.")
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
    if options.repair:
        for folder in options.folders:
            for path in atomic.sweep(folder):
                click.echo(f"{path}: left by a dead run, deleted")
    found = gather(options)
    videos = load_dataset(options.dataset, options.data).videos if options.dataset else {}
    sources = {video.id: video.path for video in videos.values()} if options.deep else {}
    findings = progress(verify(found, options.deep, sources, options.jobs), "verify", total=len(found))
    bad = sorted((finding for finding in findings if finding.faults), key=lambda finding: finding.address)
    for finding in bad:
        more = f" (and {many(len(finding.faults) - 1, 'more fault')})" if len(finding.faults) > 1 else ""
        click.echo(f"{finding.address}: {finding.faults[0]}{more}")
    if options.repair:
        repair(bad)
    missing = sorted(videos.keys() - {target.video for target in found}) if options.complete else []
    for video in missing:
        click.echo(f"{video}: no shard; run the extraction again")
    click.echo(summary(len(found), len(bad), len(missing) if options.complete else None, options.repair))
    if bad or missing:
        sys.exit(1)


def summary(shards: int, bad: int, missing: int | None, repaired: bool) -> str:
    """The last line: counts, and what to do; `missing` is None where completeness was not asked for."""
    if not bad:
        then = "nothing to do"
    else:
        then = "deleted; run the extraction again" if repaired else "run with --repair to delete them"
    lacking = "" if missing is None else f", {missing} missing"
    return f"{shards} shards: {shards - bad} good, {bad} bad ({then}){lacking}"
