"""Everything that only an NVIDIA GPU can settle: correctness, the kernels one by one, speed, extraction, training.

    python benchmarks/gpu.py [--only SECTION ...] [--json FILE] [--peer FOLDER]
    compute-sanitizer --tool memcheck python benchmarks/gpu.py --small

Sections, in this order: device, correctness, kernels, speed, extraction, peers, training. Each ends after four minutes
at the latest, and after each the table so far is written to the JSON file. `--small` is the correctness section on
small frames, for compute-sanitizer. Sections that lack something (PyAV, a peer) are left out with the reason. Exit
status 1 if there is no GPU or a result is wrong; rates do not decide it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_frames
import numpy as np
import numpy.typing as npt
from gpu_frames import clip, consecutive, moving_frames, waves
from gpu_pipeline import extraction, peers, training
from gpu_report import SECTION_SECONDS, Report, rate, section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SECTIONS = ("device", "correctness", "kernels", "speed", "extraction", "peers", "training")
PRESETS = {"tvl1": ("default", "field", "accurate"), "brox": ("default", "opencv")}
SIZES = ((256, 340), (341, 255), (85, 64), (5, 300), (1, 1), (1080, 1920))
SMALL_SIZES = ((85, 64), (67, 131), (1, 1))
MEAN_LIMIT = 1e-4
"""Largest mean difference from the CPU in pixels, where the problem allows it."""
NUDGED = {"tvl1": ("lambda_",), "brox": ("alpha", "gamma")}
NUDGE, ALLOWED = 1e-6, 4
"""Where the difference is larger: how the CPU's own flow moves if one of these parameters is larger by this share.
Rounding acts like a small change of them, so up to this many times that much is the problem's doing, not the GPU's."""
AIMS = {"tvl1": 5000, "brox": 3000}
"""Pairs per second of the default presets at 340x256 on an H200."""
BATCHES = (1, 8, 32, 128)
MOST_PAIRS, PAIRS_OF_BATCHES = 128, 300
"""Pairs at once where time is taken; pairs that are computed at once and in batches."""
SMALL_BATCHES = (67, 71, 20)
"""Height, width and number of the latter with `--small`."""
HELD_BYTES = 1 << 30
"""Memory that is cleared while launches are queued."""


def device(report: Report) -> None:
    """The card with its clocks and limits, and every version that matters."""
    from cuda.bindings import driver, nvrtc

    from extract_flow.cuda.device import Device, checked

    card = Device(0)
    version = checked(driver.cuDriverGetVersion())
    report.add("device", "card", card.name, None, f"sm_{card.capability[0]}{card.capability[1]}")
    report.add("device", "CUDA of the driver", f"{version // 1000}.{version % 1000 // 10}")
    report.add("device", "NVRTC", ".".join(map(str, nvrtc.nvrtcVersion()[1:])))
    report.add("device", "memory", f"{bandwidth():.0f} GB/s by its clock and bus")
    report.add(
        "device", "host", f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )
    for name in ("numpy", "torch", "av", "cuda.bindings"):
        try:
            module = __import__(name, fromlist=["__version__"])
            report.add("device", name, str(getattr(module, "__version__", "unknown version")))
        except ImportError as error:
            report.add("device", name, "missing", None, str(error))
    if shutil.which("nvidia-smi"):
        query = (
            "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"
        )
        printed = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        report.add("device", query, (printed.stdout or printed.stderr).strip())


def bandwidth() -> float:
    """GB/s of the device memory, from its clock and bus; 0 where the driver reports no clock."""
    from cuda.bindings import driver

    kinds = driver.CUdevice_attribute
    clock, bits = (
        driver.cuDeviceGetAttribute(kind, 0)[1]
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, kinds.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH
        )
    )  # fmt: skip
    return 2 * clock * 1e3 * bits / 8 / 1e9


# --- correctness -------------------------------------------------------------------------------------------------


def correctness(report: Report, small: bool) -> None:
    """Every preset and size against the CPU solver, levels against `Quantiser.quantise`, the same bits in any batch."""
    from extract_flow.methods import load

    for name, presets in PRESETS.items():
        for preset in presets:
            cpu = load(name, "cpu", threads=os.cpu_count() or 1, preset=preset)
            gpu = load(name, "cuda", preset=preset)
            for height, width in SMALL_SIZES if small else SIZES:
                if height > 1000 and preset != "default":
                    continue
                frames = waves(2 if height > 1000 else 5, height, width)
                compare(report, f"{name} {preset} {width}x{height}", cpu, gpu, frames, (name, preset))
    same_by_tiles(report, small)
    batches(report, small)


def same_by_tiles(report: Report, small: bool) -> None:
    """TV-L1 by clusters of blocks against tiles: the same bits. Where the device has no clusters, that is reported."""
    from extract_flow.tvl1 import cuda
    from extract_flow.tvl1.parameters import PRESETS as TVL1_PRESETS

    for preset in PRESETS["tvl1"]:
        ways = [cuda.create(TVL1_PRESETS[preset], "cuda", clusters) for clusters in (True, False)]
        for height, width in SMALL_SIZES if small else SIZES:
            what = f"tvl1 {preset} {width}x{height}: by clusters and by tiles"
            if not clusters_of(ways[0], height, width):
                report.add("correctness", what, "no clusters for this size on this device")
                continue
            frames = moving_frames(5, height, width)
            flows = [way.run(frames, consecutive(len(frames))) for way in ways]
            apart = np.abs(flows[0] - flows[1])
            equal = bool((flows[0] == flows[1]).all())
            report.add(
                "correctness",
                what,
                "the same bits" if equal else f"DIFFERENT, by up to {apart.max():.1e} px",
                equal,
            )


def clusters_of(method: Any, height: int, width: int) -> list[str]:
    """The clusters that a TV-L1 method uses for frames of a size, from fine levels to coarse, as "16 x 24 warps"."""
    from extract_flow.cuda.images import Size

    solver = method.make(method.kernels, Size(height, width), 1, 1)
    return [f"{each.blocks} x {each.threads // 32} warps" for each in solver.clusters if each]


def compare(
    report: Report, what: str, cpu: Any, gpu: Any, frames: npt.NDArray[np.uint8], key: tuple[str, str]
) -> None:
    """One preset on one size; where it is wrong, which options already make it so."""
    from pipeline.codec import PRESETS as CODECS
    from pipeline.codec import codec

    pairs = consecutive(len(frames))
    expected, found = cpu.run(frames, pairs), gpu.run(frames, pairs)
    apart = np.hypot(*np.moveaxis(found - expected, 1, 0))
    worst = int(apart.mean(axis=(1, 2)).argmax())
    good, own = bool(np.isfinite(found).all()) and float(apart.mean()) <= MEAN_LIMIT, ""
    if not good:
        moved = sensitivity(key, frames, pairs, expected)
        good = bool(np.isfinite(found).all()) and float(apart.mean()) <= ALLOWED * moved
        own = f"; the CPU's own flow moves by {moved:.1e} px for {NUDGE:g} of a parameter"
    report.add(
        "correctness", what,
        f"mean {apart.mean():.1e} px, 99.9 % within {np.quantile(apart, 0.999):.1e}, most {apart.max():.1e}", good,
        f"worst pair {pairs[worst].tolist()}: mean {apart[worst].mean():.1e}; "
        f"{int((~np.isfinite(found)).sum())} NaN{own}",
    )  # fmt: skip
    quantisers = [codec(name).quantiser for name in CODECS]
    equal = all(same(gpu.run(frames, pairs, "levels", q), q.quantise(found)) for q in quantisers)
    report.add("correctness", f"{what}: levels of every codec", "those of the flow, bit for bit", equal)
    if not good:
        bisect(report, what, key, frames, pairs)


def sensitivity(
    key: tuple[str, str],
    frames: npt.NDArray[np.uint8],
    pairs: npt.NDArray[np.int64],
    expected: npt.NDArray[np.float32],
) -> float:
    """Mean distance in pixels by which the CPU's flow moves for a tiny change of a parameter, the largest of a few."""
    from extract_flow.methods import load

    name, preset = key
    moved = []
    for parameter in NUDGED[name]:
        value = load(name, "cpu", preset=preset).parameters[parameter]
        other = load(
            name, "cpu", threads=os.cpu_count() or 1, preset=preset, **{parameter: value * (1 + NUDGE)}
        )
        moved.append(float(np.hypot(*np.moveaxis(other.run(frames, pairs) - expected, 1, 0)).mean()))
    return max(moved)


