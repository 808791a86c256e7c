"""Sets of shards, and which shards a command's arguments name: files, packs, folders, or a dataset's set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from pipeline.errors import InputError
from pipeline.paths import NAME, DatasetPaths, data_root
from pipeline.shard import PACK_SUFFIX, SUFFIX, ShardAddress, index_pack, index_shards
from pipeline.text import some

DEFAULT_METHOD = "tvl1"
"""The flow method of a command that names none; a shard set is named after its method unless the user names it."""


class Target(NamedTuple):
    """A shard to work on; `video` is the identity that its place in a dataset promises, "" if it was named by path."""

    video: str
    address: ShardAddress


def shard_sets(paths: DatasetPaths) -> list[str]:
    """Names of a dataset's shard sets."""
    folder = paths.shard_sets
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def choose_shard_set(paths: DatasetPaths, wanted: str | None = None) -> str:
    """The shard set to read: the wanted one; else the only one; else the default method's.

    Raises:
        InputError: no such set, none at all, or several without a choice.
    """
    there = shard_sets(paths)
    listed = ", ".join(there) or "none"
    if wanted in there:
        return wanted
    if wanted is not None:
        raise InputError(
            f"{paths.shard_sets}: expected a shard set {wanted!r}, found {listed}; make it with: "
            f"python -m extract_flow --dataset {paths.dataset} --shards {wanted}"
        )
    if not there:
        raise InputError(
            f"{paths.shard_sets}: no shards yet; make them with: python -m extract_flow --dataset {paths.dataset}"
        )
    if len(there) == 1:
        return there[0]
    if DEFAULT_METHOD in there:
        return DEFAULT_METHOD
    raise InputError(f"{paths.shard_sets}: there are {listed}: choose one with --shards NAME")


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
    targets: tuple[Path, ...], dataset: str | None, shard_set: str | None, data: str | Path | None
) -> list[Target]:
    """The shards that a command's arguments name, sorted.

    Raises:
        click.UsageError: neither paths nor a dataset were given, or both.
        InputError: no such path, no such set, or not a single shard.
    """
    if bool(targets) == bool(dataset):
        raise click.UsageError("give either shards (files, packs, folders) or --dataset NAME")
    if shard_set and not dataset:
        raise click.UsageError("--shards goes with --dataset")
    if dataset:
        paths = DatasetPaths(data_root(data), dataset)
        found = targets_in(paths.shards(choose_shard_set(paths, shard_set)), named=True)
    else:
        found = [found for target in targets for found in targets_at(target)]
    if not found:
        where = dataset or ", ".join(str(target) for target in targets)
        raise InputError(
            f"{where}: expected shards ({SUFFIX} or {PACK_SUFFIX} files), found none; "
            "make some with: python -m extract_flow"
        )
    return found


def targets_in(folder: Path, named: bool = False) -> list[Target]:
    """The shards below a folder; a pack that cannot be read counts as one, so that commands can report it."""
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
