"""Many shards in few files, for file systems that are slow with many: `python -m pipeline pack`.

A shard is a group wherever it lies, so a pack is an HDF5 file with a group `class/stem` per video, and readers find it
through the same index as loose files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline import atomic
from pipeline.errors import InputError, command_errors
from pipeline.hdf5 import new_file, write_attributes
from pipeline.manifest import has_manifest, refresh
from pipeline.options import (
    CONTEXT,
    DataOptions,
    ShardSetOptions,
    argument,
    from_options,
    option,
    options_of,
)
from pipeline.ownership import owning_folder
from pipeline.paths import DatasetPaths, data_root
from pipeline.progress import Progress, progress
from pipeline.shard import ShardAddress, faults, open_shard
from pipeline.shard_file import SUFFIX, VERSION
from pipeline.shard_index import PACK_FORMAT, PACK_SUFFIX, index_pack, index_shards
from pipeline.shard_sets import choose_shard_set
from pipeline.shard_writer import copy_shard, verify_written
from pipeline.text import many, printable, size_in_bytes, typed


def write_pack(
    path: Path, members: Iterable[ShardAddress], copied: Callable[[], None] = lambda: None
) -> None:
    """Write a pack of the given shards, in place of what was there; each is verified in the new file first.

    Args:
        path: of the pack.
        members: the shards.
        copied: called after each shard.

    Raises:
        InputError: a member is damaged or listed twice, or the disk is full.
    """
    addresses = list(members)

    def verify(temporary: Path) -> None:
        written = index_pack(temporary)
        if len(written) != len(addresses):
            raise InputError(
                f"{path}: expected {len(addresses)} shards in the pack, found {len(written)} as written"
            )
        for address in written.values():
            check_whole(address)

    with (
        atomic.writing(path, verify=verify) as temporary,
        new_file(temporary) as file,
    ):
        write_attributes(file, {"format": PACK_FORMAT, "version": VERSION})
        for address in addresses:
            check_whole(address)
            with open_shard(address) as shard:
                if shard.video in file:
                    raise InputError(f"{address}: {shard.video} is in this pack already")
                copy_shard(shard, file.create_group(shard.video))
            copied()


def check_whole(address: ShardAddress) -> None:
    """InputError if a shard has a fault, so that damage is never packed or unpacked as if it were intact."""
    with open_shard(address) as shard:
        for fault in faults(shard):
            raise InputError(
                f"{address}: {fault}; run {typed('pipeline')} verify --repair and extract it again"
            )


def unpack(address: ShardAddress, path: Path) -> None:
    """Write one shard of a pack as a loose file, verified."""
    check_whole(address)
    with (
        atomic.writing(path, verify=verify_written) as temporary,
        new_file(temporary) as file,
        open_shard(address) as shard,
    ):
        copy_shard(shard, file)


def plan_by_class(shards: dict[str, ShardAddress], folder: Path) -> dict[Path, list[ShardAddress]]:
    """One pack per class with its loose and packed shards; classes that have no loose ones are left as they are."""
    packs: dict[Path, list[ShardAddress]] = {}
    for video, address in shards.items():
        name = video.rpartition("/")[0] or "videos"
        packs.setdefault(folder / f"{name}{PACK_SUFFIX}", []).append(address)
    return {
        path: members for path, members in packs.items() if any(member.group == "/" for member in members)
    }


def plan_by_number(
    shards: dict[str, ShardAddress], folder: Path, videos: int
) -> dict[Path, list[ShardAddress]]:
    """Packs of a number of videos each, of the loose shards only, numbered after the existing packs."""
    loose = [address for address in shards.values() if address.group == "/"]
    taken = [int(path.stem) for path in folder.glob(f"*{PACK_SUFFIX}") if path.stem.isdecimal()]
    numbers = itertools.count(max(taken, default=0) + 1)
    firsts = range(0, len(loose), videos)
    return {folder / f"{next(numbers):05d}{PACK_SUFFIX}": loose[first : first + videos] for first in firsts}


@dataclass(frozen=True, kw_only=True)
class PackOptions(ShardSetOptions, DataOptions):
    """Which shards to pack, and how."""

    dataset: str | None = option(None, "The shards of this dataset, instead of a folder.", metavar="NAME")
    folder: Path | None = argument(None, metavar="[FOLDER]")
    videos: int | None = option(
        None, "Number of videos to a pack.", minimum=1, shown_default="one pack per class"
    )
    unpack: bool = option(False, "Unpack instead: packs become loose shards again.")
    keep: bool = option(False, "Leave the original files, instead of deleting them once verified.")

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.dataset is None):
            raise click.UsageError("give either a folder of shards or --dataset NAME")
        if self.shards and not self.dataset:
            raise click.UsageError("--shards goes with --dataset")
        if self.data is not None and not self.dataset:
            raise click.UsageError("--data goes with --dataset")
        if self.unpack and self.videos is not None:
            raise click.UsageError("--videos goes with packing, not with --unpack")


@click.command(context_settings=CONTEXT)
@options_of(PackOptions)
@command_errors
def command(**values: Any) -> None:
    """Put many shards into few files, and take them out again.

    Works on a folder of shards or a dataset's set, between extractions: not while one is writing there. Packs lie in
    the same folder and are read like loose shards. Each is written under a temporary name and verified before
    any original goes.
    """
    options = from_options(PackOptions, values)
    folder = options.folder
    if folder is None:
        paths = DatasetPaths(data_root(options.data), str(options.dataset))
        folder = paths.shards(choose_shard_set(paths, options.shards))
    elif not folder.is_dir():
        raise InputError(f"{folder}: no such folder of shards")
    with owning_folder(folder):
        atomic.sweep(folder)
        shards = index_shards(folder)
        if not shards:
            raise InputError(
                f"{folder}: expected shards ({SUFFIX} or {PACK_SUFFIX} files), found none; "
                f"make some with: {typed('extract_flow')}"
            )
        if options.unpack:
            done = unpack_all(shards, folder, options.keep)
            line = f"{folder}: {many(done, 'shard')} unpacked, {len(shards) - done} were loose already"
            click.echo(printable(line))
        else:
            packed, packs = pack_all(shards, folder, options)
            new = f"{many(packed, 'shard')} in {many(packs, 'pack')}"
            click.echo(printable(f"{folder}: {new}; {len(shards) - packed:,} were packed already"))
        if options.dataset or has_manifest(folder):
            refresh(folder)


def pack_all(shards: dict[str, ShardAddress], folder: Path, options: PackOptions) -> tuple[int, int]:
    """Pack the loose shards of a folder; returns how many shards are in the new packs, and how many packs."""
    packs = (
        plan_by_class(shards, folder)
        if options.videos is None
        else plan_by_number(shards, folder, options.videos)
    )
    with Progress("pack", sum(map(len, packs.values())), "shard") as shown:
        for path, members in packs.items():
            write_pack(path, members, shown.advance)
            with shown.aside():
                made = f"{path}: {many(len(members), 'shard')}, {size_in_bytes(path.stat().st_size)}"
                click.echo(printable(made))
            for member in members if not options.keep else []:
                if member.group == "/":
                    member.file.unlink(missing_ok=True)
    return sum(map(len, packs.values())), len(packs)


def unpack_all(shards: dict[str, ShardAddress], folder: Path, keep: bool) -> int:
    """Unpack every packed shard of a folder; returns how many."""
    packed = {video: address for video, address in shards.items() if address.group != "/"}
    for video, address in progress(packed.items(), "unpack", noun="shard"):
        unpack(address, folder / f"{video}{SUFFIX}")
    if not keep:
        for file in {address.file for address in packed.values()}:
            file.unlink()
    return len(packed)