def same(found: Any, expected: Any) -> bool:
    """Whether two `Quantised` are equal bit by bit."""
    return all(
        np.array_equal(getattr(found, field.name), getattr(expected, field.name))
        for field in dataclasses.fields(expected)
    )


LESS: dict[str, tuple[dict[str, Any], ...]] = {
    "tvl1": (
        {"scales": 1, "warps": 1, "iterations": 1}, {"scales": 1, "warps": 1, "iterations": 4},
        {"scales": 1, "warps": 1, "iterations": 5}, {"scales": 1, "warps": 2, "iterations": 5},
        {"scales": 2, "warps": 1, "iterations": 5}, {"warps": 1, "iterations": 5},
    ),
    "brox": (
        {"outer_iterations": 1, "warps": 1, "inner_iterations": 1, "solver_iterations": 1},
        {"outer_iterations": 1, "warps": 1, "inner_iterations": 1}, {"outer_iterations": 1, "warps": 1},
        {"outer_iterations": 2, "warps": 1}, {"warps": 1},
    ),
}  # fmt: skip
"""Options that leave less and less out, to see what goes wrong first."""


def bisect(
    report: Report,
    what: str,
    key: tuple[str, str],
    frames: npt.NDArray[np.uint8],
    pairs: npt.NDArray[np.int64],
) -> None:
    """The largest difference, and where, with the options of `LESS`."""
    from extract_flow.methods import load

    name, preset = key
    for options in LESS[name]:
        flows = [load(name, kind, preset=preset, **options).run(frames, pairs) for kind in ("cpu", "cuda")]
        apart = np.abs(flows[0] - flows[1])
        place = tuple(map(int, np.unravel_index(int(apart.argmax()), apart.shape)))
        report.add(
            "correctness", f"{what} {options}", f"most {apart.max():.1e} px at pair, plane, y, x {place}"
        )


