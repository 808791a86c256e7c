"""What is given to make is data: nothing in it is run, and a variable that nobody reads is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from source_tree import PROJECT

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the Makefile whose virtual environment is ready, with a Python that prints its arguments."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "shellcheck"):
        program = programs / name
        program.write_text('#!/bin/bash\nprintf "<%s>" "$@"\n')
        program.chmod(0o755)
    (tmp_path / ".venv" / "ready").write_text("")
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


HOSTILE = ["$(shell touch ran)", "`touch ran`; $$(touch ran)", "x' 'y; touch ran"]


@pytest.mark.parametrize("value", HOSTILE[:1])
@pytest.mark.parametrize(
    "name", ["DATSET", "SHELL", ".SHELLFLAGS", "functions", "as_data", "MAKEFLAGS", "VALUES", "NAME"]
)
def test_an_unknown_variable_is_refused_by_name_and_not_expanded(folder: Path, name: str, value: str) -> None:
    done = make(folder, "help", f"{name}={value}")
    assert done.returncode == 2
    assert name in done.stderr
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["DATASET", "ARGS", "PYTHON"])
def test_a_value_is_an_argument(folder: Path, name: str, value: str) -> None:
    make(folder, "status", f"{name}={value}")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_the_arguments_of_pytest_are_data(folder: Path, value: str) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / "setup.cfg").write_text("")
    (folder / ".venv" / "ready").touch()
    make(folder, "test", f"PYTEST_ARGS={value}")
    assert not (folder / "ran").exists()


def test_the_arguments_of_pytest_are_words(folder: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    done = make(folder, "test", "PYTEST_ARGS=-k 'a and b' tests/x.py")
    assert "<-k><a and b><tests/x.py>" in done.stdout
    assert "<loadgroup>" in make(folder, "test").stdout


@pytest.mark.parametrize("value", ["'a", 'a "b'])
def test_arguments_whose_quotes_do_not_match_are_refused_and_nothing_is_run_without_them(
    folder: Path, value: str
) -> None:
    done = make(folder, "status", f"ARGS={value}", "DATASET=x")
    assert done.returncode == 2
    assert "ARGS cannot be split into words" in done.stderr
    assert "status" not in done.stdout


SLOW_TO_END = """
import signal, sys, time

def end(*_):
    time.sleep(0.3)
    open("ended", "w")
    sys.exit()

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
open("began", "w")
for _ in range(200):
    time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_make_ends_the_command_first(folder: Path, number: signal.Signals) -> None:
    (folder / ".venv" / "bin" / "python").write_text(f"#!{sys.executable}\n{SLOW_TO_END}")
    with subprocess.Popen(["make", "status", "DATASET=x"], cwd=folder, start_new_session=True) as process:
        while not (folder / "began").exists():
            assert process.poll() is None
            time.sleep(0.01)
        if number == signal.SIGINT:  # as a terminal sends it, to all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(15) != 0
    assert (folder / "ended").exists(), "make ended before Python did"
