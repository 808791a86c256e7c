"""Which shards a command's arguments name: files, packs, folders, or a dataset's set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from pipeline.catalog import some
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root
from pipeline.shard import PACK_SUFFIX, SUFFIX, ShardAddress, index_pack, index_shards


class Target(NamedTuple):
    """A shard to work on; `video` is the identity that its place in a dataset promises, "" if it was named by path."""

    video: str
    address: ShardAddress


def shard_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options of a command on shards: targets, dataset, shard_set, data."""
    for option in (
        click.option("--data", help="The data root; else $TWO_STREAM_DATA, else ./data."),
        click.option(
            "--set", "shard_set", help="Which set of the dataset's shards; its only one if not given."
        ),
        click.option("--dataset", help="All shards of a known dataset, instead of paths."),
        click.argument(
            "targets", nargs=-1, metavar="[SHARD|PACK|FOLDER]...", type=click.Path(path_type=Path)
        ),
    ):
        command = option(command)
    return command


def gather(
    targets: tuple[Path, ...], dataset: str | None, shard_set: str | None, data: str | None
) -> list[Target]:
    """The shards that a command's arguments name, sorted.

    Raises:
        click.UsageError: neither paths nor a dataset were given, or both.
        InputError: no such path, no such set, or not a single shard.
    """
    if bool(targets) == bool(dataset):
        raise click.UsageError("give either shards (files, packs, folders) or --dataset NAME")
    if shard_set and not dataset:
        raise click.UsageError("--set goes with --dataset")
    if dataset:
        folder = set_folder(dataset, shard_set, data)
        found = targets_in(folder, named=True)
    else:
        found = [found for target in targets for found in targets_at(target)]
    if not found:
        where = dataset or ", ".join(str(target) for target in targets)
        raise InputError(
            f"{where}: expected shards ({SUFFIX} or {PACK_SUFFIX} files), found none; "
            "extract some with python -m extract_flow"
        )
    return found


def targets_in(folder: Path, named: bool = False) -> list[Target]:
    """The shards below a folder; a pack that cannot be read counts as one, so that commands can tell of it."""
    unreadable: list[ShardAddress] = []
    shards = index_shards(folder, unreadable)
    return [Target(video if named else "", address) for video, address in shards.items()] + [
        Target("", address) for address in unreadable
    ]


def targets_at(path: Path) -> list[Target]:
    """The shards of a folder or pack, a loose one, or one of a pack as `FILE.h5pack/class/stem`."""
    if path.is_dir():
        return targets_in(path)
    if path.is_file() and path.suffix != PACK_SUFFIX:
        return [Target("", ShardAddress(path))]
    pack = next(
        (file for file in (path, *path.parents) if file.suffix == PACK_SUFFIX and file.is_file()), None
    )
    if pack is None:
        raise InputError(f"{path}: no such shard, pack or folder")
    members = index_pack(pack)
    video = path.relative_to(pack).as_posix()
    if video not in (".", *members):
        raise InputError(
            f"{pack}: expected a shard {video!r} in it, found {len(members)} others ({some(members)})"
        )
    return [Target("", address) for name, address in members.items() if video in (".", name)]


def set_folder(dataset: str, shard_set: str | None, data: str | None) -> Path:
    """The folder of a dataset's set of shards, or of its only set if none is named; InputError lists the sets."""
    paths = DatasetPaths(data_root(data), dataset)
    folder = paths.shard_sets
    sets = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if shard_set is None and len(sets) == 1:
        return paths.shards(sets[0])
    if shard_set in sets:
        return paths.shards(shard_set)
    there = f"there are {', '.join(sets)}" if sets else "there are none"
    if shard_set is None and sets:
        raise InputError(f"{dataset}: {there} of sets of shards: choose one with --set")
    raise InputError(
        f"{dataset}: no set of shards{f' {shard_set!r}' if shard_set else ''} in {folder}; {there}; "
        f"extract it with python -m extract_flow --dataset {dataset}"
    )


def usable_cores() -> int:
    """Cores that this process may run on (a SLURM task may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