def batches(report: Report, small: bool) -> None:
    """300 pairs at once against batches of 1 and of 16, and a second run: the same bits."""
    from extract_flow.methods import load

    height, width, count = SMALL_BATCHES if small else (gpu_frames.HEIGHT, gpu_frames.WIDTH, PAIRS_OF_BATCHES)
    frames = moving_frames(18, height, width)
    every = np.array([(a, b) for a in range(18) for b in range(18) if a != b])[:count]
    step = max(1, len(every) // 20)
    for name in PRESETS:
        method = load(name, "cuda")
        whole = method.run(frames, every)
        alone = np.concatenate([method.run(frames, pair[None]) for pair in every[::step]])
        parts = np.concatenate([method.run(frames, every[i : i + 16]) for i in range(0, len(every), 16)])
        again = method.run(frames, every)
        good = bool((alone == whole[::step]).all() and (parts == whole).all() and (again == whole).all())
        report.add(
            "correctness", f"{name}: {len(every)} pairs; in batches of 1 and 16; again", "the same bits", good
        )


# --- speed -------------------------------------------------------------------------------------------------------

OPERATIONS = {"iterate": 45, "relax": 26}
"""Floating-point operations per pixel of an iteration of TV-L1 (docs/explanation/tvl1.md) and of a sweep of Brox."""
PLANES_MOVED = {
    "iterate": 17, "iterate_cluster": 17, "warp_and_linearise": 15, "take_flow": 4, "relax": 11, "make_equations": 17,
    "linearise": 22,
}  # fmt: skip
"""Planes of float32 that a kernel reads and writes for each pair at least: without halos and repeated reads."""


def kernels(report: Report) -> None:
    """Milliseconds of each kernel for a full chunk, between events on a stream that the host has filled beforehand."""
    from extract_flow.cuda.device import Stream, upload
    from extract_flow.cuda.images import Size

    for name, method in ways_to_compute():
        pairs, stream = min(method.batch_pairs, MOST_PAIRS), Stream()
        solver = method.make(method.kernels, Size(gpu_frames.HEIGHT, gpu_frames.WIDTH), pairs + 1, pairs)
        frames = upload(clip(pairs + 1))
        first, second = (upload(np.arange(pairs, dtype=np.int32) + side) for side in (0, 1))
        solve = partial(solver.solve, frames, pairs + 1, first, second, pairs, stream)
        solve()
        stream.wait()
        times = timed_launches(method.kernels, stream, solve)
        whole = sum(map(sum, times.values()))
        report.add(
            "kernels", f"{name}: {pairs} pairs", f"{whole:.2f} ms on the device", None,
            f"{1000 * pairs / whole:.0f} pairs/s if nothing else takes time",
        )  # fmt: skip
        for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1])):
            report.add(
                "kernels", f"{name} {kernel}", f"{sum(each):.2f} ms in {len(each)} launches", None,
                f"{100 * sum(each) / whole:.0f} %, longest {max(each):.3f} ms{traffic(kernel, each, solver, pairs)}",
            )  # fmt: skip


