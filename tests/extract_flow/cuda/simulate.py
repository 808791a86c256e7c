"""Run under NUMBA_ENABLE_CUDASIM=1 by the tests beside it: kernels against the CPU solver, differences as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import numpy.typing as npt

from extract_flow.cuda import images, quantise
from extract_flow.cuda.method import CudaMethod
from extract_flow.resampling import taps_of
from extract_flow.tvl1 import cuda, solver
from extract_flow.tvl1.parameters import PRESETS, Parameters
from pipeline.codec import Quantised, codec

PAIRS = np.array([[0, 1], [2, 0], [0, 0]])


def moving_texture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Three frames of waves that move by (1, 0.6) and (0.1, 0) pixels."""
    y, x = np.mgrid[:height, :width].astype(float)
    return np.stack(
        [
            128 + 55 * np.sin((x - dx) / 2.3 + (y - dy) / 4.1) + 55 * np.cos((y - dy) / 2.7 - (x - dx) / 5.3)
            for dx, dy in ((0, 0), (1, 0.6), (0.1, 0))
        ]
    ).astype(np.uint8)


def compare(
    parameters: Parameters, height: int, width: int, blocks: cuda.Geometry | None = None
) -> dict[str, float]:
    """Largest difference of the two solvers, and the largest flow."""
    frames = moving_texture(height, width)
    expected = solver.TVL1(parameters, 1).run(frames, PAIRS)
    found = cuda.create(parameters, "cuda", blocks).run(frames, PAIRS)
    return {"difference": float(np.abs(found - expected).max()), "flow": float(np.abs(expected).max())}


def presets() -> dict[str, dict[str, float]]:
    """Every preset, shortened, with a coarse level in one block and a fine one in tiles."""
    return {
        name: compare(dataclasses.replace(preset, warps=2, iterations=5), 20, 21)
        for name, preset in PRESETS.items()
    }


def one_tile() -> dict[str, float]:
    """A level that is a single tile."""
    tile = cuda.Geometry(32, 24, 2, 32, 64, 1, 8, 0)
    return compare(Parameters(scales=1, warps=1, iterations=5), 19, 17, tile)


def early_stop() -> dict[str, object]:
    """Pairs that stop at different iterations, in the middle of launches and at their ends."""
    usual = Parameters(scales=1, warps=1, epsilon=0.0, median=1)
    frames = moving_texture(21, 25)
    by_count = {
        count: solver.TVL1(dataclasses.replace(usual, iterations=count), 1).run(frames, PAIRS)
        for count in range(1, 8)
    }
    runs = []
    for epsilon in (0.05, 0.09):
        stopping = dataclasses.replace(usual, epsilon=epsilon, iterations=7)
        expected = solver.TVL1(stopping, 1).run(frames, PAIRS)
        stops = [
            min(by_count, key=lambda count: float(np.abs(by_count[count][pair] - expected[pair]).max()))
            for pair in range(2)
        ]
        found = cuda.create(stopping, "cuda").run(frames, PAIRS)
        next_best = min(
            float(np.abs(by_count[count][pair] - expected[pair]).max())
            for pair in range(2)
            for count in by_count
            if count != stops[pair]
        )
        runs.append(
            {"stops": stops, "difference": float(np.abs(found - expected).max()), "next_best": next_best}
        )
    return {"runs": runs}


def levels() -> dict[str, bool]:
    """Quantised flow of the method against `Quantiser.quantise` of its flow, in chunks that use both lanes."""
    parameters = Parameters(scales=1, warps=1, iterations=2)
    method = cuda.create(parameters, "cuda")
    method.chunk_pairs = lambda height, width: 1  # type: ignore[method-assign]
    frames = moving_texture(17, 18)
    quantiser = codec(bound_fixed=True).quantiser
    found = method.run(frames, PAIRS, "levels", quantiser)
    expected = quantiser.quantise(method.run(frames, PAIRS))
    return {
        field.name: bool(np.array_equal(getattr(found, field.name), getattr(expected, field.name)))
        for field in dataclasses.fields(Quantised)
    }


