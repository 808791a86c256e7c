"""Everything that only an NVIDIA GPU can settle, in one command: correctness, speed against the model, peers, training.

    python benchmarks/gpu.py [--minutes 8] [--peer FOLDER] [--json FILE]
    python benchmarks/gpu.py --compile           registers and shared memory by ptxas, the model's predictions, no GPU
    python benchmarks/gpu.py --simulate          the correctness part on tiny images in numba's CUDA simulator, no GPU

Sections that lack something (PyAV, a peer, time) are left out with the reason. The table comes last. Exit status 1 if
there is no GPU or a result is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
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
MEAN_LIMIT, LEVEL_SHARE = 0.01, 0.99
PRESETS = {"tvl1": ("default", "field", "accurate"), "brox": ("default", "opencv")}
SIMULATED: dict[str, dict[str, Any]] = {
    "tvl1": {"warps": 1, "iterations": 3},
    "brox": {"warps": 1, "inner_iterations": 1, "solver_iterations": 2},
}
"""Options that leave little to do, for the simulator."""
FLOORS = {"tvl1": 1000, "brox": 500}
BATCHES = (1, 8, 32, 64, 128, 256)


class LeftOut(Exception):
    """A section cannot run; the message is the reason."""


@dataclasses.dataclass
class Report:
    """Rows of the table, (section, what, value, judgement), and whether a result is wrong."""

    rows: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    wrong: bool = False

    def add(self, section: str, what: str, value: str, good: bool | None = None, judgement: str = "") -> None:
        """Add a row; `good` False makes the run fail."""
        if good is not None:
            judgement = ("ok" if good else "WRONG") + (f" ({judgement})" if judgement else "")
            self.wrong |= not good
        self.rows.append((section, what, value, judgement))
        print(f"{section}: {what}: {value} {judgement}", flush=True)


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


def consecutive(count: int) -> npt.NDArray[np.int64]:
    """Forward and backward pairs of consecutive frames."""
    steps = np.arange(count - 1)
    forward = np.stack([steps, steps + 1], axis=1)
    return np.concatenate([forward, forward[:, ::-1]])


def correctness(report: Report, simulate: bool) -> None:
    """Flow and levels against the CPU solver, for every preset; results of two runs must be the same bits."""
    from extract_flow.methods import load, module
    from pipeline.codec import codec

    quantiser = codec("default").quantiser
    frames = moving_frames(3, 20, 21) if simulate else moving_frames(9, HEIGHT, WIDTH)
    pairs = np.array([[0, 1], [2, 1]]) if simulate else consecutive(len(frames))
    for name, presets in PRESETS.items():
        shorten = SIMULATED[name] if simulate else {}
        for preset in presets[:1] if simulate else presets:
            if preset not in module(name).PRESETS:
                continue
            cpu = load(name, "cpu", threads=os.cpu_count() or 1, preset=preset, **shorten)
            gpu = load(name, "cuda", preset=preset, **shorten)
            expected, found = cpu.run(frames, pairs), gpu.run(frames, pairs)
            mean = float(np.abs(found - expected).mean())
            report.add(
                "correctness", f"{name} {preset}: mean difference", f"{mean:.2e} px", mean <= MEAN_LIMIT
            )
            levels = gpu.run(frames, pairs, "levels", quantiser)
            equal = float((levels.levels == quantiser.quantise(expected).levels).mean())
            report.add(
                "correctness", f"{name} {preset}: equal levels", f"{100 * equal:.2f} %", equal >= LEVEL_SHARE
            )
            again = gpu.run(frames, pairs)
            report.add("correctness", f"{name} {preset}: repeatable", "", bool((again == found).all()))


def speed(report: Report) -> None:
    """Pairs per second for frames in memory, by batch size, with the device's memory; TV-L1 against the model."""
    from numba import cuda as numba_cuda

    from extract_flow.methods import load
    from pipeline.codec import codec

    quantiser = codec("default").quantiser
    for name in PRESETS:
        best = 0.0
        method = load(name, "cuda")
        for batch in sorted({*BATCHES, method.batch_pairs}):
            if batch > method.batch_pairs:
                continue
            frames = moving_frames(batch + 1, HEIGHT, WIDTH) if batch < 16 else clip(batch + 1)
            steps = np.arange(batch)
            pairs = np.stack([steps, steps + 1], axis=1)
            method.run(frames, pairs, "levels", quantiser)
            seconds = []
            while len(seconds) < 3 or (sum(seconds) < 2 and len(seconds) < 30):
                began = time.perf_counter()
                method.run(frames, pairs, "levels", quantiser)
                seconds.append(time.perf_counter() - began)
            rate = batch / float(np.median(seconds))
            best = max(best, rate)
            memory = numba_cuda.current_context().get_memory_info()
            used = (memory.total - memory.free) / 2**30
            report.add(
                "speed", f"{name} default, {batch} pairs at once", f"{rate:.0f} pairs/s, {used:.1f} GiB"
            )
        report.add(
            "speed", f"{name} default, best", f"{best:.0f} pairs/s", None, f"floor {FLOORS[name]} on an H200"
        )
        if name == "tvl1":
            against_model(report, best)
        else:
            brox_against_model(report, best)
        kernel_times(report, name)