def ways_to_compute() -> Iterator[tuple[str, Any]]:
    """Every method as it is used; TV-L1 also by tiles alone, where clusters of blocks take part."""
    from extract_flow.methods import load
    from extract_flow.tvl1 import cuda
    from extract_flow.tvl1.parameters import Parameters

    for name in PRESETS:
        method: Any = load(name, "cuda")
        yield name, method
        if name == "tvl1" and clusters_of(method, gpu_frames.HEIGHT, gpu_frames.WIDTH):
            yield "tvl1 by tiles", cuda.create(Parameters(), "cuda", clusters=False)


def traffic(kernel: str, times: list[float], solver: Any, pairs: int) -> str:
    """GB/s and GFLOP/s of a kernel's longest launch, one of the finest level, and their shares of the limits."""
    if kernel not in PLANES_MOVED:
        return ""
    height, width = solver.sizes[0][:2]
    moved = 4 * PLANES_MOVED[kernel] * solver.sizes[0].area * pairs / max(times) / 1e6
    found = [f"at least {moved:.0f} GB/s{share_of(moved, bandwidth(), 'memory')}"]
    if kernel in OPERATIONS:
        computed = OPERATIONS[kernel] * rounds(kernel, solver) * height * width * pairs / max(times) / 1e6
        found.append(f"{computed:.0f} GFLOP/s{share_of(computed, arithmetic(), 'arithmetic')} without halos")
    return f", in it {' and '.join(found)}"


def share_of(found: float, limit: float, what: str) -> str:
    """In words, the share of a limit; nothing where the limit is unknown."""
    return f" ({100 * found / limit:.0f} % of the {what}'s)" if limit else ""


def rounds(kernel: str, solver: Any) -> int:
    """Iterations or sweeps of a launch that does most."""
    if kernel == "iterate":
        from extract_flow.tvl1.cuda.solver import HALO

        return HALO
    from extract_flow.brox.cuda.solver import launches_of

    return max(launches_of(solver.parameters.solver_iterations))