def quantisers() -> dict[str, bool]:
    """Every codec's quantiser, with values on edges, beyond the bound and not finite."""
    from numba import cuda as numba_cuda

    generator = np.random.default_rng(0)
    equal = {}
    for name in ("default", "field", "paper"):
        quantiser = codec(name, bound_fixed=name == "default").quantiser
        flow = (generator.standard_normal((3, 2, 13, 17)) * 9).astype(np.float32)
        flow[0, 0, 0, :12] = np.concatenate([quantiser.edges[50:56], -quantiser.edges[50:56]])
        flow[1, 1] = 3
        buffers = quantise.allocate(3, 13 * 17)
        quantise.quantise(numba_cuda.to_device(flow.ravel()), 3, 13 * 17, quantiser, buffers, 0)
        found = quantise.collect(buffers.levels.copy_to_host().reshape(flow.shape), quantiser, buffers, 0)
        expected = quantiser.quantise(flow)
        equal[name] = all(
            np.array_equal(getattr(found, field.name), getattr(expected, field.name))
            for field in dataclasses.fields(Quantised)
        )
    flow[2, 1, 5, 5] = np.inf
    quantise.quantise(numba_cuda.to_device(flow.ravel()), 3, 13 * 17, quantiser, buffers, 0)
    try:
        quantise.collect(buffers.levels.copy_to_host().reshape(flow.shape), quantiser, buffers, 0)
        equal["refused"] = False
    except ValueError:
        equal["refused"] = True
    return equal


def resampling() -> dict[str, float]:
    """Separable resampling against the product with its matrices."""
    from numba import cuda as numba_cuda

    generator = np.random.default_rng(0)
    source = generator.random((2, 9, 11)).astype(np.float32)
    down, across = generator.random((5, 9)), generator.random((7, 11))
    target = numba_cuda.device_array((2, 5, 7), np.float32)
    tables = [images.upload_taps(*taps_of(matrix)) for matrix in (down, across)]
    scratch = numba_cuda.device_array(2 * 5 * 11, np.float32)
    images.resample(numba_cuda.to_device(source), *tables, scratch, target, 2.0, 0)
    expected = 2 * np.einsum("ij,njk,lk->nil", down, source, across)
    return {"difference": float(np.abs(target.copy_to_host() - expected).max())}


def out_of_memory() -> dict[str, object]:
    """What an allocation that fails is told as, and that the method works on afterwards."""
    from extract_flow.flow_method import DeviceMemoryError

    class CudaAPIError(Exception):
        code = 2

    method = cuda.create(Parameters(scales=1, warps=1, iterations=1), "cuda")
    make, frames = method._make, moving_texture(17, 18)

    def refuse(height: int, width: int, frames: int, pairs: int) -> object:
        if pairs > 1:
            raise CudaAPIError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        return make(height, width, frames, pairs)

    method._make = refuse  # type: ignore[assignment]
    try:
        method.run(frames, PAIRS)
        message = ""
    except DeviceMemoryError as error:
        message = str(error)
    return {"message": message, "afterwards": bool(np.isfinite(method.run(frames, PAIRS[:1])).all())}


def describe(method: CudaMethod) -> dict[str, object]:
    """The method's attributes."""
    return {"device": method.device, "count": method.device_count, "pairs": method.batch_pairs}


def attributes() -> dict[str, object]:
    """What a worker reads off the method."""
    return describe(cuda.create(Parameters(), "cuda:0"))


CASES = {
    "first": (quantisers, resampling, attributes, out_of_memory, levels, one_tile),
    "second": (presets, early_stop),
}

if __name__ == "__main__":
    print(json.dumps({case.__name__: case() for case in CASES[sys.argv[1]]}))
