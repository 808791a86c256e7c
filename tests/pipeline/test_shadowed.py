"""A file of the user that hides a package is named where it would be imported in its place; elsewhere it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("raise SystemExit('the file of the user')\n")
    (tmp_path / "slurm").mkdir()  # no package: it hides nothing
    return tmp_path


@pytest.mark.parametrize("package", ["evaluate", "slurm", "two_stream"])
def test_a_file_that_hides_a_needed_package_is_named(package: str, own: Path) -> None:
    done = python(own, "-m", package, "--help")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {own / 'train.py'} hides the package 'train'")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [["-m", "extract_flow"], ["-m", "pipeline"], ["-P", "-m", "train"], ["-P", "-m", "two_stream", "train"]],
)
def test_what_does_not_import_it_runs(words: list[str], own: Path) -> None:
    done = python(own, *words, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
