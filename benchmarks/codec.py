"""Bytes and error of every codec preset beside the field's standard, on real clips: a table and a picture.

The field's standard is what denseflow and its kin write: round(255 (v + 20) / 40) of x and of y as two JPEGs of
quality 95.
Error is the mean distance of decoded flow vectors to the flow before coding, clipped to +-20 pixels.

    python benchmarks/codec.py [--data DIR] [--pairs 16] [--picture docs/images/codec-rate-distortion.png]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from extract_flow.methods import load
from pipeline.codec import PRESETS, Codec, codec, dequantise
from pipeline.export import field_levels
from pipeline.video import VideoReader

PROJECT = Path(__file__).resolve().parent.parent
CLIPS = ("ucf101/*.avi", "hmdb51/*.avi")
BOUND = 20
QUALITIES = (30, 50, 60, 75, 82, 88, 92, 95, 98)
Flow = npt.NDArray[np.float32]


@dataclass
class Result:
    """One setting over all fields: bytes and errors in pixels per pair, decoding in milliseconds."""

    name: str
    bytes: float
    error: float
    p99: float
    fast: float
    decode: float


def real_flow(folder: Path, pairs: int, method: str, preset: str) -> list[Flow]:
    """Flow float32[2,H,W] of pairs spread evenly over each real clip, smaller side 256."""
    solver = load(method, device="cpu", preset=preset)
    fields: list[Flow] = []
    for path in sorted(path for pattern in CLIPS for path in folder.glob(pattern)):
        with VideoReader(path) as reader:
            frames = reader.read(10**4).gray
        first = np.unique(np.linspace(0, len(frames) - 2, pairs).astype(int))
        for i in first:
            fields.append(solver.run(frames[i : i + 2], np.array([[0, 1]]))[0])
    return fields


def measure(name: str, fields: list[Flow], encode: Callable, decode: Callable) -> Result:
    """Encode and decode every field."""
    sizes, errors, fast, seconds = [], [], [], []
    for flow in fields:
        clipped = np.clip(flow, -BOUND, BOUND)
        streams = encode(flow)
        started = time.perf_counter()
        read = decode(streams, flow.shape[1], flow.shape[2])
        seconds.append(time.perf_counter() - started)
        distance = np.hypot(*(read - clipped))
        sizes.append(sum(len(stream) for stream in streams[0]))
        errors.append(distance.ravel())
        fast.append(distance[np.hypot(*clipped) > 5])
    every = np.concatenate(errors)
    quick = np.concatenate(fast)
    return Result(
        name,
        float(np.mean(sizes)),
        float(every.mean()),
        float(np.percentile(every, 99)),
        float(quick.mean()) if quick.size else float("nan"),
        float(np.median(seconds) * 1e3),
    )


def with_codec(coding: Codec) -> tuple[Callable, Callable]:
    """Encoding and decoding by a codec of the project."""

    def encode(flow: Flow) -> tuple:
        quantised = coding.quantiser.quantise(flow[None])
        return [coding.encode(quantised.levels[0])], quantised.scale, quantised.offset

    def decode(coded: tuple, height: int, width: int) -> Flow:
        streams, scale, offset = coded
        levels = coding.decode(streams[0], height, width)
        return dequantise(levels[None], coding.quantiser.table, scale, offset)[0]

    return encode, decode


def as_the_field(quality: int) -> tuple[Callable, Callable]:
    """Two JPEGs by OpenCV, as the field's extractors write and its training code reads them."""

    def encode(flow: Flow) -> tuple:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return ([cv2.imencode(".jpg", plane, options)[1].tobytes() for plane in field_levels(flow, BOUND)],)

    def decode(coded: tuple, height: int, width: int) -> Flow:
        planes = [cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE) for stream in coded[0]]
        return np.stack(planes).astype(np.float32) * np.float32(2 * BOUND / 255) - np.float32(BOUND)

    return encode, decode


def draw(curves: dict[str, list[Result]], path: Path) -> None:
    """Rate-distortion curves, one per family."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, results in curves.items():
        marker = "o" if len(results) > 1 else "s"
        axes.plot(
            [r.bytes for r in results], [r.error for r in results], marker=marker, markersize=4, label=name
        )
    axes.set(xscale="log", xlabel="bytes per pair", ylabel="mean error in pixels", ylim=(0, None))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with clips/; else $TWO_STREAM_TEST_DATA."
)
@click.option("--pairs", type=click.IntRange(1), default=16, show_default=True, help="From each clip.")
@click.option("--method", default="tvl1", show_default=True, help="Flow method.")
@click.option("--preset", default="default", show_default=True, help="Preset of the flow method.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Save the curves here.")
def main(data: Path | None, pairs: int, method: str, preset: str, picture: Path | None) -> None:
    """Compare the codec with the field's standard on real clips."""
    folder = data or Path(os.environ.get("TWO_STREAM_TEST_DATA", PROJECT.parent / "shared" / "data"))
    fields = real_flow(folder / "clips", pairs, method, preset)
    if not fields:
        raise click.ClickException(f"no clips under {folder / 'clips'}: set TWO_STREAM_TEST_DATA")
    speed = np.concatenate([np.hypot(*flow).ravel() for flow in fields])
    click.echo(
        f"{len(fields)} {method} fields; {np.mean(speed < 0.05):.0%} of pixels below 0.05 px, "
        f"{np.mean(speed > 5):.1%} above 5 px, {np.mean(speed > BOUND):.2%} above {BOUND} px\n"
    )
    field = [measure(f"field's way, quality {q}", fields, *as_the_field(q)) for q in (50, 75, 90, 95)]
    presets = {preset: measure(preset, fields, *with_codec(codec(preset))) for preset in PRESETS}
    standard = field[-1]
    click.echo("| setting | bytes/pair | of standard | error px | of standard | p99 | > 5 px | decode ms |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for result in [*field[1:], *presets.values()]:
        click.echo(
            f"| {result.name} | {result.bytes:,.0f} | {result.bytes / standard.bytes:.1%} | {result.error:.4f} | "
            f"{result.error / standard.error:.1%} | {result.p99:.3f} | {result.fast:.3f} | {result.decode:.3f} |"
        )
    if picture is not None:
        curves = {"field's way: two JPEGs": field}
        for preset, label in (("default", "asinh s=3"), ("high-fidelity", "asinh s=2"), ("linear", "linear")):
            settings = [codec(preset, quality=quality) for quality in QUALITIES]
            curves[f"{label}, flat table"] = [
                measure(label, fields, *with_codec(coding)) for coding in settings
            ]
        curves["paper"] = [presets["paper"]]
        curves["lossless"] = [presets["lossless"]]
        draw(curves, picture)
        click.echo(f"\n{picture}")


if __name__ == "__main__":
    main()
