"""TV-L1 and Brox on the CPU against OpenCV's and scikit-image's TV-L1, as Markdown tables.

    python benchmarks/flow_cpu.py [--data DIR] [--pairs N]

Pairs are frames of real clips, scaled to 340x256. Methods take turns on each pair, on one thread, and times of one
thread are processor time, so that other work on the machine disturbs the ratios little. Threads are compared in
wall time.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numba
import numpy as np
import numpy.typing as npt

from extract_flow import methods
from extract_flow.tvl1 import cpu
from extract_flow.tvl1.parameters import PRESETS

Images = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 340, 256
OURS = (
    ("tvl1", "field"),
    ("tvl1", "default-1"),
    ("tvl1", "default"),
    ("tvl1", "accurate"),
    ("brox", "default"),
)
FLOWS = {
    "UCF-101": (2_469_975, "counted"),
    "HMDB-51": (6_766 * 93, "6,766 clips of some 94 frames"),
    "Kinetics-400": (306_245 * 249, "306,245 clips of 10 s at 25 frames/s"),
}


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(os.environ.get("TWO_STREAM_TEST_DATA", "../shared/data")) / "clips",
    help="Folder searched for clips (.avi) in ucf101/ and hmdb51/.",
)
@click.option("--pairs", default=4, show_default=True, help="Pairs of frames from each clip.")
@click.option(
    "--repeat", default=3, show_default=True, help="Repetitions of our methods; the fastest counts."
)
@click.option("--skip-scikit-image", is_flag=True, help="Leave out scikit-image, which takes seconds a pair.")
def main(data: Path, pairs: int, repeat: int, skip_scikit_image: bool) -> None:
    """Print the tables."""
    cv2.setNumThreads(1)
    print(
        f"{machine()}; numba {numba.__version__}, OpenCV {cv2.__version__}, Python {platform.python_version()}.\n"
    )
    frames = dict(clip_pairs(data, pairs))
    if not frames:
        raise click.ClickException(f"{data}: expected clips (.avi) in ucf101/ or hmdb51/, found none")
    seconds = speed(frames, repeat, skip_scikit_image)
    iteration()
    threads(next(iter(frames.values())))
    growth(next(iter(frames.values())))
    start_up()
    datasets(seconds)


def machine() -> str:
    """Processor and number of cores."""
    model = platform.processor() or platform.machine()
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        named = [line for line in processor.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":")[1].strip() if named else model
    return f"{model} ({numba.core.codegen.ll.get_host_cpu_name()}), {os.cpu_count()} cores"


def clip_pairs(folder: Path, count: int) -> Iterator[tuple[str, Images]]:
    """Name and uint8[2,H,W] of evenly spaced pairs of consecutive frames."""
    for path in sorted([*folder.glob("ucf101/*.avi"), *folder.glob("hmdb51/*.avi")]):
        video, frames = cv2.VideoCapture(str(path)), []
        while True:
            more, frame = video.read()
            if not more:
                break
            frames.append(cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (WIDTH, HEIGHT)))
        for first in np.linspace(2, len(frames) - 3, count).astype(int):
            yield f"{path.stem[:14]} {first}", np.stack(frames[first : first + 2])


def processor_time(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process, and what the call returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def speed(pairs: dict[str, Images], repeat: int, skip_scikit_image: bool) -> dict[str, float]:
    """The table of pairs; returns the mean seconds of each method."""
    opencv = cv2.optflow.createOptFlow_DualTVL1()
    ours = {f"{name} {preset}": methods.load(name, device="cpu", preset=preset) for name, preset in OURS}
    seconds: dict[str, list[float]] = {name: [] for name in ("OpenCV", "scikit-image", *ours)}
    print("## One pair, 340x256, one thread: ms, and times as fast as OpenCV's DualTVL1 at its defaults\n")
    print("| pair | mean flow, px | OpenCV | scikit-image | " + " | ".join(ours) + " |")
    print("|---" * (len(ours) + 4) + "|")
    for method in ours.values():
        method(next(iter(pairs.values())))
    for label, frames in pairs.items():
        seconds["OpenCV"].append(processor_time(partial(opencv.calc, frames[0], frames[1], None))[0])
        if not skip_scikit_image:
            from skimage.registration import optical_flow_tvl1

            seconds["scikit-image"].append(
                processor_time(partial(optical_flow_tvl1, frames[0], frames[1]))[0]
            )
        for name, method in ours.items():
            runs = [processor_time(partial(method, frames)) for _ in range(repeat)]
            seconds[name].append(min(run[0] for run in runs))
            if name == "tvl1 default":
                motion = float(np.hypot(*runs[0][1][0]).mean())
        latest = {name: values[-1] for name, values in seconds.items() if values}
        print(f"| {label} | {motion:.2f} | {row(latest)} |")
    ratios = {
        name: [a / b for a, b in zip(seconds["OpenCV"], values, strict=True)]
        for name, values in seconds.items()
        if values
    }
    for title, statistic in (("median", statistics.median), ("least", min), ("most", max)):
        print(
            f"| {title} | | "
            + " | ".join(f"{statistic(ratios[n]):.1f}x" if n in ratios else "" for n in seconds)
            + " |"
        )
    if seconds["scikit-image"]:
        against = {
            name: [a / b for a, b in zip(seconds["scikit-image"], seconds[name], strict=True)]
            for name in ours
        }
        listed = ", ".join(f"{name} {statistics.median(values):.0f}x" for name, values in against.items())
        print(f"\nTimes as fast as scikit-image, median over the pairs: {listed}.")
    print()
    return {name: statistics.mean(values) for name, values in seconds.items() if values}


def row(latest: dict[str, float]) -> str:
    """Times and ratios of one pair."""
    cells = [
        f"{1000 * latest['OpenCV']:.0f}",
        f"{1000 * latest['scikit-image']:.0f}" if "scikit-image" in latest else "",
    ]
    for name, value in latest.items():
        if name not in ("OpenCV", "scikit-image"):
            cells.append(f"{1000 * value:.1f} ({latest['OpenCV'] / value:.0f}x)")
    return " | ".join(cells)


def iteration() -> None:
    """Cost of the inner iteration per pixel, over sizes and iterations per sweep."""
    print("## One iteration, ns per pixel\n")
    print("| size | 1 a sweep | 5 a sweep | 1 a sweep, with edges |\n|---|---|---|---|")
    for width, height in ((85, 64), (170, 128), (340, 256), (680, 512), (1920, 1080)):
        level = cpu.layout(height, width)
        workspace = cpu.aligned(level.size * (cpu.STEPS + 1)).reshape(cpu.STEPS + 1, level.size)
        rng = np.random.default_rng(0)
        for plane in range(cpu.STEPS):
            cpu.pixels(workspace[plane], level)[:] = rng.normal(size=(height, width)) / 4
        workspace[cpu.STEPS] = 0.25 / 0.3
        rows = cpu.aligned(2 * level.pitch)
        rows[:width], rows[level.pitch :] = 1, 0.25 / 0.3
        cells, changes = [], np.zeros(5)
        for times, edges in ((1, False), (5, False), (1, True)):
            step = partial(cpu.iterate, workspace, level, np.float32(0.25), edges, rows, times, changes)
            best = min(processor_time(lambda step=step: [step() for _ in range(5)])[0] for _ in range(9))
            cells.append(f"{1e9 * best / (5 * times * width * height):.2f}")
        print(f"| {width}x{height} | " + " | ".join(cells) + " |")
    print()


def threads(frames: Images) -> None:
    """One thread against two on a batch of pairs, in wall time."""
    pairs = np.array([[0, 1], [1, 0]] * 16)
    one, two = (methods.load("tvl1", device="cpu", threads=count) for count in (1, 2))
    ratios, extra = [], []
    for _ in range(7):
        wall, processor = [], []
        for method in (one, two):
            start = time.perf_counter()
            processor.append(processor_time(partial(method.run, frames, pairs))[0])
            wall.append(time.perf_counter() - start)
        ratios.append(wall[0] / wall[1])
        extra.append(processor[1] / processor[0])
    print(
        f"Two threads, 32 pairs, default preset: {statistics.median(ratios[1:]):.2f} times as fast as one in wall time "
        f"(best {max(ratios[1:]):.2f}) at a load of {os.getloadavg()[0]:.1f}; they took "
        f"{statistics.median(extra[1:]):.2f} times the processor time of one.\n"
    )


def growth(frames: Images) -> None:
    """Time and memory over the image's area."""
    print("## Growth with the area, one thread\n")
    print("| size | " + " | ".join(f"{p}: ns per pixel | {p}: floats per pixel" for p in PRESETS) + " |")
    print("|---" * (2 * len(PRESETS) + 1) + "|")
    for width, height in ((170, 128), (340, 256), (680, 512), (1280, 720), (1920, 1080)):
        scaled = np.stack(
            [cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in frames]
        )
        cells = []
        for preset in PRESETS:
            method = methods.load("tvl1", device="cpu", preset=preset)
            tracemalloc.start()
            method(scaled)
            peak = tracemalloc.get_traced_memory()[1] - 8 * width * height  # the result is the caller's
            tracemalloc.stop()
            best = min(processor_time(partial(method, scaled))[0] for _ in range(3))
            cells += [f"{1e9 * best / (width * height):.0f}", f"{peak / 4 / (width * height):.1f}"]
        print(f"| {width}x{height} | " + " | ".join(cells) + " |")
    print()


def start_up() -> None:
    """Time of a new process until its first flow, compiled code being cached."""
    program = (
        "import numpy; from extract_flow import methods; "
        "methods.load('tvl1', device='cpu')(numpy.arange(8192, dtype=numpy.uint8).reshape(2, 64, 64))"
    )
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"Start-up to the first flow with cached code: {min(taken):.1f} s of processor time.\n")


def datasets(seconds: dict[str, float]) -> None:
    """Core-hours for whole datasets, from the mean time of a pair."""
    print("## Core-hours for the forward flow of a dataset at 340x256\n")
    print("| dataset | flows | " + " | ".join(seconds) + " |\n" + "|---" * (len(seconds) + 2) + "|")
    for name, (count, source) in FLOWS.items():
        cells = [f"{value * count / 3600:,.1f}" for value in seconds.values()]
        print(f"| {name} | {count:,} ({source}) | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
