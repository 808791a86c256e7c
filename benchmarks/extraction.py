"""Whole extraction, from video files to shards: pairs per second, milliseconds per stage, against a naive script.

    python benchmarks/extraction.py VIDEOS [--method dis] [--jobs N] [--rounds 3] [--done 10000]

Candidates alternate within one run; medians are reported, since the load of the machine changes with time. The naive
script is what people write first: cv2.VideoCapture, one pair after the other in one process, x and y and the frame as
three JPEG files of quality 95 in the literature's mapping.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

from extract_flow.extraction import Destination, extract
from extract_flow.methods import load, resolve
from extract_flow.options import Execution
from extract_flow.settings import ExtractionSettings
from extract_flow.sources import find_videos
from pipeline.machine import usable_cores
from pipeline.outcome import summarise
from pipeline.paths import OutputPaths

BOUND = 20.0


def naive(videos: list[Path], folder: Path, method: str) -> int:
    """Flow and frames of all videos as loose JPEG files; returns the number of pairs."""
    compute = load(method, device="cpu")
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    pairs = 0
    for number, path in enumerate(videos):
        target = folder / str(number)
        target.mkdir(parents=True)
        capture, before = cv2.VideoCapture(str(path)), None
        index = 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            scale = 256 / min(frame.shape[:2])
            frame = cv2.resize(frame, None, fx=scale, fy=scale)
            gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            cv2.imwrite(str(target / f"img_{index:05}.jpg"), frame, quality)
            if before is not None:
                flow = compute(np.stack([before, gray]))[0]
                levels = np.rint(np.clip((flow + BOUND) / (2 * BOUND), 0, 1) * 255).astype(np.uint8)
                for name, component in zip("xy", levels, strict=True):
                    cv2.imwrite(str(target / f"flow_{name}_{index:05}.jpg"), component, quality)
                pairs += 1
            before = gray
            index += 1
    return pairs


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.argument("videos", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--method", default="dis", show_default=True)
@click.option("--preset")
@click.option("--jobs", type=int, help="Cores for the parallel candidate [default: all usable ones].")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--overlap/--no-overlap", default=True, help="Also measure the stages overlapped in one process."
)
@click.option("--done", default=0, help="Also time a run over that many shards that are done.")
def main(
    videos: tuple[Path, ...],
    method: str,
    preset: str | None,
    jobs: int | None,
    rounds: int,
    overlap: bool,
    done: int,
) -> None:
    """Print a table of pairs per second, and of milliseconds per pair and stage."""
    from dataclasses import asdict

    jobs = jobs or usable_cores()
    settings = ExtractionSettings(method, asdict(resolve(method, preset)))
    scratch = Path(tempfile.mkdtemp(prefix="extraction-"))
    files = [task.path for task in find_videos(videos, OutputPaths(scratch))]
    stages: dict[str, list[dict[str, float]]] = {}
    sizes: dict[str, int] = {}

    def ours(name: str, how: Execution) -> Callable[[Path], int]:
        def measure(folder: Path) -> int:
            tasks = find_videos(videos, OutputPaths(folder))
            summary = summarise(
                extract(tasks, settings, how, Destination(folder, folder / "outcomes"), plain=True)
            )
            assert not summary.failed, summary.failed
            stages.setdefault(name, []).append(
                {k: 1e3 * v / summary.flows for k, v in summary.stages.items()}
            )
            return summary.flows

        return measure

    candidates: dict[str, Callable[[Path], int]] = {
        "naive script": lambda folder: naive(files, folder, method)
    }
    candidates["1 process"] = ours("1 process", Execution(device="cpu", jobs=1))
    if jobs > 1:
        candidates[f"{jobs} processes"] = ours(f"{jobs} processes", Execution(device="cpu", jobs=jobs))
    if overlap:
        candidates["overlapped, 1 process"] = ours(
            "overlapped, 1 process", Execution(device="cpu", jobs=jobs, overlap=True)
        )
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    try:
        for _ in range(rounds):
            for name, measure in candidates.items():
                folder = scratch / "out"
                before = time.perf_counter()
                pairs = measure(folder)
                rates[name].append(pairs / (time.perf_counter() - before))
                sizes[name] = folder_bytes(folder)
                shutil.rmtree(folder)
        print(f"{method}, {len(files)} videos, {pairs} pairs, flow and frames, medians of {rounds} rounds")
        print(f"{'':24}{'pairs/s':>9}{'x naive':>9}{'bytes/pair':>12}   milliseconds per pair and process")
        base = statistics.median(rates["naive script"])
        for name, values in rates.items():
            rate = statistics.median(values)
            parts = stages.get(name, [])
            text = ", ".join(
                f"{k} {statistics.median(p[k] for p in parts):.2f}" for k in (parts[0] if parts else ())
            )
            print(f"{name:24}{rate:9.1f}{rate / base:9.2f}{sizes[name] / pairs:12,.0f}   {text}")
        if done:
            print(
                f"a run over {done:,} shards that are done: {time_done(scratch, files[0], settings, jobs, done):.1f} s"
            )
    finally:
        shutil.rmtree(scratch)


def time_done(scratch: Path, video: Path, settings: ExtractionSettings, jobs: int, count: int) -> float:
    """Seconds of a run that finds all shards done."""
    (scratch / "in").mkdir()
    shutil.copy(video, scratch / f"in/0{video.suffix}")
    how = Execution(device="cpu", jobs=jobs)
    folder = scratch / "done"
    tasks = find_videos([scratch / "in"], OutputPaths(folder))
    extract(tasks, settings, how, Destination(folder, folder / "outcomes"), plain=True)
    for i in range(1, count):
        os.link(scratch / f"in/0{video.suffix}", scratch / f"in/{i}{video.suffix}")
        os.link(folder / "0.h5", folder / f"{i}.h5")
    before = time.perf_counter()
    outcomes = extract(
        find_videos([scratch / "in"], OutputPaths(folder)),
        settings,
        how,
        Destination(folder, folder / "outcomes"),
        plain=True,
    )
    assert all(outcome.status == "skipped" for outcome in outcomes)
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
