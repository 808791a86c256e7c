"""The CUDA kernels of Brox without a GPU: in numba's simulator against the CPU solver, and through ptxas."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import brox_reference
import numpy as np
import pytest

from extract_flow import methods
from pipeline.errors import InputError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="numba-cuda is not installed (pip install -e .[cuda])",
)

PROJECT = Path(__file__).resolve().parents[3]
CASES = ("one tile", "one tile on every level", "several tiles", "several launches", "opencv", "one pixel")
SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 6): 99 * 1024, (9, 0): 227 * 1024}


@pytest.fixture(scope="module")
def simulated():
    """The simulator replaces numba.cuda for a whole process, so it gets one."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(PROJECT)}
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name("simulate_brox.py"), *CASES, "method"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_the_flow_of_the_cpu_solver(simulated, case):
    # Few sweeps move little: the tolerance follows the flow. One pixel has no flow at all.
    assert simulated[case]["difference"] <= min(1e-4, 1e-3 * simulated[case]["flow"])
    assert (simulated[case]["flow"] > 1e-3) != (case == "one pixel")


def test_the_cases_reach_every_kernel(simulated):
    assert simulated["one tile on every level"]["launches"] == [[], []]
    assert simulated["several tiles"]["tiles"][0][0] * simulated["several tiles"]["tiles"][0][1] > 2
    assert len(simulated["several launches"]["launches"][0]) > 1
    fine, coarse = simulated["opencv"]["launches"]
    assert fine
    assert not coarse


def test_the_method_gives_the_flow_and_levels_of_the_cpu(simulated):
    assert simulated["method"]["device"] == "cuda:0"
    assert simulated["method"]["difference"] < 1e-4
    assert simulated["method"]["equal"] > 0.99


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("name", ["derive", "linearise", "relax_tiles", "solve_level", "interleave"])
def test_kernels_fit_registers_without_spills(name, capability):
    from extract_flow.brox import cuda
    from extract_flow.cuda import ptx

    if ptx.toolkit() is None:
        pytest.skip("no CUDA toolkit with NVVM and ptxas: set CUDA_HOME to one")
    used = ptx.resources(cuda.kernels(SHARED_MEMORY[capability])[name], capability)
    assert used.spill_stores == used.spill_loads == used.stack == 0
    threads = {"relax_tiles": 32 * 32, "solve_level": 32 * 24}.get(name, 32 * 8)
    assert used.registers * threads <= 65536


def test_tile_kernels_keep_the_tile_in_shared_memory_and_compute_in_float32():
    from extract_flow.brox import cuda
    from extract_flow.cuda import ptx

    if ptx.toolkit() is None:
        pytest.skip("no CUDA toolkit with NVVM and ptxas: set CUDA_HOME to one")
    text = ptx.compile_ptx(cuda.kernels(SHARED_MEMORY[9, 0])["relax_tiles"], (9, 0))
    assert "ld.shared" in text
    assert "ld.f32" not in text  # a load from an address space that the compiler could not infer
    assert ".f64" not in text


@pytest.mark.parametrize("shared_memory", [99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize("sweeps", [1, 7, 10])
@pytest.mark.parametrize("size", [(340, 256), (256, 340), (1920, 1080), (90, 68), (1, 1), (2000, 3)])
def test_plans_fit_the_shared_memory_cover_the_level_and_do_all_sweeps(shared_memory, sweeps, size):
    from extract_flow.brox import cuda

    width, height = size
    plan = cuda.plan_level(width, height, sweeps, shared_memory)
    assert plan.tile_width * plan.tile_height <= cuda.tile_capacity(shared_memory)
    assert 36 * cuda.tile_capacity(shared_memory) <= shared_memory
    assert plan.tile_width % 2 == 0
    if not plan.launches:
        assert plan.tile_width >= width + 3
        assert plan.tile_height >= height + 3
        return
    assert sum(plan.launches) == sweeps
    for part in plan.launches:
        halo = cuda.halo_of(part)
        tiles_x, tiles_y = plan.grid(part)
        assert tiles_x * (plan.tile_width - 2 * halo) >= width
        assert tiles_y * (plan.tile_height - 2 * halo) >= height


def test_tiles_grow_with_the_device_and_coarse_levels_need_none():
    from extract_flow.brox import cuda

    plans = [cuda.plan_level(340, 256, 7, kilobytes * 1024) for kilobytes in (99, 163, 227)]
    areas = [plan.tile_width * plan.tile_height for plan in plans]
    assert areas == sorted(areas)
    assert areas[0] < areas[2]
    assert cuda.plan_level(46, 35, 7, 99 * 1024).launches == ()


def test_a_gpu_that_is_not_there_is_told_and_auto_takes_the_cpu():
    from extract_flow.cuda import device

    if device.available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"brox on cuda: no usable NVIDIA GPU.*--device cpu"):
        methods.load("brox", device="cuda")
    assert methods.load("brox", device="auto").device == "cpu"


@pytest.mark.parametrize("preset", ["default", "opencv"])
@pytest.mark.parametrize(("height", "width"), [(256, 340), (101, 77), (16, 15)])
def test_a_real_gpu_gives_the_flow_of_the_cpu(preset, height, width):
    from extract_flow.cuda import device

    if not device.available():
        pytest.skip("no usable NVIDIA GPU")
    frame = brox_reference.textured(height, width, seed=1)
    frames = np.stack([frame, brox_reference.moved(frame, 2.2, -1.1)])
    flows = [methods.load("brox", device=kind, preset=preset)(frames) for kind in ("cpu", "cuda")]
    # Relaxation 1.99 (opencv) amplifies rounding.
    assert np.abs(flows[0] - flows[1]).mean() < (1e-3 if preset == "default" else 0.02)
