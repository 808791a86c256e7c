"""benchmarks/gpu.py and gpu_counts.py on machines without a GPU."""

from __future__ import annotations

import json
import os
import shutil
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


SECTIONS_IN_SMALL = """
import sys
sys.path.insert(0, "benchmarks")
import gpu
from pathlib import Path
gpu.HEIGHT, gpu.WIDTH, gpu.SIZES = 20, 28, ((20, 28), (1, 1))
gpu.PRESETS = {"tvl1": ("default",), "brox": ("default",)}
gpu.MOST_PAIRS, gpu.PAIRS_OF_BATCHES, gpu.SECONDS, gpu.HELD_BYTES, gpu.BATCHES = 2, 4, 0.01, 4096, (1, 2)
sys.argv = ["gpu.py", "--only", "correctness", "kernels", "speed", "--json", sys.argv[1]]
sys.exit(gpu.main())
"""


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_sections_that_compute_flow_find_nothing_wrong_on_the_emulated_gpu(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", SECTIONS_IN_SMALL, str(tmp_path / "table.json")],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text())
    found = {(section, what) for section, what, _, _ in rows}
    assert ("correctness", "tvl1 default 28x20") in found
    assert ("correctness", "brox: 4 pairs; in batches of 1 and 16; again") in found
    assert ("kernels", "brox: 2 pairs") in found
    assert ("speed", "tvl1, 2 pairs, the next handed over ahead") in found


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


@pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc: another compiler than NVRTC's is not tried"
)
def test_kernels_do_not_spill_with_the_toolkits_compiler_either() -> None:
    """sm_100, where kernels that NVRTC 13.5 keeps in registers have spilled with 13.0."""
    finished = run("gpu_counts", "--check", "--nvcc", "--arch", "100")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "brox default  sm_100 solve_level" in finished.stdout


def test_the_counts_name_a_missing_compiler(tmp_path: Path) -> None:
    finished = run("gpu_counts", "--nvcc", PATH=str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: no nvcc on PATH")