def clip(count: int) -> npt.NDArray[np.uint8]:
    """A long clip from few rendered frames, played to and fro."""
    frames = moving_frames(16, HEIGHT, WIDTH)
    order = np.concatenate([np.arange(16), np.arange(14, 0, -1)])
    return frames[np.resize(order, count)]


def default_work() -> Any:
    """The work of a pair with the default preset, as the CPU solver counts it on rendered frames of 340x256.

    Levels that fit a block are taken to have as many iterations per pixel as the others.
    """
    from extract_flow.cuda import model
    from extract_flow.tvl1 import cuda, solver
    from extract_flow.tvl1.parameters import PRESETS

    parameters = PRESETS["default"]
    frames = moving_frames(4, HEIGHT, WIDTH)
    counting = solver.Solver(parameters, HEIGHT, WIDTH)
    flow = np.empty((2, HEIGHT, WIDTH), np.float32)
    for i in range(3):
        counting.solve(frames, i, i + 1, flow)
    iterations, warped = (float(value) / 3 for value in counting.work)
    blocks = cuda.geometry(model.H200.block_shared_bytes, False)
    variant = cuda.Variant(0, True, True, False, 1)
    areas = [level.height * level.width for level in counting.levels]
    fitting = [
        level.height * level.width
        for level in counting.levels
        if blocks.fits(level.height, level.width, variant)
    ]
    whole = iterations * sum(fitting) / sum(areas)
    return model.Work(iterations - whole, whole, warped, cuda.launches(parameters, blocks, HEIGHT, WIDTH))


def predicted(device: Any, batch: int = 128) -> tuple[float, float, str]:
    """Pairs/s of the default preset that a device and the host's launches allow, and what bounds the tiles."""
    from extract_flow.cuda import model
    from extract_flow.tvl1 import cuda

    work = default_work()
    blocks = cuda.geometry(device.block_shared_bytes, False)
    tiles = model.iterate(device, blocks.tile_width, blocks.tile_height, blocks.halo, 4, work.tiled)
    return *model.pairs_per_second(device, tiles, work, batch), tiles.bound


def against_model(report: Report, measured: float) -> None:
    """The measured rate over the model's for an H200."""
    from extract_flow.cuda import model

    on_device, on_host, bound = predicted(model.H200)
    limit = min(on_device, on_host)
    report.add(
        "model", f"tvl1 on an H200, tiles bound by {bound}", f"{on_device:.0f} pairs/s",
        None, f"launches allow {on_host:.0f}; measured {100 * measured / limit:.0f} % of the less",
    )  # fmt: skip


def brox_against_model(report: Report, measured: float) -> None:
    """The measured rate over the model's for an H200."""
    from extract_flow.brox import model as brox_model
    from extract_flow.brox.parameters import PRESETS
    from extract_flow.cuda import model

    kernels = brox_model.predict(model.H200, PRESETS["default"], HEIGHT, WIDTH)
    limit = brox_model.pairs_per_second(kernels)
    report.add(
        "model", f"brox on an H200, {kernels[0].kernel} bound by {kernels[0].bound}", f"{limit:.0f} pairs/s",
        None, f"measured {100 * measured / limit:.0f} %",
    )  # fmt: skip


