"""How commands end, whatever happens, and what names may do to a terminal."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_shards import make_shard

from pipeline.errors import InputError
from pipeline.text import printable_lines, shortened, spreadsheet_cell

PROJECT = Path(__file__).resolve().parents[2]


def python(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        **settings,  # type: ignore[call-overload]
    )


# --- Ctrl-C and SIGTERM ---

WAITING = """
import pathlib, sys, time, click
from pipeline import atomic, start
from pipeline.errors import command_errors
@click.command()
@click.argument("path", type=pathlib.Path)
@command_errors
def main(path):
    with atomic.writing(path) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
start.run(main, "test")
"""


DESTROYING = """
import os, signal, sys, time, click
from pipeline import start
from pipeline.errors import command_errors
class Slow:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)  # here the handler runs, and Python drops what it raises
@click.command()
@click.argument("number")
@command_errors
def main(number):
    Slow()
    time.sleep(60)
start.run(main, "test")
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost(number: signal.Signals, status: int) -> None:
    done = python("-c", DESTROYING, int(number), timeout=30)
    assert (done.returncode, done.stderr) == (status, "")


LEFT_AS_ANOTHER = """
import os, signal, sys, time, click
from pipeline import start
from pipeline.errors import command_errors
class Compiled:
    def __del__(self):
        self.missing  # as in a library that was interrupted before it had made all
@click.command()
@click.argument("number")
@command_errors
def main(number):
    compiled = Compiled()
    try:
        os.kill(os.getpid(), int(number))
        time.sleep(60)
    finally:
        del compiled
        raise RuntimeError("nothing was compiled")
start.run(main, "test")
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_what_a_library_raises_because_a_signal_interrupted_it_is_not_shown(
    number: signal.Signals, status: int
) -> None:
    done = python("-c", LEFT_AS_ANOTHER, int(number), timeout=30)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_a_command_without_a_word_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, tmp_path / "x"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (status, "")
    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_ends_a_command_at_once_and_without_a_word(tmp_path: Path) -> None:
    script = (
        "import time\nimport click\nfrom pipeline import start\n\n@click.command()\ndef main():\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleaning', flush=True); time.sleep(60)\n\nstart.run(main, 'test')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in ("ready", "cleaning"):
        assert process.stdout.readline() == f"{line}\n"
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("room", ["pipeline", "extract_flow", "train", "evaluate", "slurm"])
def test_ctrl_c_during_the_imports_ends_quietly(tmp_path: Path, room: str) -> None:
    """A module of click's name that is found first stands for any import that takes its time."""
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", room, "--help"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_that_comes_while_a_command_imports_a_module_leaves_no_half_of_one(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The module that imports the other swallows what is raised, as some of C do, and uses the half that it gets."""
    (tmp_path / "inner.py").write_text(
        "import os, sys, time\nos.kill(os.getpid(), int(sys.argv[1]))\ntime.sleep(0.1)\nvalue = 1\n"
    )
    (tmp_path / "outer.py").write_text("try:\n    import inner\nexcept BaseException:\n    inner = None\n")
    body = DESTROYING.replace("    Slow()\n", "    import outer\n    outer.inner.value\n")
    done = python("-c", body, int(number), timeout=30, env=os.environ | {"PYTHONPATH": f"{tmp_path}"})
    assert (done.returncode, done.stderr) == (status, "")


