"""Everything that only an NVIDIA GPU can settle: correctness, the kernels one by one, speed, extraction, training.

    python benchmarks/gpu.py [--only SECTION ...] [--json FILE] [--peer FOLDER]
    compute-sanitizer --tool memcheck python benchmarks/gpu.py --small

Sections, in this order: device, correctness, kernels, speed, extraction, peers, training. Each is meant to take under
four minutes, and after each the table so far is written to the JSON file. `--small` is the correctness section on small
frames, for compute-sanitizer. Sections that lack something (PyAV, a peer) are left out with the reason. Exit status 1
if there is no GPU or a result is wrong; rates do not decide it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

HEIGHT, WIDTH = 256, 340
SECTIONS = ("device", "correctness", "kernels", "speed", "extraction", "peers", "training")
PRESETS = {"tvl1": ("default", "field", "accurate"), "brox": ("default", "opencv")}
SIZES = ((256, 340), (341, 255), (85, 64), (5, 300), (1, 1), (1080, 1920))
SMALL_SIZES = ((85, 64), (67, 131), (1, 1))
MEAN_LIMITS = {("brox", "opencv"): 0.02}
"""Largest mean difference from the CPU in pixels, 1e-4 unless named: relaxation 1.99 amplifies rounding."""
AIMS = {"tvl1": 5000, "brox": 3000}
"""Pairs per second of the default presets at 340x256 on an H200."""
BATCHES = (1, 8, 32, 128)
FRAMES_OF_A_CLIP, CLIPS = 2000, 24
MOST_PAIRS, PAIRS_OF_BATCHES = 128, 300
"""Pairs at once where time is taken; pairs that are computed at once and in batches."""
SECONDS, HELD_BYTES = 5.0, 1 << 30
"""For how long a rate is taken; the memory that is cleared while launches are queued."""


class LeftOut(Exception):
    """A section cannot run; the message is the reason."""


@dataclasses.dataclass
class Report:
    """Rows of the table, (section, what, value, judgement), and whether a result is wrong."""

    file: Path | None = None
    rows: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    wrong: bool = False

    def add(self, section: str, what: str, value: str, good: bool | None = None, judgement: str = "") -> None:
        """Add a row; `good` False makes the run fail."""
        if good is not None:
            judgement = ("ok" if good else "WRONG") + (f" ({judgement})" if judgement else "")
            self.wrong |= not good
        self.rows.append((section, what, value, judgement))
        print(f"{section}: {what}: {value} {judgement}", flush=True)

    def write(self) -> None:
        """Write the rows so far to the file, if there is one."""
        if self.file is not None:
            self.file.write_text(json.dumps(self.rows, indent=1) + "\n")


def moving_frames(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Textured, slightly noisy frames: the background drifts slowly, a third of the image moves by 5 pixels a frame."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    generator = np.random.default_rng(0)
    waves = generator.uniform(0.03, 0.9, (12, 2)) * generator.choice([-1, 1], (12, 2))
    phases = generator.uniform(0, 6.28, 12)

    def texture(dx: float, dy: float) -> npt.NDArray[np.float32]:
        total = np.zeros((height, width), np.float32)
        for (across, down), phase in zip(waves, phases, strict=True):
            total += np.sin(across * (x - dx) + down * (y - dy) + phase)
        return total

    frames = []
    for i in range(count):
        image = texture(0.7 * i, -0.4 * i)
        left, top = width // 5 + 5.0 * i, height // 4 + 1.2 * i
        inside = (x > left) & (x < left + width / 3) & (y > top) & (y < top + height / 3)
        image = np.where(inside, texture(5.0 * i + 50, 1.2 * i + 20), image)
        noise = generator.normal(0, 4, image.shape)
        frames.append(np.clip(128 + 22 * image + noise, 0, 255).astype(np.uint8))
    return np.stack(frames)


def waves(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth frames that move by (1, 0.6) pixels each. On small, noisy ones rounding decides what a pixel matches."""
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for i in range(count):
        right, down = x - i, y - 0.6 * i
        frames.append(128 + 55 * np.sin(right / 2.3 + down / 4.1) + 55 * np.cos(down / 2.7 - right / 5.3))
    return np.stack(frames).astype(np.uint8)