def arithmetic() -> float:
    """GFLOP/s in float32, a multiplication with an addition counted as two; 0 where the driver reports no clock."""
    from cuda.bindings import driver

    from extract_flow.cuda.device import Device

    kinds = driver.CUdevice_attribute
    clock, processors = (
        driver.cuDeviceGetAttribute(kind, 0)[1]
        for kind in (kinds.CU_DEVICE_ATTRIBUTE_CLOCK_RATE, kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    )
    lanes = 64 if Device(0).capability in ((7, 0), (7, 2), (7, 5), (8, 0)) else 128
    return 2 * lanes * processors * clock / 1e6


def timed_launches(loaded: Any, stream: Any, run: Callable[[], Any]) -> dict[str, list[float]]:
    """Milliseconds of every launch by kernel. Long memsets hold the stream until the host has queued everything."""
    from cuda.bindings import driver

    from extract_flow.cuda.device import Buffer, checked

    events: list[tuple[str, Any, Any]] = []

    def timed(plain: Any, name: str, *arguments: Any) -> None:
        begin, end = (checked(driver.cuEventCreate(0)) for _ in range(2))
        checked(driver.cuEventRecord(begin, stream.handle))
        plain(name, *arguments)
        checked(driver.cuEventRecord(end, stream.handle))
        events.append((name, begin, end))

    held = Buffer(HELD_BYTES)
    try:
        loaded.launch, loaded.launch_clusters = (
            partial(timed, plain) for plain in (loaded.launch, loaded.launch_clusters)
        )
        for _ in range(150):
            stream.clear(held, held.size)
        run()
    finally:
        del loaded.launch, loaded.launch_clusters
    stream.wait()
    times: dict[str, list[float]] = {}
    for name, begin, end in events:
        times.setdefault(name, []).append(float(checked(driver.cuEventElapsedTime(begin, end))))
        driver.cuEventDestroy(begin)
        driver.cuEventDestroy(end)
    return times


def speed(report: Report) -> None:
    """Pairs per second for frames in memory, by batch size; then with the next batch handed over ahead."""
    from extract_flow.cuda.device import Device
    from pipeline.codec import codec

    quantiser, card = codec("default").quantiser, Device(0)
    for name, method in ways_to_compute():
        aim = AIMS[name.split()[0]]
        before = card.free_memory()
        most = min(method.batch_pairs, MOST_PAIRS)
        for batch in sorted({*(b for b in BATCHES if b <= most), most}):
            work = partial(method.run, clip(batch + 1), consecutive(batch + 1)[:batch], "levels", quantiser)
            report.add(
                "speed", f"{name}, {batch} pairs at once", f"{rate(work, batch, lambda: None):.0f} pairs/s"
            )
        begin = partial(method.begin, clip(most + 1), consecutive(most + 1)[:most], quantiser)
        pending = [begin()]

        def ahead(begin: Any = begin, pending: Any = pending) -> None:
            pending.append(begin())
            pending.pop(0)()

        used, began = time.process_time(), time.perf_counter()
        found = rate(ahead, most, lambda: None)
        host = (time.process_time() - used) / (time.perf_counter() - began)
        pending.pop(0)()
        aimed = f"aim {aim}" if "H200" in card.name else f"aim {aim} on an H200, which this is not"
        report.add(
            "speed", f"{name}, {most} pairs, the next handed over ahead", f"{found:.0f} pairs/s", None, aimed
        )
        memory = (before - card.free_memory()) / 2**30
        report.add(
            "speed",
            f"{name}, host and memory",
            f"{1000 * host / found:.3f} ms of CPU a pair, {memory:.1f} GiB",
        )


def main() -> int:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=SECTIONS,
        help="sections to run, after that of the device",
    )
    parser.add_argument(
        "--peer", type=Path, metavar="FOLDER", help="what benchmarks/opencv_cuda_peer.py prepared"
    )
    parser.add_argument("--json", type=Path, help="also write the table here, after each section")
    parser.add_argument("--small", action="store_true", help="device and correctness, on small frames")
    options = parser.parse_args()
    try:
        from extract_flow.cuda.device import available
    except ImportError as error:
        print(f"error: the CUDA bindings cannot be loaded ({error}): pip install -e .[cuda]", file=sys.stderr)
        return 1
    if not available():
        print("error: no usable NVIDIA GPU is visible: nothing was measured", file=sys.stderr)
        return 1
    report = Report(options.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs: dict[str, Callable[[], None]] = {
            "device": partial(device, report),
            "correctness": partial(correctness, report, options.small),
            "kernels": partial(kernels, report),
            "speed": partial(speed, report),
            "extraction": partial(extraction, report, folder),
            "peers": partial(peers, report, options.peer),
            "training": partial(training, report, folder),
        }
        for name in ("device", "correctness") if options.small else SECTIONS:
            if name in options.only or name == "device":  # no figure without the card and the versions
                section(report, name, runs[name], 0 if options.small else SECTION_SECONDS)
    widths = [max(len(row[i]) for row in report.rows) for i in range(3)]
    print()
    for row in report.rows:
        print("  ".join([*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