def brox_compiled(report: Report) -> None:
    """As `compiled`, for Brox."""
    from extract_flow.brox import cuda
    from extract_flow.brox import model as brox_model
    from extract_flow.brox.parameters import PRESETS
    from extract_flow.cuda import model, ptx

    for device, capability in ((model.H200, (9, 0)), (model.A100, (8, 0)), (model.A10, (8, 6))):
        for name, kernel in cuda.kernels(device.block_shared_bytes).items():
            found = ptx.resources(kernel, capability)
            report.add(
                "kernels", f"brox, sm_{capability[0]}{capability[1]} {name}",
                f"{found.registers} registers, {found.spill_stores} spilled",
            )  # fmt: skip
    for device in (model.H200, model.H100, model.A100, model.A10):
        kernels = brox_model.predict(device, PRESETS["default"], HEIGHT, WIDTH)
        report.add(
            "prediction", f"brox default, {device.name}", f"{brox_model.pairs_per_second(kernels):.0f} pairs/s",
            None, f"{kernels[0].kernel} bound by {kernels[0].bound}; {sum(k.launches for k in kernels)} launches",
        )  # fmt: skip


def compiled(report: Report) -> None:
    """Registers, shared memory and spills of TV-L1's kernels by ptxas, and what the model predicts; no GPU needed."""
    from extract_flow.cuda import images, model, ptx, quantise
    from extract_flow.tvl1 import cuda

    work = default_work()
    report.add(
        "work", "default, 340x256", f"{(work.tiled + work.whole) / 1e6:.1f} M pixel-iterations",
        None, f"{100 * work.whole / (work.tiled + work.whole):.0f} % in whole-level blocks, {work.launches} launches",
    )  # fmt: skip
    for device, capability in ((model.H200, (9, 0)), (model.A100, (8, 0)), (model.A10, (8, 6))):
        for edges in (False, True):
            blocks = cuda.geometry(device.block_shared_bytes, edges)
            found = ptx.resources(cuda.make_iterate(edges, blocks), capability)
            shared = found.shared + blocks.tile_bytes
            resident = model.occupancy(device, blocks.threads, found.registers, shared)
            report.add(
                "tiles", f"sm_{capability[0]}{capability[1]}{' with edges' if edges else ''}, "
                f"{blocks.tile_width}x{blocks.tile_height}, halo {blocks.halo}, {blocks.threads} threads",
                f"{found.registers} registers, {shared} bytes shared, {found.spill_stores} spilled",
                None, f"{resident.blocks} blocks, {100 * resident.share:.0f} % of the threads",
            )  # fmt: skip
    plain = cuda.Variant(2, True, True, False, 1)
    others = (
        cuda.make_refine(plain, 512), cuda.make_warp(plain), cuda.make_linearise(plain), cuda.make_begin(False),
        cuda.make_decide(6), cuda.measure, cuda.take_flow, cuda.still, images.load_kernel, images.down_kernel,
        images.across_kernel, quantise.quantise_kernel,
    )  # fmt: skip
    for kernel in others:
        found = ptx.resources(kernel, (9, 0))
        report.add(
            "kernels", f"sm_90 {kernel.function.__name__.lstrip('_')}",
            f"{found.registers} registers, {found.shared} bytes static shared, {found.spill_stores} spilled",
        )  # fmt: skip
    for device in (model.H200, model.H100, model.A100, model.A10):
        on_device, on_host, bound = predicted(device)
        report.add(
            "prediction", f"tvl1 default, {device.name}", f"{on_device:.0f} pairs/s", None,
            f"tiles bound by {bound}; launches allow {on_host:.0f}",
        )  # fmt: skip


