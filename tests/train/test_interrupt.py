"""Signals that stop a run: the first is recorded, a second Ctrl-C ends the process, wherever it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, signal
from train.interrupt import interruptible
with interruptible() as interrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print(interrupt.number, flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # as where a module is being imported
        pass
    print("went on")
"""


def test_a_second_ctrl_c_ends_a_run_at_once_even_where_exceptions_are_swallowed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "2\n", "")
