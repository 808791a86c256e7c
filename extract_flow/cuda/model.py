"""What the iterations of TV-L1 should take: occupancy, bytes and operations per launch, without a GPU.

The model is arithmetic from a device's published figures, not a measurement. A launch is bounded by whichever takes
longest of arithmetic, special functions, shared memory and device memory; its own inefficiencies (barriers, latencies,
instruction overhead) are left out, so a kernel that reaches half of the prediction is in order, and one below a third
deserves a profiler.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Device(NamedTuple):
    """A GPU: multiprocessors, clock in GHz, memory in GB/s, and per multiprocessor what limits its blocks."""

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float
    fp32_lanes: int
    threads: int
    shared_bytes: int
    block_shared_bytes: int
    registers: int = 65536
    special_lanes: int = 16
    shared_lanes: int = 32


H200 = Device("H200", 132, 1.98, 4800, 128, 2048, 228 * 1024, 227 * 1024)
H100 = Device("H100 SXM", 132, 1.98, 3350, 128, 2048, 228 * 1024, 227 * 1024)
A100 = Device("A100 SXM", 108, 1.41, 2039, 64, 2048, 164 * 1024, 163 * 1024)
A10 = Device("A10", 72, 1.695, 600, 128, 1536, 100 * 1024, 99 * 1024)

FP32, SPECIAL, SHARED = 45, 3, 20
"""Per pixel-iteration: float operations; square roots and divisions; loads and stores in shared memory."""


class Occupancy(NamedTuple):
    """Blocks on a multiprocessor and what share of its threads they are."""

    blocks: int
    share: float


def occupancy(device: Device, threads: int, registers: int, shared: int) -> Occupancy:
    """Blocks that one multiprocessor holds.

    Args:
        device: the GPU.
        threads: per block.
        registers: per thread, as ptxas reports.
        shared: bytes per block, static and dynamic; the system takes 1 KB more.
    """
    warps = math.ceil(threads / 32)
    register_blocks = device.registers // (warps * 32 * math.ceil(registers / 8) * 8)
    blocks = min(device.threads // threads, register_blocks, device.shared_bytes // (shared + 1024), 32)
    return Occupancy(blocks, blocks * threads / device.threads)


class Prediction(NamedTuple):
    """Rates of the iterations: of pixels with halos computed, of those kept, and what bounds them."""

    pixel_iterations: float
    useful: float
    bound: str
    pairs: float


def iterate(
    device: Device,
    tile_width: int,
    tile_height: int,
    halo: int,
    constants: int,
    pixel_iterations_per_pair: float,
) -> Prediction:
    """Rate of `tvl1.cuda.make_iterate`.

    Args:
        device: the GPU.
        tile_width, tile_height, halo: of `Geometry`.
        constants: planes that a launch reads besides the six of the state, which it reads and writes.
        pixel_iterations_per_pair: the work of a pair, from `tvl1.solver.Solver.work`.

    Returns:
        Pixel-iterations per second, with and without halos, the bound, and pairs per second if nothing but iterations
        had to be done.
    """
    inner = (tile_width - 2 * halo) * (tile_height - 2 * halo)
    redundancy = tile_width * tile_height / inner
    clocks = {
        "arithmetic": FP32 / device.fp32_lanes,
        "special functions": SPECIAL / device.special_lanes,
        "shared memory": SHARED / device.shared_lanes,
    }
    rates = {name: device.multiprocessors * device.clock * 1e9 / c for name, c in clocks.items()}
    bytes_per_pixel = 4 * ((6 + constants) * redundancy + 6) / halo / redundancy
    rates["device memory"] = device.bandwidth * 1e9 / bytes_per_pixel
    bound = min(rates, key=rates.__getitem__)
    useful = rates[bound] / redundancy
    return Prediction(rates[bound], useful, bound, useful / pixel_iterations_per_pair)


WARP_BYTES = 80
"""Device memory that warping and linearising move per warped pixel, the taps' re-use in the caches assumed."""
LAUNCH_SECONDS = 25e-6
"""Of the host, per launch of a numba kernel; launches of one batch follow each other on one thread."""


class Work(NamedTuple):
    """Of a pair: pixel-iterations and warped pixels, on levels that are tiled and on levels that fit a block."""

    tiled: float
    whole: float
    warped: float
    launches: int


def pairs_per_second(device: Device, tiles: Prediction, work: Work, batch: int) -> tuple[float, float]:
    """(pairs/s that the device allows, pairs/s that the host's launches allow) for TV-L1.

    Levels that fit a block run as fast as shared memory lets them, without halos, if the batch has a pair for every
    multiprocessor; they read their constants there as well.
    """
    clocks = (SHARED + 4) / device.shared_lanes
    busy = min(1.0, batch / device.multiprocessors)
    whole_rate = device.multiprocessors * device.clock * 1e9 / clocks * busy
    seconds = (
        work.tiled / tiles.useful
        + work.whole / whole_rate
        + work.warped * WARP_BYTES / (device.bandwidth * 1e9)
    )
    return 1 / seconds, batch / (work.launches * LAUNCH_SECONDS)
