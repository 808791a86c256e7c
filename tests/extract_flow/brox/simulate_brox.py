"""Run in a process of its own with NUMBA_ENABLE_CUDASIM=1: the CUDA kernels beside the CPU solver, as JSON.

    NUMBA_ENABLE_CUDASIM=1 python simulate_brox.py NAME...      (the names of CASES)

Prints {name: {"difference": largest difference in px, "flow": largest flow in px, "launches": [...] of every level}}.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import brox_reference
import numpy as np
from numba import cuda

from extract_flow.brox import cuda as brox_cuda
from extract_flow.brox.cpu import BroxOnCpu
from extract_flow.brox.parameters import PRESETS

SMALL = {"warps": 1, "inner_iterations": 1, "solver_iterations": 2, "relaxation": 1.5}
PIXEL = 4 * brox_cuda.TILE_FLOATS
# name: (preset, options, height, width, pairs, bytes of shared memory for a block)
CASES = {
    "one tile": ("default", SMALL | {"warps": 2, "inner_iterations": 2}, 7, 9, [(0, 1), (1, 0), (1, 1)], 40000),
    "one tile on every level": ("default", SMALL, 17, 20, [(0, 1)], 40000),
    "several tiles": ("default", SMALL | {"outer_iterations": 1}, 13, 39, [(0, 1)], PIXEL * 32 * 9),
    "several launches": (
        "default",
        SMALL | {"outer_iterations": 1, "inner_iterations": 2, "solver_iterations": 3},
        12, 29, [(1, 0)], PIXEL * 32 * 14,
    ),
    "opencv": ("opencv", SMALL | {"outer_iterations": 2}, 16, 19, [(0, 1)], PIXEL * 18 * 18),
    "one pixel": ("default", SMALL, 1, 1, [(0, 1)], 40000),
}  # fmt: skip


def run(name: str) -> dict[str, object]:
    """One case on both solvers."""
    preset, options, height, width, pairs, shared_memory = CASES[name]
    parameters = dataclasses.replace(PRESETS[preset], **options)
    frame = brox_reference.textured(height, width, seed=1)
    frames = np.stack([frame, brox_reference.moved(frame, 1.1, -0.6)])
    indices = np.array(pairs)
    method = brox_cuda.BroxSolver(parameters, height, width, len(frames), len(pairs), shared_memory)
    first, second = (cuda.to_device(np.ascontiguousarray(indices[:, side], np.int32)) for side in range(2))
    flat = method.solve(cuda.to_device(frames), first, second, len(pairs), 0).copy_to_host()
    flow = flat[: len(pairs) * 2 * height * width].reshape(len(pairs), 2, height, width)
    expected = BroxOnCpu(parameters).run(frames, indices)
    return {
        "difference": float(np.abs(flow - expected).max()),
        "flow": float(np.abs(expected).max()),
        "launches": [plan.launches for plan in method.plans],
        "tiles": [plan.grid(plan.launches[0]) if plan.launches else (1, 1) for plan in method.plans],
    }


def run_method() -> dict[str, object]:
    """The whole method: three frames in one call, and as levels."""
    from extract_flow import methods
    from pipeline.codec import codec

    options = SMALL | {"outer_iterations": 1}
    on_gpu = methods.load("brox", device="cuda", **options)
    on_cpu = methods.load("brox", device="cpu", **options)
    frames = np.stack([brox_reference.textured(9, 12, seed) for seed in range(3)])
    pairs, quantiser = np.array([[0, 1], [2, 1]]), codec().quantiser
    difference = np.abs(on_gpu.run(frames, pairs) - on_cpu.run(frames, pairs)).max()
    levels = [method.run(frames, pairs, "levels", quantiser).levels for method in (on_gpu, on_cpu)]
    return {
        "difference": float(difference),
        "device": on_gpu.device,
        "equal": float((levels[0] == levels[1]).mean()),
    }


if __name__ == "__main__":
    print(json.dumps({name: run_method() if name == "method" else run(name) for name in sys.argv[1:]}))
