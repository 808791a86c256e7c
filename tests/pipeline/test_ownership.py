"""One process at a time; the dead lose what they owned, the living never do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_shards import make_shard

from pipeline import atomic, ownership, pack, verify
from pipeline.errors import InputError
from pipeline.ownership import owning_folder, owning_name
from pipeline.shard_index import index_shards

PROJECT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def owner(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that owns a folder, prints `ready`, and then does what it is given."""
    code = (
        f"import os, time; from pathlib import Path; from pipeline.ownership import owning_folder\n"
        f"with owning_folder(Path({str(folder)!r})):\n    print('ready', flush=True); {then}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_owner_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    process = owner(tmp_path, "time.sleep(60)")
    try:
        with (
            pytest.raises(InputError, match=f"another process works on it .*-{process.pid}-"),
            owning_folder(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with owning_folder(tmp_path):
        assert names(tmp_path) == [".owner"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_an_owner_s_file_is_there_with_its_owner_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """A process killed while it writes the file would leave one that must be watched for 90 seconds."""
    seen = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        if not links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        seen.append((source.read_text(), target.exists()))
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    with owning_folder(tmp_path):
        assert names(tmp_path) == [".owner"]
        held = (tmp_path / ".owner").read_text()
        with pytest.raises(InputError, match="another process works on it"), owning_folder(tmp_path):
            pass
    assert f"-{os.getpid()}-" in held
    assert not links or seen[0] == (held, False)
    assert names(tmp_path) == []


def test_a_folder_that_nothing_came_into_does_not_stay(tmp_path: Path) -> None:
    with owning_folder(tmp_path / "new"):
        pass
    with owning_folder(tmp_path / "kept"):
        (tmp_path / "kept" / "x").write_text("")
    assert names(tmp_path) == ["kept"]


def test_names_are_owned_apart_and_need_not_exist(tmp_path: Path) -> None:
    with owning_name(tmp_path / "one"), owning_name(tmp_path / ("n" * 255)):
        assert all(atomic.is_temporary(name) for name in names(tmp_path))
        with pytest.raises(InputError, match="one: another process"), owning_name(tmp_path / "one"):
            pass
    assert names(tmp_path) == []


def test_of_many_that_find_a_dead_owner_one_at_a_time_owns(tmp_path: Path) -> None:
    dead = owner(tmp_path, "os._exit(0)")
    dead.wait()
    assert names(tmp_path) == [".owner"]
    code = (
        "import os, sys, time; from pathlib import Path; from pipeline.ownership import owning_folder\n"
        "from pipeline.errors import InputError\n"
        "folder, taken = Path(sys.argv[1]), 0\n"
        "until = time.monotonic() + 3\n"
        "while time.monotonic() < until:\n"
        "    try:\n"
        "        with owning_folder(folder):\n"
        "            os.close(os.open(folder / 'busy', os.O_CREAT | os.O_EXCL)); os.unlink(folder / 'busy')\n"
        "            taken += 1\n"
        "            if taken % 5 == 0 and os.fork() == 0: os._exit(0)\n"
        "    except InputError: pass\n"
        "print(taken)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, cwd=PROJECT
        )
        for _ in range(3)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(map(int, outputs)) > 10
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", ["elsewhere-12345678-1-1-1", "", "no token at all"])
def test_an_owner_that_cannot_be_asked_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(ownership, "WATCH_SECONDS", 1.0)
    place = tmp_path / ".owner"
    place.write_text(content)
    with owning_folder(tmp_path):
        assert place.read_text() != content

    place.write_text(content)
    ended = threading.Event()

    def living() -> None:
        while not ended.wait(0.1):
            os.utime(place)

    thread = threading.Thread(target=living)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"delete .*\.owner"), owning_folder(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()
    assert place.read_text() == content


def test_an_owner_shows_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "TOUCH_SECONDS", 0.05)
    with owning_folder(tmp_path):
        before = (tmp_path / ".owner").stat().st_mtime_ns
        until = time.monotonic() + 10
        while (tmp_path / ".owner").stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.05)


# --- the commands that own ---


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(6):
        make_shard(tmp_path / "A" / f"{number}.h5", video=f"A/{number}", flows=2)
    return tmp_path


def test_two_packs_at_once_lose_no_shard(shards: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "pack", str(shards), "--videos", "2"]
    processes = [
        subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert "Traceback" not in "".join(errors)
    assert sorted(index_shards(shards)) == [f"A/{number}" for number in range(6)]
    assert "6 good" in CliRunner().invoke(verify.command, [str(shards)]).output


def test_packing_and_repairing_a_folder_that_another_works_on_is_refused(shards: Path) -> None:
    process = owner(shards, "time.sleep(60)")
    try:
        before = names(shards / "A")
        for command, option in ((pack.command, "--keep"), (verify.command, "--repair")):
            result = CliRunner().invoke(command, [str(shards), option])
            assert result.exit_code == 1
            assert "another process works on it" in result.output
        assert names(shards / "A") == before
        assert "6 good" in CliRunner().invoke(verify.command, [str(shards)]).output
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_signal_as_soon_as_the_file_is_there_leaves_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ownership._create

    def interrupted(place: Path, me: str) -> bool:
        assert create(place, me)
        raise KeyboardInterrupt

    monkeypatch.setattr(ownership, "_create", interrupted)
    with pytest.raises(KeyboardInterrupt), ownership.owning_name(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []
