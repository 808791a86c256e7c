"""Run on the emulated GPU by the tests beside it: the named cases, their findings as JSON.

python emulated_cases.py CASE...
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import itertools
import json
import os
import sys
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from brox_reference import moved as moved_frame
from brox_reference import textured

from extract_flow.brox import cuda as brox_cuda
from extract_flow.brox.cpu import BroxOnCpu
from extract_flow.brox.parameters import PRESETS as BROX_PRESETS
from extract_flow.cuda import images, kernels, quantise
from extract_flow.cuda.device import Device, Stream, floats, upload
from extract_flow.cuda.images import Size
from extract_flow.flow_method import DeviceMemoryError
from extract_flow.methods import load
from extract_flow.resampling import taps_of
from extract_flow.tvl1 import cuda, solver
from extract_flow.tvl1.cuda import solver as tvl1_cuda
from extract_flow.tvl1.cuda.solver import HALO, fits, level_sizes
from extract_flow.tvl1.parameters import PRESETS, Parameters
from pipeline.codec import Quantised, codec
from pipeline.errors import InputError
from pipeline.progress import notes_to

PAIRS = np.array([[0, 1], [2, 0], [0, 0]])
SIZES = ((1, 1), (5, 300), (85, 64), (341, 255))


def moving(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Three frames of waves that move by (1, 0.6) and (0.1, 0) pixels."""
    y, x = np.mgrid[:height, :width].astype(float)
    return np.stack(
        [
            128 + 55 * np.sin((x - dx) / 2.3 + (y - dy) / 4.1) + 55 * np.cos((y - dy) / 2.7 - (x - dx) / 5.3)
            for dx, dy in ((0, 0), (1, 0.6), (0.1, 0))
        ]
    ).astype(np.uint8)


def differences(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> dict[str, float]:
    """Mean and largest difference, and the largest flow."""
    apart = np.abs(found - expected)
    return {"mean": float(apart.mean()), "most": float(apart.max()), "flow": float(np.abs(expected).max())}


def tvl1(preset: str) -> dict[str, Any]:
    """A preset on every size, shortened where the frame is large."""
    results = {}
    for height, width in SIZES:
        options = PRESETS[preset]
        if height * width > 50_000:
            options = dataclasses.replace(options, warps=2, iterations=6)
        elif options.iterations > 30:
            options = dataclasses.replace(options, iterations=33)
        frames = moving(height, width)
        expected = solver.TVL1(options, 2).run(frames, PAIRS)
        before = emulated()["cluster_launches"]
        found, by_tiles = (
            cuda.create(options, "cuda", clusters).run(frames, PAIRS) for clusters in (True, False)
        )
        levels = level_sizes(options, Size(height, width))
        results[f"{height}x{width}"] = differences(found, expected) | {
            "small": sum(map(fits, levels)), "levels": len(levels), "equal": bool((found == by_tiles).all()),
            "clusters": emulated()["cluster_launches"] - before,
        }  # fmt: skip
    return results


def stops() -> list[dict[str, Any]]:
    """Two pairs with the epsilon at which one of them stops after each count of iterations, in blocks and in tiles."""
    found = []
    for height, width, most in ((40, 50, 10), (50, 70, 10)):
        usual = Parameters(scales=1, warps=1, epsilon=0.0, median=1, interpolation="bspline")
        frames = moving(height, width)
        pairs = PAIRS[:2]
        after = [np.zeros((2, 2, height, width), np.float32)]
        for count in range(1, most + 1):
            after.append(solver.TVL1(dataclasses.replace(usual, iterations=count), 1).run(frames, pairs))
        changes = [
            [float(np.sqrt(((b[pair] - a[pair]).astype(np.float64) ** 2).sum() / (height * width)))
             for a, b in itertools.pairwise(after)]
            for pair in range(2)
        ]  # fmt: skip
        for stop in range(1, most):
            epsilon = changes[0][stop - 1] * 1.0005
            stopping = dataclasses.replace(usual, epsilon=epsilon, iterations=most)
            due = [
                next((k for k, change in enumerate(by_count, 1) if change <= epsilon), most)
                for by_count in changes
            ]
            flow, by_tiles = (
                cuda.create(stopping, "cuda", clusters).run(frames, pairs) for clusters in (True, False)
            )
            apart = [float(np.abs(flow[pair] - after[due[pair]][pair]).max()) for pair in range(2)]
            next_best = min(
                float(np.abs(flow[pair] - after[count][pair]).max())
                for pair in range(2)
                for count in range(1, most + 1)
                if count != due[pair]
            )
            found.append(
                {
                    "size": [height, width],
                    "due": due,
                    "apart": max(apart),
                    "next_best": next_best,
                    "equal": bool((flow == by_tiles).all()),
                    "halo": HALO,
                }
            )
    return found


def choices() -> dict[str, Any]:
    """How often clusters are launched by default, and what is noted, on several devices and where they go wrong."""
    options, frames = Parameters(scales=2, warps=2, iterations=5), moving(80, 130)
    expected = cuda.create(options, "cuda", clusters=False).run(frames, PAIRS)
    found = {}

    def launched() -> dict[str, Any]:
        before = emulated()["cluster_launches"]
        with notes_to(notes.append):
            flow = cuda.create(options, "cuda").run(frames, PAIRS)
        return {
            "clusters": emulated()["cluster_launches"] - before, "equal": bool((flow == expected).all()),
            "notes": [note for note in notes if "clusters" in note],
        }  # fmt: skip

    notes: list[str] = []
    found["with clusters"] = launched()
    with mock.patch.object(tvl1_cuda, "CLUSTER_CAPABILITIES", ()):
        found["without"] = launched()
    with mock.patch.dict(os.environ, EMULATED_CLUSTERS="1"):
        found["with too few for a cluster"] = launched()
    with mock.patch.object(kernels.Kernels, "launch_clusters"):  # as if they did nothing
        found["with clusters that are wrong"] = launched()
    return found


BROX = {
    "default": ("default", {}, (50, 60)),
    "tiles": ("default", {"outer_iterations": 2, "warps": 2, "inner_iterations": 2}, (85, 131)),
    "one launch": ("accurate", {"outer_iterations": 1, "warps": 1, "solver_iterations": 3}, (70, 66)),
    "many launches": ("default", {"outer_iterations": 1, "warps": 1, "solver_iterations": 9}, (66, 70)),
    "opencv": ("opencv", {"solver_iterations": 4, "inner_iterations": 2, "relaxation": 1.9}, (80, 81)),
    "one pixel": ("default", {}, (1, 1)),
    "flat": ("default", {}, (5, 300)),
}


def brox(name: str) -> dict[str, float]:
    """A case against the CPU solver."""
    preset, more, (height, width) = BROX[name]
    options = dataclasses.replace(BROX_PRESETS[preset], **more)
    frame = textured(height, width, seed=1)
    frames = np.stack([frame, moved_frame(frame, 1.1, -0.6)])
    pairs = np.array([[0, 1], [1, 0], [1, 1]])
    return differences(
        brox_cuda.create(options, "cuda").run(frames, pairs), BroxOnCpu(options).run(frames, pairs)
    )


def same(found: Quantised, expected: Quantised) -> bool:
    """Whether every field is equal bit by bit."""
    return all(
        np.array_equal(getattr(found, field.name), getattr(expected, field.name))
        for field in dataclasses.fields(Quantised)
    )


def levels() -> dict[str, bool]:
    """Quantised flow against `Quantiser.quantise` of the flow, for every codec, in chunks that use both lanes."""
    options = Parameters(scales=2, warps=1, iterations=3)
    frames = moving(70, 83)
    equal = {}
    for name in ("default", "field", "paper"):
        method = cuda.create(options, "cuda")
        method._most[Size(70, 83)] = 1
        quantiser = codec(name).quantiser
        equal[name] = same(
            method.run(frames, PAIRS, "levels", quantiser), quantiser.quantise(method.run(frames, PAIRS))
        )
    nothing = method.run(frames, PAIRS[:0], "levels", quantiser)
    equal["no pairs"] = nothing.levels.shape == (0, 2, 70, 83)
    return equal


def quantisers() -> dict[str, bool]:
    """Every codec's quantiser, with values on edges, beyond the bound and not finite."""
    generator = np.random.default_rng(0)
    device, stream, size, equal = Device(0), Stream(), Size(130, 171), {}
    loaded = kernels.Kernels(quantise.PROGRAM, device.capability)

    def on_device(flow: npt.NDArray[np.float32], quantiser: Any) -> Quantised:
        padded = np.full((3, 2, size.height, size.pitch), np.nan, np.float32)
        padded[..., : size.width] = flow
        room, tables, source = quantise.allocate(4, size), quantise.Tables(quantiser), upload(padded)
        quantise.quantise(loaded, stream, source, 3, size, tables, room)
        stream.wait()
        found = quantise.collect(3, size, quantiser, room)
        return dataclasses.replace(found, levels=found.levels.copy())  # the room is about to go

    for name in ("default", "high-fidelity", "field", "paper"):
        quantiser = codec(name).quantiser
        flow = (generator.standard_normal((3, 2, *size)) * 9).astype(np.float32)
        flow[0, 0, 0, :12] = np.concatenate([quantiser.edges[50:56], -quantiser.edges[50:56]])
        flow[1, 1] = 3
        flow[2] += np.array([-41.5, 170.0], np.float32)[:, None, None]  # a pan, which the default follows
        equal[name] = same(on_device(flow, quantiser), quantiser.quantise(flow))
    flow[2, 1, 5, 5] = np.inf
    try:
        on_device(flow, quantiser)
        equal["refused"] = False
    except ValueError:
        equal["refused"] = True
    return equal


def resampling() -> dict[str, float]:
    """Separable resampling against the product with its matrices; odd planes take a factor of their own."""
    generator = np.random.default_rng(0)
    source, target = Size(9, 11), Size(5, 17)
    values = generator.random((4, *source)).astype(np.float32)
    padded = np.full((4, source.height, source.pitch), np.nan, np.float32)
    padded[..., : source.width] = values
    down, across = generator.random((5, 9)), generator.random((17, 11))
    tables = [images.upload_taps(taps_of(matrix)) for matrix in (down, across)]
    how = images.Resampling(source, target, *tables)
    device, stream = Device(0), Stream()
    program = kernels.Program("images", (kernels.SHARED / "common.cuh", kernels.SHARED / "images.cu"), {})
    into, scratch = floats(6 * target.area), floats(4 * how.scratch())
    images.resample(
        kernels.Kernels(program, device.capability), stream, how, upload(values_on(padded)), into, scratch, 4, 2.0, 3.0,
        planes=2, group=3,
    )  # fmt: skip
    result = download(stream, into, (2, 3, target.height, target.pitch))[:, :2, :, : target.width]
    expected = np.einsum("ij,njk,lk->nil", down, values, across).reshape(2, 2, *target)
    return {"difference": float(np.abs(result - expected * np.array([2, 3])[None, :, None, None]).max())}


def values_on(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The array in one piece."""
    return np.ascontiguousarray(array)


def download(stream: Stream, buffer: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A copy of a buffer's floats on the host."""
    from extract_flow.cuda.device import Pinned

    host = Pinned(shape, np.float32)
    stream.download(host.array, buffer)
    stream.wait()
    return host.array.copy()


def repeatable() -> dict[str, bool]:
    """The same bits whether pairs come one by one, in chunks, all at once or again."""
    options = Parameters(scales=2, warps=2, iterations=9)
    frames = moving(70, 90)
    method = cuda.create(options, "cuda")
    whole = method.run(frames, PAIRS)
    alone = np.concatenate([method.run(frames, PAIRS[i : i + 1]) for i in range(3)])
    method._most[Size(70, 90)] = 2
    return {
        "again": bool((method.run(frames, PAIRS) == whole).all()),
        "alone": bool((alone == whole).all()),
        "chunks": bool((cuda.create(options, "cuda").run(frames[:2], PAIRS[:1]) == whole[:1]).all()),
    }


def overlapping() -> dict[str, Any]:
    """Batches handed over before the results of earlier ones are fetched, whose frames change at once."""
    options = Parameters(scales=1, warps=1, iterations=5)
    frames, quantiser = moving(66, 70), codec("default").quantiser
    method = cuda.create(options, "cuda")
    method._most[Size(66, 70)] = 1
    expected = [method.run(frames, PAIRS[i : i + 1], "levels", quantiser) for i in range(3)]
    pending = []
    for i in range(3):
        given = frames.copy()
        pending.append(method.submit(given, PAIRS[i : i + 1], quantiser))
        given[:] = 0
    other = method.submit(moving(20, 30), PAIRS, None)
    return {
        "equal": all(same(p.collect(), e) for p, e in zip(pending[::-1], expected[::-1], strict=True)),
        "other": bool(np.isfinite(other.collect()).all()),
    }


def not_finite() -> dict[str, Any]:
    """An error of one batch is not another's."""
    options = Parameters(scales=1, warps=1, iterations=2)
    method, quantiser = cuda.create(options, "cuda"), codec("default").quantiser
    frames = moving(66, 70)
    good = method.submit(frames, PAIRS[:1], quantiser)
    bad = method.submit(frames, PAIRS[:1], quantiser)
    lane = method._waiting[-1][0]
    lane.stream.wait()
    lane._room.host_totals.array[:] = 1  # as if a value had not been finite
    try:
        bad.collect()
        raised = False
    except ValueError:
        raised = True
    return {"raised": raised, "good": bool(np.isfinite(good.collect().mean).all())}


def out_of_memory() -> dict[str, Any]:
    """With memory for few pairs: found out by halving, remembered, and an error where not even one fits."""
    options = Parameters(scales=1, warps=1, iterations=1)
    frames = np.tile(moving(128, 128), (3, 1, 1))
    pairs = np.stack([np.arange(8), np.arange(1, 9)], axis=1)
    method = cuda.create(options, "cuda")
    expected = method.run(frames, pairs)
    method = cuda.create(options, "cuda")
    method._memory = 1 << 40  # as if nobody else took any
    limit = ctypes.CDLL(None).emulated_limit
    limit.argtypes = (ctypes.c_size_t,)
    limit(emulated()["bytes"] + 9_000_000)
    found = method.run(frames, pairs)
    remembered = method.chunk_pairs(Size(128, 128))
    launches = emulated()["refused"]
    again = method.run(frames, pairs)
    result: dict[str, Any] = {
        "equal": bool((found == expected).all() and (again == expected).all()),
        "remembered": remembered,
        "refused": launches,
        "refused_again": emulated()["refused"] - launches,
    }
    del method
    gc.collect()
    limit(emulated()["bytes"] + 1000)
    small = cuda.create(options, "cuda")
    try:
        small.run(frames, pairs)
    except DeviceMemoryError as error:
        result["message"] = str(error)
    return result


def emulated() -> dict[str, int]:
    """Counts of the emulated driver."""
    text = ctypes.create_string_buffer(1000)
    ctypes.CDLL(None).emulated_counts(text, 1000)
    return dict(json.loads(text.value))


def leaks() -> dict[str, int]:
    """What is left on the device when a method is gone, after two sizes, both outputs and many counts of pairs."""
    quantiser = codec("default").quantiser
    options = Parameters(scales=1, warps=1, iterations=1)
    method = cuda.create(options, "cuda")
    frames = np.tile(moving(20, 24), (8, 1, 1))
    for count in range(1, 20):
        pairs = np.stack([np.arange(count), np.arange(1, count + 1)], axis=1)
        method.run(frames, pairs, "levels", quantiser)
    method.run(moving(66, 70), PAIRS)
    del method
    gc.collect()
    return emulated()


def graphs() -> dict[str, int]:
    """How many calls chunks of one size take once they have been recorded."""
    options = Parameters(scales=1, warps=2, iterations=9)
    method, frames, quantiser = cuda.create(options, "cuda"), moving(66, 70), codec("default").quantiser
    for _ in range(2):
        method.run(frames, PAIRS, "levels", quantiser)
    before = emulated()
    for _ in range(3):
        method.run(frames, PAIRS, "levels", quantiser)
    after = emulated()
    return {name: after[name] - before[name] for name in ("launches", "graph_launches")}


def attributes() -> dict[str, Any]:
    """What a worker reads off the method."""
    method = cuda.create(Parameters(), "cuda:0")
    return {"device": method.device, "count": method.device_count, "pairs": method.batch_pairs}


REFUSALS = {
    "nothing visible": {"CUDA_VISIBLE_DEVICES": ""},
    "old driver": {"EMULATED_DRIVER": "12080"},
    "mismatch": {"EMULATED_INIT": "803"},
    "full": {"EMULATED_CONTEXT": "2"},
    "exclusive": {"EMULATED_CONTEXT": "46"},
    "other code": {"EMULATED_LOAD": "222"},
    "no room": {"EMULATED_LOAD": "2"},
}
"""What a driver may answer before any work: variables of the emulated one (`driver.cpp`)."""


def refusals() -> dict[str, list[str]]:
    """The messages for each, and the device that "auto" takes."""
    found = {}
    for name, variables in REFUSALS.items():
        os.environ.update(variables)
        try:
            cuda.create(Parameters(), "cuda")
            found[name] = ["no error"]
        except InputError as error:
            found[name] = [str(error)]
        if name in ("nothing visible", "old driver", "mismatch"):
            found[name].append(load("tvl1", "auto").device)
        for variable in variables:
            del os.environ[variable]
    found["none"] = [cuda.create(Parameters(), "cuda").device]
    return found


CASES = {
    case.__name__: case
    for case in (stops, choices, refusals, levels, quantisers, resampling, repeatable, overlapping, not_finite,
                 out_of_memory, leaks, graphs, attributes)
}  # fmt: skip


def run_case(name: str) -> Any:
    """A case by its name: "tvl1 PRESET", "brox CASE" or one of `CASES`."""
    kind, _, rest = name.partition(" ")
    if kind == "tvl1":
        return tvl1(rest)
    return brox(rest) if kind == "brox" else CASES[name]()


if __name__ == "__main__":
    print(json.dumps({name: run_case(name) for name in sys.argv[1:]}))
