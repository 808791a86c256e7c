"""The kernels without a GPU: PTX for three generations, and ptxas on registers, shared memory and spills."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("numba.cuda", reason="needs numba-cuda: pip install -e .[cuda]")

from extract_flow.cuda import images, model, ptx, quantise
from extract_flow.cuda.kernel import Kernel
from extract_flow.tvl1 import cuda

SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 6): 99 * 1024, (9, 0): 227 * 1024}
DEFAULT = cuda.Variant(gradient=2, mirrored=True, masked=True, edges=False, median=1)
ACCURATE = cuda.Variant(gradient=2, mirrored=True, masked=True, edges=True, median=5)

needs_toolkit = pytest.mark.skipif(
    ptx.toolkit() is None, reason="needs a CUDA toolkit with NVVM and ptxas (CUDA_HOME)"
)


def tiles(capability: tuple[int, int], edges: bool) -> tuple[Kernel, int, int, int]:
    """Kernel, threads, bytes of dynamic shared memory and blocks that the geometry plans for."""
    chosen = cuda.geometry(SHARED_MEMORY[capability], edges)
    return cuda.make_iterate(edges, chosen), chosen.threads, chosen.tile_bytes, chosen.blocks


@needs_toolkit
@pytest.mark.parametrize("edges", [False, True], ids=["plain", "edges"])
@pytest.mark.parametrize("capability", list(SHARED_MEMORY), ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_tiles_run_without_spills_as_many_to_a_multiprocessor_as_planned(
    capability: tuple[int, int], edges: bool
) -> None:
    kernel, threads, dynamic, blocks = tiles(capability, edges)
    found = ptx.resources(kernel, capability)
    assert (found.spill_stores, found.spill_loads, found.stack) == (0, 0, 0)
    assert found.shared <= cuda.STATIC
    assert found.shared + dynamic <= SHARED_MEMORY[capability]
    device = {(8, 0): model.A100, (8, 6): model.A10, (9, 0): model.H200}[capability]
    assert model.occupancy(device, threads, found.registers, found.shared + dynamic).blocks >= blocks


OTHERS: dict[str, Callable[[], Kernel]] = {
    "refine_level": lambda: cuda.make_refine(DEFAULT, 512),
    "warp_target": lambda: cuda.make_warp(DEFAULT),
    "linearise": lambda: cuda.make_linearise(ACCURATE),
    "begin_level": lambda: cuda.make_begin(True),
    "decide": lambda: cuda.make_decide(6),
    "filter_flow": lambda: cuda.make_filter(3),
    "measure": lambda: cuda.measure,
    "take_flow": lambda: cuda.take_flow,
    "still": lambda: cuda.still,
    "load_frames": lambda: images.load_kernel,
    "resample_down": lambda: images.down_kernel,
    "resample_across": lambda: images.across_kernel,
    "find_ranges": lambda: quantise.ranges_kernel,
    "quantise": lambda: quantise.quantise_kernel,
}


@needs_toolkit
@pytest.mark.parametrize("name", list(OTHERS))
def test_other_kernels_compile_without_spills(name: str) -> None:
    found = ptx.resources(OTHERS[name](), (9, 0))
    assert (found.spill_stores, found.spill_loads, found.stack) == (0, 0, 0)
    assert found.shared <= 16 * 1024


@needs_toolkit
def test_quantisation_divides_as_ieee_says() -> None:
    text = ptx.compile_ptx(quantise.quantise_kernel, (9, 0))
    assert "div.rn.f32" in text
    assert ".ftz" not in text
    assert "fma." not in text


@pytest.mark.parametrize("shared_memory", SHARED_MEMORY.values())
def test_tiles_fit_the_shared_memory_they_were_chosen_for(shared_memory: int) -> None:
    for edges in (False, True):
        chosen = cuda.geometry(shared_memory, edges)
        assert chosen.blocks * (chosen.tile_bytes + cuda.STATIC) <= shared_memory
        assert chosen.threads % chosen.tile_width == 0
        assert chosen.tile_width * chosen.tile_height % chosen.threads == 0
        assert chosen.threads * chosen.registers * chosen.blocks <= 65536


def test_the_model_counts_blocks_by_what_runs_out_first() -> None:
    assert model.occupancy(model.H200, 512, 128, 1024).blocks == 1
    assert model.occupancy(model.H200, 512, 64, 100 * 1024).blocks == 2
    assert model.occupancy(model.A10, 512, 32, 1024).blocks == 3


def test_a_wider_halo_costs_operations_and_saves_bytes() -> None:
    near = model.iterate(model.H200, 64, 56, 6, 4, 23e6)
    far = model.iterate(model.H200, 64, 56, 12, 4, 23e6)
    assert near.bound == far.bound == "shared memory"
    assert near.pixel_iterations == far.pixel_iterations
    assert near.useful > far.useful
