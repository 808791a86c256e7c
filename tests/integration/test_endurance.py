"""Commands that are killed, or whose disk fails, lose and tear nothing: a short run of benchmarks/endurance.py.

Killed by SIGKILL alone: a SIGTERM or SIGINT within the few instructions that create a file can leave it until the next
run, which the long run counts and docs/reference/reliability.md reports.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SHORT = [
    "--kills=8",
    "--faults=8",
    "--flips=400",
    "--seed=3",
    "--signals=KILL",
    "--stages=import,pack,unpack,score,fuse",
]


def test_nothing_is_lost_torn_or_silently_different() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/endurance.py", *SHORT],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 of them wrong" in done.stdout