def consecutive(count: int) -> npt.NDArray[np.int64]:
    """Forward and backward pairs of consecutive frames."""
    steps = np.arange(count - 1)
    forward = np.stack([steps, steps + 1], axis=1)
    return np.concatenate([forward, forward[:, ::-1]])


def clip(count: int) -> npt.NDArray[np.uint8]:
    """A long clip from few rendered frames, played to and fro."""
    frames = moving_frames(16, HEIGHT, WIDTH)
    order = np.concatenate([np.arange(16), np.arange(14, 0, -1)])
    return frames[np.resize(order, count)]


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
    batches(report, small)


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
    good = bool(np.isfinite(found).all()) and float(apart.mean()) <= MEAN_LIMITS.get(key, 1e-4)
    report.add(
        "correctness", what,
        f"mean {apart.mean():.1e} px, 99.9 % within {np.quantile(apart, 0.999):.1e}, most {apart.max():.1e}", good,
        f"worst pair {pairs[worst].tolist()}: mean {apart[worst].mean():.1e}; {int((~np.isfinite(found)).sum())} NaN",
    )  # fmt: skip
    quantisers = [codec(name).quantiser for name in CODECS]
    equal = all(same(gpu.run(frames, pairs, "levels", q), q.quantise(found)) for q in quantisers)
    report.add("correctness", f"{what}: levels of every codec", "those of the flow, bit for bit", equal)
    if not good:
        bisect(report, what, key, frames, pairs)


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

    frames = moving_frames(18, *((67, 71) if small else (HEIGHT, WIDTH)))
    every = np.array([(a, b) for a in range(18) for b in range(18) if a != b])[
        : 20 if small else PAIRS_OF_BATCHES
    ]
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
    "iterate": 17, "warp_and_linearise": 15, "take_flow": 4, "relax": 11, "make_equations": 17, "linearise": 22
}  # fmt: skip
"""Planes of float32 that a kernel reads and writes for each pair at least: without halos and repeated reads."""


def kernels(report: Report) -> None:
    """Milliseconds of each kernel for a full chunk, between events on a stream that the host has filled beforehand."""
    from extract_flow.cuda.device import Stream, upload
    from extract_flow.cuda.images import Size
    from extract_flow.methods import load

    for name in PRESETS:
        method: Any = load(name, "cuda")
        pairs, stream = min(method.batch_pairs, MOST_PAIRS), Stream()
        solver = method.make(method.kernels, Size(HEIGHT, WIDTH), pairs + 1, pairs)
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
    plain = loaded.launch

    def timed(name: str, *arguments: Any) -> None:
        begin, end = (checked(driver.cuEventCreate(0)) for _ in range(2))
        checked(driver.cuEventRecord(begin, stream.handle))
        plain(name, *arguments)
        checked(driver.cuEventRecord(end, stream.handle))
        events.append((name, begin, end))

    held = Buffer(HELD_BYTES)
    try:
        loaded.launch = timed
        for _ in range(150):
            stream.clear(held, held.size)
        run()
    finally:
        del loaded.launch
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
    from extract_flow.methods import load
    from pipeline.codec import codec

    quantiser, card = codec("default").quantiser, Device(0)
    for name, aim in AIMS.items():
        before = card.free_memory()
        method = load(name, "cuda")
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


# --- extraction --------------------------------------------------------------------------------------------------


def extraction(report: Report, folder: Path) -> None:
    """From video files to shards with 1, 2 and 4 processes for the GPU, with and without frames: the steady rate."""
    videos = rendered_videos(folder)
    runs = [("tvl1", 1, True), ("tvl1", 2, True), ("tvl1", 4, True), ("tvl1", 4, False), ("brox", 4, True)]
    for name, processes, rgb in runs:
        output = folder / f"shards-{name}-{processes}{'' if rgb else '-flow'}"
        command = [sys.executable, "-m", "extract_flow", str(videos), "--output", str(output), "--method", name,
                   "--device", "cuda:0", "--processes", str(processes), *([] if rgb else ["--no-rgb"])]  # fmt: skip
        began = time.time()
        finished = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False
        )
        what = f"{name}, {processes} processes{'' if rgb else ', flow only'}"
        if finished.returncode != 0:
            report.add("extraction", what, finished.stderr.strip()[-300:], False)
            continue
        ends = sorted(path.stat().st_mtime for path in output.glob("*.h5"))
        from_here = len(ends) // 4  # when every process has long been at work
        steady = (len(ends) - 1 - from_here) * (FRAMES_OF_A_CLIP - 1) / max(1e-9, ends[-1] - ends[from_here])
        printed = (finished.stderr + finished.stdout).splitlines()
        said = [
            line for line in printed if line.startswith(("GPU busy", "computing")) or "starting took" in line
        ]
        report.add(
            "extraction", what, f"{steady:.0f} pairs/s once it runs", None,
            f"first shard after {ends[0] - began:.1f} s; {'; '.join(said)}",
        )  # fmt: skip


