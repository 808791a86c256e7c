"""Which shards there are: below a folder as loose files and in packs, and in one pack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from pipeline import atomic, hdf5
from pipeline.errors import InputError, unreadable
from pipeline.hdf5 import Foreign, Invalid
from pipeline.shard import ShardAddress
from pipeline.shard_file import SUFFIX, VERSION, damaged, file_root, leads_elsewhere, opened
from pipeline.text import first_line

PACK_FORMAT = "two-stream pack"
PACK_SUFFIX = ".h5pack"
DEEPEST_GROUP = 8


def index_shards(
    folder: str | Path, unusable: dict[ShardAddress, InputError] | None = None
) -> dict[str, ShardAddress]:
    """Shards below a folder by video id, loose files (`<class>/<stem>.h5`) and packs alike, in order of their ids.

    Loose files are listed, not opened. Where a video is both loose and packed, the loose file counts. A folder that
    does not exist has none.

    Args:
        folder: a set of shards.
        unusable: gets the packs that cannot be read, and what is in a pack without being a shard, each with what would
            be raised without it.

    Raises:
        InputError: there is such a pack or object, and no list for it.
    """
    folder = Path(folder)
    files = list_files(folder)
    loose = {video: ShardAddress(Path(entry)) for video, entry in files.loose.items()}
    packed: dict[str, ShardAddress] = {}
    for path in files.packs:
        packed.update(index_pack_or_report(path, unusable))
    return dict(sorted((packed | loose).items()))


class Files(NamedTuple):
    """The files of a set: entries of loose shards by video id, and of packs by path, both sorted folder by folder."""

    loose: dict[str, os.DirEntry[str]]
    packs: dict[Path, os.DirEntry[str]]


def list_files(folder: Path) -> Files:
    """The files of shards and packs below a folder; a link to a folder is not followed."""
    files = Files({}, {})
    root = os.path.join(folder, "")  # noqa: PTH118  of the entries' paths
    for entry in _files_below(root):
        if entry.name.endswith(SUFFIX):
            files.loose[entry.path[len(root) : -len(SUFFIX)]] = entry
        elif entry.name.endswith(PACK_SUFFIX):
            files.packs[Path(entry.path)] = entry
    return files


def _files_below(folder: str) -> Iterator[os.DirEntry[str]]:
    """Entries of all files of a folder and then of those below, sorted by name; nothing temporary."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (
        FileNotFoundError
    ):  # a folder that does not exist has no shards; one that cannot be listed may have some
        return
    except OSError as error:
        raise unreadable(folder, error) from error
    entries = [entry for entry in entries if not atomic.is_temporary(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    if folders:
        there = {entry.name for entry in folders}
        entries = [entry for entry in entries if entry.name not in there]
    yield from entries
    for below in folders:
        if not below.is_symlink():
            yield from _files_below(below.path)


def index_pack_or_report(
    path: Path, unusable: dict[ShardAddress, InputError] | None
) -> dict[str, ShardAddress]:
    """`index_pack`; one that cannot be read goes to `unusable` where there is such a list."""
    try:
        return index_pack(path, unusable)
    except InputError as error:
        if unusable is None:
            raise
        unusable[ShardAddress(path)] = error
        return {}


def index_pack(path: Path, unusable: dict[ShardAddress, InputError] | None = None) -> dict[str, ShardAddress]:
    """Shards of one pack by video id, which is the group's path.

    Args:
        path: the pack.
        unusable: gets what is in it without being a shard, with what would be raised without it.

    Raises:
        InputError: it is not a pack, it is damaged, or holds anything else and there is no list for it.
    """
    faults: dict[str, str] = {}
    with opened(ShardAddress(path)) as (file, _):
        root = file_root(file)
        if not h5py.h5a.exists(root, b"format") or hdf5.attribute(root, "format", str) != PACK_FORMAT:
            raise Foreign(f"it is not a {PACK_FORMAT}")
        if (version := hdf5.attribute(root, "version", int)) != VERSION:
            raise Foreign(f"it is a pack of version {version}, and this program reads version {VERSION}")
        names = list(_groups_of_shards(root, "", {_object(root)}, faults))
    for name, fault in faults.items():
        address = ShardAddress(path, f"/{name}")
        if unusable is None:
            raise damaged(address, fault)
        unusable[address] = damaged(address, fault)
    return {name: ShardAddress(path, f"/{name}") for name in names}


def _object(group: Any) -> int:
    """What is the same for every link to a group."""
    return int(h5py.h5o.get_info(group).addr)


def _groups_of_shards(group: Any, above: str, seen: set[int], faults: dict[str, str]) -> Iterator[str]:
    """Paths of the groups that claim to be shards; each group is entered once, and the rest goes to `faults`."""
    for key in list(group):
        name = above + key.decode(errors="backslashreplace")
        try:
            if leads_elsewhere(name) or name.count("/") > DEEPEST_GROUP:
                raise Invalid("it cannot be the name of a video")
            child = hdf5.child(group, key.decode(), h5py.h5g.open)
            is_shard = h5py.h5a.exists(child, b"format")  # one of another name is found out when it is opened
            if _object(child) in seen and not is_shard:
                raise Invalid("it is a second link to a group of this pack")
            seen.add(_object(child))
        except (Invalid, LookupError, OSError, RuntimeError, ValueError) as error:
            faults[name] = first_line(error)
            continue
        if is_shard:
            yield name
        else:
            yield from _groups_of_shards(child, f"{name}/", seen, faults)
