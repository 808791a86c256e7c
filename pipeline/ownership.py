"""One process at a time where two would undo each other's work: who owns a folder or a name is recorded in a file
beside it.

The file is a hard link that appears with what it holds, or is created with O_EXCL where there are none. It holds the
owner as temporary names do: host, process and the process's start time. An owner on this host that is gone is replaced
at once. One on another host cannot be checked, so every owner touches its file now and then: one that is not touched
while it is watched has lost its owner.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import atomic
from pipeline.errors import InputError
from pipeline.text import printable

TOUCH_SECONDS = 20.0
WATCH_SECONDS = 90.0
"""Longer than network file systems keep a file's times in their caches, and than several touches."""
LONGEST_OWNER = 1000
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@contextlib.contextmanager
def owning_folder(folder: Path) -> Iterator[None]:
    """Own a folder, which is created if necessary, during the block; InputError while another process does."""
    made = not folder.exists()
    try:
        with _owning(folder / ".owner", folder):
            yield
    finally:
        if made:  # if it stays empty, it is removed
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def owning_name(path: Path, share: str = "") -> Iterator[None]:
    """Own the name of a file or folder, whether it exists or not, or a share of the work on it.

    Raises:
        InputError: another process owns it.
    """
    token = hashlib.sha256(f"{path.name}/{share}".encode(errors="surrogateescape")).hexdigest()[:16]
    with _owning(path.with_name(f".owner-{token}"), path):
        yield


@contextlib.contextmanager
def _owning(place: Path, owned: Path) -> Iterator[None]:
    me = atomic.process_token()
    ended, refused = threading.Event(), False
    try:  # already here, since a signal may come as soon as the file is there
        try:
            with atomic.disk_errors(owned):
                place.parent.mkdir(parents=True, exist_ok=True)
                while not (_create(place, me) or _take_over(place, owned, me)):
                    pass
        except InputError:
            refused = True  # the owner may be this process itself
            raise
        threading.Thread(target=_touch, args=(place, me, ended), daemon=True).start()
        yield
    finally:
        try:
            _disown(place, me, ended, refused)
        except BaseException:  # a signal just then
            _disown(place, me, ended, refused)
            raise


def _disown(place: Path, me: str, ended: threading.Event, refused: bool) -> None:
    ended.set()
    if not refused:
        with contextlib.suppress(OSError):
            if _read(place) == me:
                place.unlink()


def _create(place: Path, me: str) -> bool:
    """Make a new owner file, never empty where the system has hard links; False if there is one."""
    temporary = atomic.temporary_path(place)
    with atomic.removing(temporary):
        temporary.write_text(me)
        try:
            os.link(temporary, place)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_without_links(place, me)
    return True


def _create_without_links(place: Path, me: str) -> bool:
    try:
        descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, me.encode())
    except BaseException:
        place.unlink()
        raise
    finally:
        os.close(descriptor)
    return True


def _take_over(place: Path, owned: Path, me: str) -> bool:
    """Replace an owner that is gone; False to try again, since the file is gone or another's by now.

    Raises:
        InputError: the owner is alive.
    """
    owner = _read(place)
    if owner is None:
        return False
    if _alive(place, owner, owned):
        raise InputError(
            f"{owned}: another process works on it ({printable(owner) or 'it has just begun'}): wait until it has "
            f"ended, or stop it; if there is none, delete {place}"
        )
    # Of several that found the owner gone, one at a time replaces it, and only if it is still the same.
    with _owning(place.with_name(place.name + ".next"), owned):
        if _read(place) != owner:
            return False
        temporary = atomic.temporary_path(place)
        with atomic.removing(temporary):
            temporary.write_text(me)
            temporary.replace(place)
    return True


def _read(place: Path) -> str | None:
    """What an owner file holds, "" while it is being written; None if there is none."""
    try:
        with place.open("rb") as file:
            return file.read(LONGEST_OWNER).decode(errors="replace")
    except FileNotFoundError:
        return None


def _alive(place: Path, owner: str, owned: Path) -> bool:
    known = atomic.token_is_alive(owner)
    if known is not None:
        return known
    before = _touched(place)
    if before is not None and time.time() - before > atomic.DAY:
        return False
    print(
        f"{printable(str(owned))}: watching for {WATCH_SECONDS:.0f} s whether its owner on another host is alive",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(min(5.0, WATCH_SECONDS / 10))
        if _read(place) != owner:
            return False  # gone or replaced, which trying again finds out
        if _touched(place) != before:
            return True
    return False


def _touched(place: Path) -> float | None:
    """When the owner file was touched, asked of the file itself, since network file systems cache times by name."""
    try:
        with place.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _touch(place: Path, me: str, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            if _read(place) == me:
                os.utime(place)