# Python imports this first of all; it says when our code begins.
BEGINNING = """
import os, sys
begun = os.environ.pop("BEGUN", None)  # worker processes have none
class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "pipeline.text":
            sys.meta_path.remove(Watch)
            os.write(int(begun), b"begun")
if begun:
    sys.meta_path.insert(0, Watch)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("pipeline", "demo"),
        ("extract_flow", "videos", "--output", "out", "--method", "dis"),
        ("train", "--images", "images"),
        ("evaluate", "score"),
        ("slurm", "submit", "--dry-run"),
        ("two_stream", "train", "--images", "images"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_from_our_first_line_on_is_no_traceback(
    tmp_path: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    """At two random moments of the first second, in which modules are imported and the work begins."""
    (tmp_path / "sitecustomize.py").write_text(BEGINNING)
    draw = random.Random(f"{command} {number}")
    for delay in (draw.uniform(0, 0.3), draw.uniform(0.3, 1.0)):
        receiver, sender = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{PROJECT}", "BEGUN": str(sender)},
            pass_fds=[sender],
        )
        os.close(sender)
        assert os.read(receiver, 5) == b"begun"
        os.close(receiver)
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        # 1 where there is nothing to work on, which it said before the signal came.
        assert process.returncode in (1, 128 + number, *([-number] if number == signal.SIGTERM else [])), (
            errors
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_librarys_thread_raises_while_a_signal_ends_the_command_is_not_shown(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As loky's thread does when its processes are taken away."""
    (tmp_path / "threaded.py").write_text(
        "import os, sys, threading, click\nfrom pipeline import start\n"
        "ending = threading.Event()\n"
        "def work():\n    ending.wait()\n    raise KeyError(1)\n"
        "@click.command(context_settings={'ignore_unknown_options': True})\n@click.argument('number', type=int)\n"
        "def main(number):\n"
        "    thread = threading.Thread(target=work)\n    thread.start()\n"
        "    try:\n        os.kill(os.getpid(), number)\n        ending.wait(30)\n"
        "    finally:\n        ending.set()\n        thread.join()\n"
        "start.run(main, 'test')\n"
    )
    done = python(tmp_path / "threaded.py", int(number))
    assert (done.returncode, done.stderr.strip()) == (128 + number, "")


def test_ctrl_c_during_the_imports_of_the_installed_command_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    script = tmp_path / "two-stream"
    script.write_text("from two_stream.__main__ import command\ncommand()\n")
    process = subprocess.Popen(
        [sys.executable, script, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{PROJECT}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_ctrl_c_that_reaches_every_process_is_said_by_none(tmp_path: Path) -> None:
    """As a terminal sends it, while other processes work or are being started."""
    (tmp_path / "waits.py").write_text(
        "import time\ndef wait(number):\n    time.sleep(0.05)\n    return number\n"
        "if __name__ == '__main__':\n"
        "    import click, waits\n    from pipeline import start\n    from pipeline.machine import in_processes\n"
        "    @click.command()\n    def main():\n"
        "        print('ready', flush=True)\n        list(in_processes(waits.wait, range(10000), 2))\n"
        "    start.run(main, 'test')\n"
    )
    for delay in (0.1, 0.6, 2.5):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "waits.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": f"{PROJECT}"},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.strip()) == (130, "")


