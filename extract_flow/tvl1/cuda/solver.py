"""Buffers of TV-L1 on the device, and the order of its launches for a batch of pairs."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from extract_flow.cuda.device import Buffer, Memory, Part, Pinned, Stream, floats, upload
from extract_flow.cuda.images import (
    DeviceTaps,
    Resampling,
    Size,
    load_frames,
    resample,
    upload_taps,
)
from extract_flow.cuda.kernels import SHARED, Cluster, Kernels, Program, pixel_launch
from extract_flow.cuda.method import CudaMethod
from extract_flow.resampling import Taps, taps_of
from extract_flow.tvl1 import cpu, interpolation, rules, solver
from extract_flow.tvl1.cuda.median import median_network
from extract_flow.tvl1.interpolation import SPLINE_PREFILTER, gaussian
from extract_flow.tvl1.parameters import GRADIENTS, Parameters
from pipeline.progress import note

HERE = Path(__file__).parent
FILES = (
    *(SHARED / name for name in ("common.cuh", "images.cu", "tile.cuh", "cluster.cuh")),
    *(HERE / name for name in ("tile.cuh", "iterate.cu", "warp.cu", "level.cu", "median.cu", "cluster.cu")),
)  # fmt: skip
TILE, WARPS = 64, 16
"""Side of a tile in pixels and warps that share it, as in `tile.cuh`."""
TILE_THREADS = 32 * WARPS
HALO = 4
"""Iterations of a launch at most, and pixels that a tile computes beyond those it writes; even."""
STATE, CONSTANTS = 6, 4
"""Planes of a pair, as in `tile.cuh`."""
ROWS = 4
"""Rows of a tile that a warp has, as in `tile.cuh`."""
CLUSTER_BLOCKS, CLUSTER_WARPS = 16, 24
"""Blocks of a cluster and warps of its blocks at most, as in `cluster.cu`."""
BORDER_BYTES, FIXED_BYTES = 1120, 40
"""Shared memory of a warp, and of a lane's row as in `cluster.cu`; 8 less where pixels have no step of their own."""
BARRIER_WARPS = 6
"""The time that a cluster's two barriers take in each iteration, in warps whose instructions would take as long."""
CLUSTER_CAPABILITIES = ((9, 0), (10, 0))
"""Compute capabilities whose blocks have room for a level in a cluster of up to 16."""
CHECKED_SIZE = Size(42, 201)
"""Frames on which clusters are compared with tiles before they are used: two blocks, each with neighbours in both."""
WARP_BLOCK, WARP_THREADS = (64, 16), 256
"""Pixels and threads of a block that warps or filters, as in `warp.cu` and `median.cu`."""
FINISH_THREADS = 256
UNIT = 2.0**30
"""Units of a squared pixel in which sums are counted, as in `common.cuh`."""


class Pairs(ctypes.Structure):
    """`struct Pairs` of `iterate.cu`."""

    _fields_ = (
        ("current", ctypes.c_void_p), ("moved", ctypes.c_void_p), ("changes", ctypes.c_void_p),
        ("pairs", ctypes.c_int), ("warps", ctypes.c_int), ("iterations", ctypes.c_int), ("check", ctypes.c_int),
        ("epsilon_sum", ctypes.c_longlong), ("warp_sum", ctypes.c_longlong),
    )  # fmt: skip


def program(parameters: Parameters) -> Program:
    """The kernels for these parameters; what chooses code instead of values is compiled in."""
    exchanges = median_network(parameters.median**2) if parameters.median > 1 else []
    definitions = {
        "HALO": str(HALO),
        "EDGES": str(int(parameters.edges > 0)),
        "GRADIENT": str(GRADIENTS.index(parameters.gradient)),
        "SPLINE": str(int(parameters.interpolation == "bspline")),
        "MASKED": str(int(parameters.mask)),
        "MEDIAN": str(parameters.median),
        "MEDIAN_NETWORK": " ".join(f"EXCHANGE({low}, {high})" for low, high in exchanges),
        "KEYS": f"({interpolation.A}f)",
        "BLEND": f"{float(cpu.BLEND)!r}f",
        "NEAR": f"{float(cpu.NEAR)!r}f",
        "FAR": f"{float(cpu.FAR)!r}f",
        "FLAT": f"{float(rules.FLAT)!r}f",
        "EDGE_LIMIT": f"{float(cpu.EDGE_LIMIT)!r}f",
    }
    return Program("tvl1", FILES, definitions)


