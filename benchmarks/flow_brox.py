"""Brox on the CPU: parity with OpenCV's CUDA result, error on Middlebury, and speed against DIS, as Markdown tables.

    python benchmarks/flow_brox.py [--data DIR] > docs/performance/brox.md

Every time is a median over interleaved repetitions in one process, so that drifts of the machine's speed cancel in the
ratios. CPU time is that of all threads together and is the fairer figure on a machine that others use too. One pair at
a time on one thread unless the table says otherwise; frames are prepared again for every pair.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import cv2
import numpy as np
import numpy.typing as npt

from extract_flow import methods

Images = npt.NDArray[np.uint8]
PRESETS = ("opencv", "default", "accurate")


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(os.environ.get("TWO_STREAM_TEST_DATA", "../shared/data")),
    help="Folder with flow/brox_gold and flow/middlebury.",
)
@click.option("--repeat", default=7, show_default=True, help="Repetitions of each timing.")
def main(data: Path, repeat: int) -> None:
    """Print the tables."""
    cv2.setNumThreads(1)
    print("# Brox on the CPU\n")
    print(
        f"{machine()}, numpy {np.__version__}, OpenCV {cv2.__version__}. Made by `benchmarks/flow_brox.py`.\n"
    )
    parity(data / "flow" / "brox_gold")
    middlebury(data / "flow" / "middlebury")
    speed(data / "flow" / "brox_gold", repeat)
    threads(data / "flow" / "brox_gold", repeat)
    growth(data / "flow" / "brox_gold", max(3, repeat // 2))


def machine() -> str:
    """Processor and number of cores, as the tables name them."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def gray(path: Path) -> Images:
    """An image file as gray uint8."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise click.ClickException(f"{path}: expected an image; give the data folder with --data")
    return image


def end_point(flow: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """End-point difference in pixels where the truth is known."""
    known = (np.abs(truth) < 1e9).all(axis=0)
    return np.hypot(*(flow - truth))[known]


def parity(folder: Path) -> None:
    """Preset opencv against OpenCV's two stored results."""
    frames = np.stack([gray(folder / "frame0.png"), gray(folder / "frame1.png")])
    flow = methods.load("brox", device="cpu", preset="opencv")(frames)[0]
    print("## Parity with OpenCV's CUDA code\n")
    print("Preset `opencv` against the results stored in OpenCV's test data, in pixels.\n")
    print(
        "| stored result | mean difference | 99th percentile | 1 - correlation of u | of v |\n|---|---|---|---|---|"
    )
    stored = {}
    for name in ("brox_optical_flow", "brox_optical_flow_cc20"):
        path = folder / f"{name}.bin"
        rows, columns = np.fromfile(path, np.int32, 2)
        stored[name] = np.fromfile(path, np.float32, offset=8).reshape(2, rows, columns)
        row(name, flow, stored[name])
    row("the two stored results with each other", *stored.values())
    print()


