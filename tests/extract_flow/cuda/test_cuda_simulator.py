"""TV-L1's kernels and what CUDA methods share, in numba's CUDA simulator, in processes of their own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba.cuda", reason="needs numba-cuda: pip install -e .[cuda]")
PROJECT = Path(__file__).resolve().parents[3]


@functools.cache
def simulated(group: str) -> dict[str, Any]:
    """What simulate.py finds."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(Path(__file__).parent / "simulate.py"), group]
    finished = subprocess.run(
        command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return dict(json.loads(finished.stdout.splitlines()[-1]))


@pytest.mark.parametrize("preset", ["default", "field", "accurate"])
def test_every_preset_matches_the_cpu_on_coarse_blocks_and_fine_tiles(preset: str) -> None:
    found = simulated("second")["presets"][preset]
    assert found["flow"] > 0.5
    assert found["difference"] < 1e-4


def test_a_level_that_is_one_tile_matches_the_cpu() -> None:
    found = simulated("first")["one_tile"]
    assert found["flow"] > 0.1
    assert found["difference"] < 1e-4


def test_pairs_stop_at_the_same_iteration_as_on_the_cpu_within_and_between_launches() -> None:
    runs = simulated("second")["early_stop"]["runs"]
    stops = [stop for run in runs for stop in run["stops"]]
    assert {stop % 2 for stop in stops if stop < 7} == {0, 1}, (
        f"launches are of two iterations, stops {stops}"
    )
    for run in runs:
        assert run["difference"] < 1e-4 < run["next_best"]


def test_levels_from_the_device_are_those_of_the_flow() -> None:
    assert all(simulated("first")["levels"].values()), simulated("first")["levels"]


def test_quantisation_on_the_device_is_the_codecs_bit_for_bit() -> None:
    found = simulated("first")["quantisers"]
    assert set(found) == {"default", "field", "paper", "refused"}
    assert all(found.values()), found


def test_resampling_is_the_product_with_its_matrices() -> None:
    assert simulated("first")["resampling"]["difference"] < 1e-5


def test_too_little_memory_is_told_as_such_and_the_method_works_on() -> None:
    found = simulated("first")["out_of_memory"]
    assert "3 pairs of 18x17" in found["message"]
    assert found["afterwards"]


def test_a_worker_learns_the_devices_and_the_batch() -> None:
    found = simulated("first")["attributes"]
    assert found["device"] == "cuda:0"
    assert found["count"] == 1
    assert found["pairs"] >= 2
