"""Sets of shards, and which shards a command's arguments name: files, packs, folders, or a dataset's set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from pipeline.errors import InputError
from pipeline.options import DataOptions, ShardSetOptions, argument, option
from pipeline.paths import DEFAULT_METHOD, NAME, DatasetPaths, data_root
from pipeline.shard import Shard, ShardAddress, open_shard
from pipeline.shard_file import SUFFIX
from pipeline.shard_index import PACK_SUFFIX, index_pack, index_shards
from pipeline.text import some, typed


class Target(NamedTuple):
    """A shard to work on; `video` is the identity that its place in a dataset promises, "" if it was named by path.

    Or a pack that could not be read, or something in one that is no shard; then `error` says why.
    """

    video: str
    address: ShardAddress
    error: InputError | None = None

    def open(self) -> Shard:
        """Open the shard.

        Raises:
            InputError: it is none, or cannot be read.
        """
        if self.error is not None:
            raise self.error
        return open_shard(self.address)


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
            f"{typed('extract_flow')} --dataset {paths.dataset} --shards {wanted}"
        )
    if not there:
        raise InputError(
            f"{paths.shard_sets}: no shards yet; make them with: {typed('extract_flow')} --dataset {paths.dataset}"
        )
    if len(there) == 1:
        return there[0]
    if DEFAULT_METHOD in there:
        return DEFAULT_METHOD
    raise InputError(f"{paths.shard_sets}: there are {listed}: choose one with --shards NAME")


@dataclass(frozen=True, kw_only=True)
class ShardArguments(ShardSetOptions, DataOptions):
    """The shards that a command works on: by their paths, or all of a dataset's set."""

    dataset: str | None = option(None, "All shards of this dataset, instead of paths.", metavar="NAME")
    targets: tuple[Path, ...] = argument((), metavar="[SHARD|PACK|FOLDER]...", multiple=True)

    def __post_init__(self) -> None:
        if bool(self.targets) == bool(self.dataset):
            raise click.UsageError("give either shards (files, packs, folders) or --dataset NAME")
        if self.shards and not self.dataset:
            raise click.UsageError("--shards goes with --dataset")
        if self.data is not None and not self.dataset:
            raise click.UsageError("--data goes with --dataset")

    @property
    def folders(self) -> list[Path]:
        """The folders of shards among them."""
        if self.dataset is None:
            return [target for target in self.targets if target.is_dir()]
        paths = DatasetPaths(data_root(self.data), self.dataset)
        return [paths.shards(choose_shard_set(paths, self.shards))]


def gather(arguments: ShardArguments) -> list[Target]:
    """The shards that a command's arguments name, sorted.

    Raises:
        InputError: no such path, no such set, or not a single shard.
    """
    if arguments.dataset:
        found = targets_in(arguments.folders[0], named=True)
    else:
        found = [found for target in arguments.targets for found in targets_at(target)]
    if not found:
        where = arguments.dataset or ", ".join(map(str, arguments.targets))
        raise InputError(
            f"{where}: expected shards ({SUFFIX} or {PACK_SUFFIX} files), found none; "
            f"make some with: {typed('extract_flow')}"
        )
    return found


def targets_in(folder: Path, named: bool = False) -> list[Target]:
    """The shards below a folder; a pack that cannot be read counts as one, so that commands can report it.

    So does everything in a pack that is not a shard.
    """
    unusable: dict[ShardAddress, InputError] = {}
    shards = index_shards(folder, unusable)
    return [Target(video if named else "", address) for video, address in shards.items()] + [
        Target("", address, error) for address, error in unusable.items()
    ]


def targets_at(path: Path) -> list[Target]:
    """The shards of a folder or pack, a loose one, or one of a pack as `FILE.h5pack/class/stem`."""
    if path.is_dir():
        return targets_in(path)
    if path.is_file() and path.suffix not in (SUFFIX, PACK_SUFFIX):
        # `verify --delete` must not mistake someone's video for a damaged shard.
        raise InputError(
            f"{path}: expected a shard ({SUFFIX}), a pack ({PACK_SUFFIX}) or a folder of them, found a file of another "
            f"kind; make a shard of a video with: {typed('extract_flow')} VIDEO --output FOLDER"
        )
    if path.is_file() and path.suffix == SUFFIX:
        return [Target("", ShardAddress(path))]
    pack = next(
        (file for file in (path, *path.parents) if file.suffix == PACK_SUFFIX and file.is_file()), None
    )
    if pack is None:
        raise InputError(f"{path}: no such shard, pack or folder")
    unusable: dict[ShardAddress, InputError] = {}
    try:
        members = index_pack(pack, unusable)
    except InputError as error:
        if path != pack:
            raise
        return [Target("", ShardAddress(pack), error)]
    video = path.relative_to(pack).as_posix()
    if video not in (".", *members):
        raise InputError(
            f"{pack}: expected a shard {video!r} in it, found {len(members)} others ({some(members)})"
        )
    chosen = [Target("", address) for name, address in members.items() if video in (".", name)]
    if video == ".":
        chosen += [Target("", address, error) for address, error in unusable.items()]
    return chosen
