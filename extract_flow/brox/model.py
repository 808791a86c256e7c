"""What the CUDA kernels of Brox should take: instructions, shared memory and bytes of every launch, without a GPU.

Arithmetic from a device's published figures (`extract_flow.cuda.model`) and counts in the kernels' PTX, not a
measurement: barriers, latencies and launches are left out. A kernel that reaches half of its prediction is in order;
one below a third deserves a profiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from extract_flow.brox import cuda, solver
from extract_flow.brox.parameters import Parameters
from extract_flow.cuda.model import Device, Occupancy, occupancy


class Cost(NamedTuple):
    """Of one pixel: instructions, of which special functions, shared-memory accesses; bytes of device memory."""

    instructions: float
    special: float
    shared: float
    bytes: float

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        """This and `times` the other."""
        return Cost(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))


# Counted in the PTX for sm_90; bytes as if neighbours that threads share came from the cache.
LOAD_FLOW = Cost(33, 0, 2, 8)
DIFFUSIVITIES = Cost(109, 4, 24, 0)
EQUATIONS = Cost(140, 3, 11, 32)
SWEEP = Cost(96, 0, 21, 0)
STORE_FLOW = Cost(34, 0, 2, 8)
LINEARISE = Cost(300, 0, 0, 8 + 4 * cuda.CHANNELS + 12 + 32)
DERIVE = Cost(150, 0, 0, 12)
RESAMPLE = Cost(80, 0, 0, 20)
ISSUED = 128
"""Instructions that a multiprocessor issues per clock: four schedulers of 32 lanes."""


class Work(NamedTuple):
    """A pair's share of one kernel: launches of a batch, pixels that threads go through, their cost, and the block."""

    kernel: str
    launches: int
    pixels: int
    cost: Cost
    threads: int
    shared_memory: int


class Prediction(NamedTuple):
    """A kernel on a device: launches of a batch, seconds per pair, what bounds it, and occupancy."""

    kernel: str
    launches: int
    seconds: float
    bound: str
    occupancy: Occupancy


REGISTERS = {"derive": 64, "linearise": 72, "relax_tiles": 64, "solve_level": 80, "resample": 40}
"""Per thread, at most, on sm_80, sm_86 and sm_90 (`ptxas -v`)."""


def predict(device: Device, parameters: Parameters, height: int, width: int) -> list[Prediction]:
    """Time of every kernel for a pair, if each frame is in one forward pair; in the order of their cost."""
    totals: dict[str, Prediction] = {}
    for work in work_of_a_pair(device, parameters, height, width):
        clocks = device.multiprocessors * device.clock * 1e9
        seconds = {
            "instructions": work.cost.instructions / ISSUED / clocks,
            "special functions": work.cost.special / device.special_lanes / clocks,
            "shared memory": work.cost.shared / device.shared_lanes / clocks,
            "device memory": work.cost.bytes / (device.bandwidth * 1e9),
        }
        bound = max(seconds, key=seconds.__getitem__)
        so_far = totals.get(work.kernel)
        totals[work.kernel] = Prediction(
            work.kernel,
            work.launches + (so_far.launches if so_far else 0),
            work.pixels * seconds[bound] + (so_far.seconds if so_far else 0.0),
            bound,
            occupancy(device, work.threads, REGISTERS[work.kernel], work.shared_memory),
        )
    return sorted(totals.values(), key=lambda prediction: -prediction.seconds)


def pairs_per_second(predictions: list[Prediction]) -> float:
    """Pairs per second if the kernels run one after the other."""
    return 1 / sum(prediction.seconds for prediction in predictions)


def work_of_a_pair(device: Device, parameters: Parameters, height: int, width: int) -> Iterator[Work]:
    """Every launch of `BroxSolver.solve` for one pair and one frame."""
    sizes = solver.level_sizes(width, height, parameters.scale, parameters.outer_iterations)
    inner = parameters.warps * parameters.inner_iterations
    sweeps = parameters.solver_iterations
    none = Cost(0, 0, 0, 0)
    for index, (level_width, level_height) in enumerate(sizes):
        pixels = level_width * level_height
        yield Work("derive", 3, 3 * pixels, DERIVE, 256, 0)
        # The frame's own, and (but for the coarsest level) two of the flow.
        resampled = (index > 0 or parameters.blur > 0) + 2 * (index + 1 < len(sizes))
        yield Work("resample", 2 * resampled, resampled * pixels, RESAMPLE, 256, 0)
        plan = cuda.plan_level(level_width, level_height, sweeps, device.block_shared_bytes)
        if not plan.launches:
            cost = none.plus(LINEARISE, parameters.warps)
            cost = cost.plus(DIFFUSIVITIES.plus(EQUATIONS).plus(SWEEP, sweeps), inner)
            yield Work("solve_level", 1, pixels, cost, 32 * 24, device.block_shared_bytes)
            continue
        yield Work("linearise", parameters.warps, parameters.warps * pixels, LINEARISE, 256, 0)
        for part in plan.launches:
            tiles = plan.grid(part)[0] * plan.grid(part)[1]
            swept = tiles * plan.tile_width * plan.tile_height
            cost = LOAD_FLOW.plus(LOAD_FLOW).plus(DIFFUSIVITIES).plus(EQUATIONS).plus(SWEEP, part)
            cost = cost.plus(STORE_FLOW, pixels / swept)
            yield Work("relax_tiles", inner, inner * swept, cost, 32 * 32, device.block_shared_bytes)