def kernel_times(report: Report, method_name: str) -> None:
    """Milliseconds of each of a method's kernels in one batch, by events around every launch."""
    from numba import cuda as numba_cuda

    from extract_flow.cuda.kernel import Kernel
    from extract_flow.methods import load

    method = load(method_name, "cuda")
    frames = clip(65)
    steps = np.arange(64)
    pairs = np.stack([steps, steps + 1], axis=1)
    method.run(frames, pairs)
    events: list[tuple[str, Any, Any]] = []
    plain = Kernel.launch

    def timed(self: Kernel, grid: Any, block: Any, stream: Any, *arguments: Any, shared: int = 0) -> None:
        begin, end = numba_cuda.event(), numba_cuda.event()
        begin.record(stream)
        plain(self, grid, block, stream, *arguments, shared=shared)
        end.record(stream)
        events.append((self.function.__name__, begin, end))

    try:
        Kernel.launch = timed  # type: ignore[method-assign]
        method.run(frames, pairs)
    finally:
        Kernel.launch = plain  # type: ignore[method-assign]
    numba_cuda.synchronize()
    totals: dict[str, list[float]] = {}
    for name, begin, end in events:
        totals.setdefault(name, []).append(begin.elapsed_time(end))
    whole = sum(map(sum, totals.values()))
    for name, times in sorted(totals.items(), key=lambda item: -sum(item[1])):
        share = 100 * sum(times) / whole
        report.add(
            "kernels", f"{method_name} {name}", f"{sum(times):.2f} ms in {len(times)} launches, {share:.0f} %"
        )


