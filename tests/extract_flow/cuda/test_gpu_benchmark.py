"""benchmarks/gpu.py on machines without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.core", reason="needs cuda-core: pip install -e .[cuda]")
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