def rendered_videos(folder: Path) -> Path:
    """A folder of `CLIPS` copies of a clip of `FRAMES_OF_A_CLIP` frames."""
    try:
        import av
    except ImportError as error:
        raise LeftOut(f"PyAV is missing ({error}): no video can be decoded") from error
    videos = folder / "videos"
    videos.mkdir()
    with av.open(str(videos / "clip00.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 2_000_000
        for image in clip(FRAMES_OF_A_CLIP):
            picture = np.repeat(image[:, :, None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for number in range(1, CLIPS):
        shutil.copy(videos / "clip00.mp4", videos / f"clip{number:02}.mp4")
    return videos


def peers(report: Report, folder: Path | None) -> None:
    """OpenCV's CUDA flow, if a folder with it was given."""
    if folder is None:
        raise LeftOut("no --peer FOLDER (benchmarks/opencv_cuda_peer.py prepare makes one)")
    sys.path.insert(0, str(PROJECT / "benchmarks"))
    import opencv_cuda_peer

    from extract_flow.methods import load

    frames = moving_frames(9, HEIGHT, WIDTH)
    pairs = consecutive(len(frames))[: len(frames) - 1]  # forward only, as the peer is given them
    for name, preset in (("tvl1", "field"), ("brox", "opencv")):
        try:
            measured = opencv_cuda_peer.measure(folder, frames[:-1], frames[1:], name, timeout_s=60)
        except opencv_cuda_peer.PeerError as error:
            raise LeftOut(str(error)) from error
        seconds = float(np.median(measured.seconds))
        report.add(
            "peers", f"OpenCV {measured.opencv} CUDA {name}, a pair at a time", f"{1 / seconds:.1f} pairs/s"
        )
        ours = load(name, "cuda", preset=preset)
        apart = np.hypot(*(ours.run(frames, pairs) - measured.flow).transpose(1, 0, 2, 3))
        many = np.tile(frames, (16, 1, 1))
        every = np.concatenate([pairs + len(frames) * i for i in range(16)])
        for label, work_frames, work in (
            ("a pair at a time", frames[:2], pairs[:1]),
            ("batched", many, every),
        ):
            speed_of = rate(partial(ours.run, work_frames, work), len(work), lambda: None)
            report.add(
                "peers",
                f"ours, {name} {preset}, {label}",
                f"{speed_of:.1f} pairs/s",
                None,
                f"{apart.mean():.4f} px from OpenCV's",
            )


def training(report: Report, folder: Path) -> None:
    """cnn_m_2048 and resnet50 on stacks of 10 flows: from memory, and fed from shards; how long they wait for data."""
    import torch
    import torch.nn.functional as F

    from pipeline.shard_index import index_shards
    from train.models import build
    from train.recipe import load_recipe

    if not torch.cuda.is_available():
        raise LeftOut("torch sees no GPU")
    shards = next(iter(sorted(folder.glob("shards-tvl1*"))), None)
    addresses = list(index_shards(shards).values()) if shards else []
    recipe = load_recipe("temporal-stack10")
    for model, batch in (("cnn_m_2048", 256), ("resnet50", 64)):
        network = build(model, 20, 101, dropout=0.5).cuda()
        optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        inputs = torch.randn(batch, 20, 224, 224, device="cuda")
        labels = torch.randint(101, (batch,), device="cuda")

        def step(inputs: Any, labels: Any, network: Any = network, optimiser: Any = optimiser) -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = F.cross_entropy(network(inputs), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        def forward(inputs: Any = inputs, network: Any = network) -> None:
            with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
                network(inputs)

        from_memory = rate(partial(step, inputs, labels), batch, torch.cuda.synchronize)
        report.add("training", f"{model}, batches of {batch} from memory", f"{from_memory:.0f} samples/s")
        if addresses:
            fed(report, model, batch, step, recipe, addresses, from_memory)
        network.eval()
        scored = rate(forward, batch, torch.cuda.synchronize)
        report.add("training", f"{model}, scoring from memory", f"{scored:.0f} views/s")
        if addresses:
            fed_scoring(report, model, network, recipe_spec(recipe), addresses, scored)
    if not addresses:
        raise LeftOut(
            "no shards from the extraction section to read: only the rates from memory were measured"
        )


def fed(
    report: Report, model: str, batch: int, step: Callable[[Any, Any], None], recipe: Any, addresses: list[Any],
    from_memory: float,
) -> None:  # fmt: skip
    """Samples per second with a loader, and the share of the time in which the network waits for it."""
    import torch

    from pipeline.shard import open_shard
    from train.batches import Item, TrainingReader
    from train.device_feed import DeviceFeed
    from train.loader import loading

    spec, workers, iterations = recipe_spec(recipe), os.cpu_count() or 1, 40
    items = [Item(open_shard(address), i % 101, 0, "") for i, address in enumerate(addresses)]
    keys = [[(iteration, index) for index in range(batch)] for iteration in range(iterations + 8)]
    device, waited = torch.device("cuda"), 0.0
    feed = DeviceFeed(spec, device)
    with loading(TrainingReader(items, spec, recipe), keys, workers, device) as batches:
        for _ in range(8):
            next(batches)
        began = time.perf_counter()
        for _ in range(iterations):
            before = time.perf_counter()
            read = next(batches)
            waited += time.perf_counter() - before
            samples = feed(read)
            step(samples.inputs.flatten(0, 1), samples.label)
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    found, bound = batch * iterations / seconds, "loader" if waited > 0.1 * seconds else "network"
    report.add(
        "training", f"{model}, fed by {workers} workers", f"{found:.0f} samples/s", None,
        f"{100 * found / from_memory:.0f} % of memory; {100 * waited / seconds:.0f} % of the time without a batch: "
        f"bound by the {bound}",
    )  # fmt: skip


def fed_scoring(
    report: Report, model: str, network: Any, spec: Any, addresses: list[Any], from_memory: float
) -> None:
    """Views per second of whole videos, decoded by as many workers as there are cores."""
    import torch

    from evaluate.inference import Compute, view_outputs
    from evaluate.views import Views

    def logits(crops: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs: torch.Tensor = network(torch.cat(crops))
        return outputs

    workers = os.cpu_count() or 1
    began = time.perf_counter()
    done = sum(1 for _ in view_outputs(logits, spec, addresses, Views(), Compute("cuda", workers=workers)))
    views = 250 * done / (time.perf_counter() - began)
    report.add(
        "training", f"{model}, scoring 25 x 10 views fed by {workers} workers", f"{views:.0f} views/s", None,
        f"{100 * views / from_memory:.0f} % of memory",
    )  # fmt: skip


def recipe_spec(recipe: Any) -> Any:
    """The input volumes of a temporal recipe."""
    from train.volume import VolumeSpec

    shared = {field.name for field in dataclasses.fields(VolumeSpec)} & {
        f.name for f in dataclasses.fields(recipe)
    }
    return VolumeSpec(**{name: getattr(recipe, name) for name in shared} | {"stream": "temporal"})


def rate(call: Callable[[], None], items: int, wait: Callable[[], None]) -> float:
    """Items per second of a call, after a warm-up."""
    for _ in range(5):
        call()
    wait()
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < SECONDS:
        for _ in range(5):
            call()
        wait()
        count += 5
    return items * count / (time.perf_counter() - began)


def section(report: Report, name: str, run: Callable[[], None]) -> None:
    """Run a section; what it lacks, or a failure, costs that section only."""
    began = time.monotonic()
    try:
        run()
    except LeftOut as reason:
        report.add(name, "left out", "", None, str(reason))
    except Exception as error:  # noqa: BLE001  the other sections are still worth their minutes
        report.add(name, type(error).__name__, str(error)[:300], False)
    report.write()
    print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run")
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
            if name in options.only:
                section(report, name, runs[name])
    widths = [max(len(row[i]) for row in report.rows) for i in range(3)]
    print()
    for row in report.rows:
        print("  ".join([*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