def extraction(report: Report, folder: Path) -> None:
    """Whole extraction from rendered video files to shards, against the rate of the kernels alone."""
    try:
        import av
    except ImportError as error:
        raise LeftOut(f"PyAV is missing ({error}): no video can be decoded") from error
    videos = folder / "videos"
    videos.mkdir()
    frames = clip(150)
    for number in range(24):
        with av.open(str(videos / f"clip{number:02}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.bit_rate = 2_000_000
            for image in frames:
                picture = np.repeat(np.roll(image, 3 * number, axis=1)[:, :, None], 3, axis=2)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    pairs = 24 * (len(frames) - 1)
    for name in PRESETS:
        output = folder / f"shards-{name}"
        command = [sys.executable, "-m", "extract_flow", str(videos), "--output", str(output),
                   "--method", name, "--device", "cuda"]  # fmt: skip
        began = time.perf_counter()
        finished = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False
        )
        seconds = time.perf_counter() - began
        if finished.returncode != 0:
            report.add("extraction", name, finished.stderr.strip()[-200:], False)
            continue
        print(finished.stdout[-2000:])
        report.add(
            "extraction", f"{name}, start-up included", f"{pairs / seconds:.0f} pairs/s in {seconds:.1f} s"
        )


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
    """cnn_m_2048 on stacks of 10 flows, batches of 256: from memory, and fed by 16 threads from shards."""
    import torch
    import torch.nn.functional as F

    from pipeline.shard import open_shard
    from pipeline.shard_index import index_shards
    from train.batches import Item, TrainingReader
    from train.models import build
    from train.recipe import load_recipe

    if not torch.cuda.is_available():
        raise LeftOut("torch sees no GPU")
    network = build("cnn_m_2048", 20, 101, dropout=0.9).cuda()
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(network(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    inputs, labels = torch.randn(256, 20, 224, 224, device="cuda"), torch.randint(101, (256,), device="cuda")
    from_memory = rate(lambda: step(inputs, labels), 256, torch.cuda.synchronize)
    report.add("training", "from memory", f"{from_memory:.0f} samples/s")
    network.eval()

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            network(inputs)

    scored = rate(forward, 256, torch.cuda.synchronize)
    report.add("scoring", "from memory", f"{scored:.0f} views/s")
    addresses = (
        list(index_shards(folder / "shards-tvl1").values()) if (folder / "shards-tvl1").exists() else []
    )
    if not addresses:
        raise LeftOut("no shards from the extraction to read: only the rates from memory were measured")
    recipe = load_recipe("temporal-stack10")
    from evaluate.inference import Compute, view_outputs
    from evaluate.views import Views
    from train.device_feed import DeviceFeed
    from train.loader import loading

    spec = recipe_spec(recipe)
    items = [Item(open_shard(address), i % 101, 0, "") for i, address in enumerate(addresses)]
    reader = TrainingReader(items, spec, recipe)
    keys = [[(iteration, index) for index in range(256)] for iteration in range(60)]
    network.train()
    cuda = torch.device("cuda")
    feed = DeviceFeed(spec, cuda)
    with loading(reader, keys, 16, cuda) as batches:
        for _ in range(8):
            next(batches)
        began = time.perf_counter()
        for batch in batches:
            samples = feed(batch)
            step(samples.inputs.flatten(0, 1), samples.label)
    torch.cuda.synchronize()
    fed = 256 * 52 / (time.perf_counter() - began)
    report.add(
        "training",
        "fed by 16 threads",
        f"{fed:.0f} samples/s",
        None,
        f"{100 * fed / from_memory:.0f} % of memory",
    )
    network.eval()

    def logits(views: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs: torch.Tensor = network(torch.cat(views))
        return outputs

    began = time.perf_counter()
    done = sum(1 for _ in view_outputs(logits, spec, addresses, Views(), Compute("cuda", workers=16)))
    views = 250 * done / (time.perf_counter() - began)
    report.add(
        "scoring",
        "25 x 10 views, fed by 16 threads",
        f"{views:.0f} views/s",
        None,
        f"{100 * views / scored:.0f} % of memory",
    )


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
    while time.perf_counter() - began < 5:
        for _ in range(5):
            call()
        wait()
        count += 5
    return items * count / (time.perf_counter() - began)


def section(report: Report, name: str, run: Callable[[], None], end: float) -> None:
    """Run a section; what it lacks, or a failure, costs that section only."""
    if time.monotonic() > end:
        report.add(name, "left out", "", None, "no time left")
        return
    began = time.monotonic()
    try:
        run()
    except LeftOut as reason:
        report.add(name, "left out", "", None, str(reason))
    except Exception as error:  # noqa: BLE001  the other sections are still worth their minutes
        report.add(name, type(error).__name__, str(error)[:300], False)
    print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="sections that would begin later are left out (default: 8)"
    )
    parser.add_argument(
        "--peer", type=Path, metavar="FOLDER", help="what benchmarks/opencv_cuda_peer.py prepared"
    )
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument(
        "--simulate", action="store_true", help="only the correctness part, tiny, without a GPU"
    )
    parser.add_argument(
        "--compile", action="store_true", help="ptxas and the model's predictions, without a GPU"
    )
    options = parser.parse_args()
    report = Report()
    if options.compile:
        compiled(report)
        brox_compiled(report)
        return finish(report, options.json)
    if options.simulate:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        correctness(report, simulate=True)
        return finish(report, options.json)
    try:
        from numba import cuda as numba_cuda

        from extract_flow.cuda.device import available
    except ImportError as error:
        print(f"error: numba-cuda cannot be loaded ({error}): pip install -e .[cuda]", file=sys.stderr)
        return 1
    if not available():
        print(
            "error: no usable NVIDIA GPU is visible: nothing was measured (--simulate checks the kernels without one)",
            file=sys.stderr,
        )
        return 1
    end = time.monotonic() + 60 * options.minutes
    gpu = numba_cuda.get_current_device()
    report.add(
        "device",
        gpu.name.decode() if isinstance(gpu.name, bytes) else str(gpu.name),
        f"{os.cpu_count()} CPU cores",
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        section(report, "correctness", lambda: correctness(report, simulate=False), end)
        section(report, "speed", lambda: speed(report), end)
        section(report, "extraction", lambda: extraction(report, folder), end)
        section(report, "peers", lambda: peers(report, options.peer), end)
        section(report, "training", lambda: training(report, folder), end)
    return finish(report, options.json)


def finish(report: Report, file: Path | None) -> int:
    """Print the table, and write it where asked; the exit status."""
    widths = [max(len(row[i]) for row in report.rows) for i in range(3)]
    print()
    for row in report.rows:
        print(
            "  ".join(
                [*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]
            ).rstrip()
        )
    if file is not None:
        file.write_text(json.dumps(report.rows, indent=1) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