def row(name: str, flow: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
    """One line of the parity table."""
    difference = np.hypot(*(flow - other))
    correlation = [1 - np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(flow, other, strict=True)]
    print(
        f"| {name} | {difference.mean():.4f} | {np.percentile(difference, 99):.3f} "
        f"| {correlation[0]:.1e} | {correlation[1]:.1e} |"
    )


def middlebury(folder: Path) -> None:
    """Mean end-point error of every preset on the training pairs that are there."""
    pairs = sorted(path for path in folder.iterdir() if path.is_dir())
    print("## Mean end-point error on Middlebury\n")
    print("In pixels. Preset `opencv` is what OpenCV's CUDA code gives.\n")
    print("| preset | " + " | ".join(path.name for path in pairs) + " | mean |")
    print("|---" * (len(pairs) + 2) + "|")
    for preset in PRESETS:
        method = methods.load("brox", device="cpu", preset=preset)
        errors = []
        for path in pairs:
            width, height = np.fromfile(path / "flow10.flo", np.int32, 2, offset=4)
            truth = np.fromfile(path / "flow10.flo", np.float32, offset=12).reshape(height, width, 2)
            frames = np.stack([gray(path / "frame10.png"), gray(path / "frame11.png")])
            errors.append(float(end_point(method(frames)[0], truth.transpose(2, 0, 1)).mean()))
        print(f"| {preset} | " + " | ".join(f"{e:.3f}" for e in [*errors, statistics.mean(errors)]) + " |")
    print()


class Seconds(NamedTuple):
    """Median of what a call took."""

    wall: float
    cpu: float


def interleaved(candidates: dict[str, Callable[[], object]], repeat: int) -> dict[str, Seconds]:
    """Median times of each candidate; each is called once first (compilation, buffers)."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(repeat):
        for name, call in candidates.items():
            start = Seconds(time.perf_counter(), time.process_time())
            call()
            end = Seconds(time.perf_counter(), time.process_time())
            seconds[name].append(Seconds(end.wall - start.wall, end.cpu - start.cpu))
    return {
        name: Seconds(*map(statistics.median, zip(*values, strict=True))) for name, values in seconds.items()
    }


def resized(folder: Path, width: int, height: int) -> Images:
    """The two frames of the parity test at another size."""
    frames = [gray(folder / name) for name in ("frame0.png", "frame1.png")]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def speed(folder: Path, repeat: int) -> None:
    """Time of a pair of 340x256 against DIS medium."""
    frames = resized(folder, 340, 256)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    candidates: dict[str, Callable[[], object]] = {
        "cv2 DIS, medium": lambda: dis.calc(frames[0], frames[1], None)
    }
    for preset in PRESETS:
        method = methods.load("brox", device="cpu", preset=preset)
        candidates[f"brox, {preset}"] = lambda method=method: method(frames)  # type: ignore[misc]
    seconds = interleaved(candidates, repeat)
    print("## Time of one pair, 340x256, one thread\n")
    print("| method | ms | CPU ms | times DIS medium | in CPU time |\n|---|---|---|---|---|")
    dis_seconds = seconds["cv2 DIS, medium"]
    for name, (wall, cpu) in seconds.items():
        ratios = f"{wall / dis_seconds.wall:.1f} | {cpu / dis_seconds.cpu:.1f}"
        print(f"| {name} | {1000 * wall:.0f} | {1000 * cpu:.0f} | {ratios} |")
    print()


def threads(folder: Path, repeat: int) -> None:
    """A clip of 17 frames on one and on two threads."""
    clip = np.concatenate([resized(folder, 340, 256)] * 9)[:17]
    counts = [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    loaded = {count: methods.load("brox", device="cpu", threads=count) for count in counts}
    candidates = {str(count): (lambda method=method: method(clip)) for count, method in loaded.items()}
    seconds = interleaved(candidates, repeat)
    print("## Threads: 16 pairs of 340x256, default\n")
    print("| threads | pairs/s | speed-up | CPU ms per pair |\n|---|---|---|---|")
    for name, (wall, cpu) in seconds.items():
        print(f"| {name} | {16 / wall:.1f} | {seconds['1'].wall / wall:.2f} | {1000 * cpu / 16:.1f} |")
    print()


def growth(folder: Path, repeat: int) -> None:
    """Time and memory per pixel over the image's size."""
    print("## Growth with the image, default, one thread\n")
    print("| size | ms | CPU ns per pixel | floats per pixel of the solver |\n|---|---|---|---|")
    for width, height in ((340, 256), (680, 512), (1280, 720), (1920, 1080)):
        frames = resized(folder, width, height)
        method = methods.load("brox", device="cpu")
        seconds = interleaved({"brox": lambda method=method, frames=frames: method(frames)}, repeat)["brox"]  # type: ignore[misc]
        tracemalloc.start()
        methods.load("brox", device="cpu")(frames)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        pixels = width * height
        per_pixel = f"{1e9 * seconds.cpu / pixels:.0f} | {peak / pixels / 4:.0f}"
        print(f"| {width}x{height} | {1000 * seconds.wall:.0f} | {per_pixel} |")


if __name__ == "__main__":
    main()
