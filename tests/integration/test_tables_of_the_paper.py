"""A table of the paper from nothing but the demo's videos: flow, runs, scores and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
RUNS = 2
"""Runs of table 1a that need no ImageNet weights."""


def command(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "TWO_STREAM_DATA": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_table_is_made_in_miniature_from_the_videos_alone(tmp_path: Path) -> None:
    command(tmp_path, "pipeline", "demo", "--videos-per-class", "6")
    small = (
        "--split",
        "1",
        "--set",
        "iterations=2",
        "--set",
        "batch=4",
        "--set",
        "crop=32",
        "--set",
        "short_side=36",
    )
    said = command(tmp_path, "evaluate", "reproduce", "--table", "1a", "--dataset", "demo", *small)
    assert "paper" in said
    saved = json.loads((tmp_path / "demo" / "results" / "paper-table1a-mini" / "table.json").read_text())
    cells = [cell for row in saved["rows"] for cell in row["cells"]]
    made = [cell["accuracy"] for cell in cells if cell["accuracy"] is not None]
    assert len(made) == RUNS
    assert all(0 <= accuracy <= 100 for accuracy in made)
    assert all("--init FILE" in cell["lacking"] for cell in cells if cell["accuracy"] is None)
