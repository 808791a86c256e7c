"""benchmarks/gpu.py and gpu_counts.py on machines without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import environment, needs_emulator

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install -e .[cuda]")
PROJECT = Path(__file__).resolve().parents[3]


def run(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{script}.py", *options]
    return subprocess.run(
        command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_without_a_gpu_it_says_so_and_fails() -> None:
    finished = run("gpu", CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 1
    assert "no usable NVIDIA GPU" in finished.stderr
    assert "nothing was measured" in finished.stderr


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_a_section_alone_writes_its_rows_as_json(tmp_path: Path) -> None:
    finished = run("gpu", "--only", "device", "--json", str(tmp_path / "table.json"), **environment())
    assert finished.returncode == 0, finished.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {row[0] for row in rows} == {"device"}
    assert ["device", "card", "Emulated GPU", "sm_90"] in rows


def test_kernels_neither_spill_nor_grow_beyond_their_limits() -> None:
    """What ptxas and nvdisasm say of the machine code for every generation."""
    finished = run("gpu_counts", "--check", "--arch", "80", "86", "89", "90", "100")
    if "does not load" in finished.stderr:
        pytest.skip("NVRTC is missing: pip install -e .[dev]")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "brox default  sm_100 relax" in finished.stdout
    if "no nvdisasm" in finished.stdout:
        pytest.skip("registers and spills are as they should be; nvdisasm is missing: pip install -e .[dev]")
    assert "instructions, limit" in finished.stdout
