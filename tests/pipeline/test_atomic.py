"""Complete under the final name or not at all; only the dead lose their temporary files."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import atomic
from pipeline.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_final_name_appears_at_the_end_only(tmp_path):
    path = tmp_path / "new folder" / "a.b.h5"
    with atomic.writing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".h5"
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["a.b.h5"]


def test_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic.writing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_what_fails_verification_is_not_renamed(tmp_path):
    def refuse(path: Path) -> None:
        assert path.read_bytes() == b"bad"
        raise InputError("bad")

    with pytest.raises(InputError), atomic.writing(tmp_path / "x", verify=refuse) as temporary:
        temporary.write_bytes(b"bad")
    assert names(tmp_path) == []


def test_names_as_long_as_can_be_have_a_temporary_name(tmp_path):
    path = tmp_path / ("n" * 252 + ".h5")
    with atomic.writing(path) as temporary:
        temporary.write_bytes(b"")
    assert path.exists()


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("first", "second"):
        with atomic.writing_folder(tmp_path / "out") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["second"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "quota"),
        OSError(
            "Can't write data (file write failed: time = x, errno = 28, error message = 'No space left')"
        ),
    ],
)
def test_a_full_disk_is_told_as_such(tmp_path, error):
    with pytest.raises(InputError, match="no space left"), atomic.writing(tmp_path / "x"):
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("writing", [atomic.writing, atomic.writing_folder])
def test_whatever_keeps_a_file_from_being_written_is_an_error_with_its_path_and_reason(tmp_path, writing):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match="file/x: cannot be written: File exists"),
        writing(tmp_path / "file/x"),
    ):
        pass
    with pytest.raises(InputError, match="x: cannot be written: Permission denied"), writing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    error = OSError(errno.EIO, "Input/output error", "/elsewhere")
    with pytest.raises(InputError, match="written: Input/output error: /elsewhere"), writing(tmp_path / "x"):
        raise error
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("writing", [atomic.writing, atomic.writing_folder])
def test_a_signal_that_comes_during_the_removal_leaves_nothing(tmp_path, monkeypatch, writing):
    remove, calls = atomic.remove, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(atomic, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "x") as temporary:
        (temporary / "file" if temporary.is_dir() else temporary).write_text("")
    assert names(tmp_path) == ["x"]


def test_a_signal_that_comes_once_a_temporary_folder_is_there_leaves_nothing(tmp_path, monkeypatch):
    make = Path.mkdir

    def interrupted(path, *arguments, **more):
        make(path, *arguments, **more)
        if atomic.is_temporary(path.name):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.writing_folder(tmp_path / "x"):
        pass
    assert names(tmp_path) == []


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path):
    for error in (ValueError, KeyboardInterrupt, BrokenPipeError):
        with pytest.raises(error), atomic.writing(tmp_path / "x"):
            raise error
    assert names(tmp_path) == []


def test_a_folder_that_was_being_replaced_when_the_process_died_is_put_back(tmp_path, monkeypatch):
    with atomic.writing_folder(tmp_path / "out") as temporary:
        (temporary / "first").write_text("")
    rename = Path.rename

    def die_at_the_second(self: Path, target: Path) -> Path:
        if target == tmp_path / "out":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)  # as on network file systems
    monkeypatch.setattr(Path, "rename", die_at_the_second)
    with pytest.raises(KeyboardInterrupt), atomic.writing_folder(tmp_path / "out") as temporary:
        (temporary / "second").write_text("")
    monkeypatch.undo()
    assert names(tmp_path) == [".out.replaced"]
    assert atomic.is_temporary(".out.replaced")
    assert atomic.sweep(tmp_path) == []
    with pytest.raises(ValueError), atomic.writing_folder(tmp_path / "out"):
        raise ValueError
    assert names(tmp_path / "out") == ["first"]
    with atomic.writing_folder(tmp_path / "out") as temporary:
        (temporary / "third").write_text("")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["third"]


def test_a_folder_that_was_set_aside_is_put_back_by_sweep(tmp_path):
    (tmp_path / "in" / ".out.replaced").mkdir(parents=True)
    atomic.sweep(tmp_path)
    assert names(tmp_path / "in") == ["out"]


@pytest.mark.parametrize("swaps", [True, False])
def test_several_that_replace_a_folder_at_once_leave_one_whole(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)

    def replace(number: int) -> None:
        for _ in range(20):
            with atomic.writing_folder(tmp_path / "out") as temporary:
                (temporary / f"{number}-a").write_text("")
                (temporary / f"{number}-b").write_text("")

    with ThreadPoolExecutor(4) as pool:
        errors = [future.exception() for future in [pool.submit(replace, number) for number in range(4)]]
    assert all(error is None or isinstance(error, InputError) for error in errors)
    assert names(tmp_path) == ["out"]
    first, second = names(tmp_path / "out")
    assert (first[:2], second[:2]) == (first[0] + "-", first[0] + "-")


def test_a_folder_is_never_without_its_name_while_it_is_replaced(tmp_path):
    if not atomic.exchange(tmp_path, tmp_path):
        pytest.skip("this file system cannot swap two names")
    path = tmp_path / "out"
    path.mkdir()
    lacking, ended = [], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if not path.is_dir():
                lacking.append(True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(200):
        with atomic.writing_folder(path) as temporary:
            (temporary / "x").write_text("")
    ended.set()
    watcher.join()
    assert lacking == []


def abandoned(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that writes a temporary file and a temporary folder, and then does what it is told."""
    code = f"""
import os, signal, time
from pipeline import atomic
from pathlib import Path
with atomic.writing(Path({str(folder)!r}, "x.h5")) as file, atomic.writing_folder(Path({str(folder)!r}, "y")) as inner:
    file.write_bytes(b"half"); (inner / "z").write_bytes(b"half")
    print("ready", flush=True)
    {then}
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_sweep_removes_what_a_killed_process_left_and_nothing_of_a_living_one(tmp_path):
    living = abandoned(tmp_path, "time.sleep(60)")
    dead = abandoned(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert dead.wait() == -signal.SIGKILL
    try:
        assert len(names(tmp_path)) == 4
        assert len(atomic.sweep(tmp_path)) == 2
        assert all(f"-{living.pid}-" in name for name in names(tmp_path))
        assert len(names(tmp_path)) == 2
    finally:
        living.kill()
        living.wait()
    assert len(atomic.sweep(tmp_path.parent)) == 2
    assert names(tmp_path) == []


def test_a_dead_process_that_its_parent_has_not_noted_yet_counts_as_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert atomic.process_started(process.pid) is None
    process.wait()


def test_a_reused_process_number_does_not_keep_a_file(tmp_path):
    mine = atomic.temporary_path(tmp_path / "x.h5")
    match = atomic.TEMPORARY.fullmatch(mine.name)
    assert match is not None
    started = int(match["started"])
    earlier = mine.with_name(mine.name.replace(f"-{started}-", f"-{started - 1}-"))
    for path in (mine, earlier):
        path.write_bytes(b"")
    assert atomic.sweep(tmp_path) == [earlier]
    assert mine.exists()


def test_files_of_other_hosts_go_when_they_are_older_than_a_day(tmp_path):
    old, new = (tmp_path / f".tmp-elsewhere-12345678-1-1-{number}.h5" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    assert atomic.sweep(tmp_path) == [old]


def test_sweep_touches_no_other_file(tmp_path):
    for name in (".tmp", ".tmp-x", "a.tmp-host-1-1-1.h5", ".hidden", "x.h5", ".tmp-host-1-x-1"):
        (tmp_path / name).write_bytes(b"")
    assert atomic.sweep(tmp_path) == []


def test_temporary_names_are_unlike_each_other_and_recognised(tmp_path):
    made = {atomic.temporary_path(tmp_path / "x.h5").name for _ in range(50)}
    assert len(made) == 50
    assert all(atomic.is_temporary(name) for name in made)
    assert all(re.search(rf"-{os.getpid()}-\d+-\d+\.h5$", name) for name in made)
