"""Archives of datasets, and the archives in them: `python -m pipeline unpack`.

HMDB-51 comes as one RAR file that holds a RAR file for each class. Formats are libarchive's.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click

from pipeline import atomic
from pipeline.errors import InputError, command_errors, unreadable
from pipeline.options import CONTEXT, REQUIRED, argument, from_options, option, options_of
from pipeline.progress import Progress
from pipeline.shard_index import PACK_SUFFIX
from pipeline.text import many, printable, quoted, typed

SUFFIXES = (".rar", ".zip", ".7z", ".tar")
"""Suffixes by which an archive in an archive is recognised."""
DEEPEST = 2
"""Levels of archives: one in another."""
UNREAD = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
"""Errors of the system, which libarchive reports beside those of the format."""


def unpack(archive: Path, folder: Path) -> int:
    """Unpack an archive, and the archives in it, into a new folder; returns the number of files.

    Raises:
        InputError: not an archive, a damaged one, a member that would lie outside the folder, a folder that already
            exists, or no library that can read it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; remove it, or name another with --output")
    size = archive.stat().st_size
    with (
        Progress("unpack", 1, "archive", weights={0: size}, amount="file") as shown,
        atomic.writing_folder(folder) as temporary,
    ):
        count = 0
        for count, read in _unpacked(archive, archive.name, temporary):
            shown.report(0, count, read / max(1, size))
        shown.finish(0, count)
        if not count:
            raise InputError(f"{archive}: there is no file in it")
    return count


def _unpacked(archive: Path, name: str, folder: Path, depth: int = 1) -> Iterator[tuple[int, int]]:
    """Unpack one archive into a folder that exists; after each file, how many there are and the bytes that were read.

    `name` is what messages call the archive.
    """
    libarchive = _library(name)
    count = 0
    try:
        with libarchive.file_reader(str(archive)) as entries:
            for entry in entries:
                for _ in () if entry.isdir else _member(entry, name, folder, depth):
                    count += 1
                    yield count, entries.bytes_read
    except libarchive.ArchiveError as error:
        if error.errno in UNREAD:
            raise unreadable(archive, OSError(error.errno, os.strerror(error.errno))) from error
        raise InputError(f"{name}: is not an archive, or a damaged one: {error}") from error


def _member(entry: Any, name: str, folder: Path, depth: int) -> Iterator[Path]:
    """Unpack one member, and what is in it where it is an archive; yields each file."""
    target = member_path(name, entry.pathname, folder, entry.isfile)
    if target.suffix.lower() not in SUFFIXES:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, entry.get_blocks())
        yield target
        return
    if depth == DEEPEST:
        raise InputError(f"{name}: {entry.pathname}: an archive in an archive in an archive")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".inner-") as beside:
        held = Path(beside) / "archive"
        _write(held, entry.get_blocks())
        for _ in _unpacked(held, f"{name}/{entry.pathname}", folder, depth + 1):
            yield target


def _write(target: Path, blocks: Iterator[bytes]) -> None:
    if target.exists():
        raise InputError(f"{target.name}: is in the archive twice")
    with atomic.disk_errors(target), target.open("wb") as file:
        for block in blocks:
            file.write(block)


def member_path(archive: str, name: str, folder: Path, regular: bool) -> Path:
    """Where a member goes; InputError for one that is no regular file, or whose name leads out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not regular:
        raise InputError(f"{archive}: {quoted(name)} is a link or device; nothing was unpacked")
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or ":" in parts[0]:
        raise InputError(f"{archive}: {quoted(name)} would lie outside {folder.name}; nothing was unpacked")
    return folder.joinpath(*parts)


def _library(name: str) -> Any:
    try:
        import libarchive
    except (ImportError, OSError, AttributeError, TypeError) as error:  # the module, or the library below it
        raise InputError(
            f"{name}: unpacking needs libarchive: pip install libarchive-c, and the system's library (apt install "
            f"libarchive13, or conda install libarchive); or unpack it with bsdtar -xf, unar or unrar x ({error})"
        ) from error
    return libarchive


@dataclass(frozen=True, kw_only=True)
class UnpackOptions:
    """What to unpack, and where to."""

    archive: Path = argument(REQUIRED, metavar="ARCHIVE")
    output: Path = option(REQUIRED, "New folder for the files.")


@click.command(context_settings=CONTEXT)
@options_of(UnpackOptions)
@command_errors
def command(**values: Any) -> None:
    """Unpack a dataset's archive (RAR, ZIP, 7z, tar), and the archives in it.

    HMDB-51 is a RAR file of RAR files, one for each class. The folder appears once everything is unpacked. Needs
    libarchive. Packs of shards are unpacked by `pack --unpack`.
    """
    options = from_options(UnpackOptions, values)
    if options.archive.suffix == PACK_SUFFIX:
        raise InputError(
            f"{options.archive}: is a pack of shards: {typed('pipeline')} pack --unpack {options.archive.parent}"
        )
    if not options.archive.is_file():
        raise InputError(f"{options.archive}: no such file")
    count = unpack(options.archive, options.output)
    click.echo(printable(f"{options.output}: {many(count, 'file')}"))
