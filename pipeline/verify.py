"""Re-read shards and name each bad one: `python -m pipeline verify`."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from pipeline import atomic
from pipeline.catalog import load_dataset
from pipeline.errors import InputError, command_errors
from pipeline.machine import usable_cores
from pipeline.pack import write_pack
from pipeline.paths import DatasetPaths, data_root
from pipeline.shard import ShardAddress, faults, index_pack, open_shard, parts
from pipeline.shard_sets import Target, choose_shard_set, gather, shard_arguments

BLOCK = 1 << 20


@dataclass(frozen=True)
class Finding:
    """What was found about one shard; it is good if it has no faults."""

    address: ShardAddress
    faults: list[str]


def verify_shard(target: Target, deep: bool = False, source: Path | None = None) -> Finding:
    """Check one shard.

    Always: it opens, its tables and parameters are whole, every stream matches its CRC-32, there are as many frames and
    flows as it says, and it is the video that its place promises. Deep: every stream also decodes to the right
    size, and the video it was made of, if `source` tells where, still has the recorded SHA-256.
    """
    address = target.address
    try:
        with open_shard(address) as shard:
            found = list(faults(shard))
            if target.video and shard.video != target.video:
                found.append(f"it is the shard of {shard.video!r}, expected {target.video!r}")
        if deep and not found:
            found = list(undecodable(address))
        if deep and source is not None and source.is_file() and file_digest(source) != shard.source.sha256:
            found.append(f"{source} is not the video that it was made of: it has another SHA-256")
    except InputError as error:
        found = [str(error).removeprefix(f"{address}: ")]
    return Finding(address, found)


def undecodable(address: ShardAddress) -> Iterator[str]:
    """What does not decode, one by one, so that memory does not grow with the video."""
    with open_shard(address) as shard:
        for part in parts(shard):
            for index in range(len(shard.part(part))):
                try:
                    if part == "frames":
                        shard.frames(index, index + 1)
                    elif not np.isfinite(shard.flows(index, index + 1, part)).all():
                        yield f"{part} {index} decodes to values that are not finite"
                except InputError as error:
                    yield str(error).removeprefix(f"{address}: ")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def verify(
    targets: Iterable[Target],
    deep: bool = False,
    sources: Mapping[str, Path] | None = None,
    jobs: int | None = None,
) -> Iterator[Finding]:
    """Check many shards on threads, since check sums and decoding run outside Python's lock; in order of completion."""
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


@click.command(name="verify")
@shard_arguments
@click.option(
    "--deep", is_flag=True, help="Also decode every image, and compare the videos' SHA-256 (with --dataset)."
)
@click.option(
    "--repair", "mend", is_flag=True, help="Delete bad shards, so that the next extraction makes them again."
)
@click.option("--complete", is_flag=True, help="A video without a shard is a fault as well (with --dataset).")
@click.option("--jobs", type=click.IntRange(1), help="Threads; one per usable core if not given.")
@command_errors
def command(
    targets: tuple[Path, ...],
    dataset: str | None,
    shard_set: str | None,
    data: str | None,
    deep: bool,
    mend: bool,
    complete: bool,
    jobs: int | None,
) -> None:
    """Re-read shards, check their check sums and name each bad one.

    Reads every byte of the shards at the given paths, or of a dataset's set. Exit status 1 if one is bad.
    """
    if complete and dataset is None:
        raise click.UsageError("--complete goes with --dataset, which says what videos there are")
    paths = DatasetPaths(data_root(data), dataset) if dataset else None
    if mend:
        for folder in (
            [paths.shards(choose_shard_set(paths, shard_set))]
            if paths
            else [t for t in targets if t.is_dir()]
        ):
            for path in atomic.sweep(folder):
                click.echo(f"{path}: left by a dead run, deleted")
    found = gather(targets, dataset, shard_set, data)
    sources = (
        {video.id: video.path for video in load_dataset(dataset, data).videos.values()}
        if dataset and deep
        else {}
    )
    findings = track(
        verify(found, deep, sources, jobs),
        "verify",
        total=len(found),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    bad = [finding for finding in findings if finding.faults]
    bad.sort(key=lambda finding: finding.address)
    for finding in bad:
        more = f" (and {len(finding.faults) - 1} more faults)" if len(finding.faults) > 1 else ""
        click.echo(f"{finding.address}: {finding.faults[0]}{more}")
    if mend:
        repair(bad)
    if not bad:
        then = "nothing to do"
    else:
        then = "deleted; run the extraction again" if mend else "run with --repair to delete them"
    missing = (
        load_dataset(dataset, data).videos.keys() - {t.video for t in found} if complete and dataset else ()
    )
    for video in sorted(missing):
        click.echo(f"{video}: no shard; run the extraction again")
    lacking = f", {len(missing)} missing" if complete else ""
    click.echo(f"{len(found)} shards: {len(found) - len(bad)} good, {len(bad)} bad ({then}){lacking}")
    if bad or missing:
        sys.exit(1)