def threshold(rms: float, pixels: int) -> int:
    """The sum of squares, in units, at which the root mean square over the pixels is `rms`; -1 (never) for 0."""
    return int(min(rms * rms * pixels, 2.0**32) * UNIT) if rms > 0 else -1


def summand_limit(summands: int) -> float:
    """Largest value of one of `summands` values whose sum still fits an int64."""
    return 2.0**32 / max(1, summands)


def lane_groups(size: Size) -> int:
    """Groups of 2 x `ROWS` pixels whose squared changes are added as floats before they are counted in units."""
    return -(-size.width // 2) * -(-size.height // ROWS)


def clusters_for(parameters: Parameters, size: Size) -> list[Cluster]:
    """Clusters that have enough warps for a level, from few blocks to many; empty where none has."""
    units = -(-size.width // TILE) * -(-size.height // ROWS)
    room = BORDER_BYTES + 32 * ROWS * (FIXED_BYTES if parameters.edges > 0 else FIXED_BYTES - 8)
    found = []
    for blocks in range(-(-units // CLUSTER_WARPS), CLUSTER_BLOCKS + 1):
        warps = -(-units // blocks)
        found.append(Cluster(blocks, 32 * warps, warps * room))
    return found


def fits(size: Size) -> bool:
    """Whether one tile covers a level, so that a single block solves it."""
    return max(size) <= TILE


def tiles(size: Size) -> tuple[int, int]:
    """Tiles in x and y that cover a level."""
    inner = TILE - 2 * HALO
    return -(-size.width // inner), -(-size.height // inner)


def bilinear_taps(source: int, target: int, ratio: float) -> Taps:
    """Taps of `cpu.resize_plane` along one dimension: centres aligned, the border repeated."""
    position = np.clip((np.arange(target) + 0.5) * ratio - 0.5, 0, source - 1)
    if source == 1:
        return Taps(np.zeros(target, np.int32), np.ones((target, 1), np.float32))
    first = np.minimum(position.astype(np.int32), source - 2)
    fraction = (position - first).astype(np.float32)
    return Taps(first, np.stack([1 - fraction, fraction], axis=1))


def filter_taps(size: int, taps: npt.NDArray[np.float32]) -> Taps:
    """Taps of `cpu.filter_plane` along one dimension: symmetric, the border mirrored."""
    matrix = np.zeros((size, size))
    place = np.arange(size)
    for k in range(1 - len(taps), len(taps)):
        mirror = [cpu.reflect(int(index), size) for index in place + k]
        np.add.at(matrix, (place, mirror), float(taps[abs(k)]))
    return taps_of(matrix)


class Tables(NamedTuple):
    """The resamplings of a pyramid: to the next coarser level, back from it, the spline's prefilter, the blur."""

    shrink: list[Resampling]
    enlarge: list[Resampling]
    prefilter: list[Resampling]
    blur: Resampling


def make_tables(parameters: Parameters, sizes: list[Size]) -> Tables:
    """Upload the tables for these levels, from fine to coarse."""
    step = parameters.scale_step

    @functools.cache
    def table(kind: str, source: int, target: int) -> DeviceTaps:
        if kind == "shrink":
            return upload_taps(bilinear_taps(source, target, 1 / step))
        if kind == "enlarge":
            return upload_taps(bilinear_taps(source, target, source / target))
        taps = SPLINE_PREFILTER if kind == "spline" or parameters.blur == 0 else gaussian(parameters.blur)
        return upload_taps(filter_taps(source, taps))

    def resampling(kind: str, source: Size, target: Size) -> Resampling:
        return Resampling(
            source, target, table(kind, source.height, target.height), table(kind, source.width, target.width)
        )

    steps = list(itertools.pairwise(sizes))
    return Tables(
        [resampling("shrink", fine, coarse) for fine, coarse in steps],
        [resampling("enlarge", coarse, fine) for fine, coarse in steps],
        [resampling("spline", size, size) for size in sizes],
        resampling("blur", sizes[0], sizes[0]),
    )


class Solver:
    """Device buffers for frames of one size, and the solver that works in them; see `cuda.method.Solver`.

    With `clusters`, a cluster of blocks holds each level that is larger than a tile, where the device can run one;
    the flow is the same, bit by bit.
    """

    def __init__(
        self, parameters: Parameters, clusters: bool, kernels: Kernels, size: Size, frames: int, pairs: int
    ) -> None:
        self.parameters, self.kernels = parameters, kernels
        self.sizes = level_sizes(parameters, size)
        self.clusters = [
            best_cluster(parameters, kernels, level) if clusters and not fits(level) else None
            for level in self.sizes
        ]
        self.tables = make_tables(parameters, self.sizes)
        self.images = [floats(frames * level.area) for level in self.sizes]
        spline, edges = parameters.interpolation == "bspline", parameters.edges > 0
        self.targets = [floats(frames * level.area) for level in self.sizes] if spline else self.images
        self.steps = [floats(frames * level.area) if edges else None for level in self.sizes]
        self.flow = floats(2 * pairs * size.area)
        self.before = floats(2 * pairs * size.area)
        self.scratch = floats(max(2 * pairs, frames) * size.height * self.sizes[0].pitch)
        self.state = floats(2 * STATE * pairs * size.area)
        self.constants = floats(CONSTANTS * pairs * size.area)
        warps, iterations = parameters.warps, parameters.iterations
        self._moved_at = 8 * pairs * warps * iterations
        self._current_at = self._moved_at + 8 * pairs * warps
        self.counters = Buffer(self._current_at + 4 * pairs * (warps + 1))

    def solve(
        self, frames: Memory, count: int, first: Memory, second: Memory, pairs: int, stream: Stream
    ) -> Memory:
        """Queue the flow of pairs; see `cuda.method.Solver.solve`."""
        self._prepare(frames, count, stream)
        grow = 1 / self.parameters.scale_step
        coarsest = len(self.sizes) - 1
        for number in range(coarsest, -1, -1):
            size = self.sizes[number]
            if number == coarsest:
                stream.clear(self.state, 4 * STATE * pairs * size.area)
            else:
                resample(
                    self.kernels, stream, self.tables.enlarge[number], self.flow, self.state, self.scratch, 2 * pairs,
                    grow, planes=2, group=STATE,
                )  # fmt: skip
            current = None
            if fits(size):
                self._refine_small(number, first, second, pairs, stream)
            else:
                self._refine_large(number, first, second, pairs, stream)
                current = Part(self.counters, self._current_at)
            grid = blocks(size, 2 * pairs)
            self.kernels.launch(
                "take_flow", grid, (WARP_THREADS, 1, 1), stream, self.state, current, self.flow, pairs,
                self.parameters.warps, *size, size.pitch,
            )  # fmt: skip
        size = self.sizes[0]
        self.kernels.launch(
            "still", (pairs, 1, 1), (FINISH_THREADS, 1, 1), stream, frames, first, second, size.height * size.width,
            self.flow, 2 * size.area,
        )  # fmt: skip
        return self.flow

    def _prepare(self, frames: Memory, count: int, stream: Stream) -> None:
        """Queue the pyramids of the frames, and what the warps and the dual steps need of them."""
        options, kernels, tables = self.parameters, self.kernels, self.tables
        load_frames(kernels, stream, frames, self.images[0], self.sizes[0], count, 1.0)
        if options.blur > 0:
            resample(kernels, stream, tables.blur, self.images[0], self.images[0], self.scratch, count)
        for number, shrink in enumerate(tables.shrink):
            resample(
                kernels, stream, shrink, self.images[number], self.images[number + 1], self.scratch, count
            )
        for size, images, targets, steps, prefilter in zip(
            self.sizes, self.images, self.targets, self.steps, tables.prefilter, strict=True
        ):
            if targets is not images:
                resample(kernels, stream, prefilter, images, targets, self.scratch, count)
            if steps is not None:
                kernels.launch(
                    "weigh_edges", *pixel_launch(*size, count), stream, images, steps, options.tau / options.theta,
                    options.edges, *size, size.pitch,
                )  # fmt: skip

    def _refine_small(self, number: int, first: Memory, second: Memory, pairs: int, stream: Stream) -> None:
        options, size = self.parameters, self.sizes[number]
        pixels = size.height * size.width
        self.kernels.launch(
            "refine_level", (pairs, 1, 1), (TILE_THREADS, 1, 1), stream, self.state, self.images[number],
            self.targets[number], self.steps[number], first, second, self.before, self.constants, *size, size.pitch,
            options.warps, options.iterations, options.tau, options.tau / options.theta,
            options.lambda_ * options.theta,
            ctypes.c_longlong(threshold(options.epsilon, pixels)),
            ctypes.c_longlong(threshold(options.warp_stop, pixels)),
        )  # fmt: skip

    def _refine_large(self, number: int, first: Memory, second: Memory, pairs: int, stream: Stream) -> None:
        options, size, kernels = self.parameters, self.sizes[number], self.kernels
        pixels = size.height * size.width
        stream.clear(self.counters, self.counters.size)
        counters = Pairs(
            self.counters.pointer + self._current_at, self.counters.pointer + self._moved_at, self.counters.pointer,
            pairs, options.warps, options.iterations, cpu.BLOCKED if pixels > cpu.LARGE else 1,
            threshold(options.epsilon, pixels), threshold(options.warp_stop, pixels),
        )  # fmt: skip
        across, down = tiles(size)
        strips = -(-pixels // (8 * FINISH_THREADS))
        cluster, most = self.clusters[number], summand_limit(lane_groups(size))
        for warp in range(options.warps):
            asked = options.warp_stop > 0 and warp + 1 < options.warps  # how far this warp moves the flow
            before = self.before if asked and not cluster else None
            kernels.launch(
                "warp_and_linearise", blocks(size, pairs), (WARP_THREADS, 1, 1), stream, self.state,
                self.images[number], self.targets[number], first, second, self.constants, before, counters, warp,
                *size, size.pitch, options.lambda_ * options.theta,
            )  # fmt: skip
            if cluster:
                kernels.launch_clusters(
                    "iterate_cluster", cluster, (cluster.blocks, pairs, 1), stream, self.state, self.constants,
                    self.steps[number], first, counters, warp, *size, size.pitch, options.tau,
                    options.tau / options.theta, most, summand_limit(pixels),
                )  # fmt: skip
                continue
            # One launch more than the iterations take, for pairs that stop within the last.
            for launch in range(-(-options.iterations // HALO) + 1):
                kernels.launch(
                    "iterate", (across, down, pairs), (TILE_THREADS, 1, 1), stream, self.state, self.constants,
                    self.steps[number], first, counters, launch, warp, *size, size.pitch, options.tau,
                    options.tau / options.theta, most,
                )  # fmt: skip
            kernels.launch(
                "finish_warp", (strips if asked else 1, pairs, 1), (FINISH_THREADS, 1, 1), stream, self.state, before,
                counters, warp, *size, size.pitch, summand_limit(pixels),
            )  # fmt: skip


def best_cluster(parameters: Parameters, kernels: Kernels, size: Size) -> Cluster | None:
    """The cluster that takes least time for a level on this device; None where tiles must do.

    An iteration takes as long as a block's warps, and those of about `BARRIER_WARPS` more, need to issue.
    """
    rates = {
        cluster: kernels.clusters_at_once("iterate_cluster", cluster) / (cluster.threads / 32 + BARRIER_WARPS)
        for cluster in clusters_for(parameters, size)
    }
    best = max(rates, key=lambda cluster: rates[cluster], default=None)
    return best if best and rates[best] > 0 else None


def blocks(size: Size, count: int) -> tuple[int, int, int]:
    """Blocks of `WARP_BLOCK` pixels that cover `count` images."""
    return -(-size.width // WARP_BLOCK[0]), -(-size.height // WARP_BLOCK[1]), count


def level_sizes(parameters: Parameters, size: Size) -> list[Size]:
    """The sizes of the pyramid, from fine to coarse."""
    levels = solver.pyramid_levels(*size, parameters.scales, parameters.scale_step)
    return [Size(level.height, level.width) for level in levels]


def launches(parameters: Parameters, size: Size) -> int:
    """Kernel launches for a batch; see `Solver.solve`."""
    sizes = level_sizes(parameters, size)
    spline, edges = parameters.interpolation == "bspline", parameters.edges > 0
    count = 2 + 2 * (parameters.blur > 0) + 4 * (len(sizes) - 1) + (1 + 2 * spline + edges) * len(sizes)
    per_warp = 3 + -(-parameters.iterations // HALO)
    return count + sum(1 if fits(level) else parameters.warps * per_warp for level in sizes)


def bytes_per_pair(parameters: Parameters, size: Size) -> int:
    """Device bytes of a pair with a frame of its own: state, constants, work, flow, pyramids and levels."""
    pyramid = sum(level.area for level in level_sizes(parameters, size))
    per_frame = 1 + (parameters.interpolation == "bspline") + (parameters.edges > 0)
    planes = 2 * STATE + CONSTANTS + 3 * 2
    counters = parameters.warps * (12 + 8 * parameters.iterations)
    return math.ceil(4 * (planes * size.area + 2 * per_frame * pyramid) + 4 * size.area + counters)


def make_solver(
    parameters: Parameters,
    decide: Callable[[Kernels], bool],
    kernels: Kernels,
    size: Size,
    frames: int,
    pairs: int,
) -> Solver:
    """A solver; where levels are larger than a tile, `decide` says whether it uses clusters."""
    large = not all(map(fits, level_sizes(parameters, size)))
    return Solver(parameters, large and decide(kernels), kernels, size, frames, pairs)


def clusters_agree(parameters: Parameters, kernels: Kernels) -> bool:
    """Whether clusters can be used here: solves a small pair with them and with tiles, which must be equal bit by bit.

    A difference is noted. Takes milliseconds, once for each method.
    """
    if kernels.capability not in CLUSTER_CAPABILITIES:
        return False
    options = dataclasses.replace(parameters, scales=1, warps=2, iterations=9)
    if best_cluster(options, kernels, CHECKED_SIZE) is None:
        return False
    y, x = np.mgrid[: CHECKED_SIZE.height, : CHECKED_SIZE.width].astype(float)
    frames = upload(
        np.stack([128 + 60 * np.sin((x - k) / 2.3 + y / 4.1) * np.cos(x / 17) for k in (0, 1)]).astype(
            np.uint8
        )
    )
    first, second = (upload(np.array([side, 1 - side], np.int32)) for side in (0, 1))
    stream, flows = Stream(), []
    for clusters in (True, False):
        solver = Solver(options, clusters, kernels, CHECKED_SIZE, 2, 2)
        host = Pinned((2, 2, CHECKED_SIZE.height, CHECKED_SIZE.pitch), np.float32)
        stream.download(host.array, solver.solve(frames, 2, first, second, 2, stream))
        stream.wait()
        flows.append(host.array[..., : CHECKED_SIZE.width].tobytes())
    if flows[0] != flows[1]:
        note("tvl1: on this GPU clusters of blocks give another flow than tiles do; tiles are used")
    return flows[0] == flows[1]


def create(parameters: Parameters, device: str, clusters: bool | None = None) -> CudaMethod:
    """TV-L1 on a GPU.

    Args:
        parameters: the method's options.
        device: "auto", "cuda" or "cuda:N".
        clusters: whether clusters of blocks hold the levels that are larger than a tile, on GPUs that have them; by
            default where `clusters_agree` finds that they give the flow of the tiles.

    Raises:
        InputError: there is no usable GPU, or not that one; or the kernels cannot be compiled.
    """
    agree = functools.cache(functools.partial(clusters_agree, parameters))
    decide = agree if clusters is None else lambda _: bool(clusters)
    return CudaMethod(
        "tvl1",
        parameters,
        device,
        program(parameters),
        functools.partial(make_solver, parameters, decide),
        functools.partial(bytes_per_pair, parameters),
    )