def test_a_process_that_is_to_ignore_ctrl_c_ignores_it() -> None:
    script = (
        "import click, os, signal\nfrom pipeline import start\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "@click.command()\ndef main():\n    os.kill(os.getpid(), signal.SIGINT); print('still here')\n"
        "start.run(main, 'test')"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (0, "still here\n")


# --- statuses and output ---


@pytest.mark.parametrize(
    ("body", "status", "errors"),
    [
        ("pass", 0, ""),
        ("raise InputError('a', 'b')", 1, "error: a\nb\n"),
        (
            "raise click.UsageError('wrong')",
            2,
            "Usage: test [OPTIONS]\nTry 'test --help' for help.\n\nError: wrong\n",
        ),
        ("sys.exit(75)", 75, ""),
        ("open('/none/such')", 1, "error: /none/such: No such file or directory\n"),
        ("raise OSError(5, 'Input/output error')", 1, "error: a file or the output: Input/output error\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_the_exit_status_is_honest(body: str, status: int, errors: str) -> None:
    script = (
        "import click, sys\nfrom pipeline import start\nfrom pipeline.errors import InputError, command_errors\n"
        f"@click.command()\n@command_errors\ndef main():\n    {body}\nstart.run(main, 'test')"
    )
    done = python("-c", script)
    assert (done.returncode, done.stderr) == (status, errors)


def test_a_full_disk_or_a_closed_pipe_of_standard_output_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "--help"],
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m pipeline --help | true",
        shell=True,
        executable="/bin/bash",
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# --- names are data ---

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\rd\u202e[red]e[/red]:smile:"


def test_hostile_names_are_shown_escaped_on_a_terminal(tmp_path: Path) -> None:
    """By print, by click and by rich, in lines and in tables, on a terminal."""
    script = f"""
import click, sys
from rich.table import Table
from pipeline import start
from pipeline.console import make_console
name = {HOSTILE!r}
@click.command()
def main():
    print(name); click.echo(name, err=True)
    for console in (make_console(), make_console(stderr=True)):
        console.print(name)
        table = Table(name, title=name, width=200); table.add_row(name)
        console.print(table)
start.run(main, "test")
"""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        stdout=child,
        stderr=child,
        env=os.environ | {"COLUMNS": "300", "TERM": "xterm"},
    )
    os.close(child)
    shown = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    assert process.wait() == 0, shown
    os.close(parent)
    text = shown.decode()
    assert "\x1b[2J" not in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert text.count(r"a\x1b[2J") == 8
    assert text.count("[red]e[/red]:smile:") == 8


def test_commands_show_a_hostile_file_name_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    make_shard(folder / "x\x1b]0;t\x07.h5")
    (folder / "bad\x1b[31m.h5").write_bytes(b"")
    for command in (
        ["verify", folder],
        ["view", folder / "none\x1b[2J.h5"],
        ["pack", folder / "none\x1b[2J"],
    ):
        done = python("-m", "pipeline", *command)
        assert done.returncode == 1
        assert "\x1b" not in done.stdout + done.stderr
        assert r"\x1b" in done.stdout + done.stderr


def test_lines_and_tabs_stay_and_the_rest_is_escaped() -> None:
    assert printable_lines("a\n\tb\x1b\r\x85") == "a\n\tb\\x1b\\r\\x85"


def test_a_reason_is_at_most_300_characters() -> None:
    assert shortened("short") == "short"
    long = shortened("begin " + "x" * 10_000 + " end")
    assert len(long) <= 300
    assert long.startswith("begin ")
    assert long.endswith(" end")


def test_a_newline_in_a_name_is_no_line_of_a_message() -> None:
    name = "a\nerror: \x1b[2Jb\u2028c"
    error = InputError(f"{name}: is damaged", "  second line")
    assert str(error) == "a\\nerror: \\x1b[2Jb\\u2028c: is damaged\n  second line"
    assert str(InputError(f"in a list: {error}")).count("\n") == 0


def test_a_message_with_much_of_a_file_in_it_is_cut() -> None:
    script = (
        "import click\nfrom pipeline.errors import InputError, command_errors\n"
        "@click.command()\n@command_errors\ndef main(): raise InputError('a', 'x' * 100_000)\nmain()"
    )
    errors = python("-c", script).stderr
    assert errors.startswith("error: a\nxxx")
    assert len(errors) < 3000


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(name: str) -> None:
    assert spreadsheet_cell(name) == "'" + name
    assert spreadsheet_cell("a" + name) == "a" + name


def test_a_command_that_writes_where_it_may_not_says_so_in_one_line(tmp_path: Path) -> None:
    """A file where a folder should be, and a name that is too long: errors that root meets as well."""
    shard = make_shard(tmp_path / "x.h5")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", tmp_path / ("n" * 300)):
        for command in (
            ["export", shard, "--layout", "npy", "--output", place],
            ["view", shard, "--output", place / "x.png"],
            ["demo", "--data", place],
        ):
            done = python("-m", "pipeline", *command)
            assert done.returncode == 1, done.stdout
            assert "Traceback" not in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert "Not a directory" in done.stderr or "too long" in done.stderr
