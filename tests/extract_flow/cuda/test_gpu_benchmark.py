"""benchmarks/gpu.py on machines without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda", reason="needs numba-cuda: pip install -e .[cuda]")
PROJECT = Path(__file__).resolve().parents[3]


def benchmark(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *options]
    return subprocess.run(
        command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_without_a_gpu_it_says_so_and_fails() -> None:
    finished = benchmark(CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 1
    assert "no usable NVIDIA GPU" in finished.stderr
    assert "--simulate" in finished.stderr


def test_its_correctness_part_runs_in_the_simulator_and_ends_with_the_table(tmp_path: Path) -> None:
    finished = benchmark("--simulate", "--json", str(tmp_path / "table.json"))
    assert finished.returncode == 0, finished.stderr[-2000:]
    last = finished.stdout.strip().splitlines()[-3:]
    assert [line.split()[0] for line in last] == ["correctness"] * 3
    assert all("ok" in line for line in last)
    assert (tmp_path / "table.json").exists()
