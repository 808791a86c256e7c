"""Files appear under their final name complete or not at all.

Everything is written under a temporary name in the same folder, flushed to the disk, verified if the writer asks for
it, and renamed. The temporary name records its owner: host, process and the process's start time, so that a later run
can remove what a dead one left behind without touching what a living one is writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import DiskFull, InputError
from pipeline.text import system_reason

DAY = 24 * 3600
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = (*NO_SPACE, errno.EFBIG)
TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<process>\d+)-(?P<started>\d+)-\d+(\.[^/]*)?")

SET_ASIDE = re.compile(r"\.(?P<name>.+)\.replaced")
"""Name of a folder while a new one takes its place."""

OWNER = re.compile(r"\.owner(-[0-9a-f]+)?(\.next)*")
"""Names of the owner files of `pipeline.ownership`."""

LONGEST_SUFFIX = 40
ATTEMPTS = 10
RENAME_EXCHANGE = 2
"""Flag of Linux's renameat2: swap two names in one step."""

_counter = itertools.count()


@contextlib.contextmanager
def writing(path: str | Path, verify: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end; if an exception leaves the block, it is removed.

    Args:
        path: the final name; its folder is created if necessary.
        verify: called with the temporary path before renaming; raises if the file is not good.

    Raises:
        InputError: it cannot be written, for example because the disk is full or the folder is read-only.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        with removing(temporary):
            yield temporary
            sync(temporary)
            if verify is not None:
                verify(temporary)
            temporary.replace(path)
            sync(path.parent)


@contextlib.contextmanager
def writing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder of files: a temporary folder beside `path`, renamed to it in place of any earlier one.

    Where the system can, the two are swapped in one step. Elsewhere the old one is set aside for a moment; if the
    process dies then, the next `writing_folder` or `sweep` puts it back. Of several that replace the same folder at
    once, the last one's stays.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        put_back(path)
        temporary = temporary_path(path)
        with removing(temporary):
            temporary.mkdir()
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                sync(file)
            replace_folder(temporary, path)
            sync(path.parent)


def replace_folder(new: Path, path: Path) -> None:
    """Give a new folder the name of one that may exist, in one step where the system allows it."""
    for _ in range(ATTEMPTS):
        if exchange(new, path):
            return
        aside = path.with_name(f".{path.name}.replaced")
        with contextlib.suppress(FileNotFoundError):
            if path.exists():
                remove(aside)
                path.rename(aside)
        try:
            new.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # another process took the name in between
        remove(aside)
        return
    raise InputError(f"{path}: another process keeps replacing it; run the same command again")


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot, or one is not there."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = -100  # AT_FDCWD: relative to the current folder
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0


def put_back(path: Path) -> None:
    """The folder that a dead process set aside gets its name back, if nothing has it."""
    aside = path.with_name(f".{path.name}.replaced")
    with contextlib.suppress(FileNotFoundError):
        if not path.exists() and aside.exists():
            aside.rename(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Whatever prevents a file from being written, reported by the system or by HDF5, becomes an InputError.

    The message names the file and the reason. A closed pipe is not a disk error and is left as it is.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if _is_any_of(error, DISK_FULL):
            raise (DiskFull if no_space_left(error) else InputError)(
                f"{path}: no space left to write it (disk full, quota or file-size limit): nothing was left under that "
                "name; free some space, or choose another folder, and run the same command again"
            ) from error
        raise InputError(
            f"{path}: cannot be written: {_reason(error, path)}; check the folder and its permissions, and run the "
            "same command again"
        ) from error


def _reason(error: OSError, path: Path) -> str:
    """The system's message, and the file it is about where that is neither `path` nor its temporary name."""
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
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    return path.with_name(f".tmp-{process_token()}{suffix}")


def process_token() -> str:
    """A new name for this process: its host, number and start time, and a counter."""
    process = os.getpid()
    return f"{host_token()}-{process}-{process_started(process) or 0}-{next(_counter)}"


def token_is_alive(token: str) -> bool | None:
    """Whether the process of a token lives; None if it is on another host, or this is not a token."""
    match = TEMPORARY.fullmatch(f".tmp-{token}")
    if match is None or match["host"] != host_token():
        return None
    return process_started(int(match["process"])) == int(match["started"])


def is_temporary(name: str) -> bool:
    """Whether a file name stands for something unfinished or replaced, which no command may mistake for a finished
    file.
    """
    return name.startswith(".") and any(pattern.fullmatch(name) for pattern in (TEMPORARY, SET_ASIDE, OWNER))


def sweep(folder: str | Path) -> list[Path]:
    """Remove temporary files and folders in and below a folder whose owner is gone; returns what was removed.

    An owner on this host is gone if no living process has its number and start time (numbers are reused). Owners on
    other hosts cannot be checked: their files are removed when they are older than a day.
    """
    removed = []
    for parent, folders, names in os.walk(folder):
        for name in [name for name in (*folders, *names) if name.startswith(".")]:
            match = TEMPORARY.fullmatch(name)
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if match is not None and owner_is_gone(match, path):
                    remove(path)
                    removed.append(path)
            if (aside := SET_ASIDE.fullmatch(name)) is not None:
                put_back(path.with_name(aside["name"]))
        folders[:] = [name for name in folders if not is_temporary(name)]
    return removed


def owner_is_gone(match: re.Match[str], path: Path) -> bool:
    """Whether the owner in a temporary file's name is certainly gone, or on another host and a day old."""
    alive = token_is_alive(match[0].removeprefix(".tmp-"))
    return time.time() - path.stat().st_mtime > DAY if alive is None else not alive


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def removing(path: Path) -> Iterator[None]:
    """Remove what is at a path once the block has ended, also where a signal ends it, or comes during the removal."""
    try:
        yield
    finally:
        try:
            remove(path)
        except BaseException:
            remove(path)
            raise


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


@functools.cache
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
