"""Files appear under their final name complete or not at all.

Everything is written under a temporary name in the same folder, flushed to the disk, verified if the writer wishes, and
renamed. The temporary name records its owner: host, process and the process's start time, so that a later run can
remove what a dead one left behind without touching what a living one is writing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.text import system_reason

DAY = 24 * 3600
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = (*NO_SPACE, errno.EFBIG)
TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<process>\d+)-(?P<started>\d+)-\d+(\.[^/]*)?")

SET_ASIDE = re.compile(r"\.(?P<name>.+)\.replaced")
"""A folder while a new one takes its name."""

_counter = itertools.count()


@contextlib.contextmanager
def writing(path: str | Path, verify: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; if an exception leaves the block, it is removed.

    Args:
        path: the final name; its folder is made if need be.
        verify: called with the temporary path before renaming; raises if the file is not good.

    Raises:
        InputError: it cannot be written, for example because the disk is full or the folder is read-only.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            yield temporary
            sync(temporary)
            if verify is not None:
                verify(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            remove(temporary)


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder of files: a temporary folder beside `path`, renamed to it in place of what was there.

    A full folder cannot be replaced in one step, so the old one is set aside for that moment. If the process dies then,
    the next `writing_folder` of that path puts the old one back before it begins.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.replaced")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside.exists() and not path.exists():
            aside.rename(path)
        temporary = temporary_path(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                sync(file)
            if path.exists():
                remove(aside)
                path.rename(aside)
            temporary.rename(path)
            sync(path.parent)
            remove(aside)
        finally:
            remove(temporary)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Whatever keeps a file from being written, reported by the system or by HDF5, becomes an InputError.

    The message names the file and the reason. A closed pipe is no fault of the disk and stays what it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if _is_any_of(error, DISK_FULL):
            raise InputError(
                f"{path}: no space left to write it (disk full, quota or file-size limit): nothing was left under that "
                "name; free some space, or choose another folder, and run the same command again"
            ) from error
        raise InputError(
            f"{path}: cannot be written: {_reason(error, path)}; check the folder and its permissions, and run the "
            "same command again"
        ) from error


def _reason(error: OSError, path: Path) -> str:
    """The system's words, and the file they are about where that is another than `path` or its temporary name."""
    reason = system_reason(error)
    about = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else path
    return reason if about == path or is_temporary(about.name) else f"{reason}: {about}"


def no_space_left(error: BaseException | None) -> bool:
    """Whether an error means that the disk or quota is full, so that no other file can be written either."""
    return isinstance(error, OSError) and _is_any_of(error, NO_SPACE)


def _is_any_of(error: OSError, numbers: tuple[int, ...]) -> bool:
    """Whether the system, or HDF5 in its message, reported one of the error numbers."""
    return error.errno in numbers or any(f"errno = {number}," in str(error) for number in numbers)


def temporary_path(path: Path) -> Path:
    """A new name in the folder of `path`, with its suffix but not its stem, which may be as long as names can be."""
    process = os.getpid()
    owner = f"{host_token()}-{process}-{process_started(process) or 0}"
    return path.with_name(f".tmp-{owner}-{next(_counter)}{path.suffix}")


def is_temporary(name: str) -> bool:
    """Whether a file name stands for something unfinished or replaced, which no command may take for its own."""
    return TEMPORARY.fullmatch(name) is not None or SET_ASIDE.fullmatch(name) is not None


def sweep(folder: str | Path) -> list[Path]:
    """Remove temporary files and folders in and below a folder whose owner is gone; returns what was removed.

    An owner on this host is gone if no living process has its number and start time (numbers are reused). Owners on
    other hosts cannot be asked: their files go when they are older than a day.
    """
    removed = []
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            match = TEMPORARY.fullmatch(name)
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if match is not None and owner_is_gone(match, path):
                    remove(path)
                    removed.append(path)
        folders[:] = [name for name in folders if not is_temporary(name)]
    return removed


def owner_is_gone(match: re.Match[str], path: Path) -> bool:
    """Whether the owner in a temporary file's name is gone for certain, or on another host and a day old."""
    if match["host"] == host_token():
        return process_started(int(match["process"])) != int(match["started"])
    return time.time() - path.stat().st_mtime > DAY


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path, keep: bool = False) -> Path:
    """Rename a damaged file to `NAME.damaged`, or the next free name of that kind; returns the new path.

    Args:
        path: the file.
        keep: leave it under its own name as well, which a new file is about to take.
    """
    names = (
        f"{path.name}.damaged{suffix}"
        for suffix in itertools.chain([""], map("-{}".format, itertools.count(2)))
    )
    aside = next(other for other in map(path.with_name, names) if not os.path.lexists(other))
    if not keep:
        path.rename(aside)
        return aside
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        shutil.copy2(path, aside)
    return aside


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; file systems that cannot sync folders are tolerated."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def host_token() -> str:
    """The host's name and a digest of what makes process numbers comparable: the boot and the process namespace."""
    marks = [socket.gethostname()]
    with contextlib.suppress(OSError):
        marks += [
            Path("/proc/sys/kernel/random/boot_id").read_text(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    name = re.sub(r"[^A-Za-z0-9.]", "_", marks[0])[:64]
    return f"{name}-{hashlib.sha256(repr(marks).encode()).hexdigest()[:8]}"


def process_started(process: int) -> int | None:
    """Start time of a living process in clock ticks since boot (0 where there is no /proc); None if there is none."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return 0
        return 0
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZXx" else int(fields[19])
