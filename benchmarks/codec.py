"""Bytes and error of every codec preset beside the field's standard, on real clips: a table and a picture.

The field's standard is what denseflow and its kin write: round(255 (v + 20) / 40) of x and of y as two JPEGs of
quality 95.
Error is the mean distance of decoded flow vectors to the flow before coding, in pixels. Each set of fields has a table:
pairs of neighbouring frames, pairs of frames further apart, and pans, for which a constant vector of 25 to 80 pixels is
added to the fields of the first set. Pairs across a cut are left out, since there is no motion to find.

    python benchmarks/codec.py [--data DIR] [--pairs 16] [--step 1 --step 4 --step 8]
                               [--picture docs/images/codec-rate-distortion.png]
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import cv2
import numpy as np
import numpy.typing as npt

from extract_flow.flow_method import FlowMethod
from extract_flow.methods import load
from pipeline.codec import PRESETS, Codec, codec, dequantise
from pipeline.export import field_levels
from pipeline.video import VideoReader

PROJECT = Path(__file__).resolve().parent.parent
CLIPS = ("ucf101/*.avi", "hmdb51/*.avi")
BOUND = 20
QUALITIES = (30, 50, 60, 75, 82, 88, 92, 95, 98)
CUT = 30
"""Mean difference of two frames' gray values from which they belong to different scenes."""
PANS = 36
Flow = npt.NDArray[np.float32]


@dataclass
class Result:
    """One setting over all fields.

    Attributes:
        bytes: per pair.
        error, p99, fast: mean error, its 99th percentile, and its mean on pixels faster than 5 px.
        clipped: the largest fraction of a field's pixels beyond the range.
        flips: of the components that differ from their field's mean by over a pixel, the fraction that lies on the
            other side of it once decoded.
        decode: median milliseconds per pair.
    """

    name: str
    bytes: float
    error: float
    p99: float
    fast: float
    clipped: float
    flips: float
    decode: float


class Coded(NamedTuple):
    """One coded field: its streams, the fraction of clipped pixels, and what else reading takes."""

    streams: list[bytes]
    clipped: float
    scale: Flow | None = None
    offset: Flow | None = None


def real_flow(folder: Path, pairs: int, solver: FlowMethod, step: int) -> list[Flow]:
    """Flow float32[2,H,W] of pairs of frames `step` apart, spread evenly over each real clip, smaller side 256."""
    fields: list[Flow] = []
    for path in sorted(path for pattern in CLIPS for path in folder.glob(pattern)):
        with VideoReader(path) as reader:
            frames = reader.read(10**4).gray
        change = np.array([cv2.norm(*two, cv2.NORM_L1) / two[0].size for two in itertools.pairwise(frames)])
        for i in np.unique(np.linspace(0, len(frames) - 1 - step, pairs).astype(int)):
            if change[i : i + step].max() < CUT:
                fields.append(solver.run(frames[[i, i + step]], np.array([[0, 1]]))[0])
    return fields


def panned(fields: list[Flow]) -> list[Flow]:
    """Fields as a camera would see them that pans by 25 to 80 pixels, in all directions."""
    chosen = [fields[i * len(fields) // PANS] for i in range(PANS)]
    speeds = 25 + 55 * (np.arange(PANS) % 12) / 11
    angles = 2 * np.pi * np.arange(PANS) / PANS
    pans = np.stack([speeds * np.cos(angles), speeds * np.sin(angles)], axis=1).astype(np.float32)
    return [field + pan[:, None, None] for field, pan in zip(chosen, pans, strict=True)]


def measure(name: str, fields: list[Flow], encode: Callable, decode: Callable) -> Result:
    """Encode and decode every field."""
    sizes, errors, fast, clipped, flipped, seconds = [], [], [], [], [], []
    for flow in fields:
        coded = encode(flow)
        started = time.perf_counter()
        read = decode(coded, flow.shape[1], flow.shape[2])
        seconds.append(time.perf_counter() - started)
        distance = np.hypot(*(read - flow))
        sizes.append(sum(len(stream) for stream in coded.streams))
        errors.append(distance.ravel())
        fast.append(distance[np.hypot(*flow) > 5])
        clipped.append(coded.clipped)
        mean = flow.mean(axis=(1, 2), dtype=np.float64, keepdims=True)
        flipped.append(((flow > mean) != (read > mean))[np.abs(flow - mean) > 1])
    every, quick, flips = (np.concatenate(parts) for parts in (errors, fast, flipped))
    return Result(
        name,
        float(np.mean(sizes)),
        float(every.mean()),
        float(np.percentile(every, 99)),
        float(quick.mean()) if quick.size else float("nan"),
        max(clipped),
        float(flips.mean()) if flips.size else float("nan"),
        float(np.median(seconds) * 1e3),
    )


def with_codec(coding: Codec) -> tuple[Callable, Callable]:
    """Encoding and decoding by a codec of the project."""

    def encode(flow: Flow) -> Coded:
        quantised = coding.quantiser.quantise(flow[None])
        stream = coding.encode(quantised.levels[0])
        return Coded([stream], float(quantised.clipped[0]), quantised.scale, quantised.offset)

    def decode(coded: Coded, height: int, width: int) -> Flow:
        levels = coding.decode(coded.streams[0], height, width)
        return dequantise(levels[None], coding.quantiser.table, coded.scale, coded.offset)[0]

    return encode, decode


def as_the_field(quality: int) -> tuple[Callable, Callable]:
    """Two JPEGs by OpenCV, as the field's extractors write and its training code reads them."""

    def encode(flow: Flow) -> Coded:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        planes = field_levels(flow, BOUND)
        streams = [cv2.imencode(".jpg", plane, options)[1].tobytes() for plane in planes]
        return Coded(streams, float((np.abs(flow) > BOUND).any(axis=0).mean()))

    def decode(coded: Coded, height: int, width: int) -> Flow:
        planes = [
            cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE) for stream in coded.streams
        ]
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
@click.option(
    "--pairs", type=click.IntRange(1), default=16, show_default=True, help="From each clip and step."
)
@click.option(
    "--step", "steps", multiple=True, type=click.IntRange(1), default=(1, 4, 8), show_default=True,
    help="Frames between the two of a pair.",
)  # fmt: skip
@click.option("--method", default="tvl1", show_default=True, help="Flow method.")
@click.option("--preset", default="default", show_default=True, help="Preset of the flow method.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A number of the method, as theta=0.4.",
)
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Save the curves here.")
def main(
    data: Path | None,
    pairs: int,
    steps: tuple[int, ...],
    method: str,
    preset: str,
    parameters: tuple[str, ...],
    picture: Path | None,
) -> None:
    """Compare the codec with the field's standard on real clips."""
    folder = data or Path(os.environ.get("TWO_STREAM_TEST_DATA", PROJECT.parent / "shared" / "data"))
    changed = {name: float(value) for name, _, value in (text.partition("=") for text in parameters)}
    solver = load(method, device="cpu", preset=preset, **changed)
    sets = {f"step {step}": real_flow(folder / "clips", pairs, solver, step) for step in steps}
    fields = next(iter(sets.values()))
    if not fields:
        raise click.ClickException(f"no clips under {folder / 'clips'}: set TWO_STREAM_TEST_DATA")
    for name, of_set in {**sets, f"pans of 25 to 80 px, on {next(iter(sets))}": panned(fields)}.items():
        print_table(name, of_set, method)
    if picture is not None:
        draw(curves_of(fields), picture)
        click.echo(f"\n{picture}")


def print_table(name: str, fields: list[Flow], method: str) -> None:
    """Every setting on one set of fields, beside the field's standard."""
    speed = np.concatenate([np.hypot(*flow).ravel() for flow in fields])
    click.echo(
        f"\n{name}: {len(fields)} {method} fields; {np.mean(speed < 0.05):.0%} of pixels below 0.05 px, "
        f"{np.mean(speed > 5):.1%} above 5 px, {np.mean(speed > BOUND):.2%} above {BOUND} px\n"
    )
    field = [measure(f"field's way, quality {q}", fields, *as_the_field(q)) for q in (75, 90, 95)]
    settings = {preset: codec(preset) for preset in PRESETS}
    settings["default, bound fixed"] = codec(bound_fixed=True)
    standard = field[-1]
    click.echo(
        "| setting | bytes/pair | of standard | error px | of standard | p99 | > 5 px | clipped | sign flips | "
        "decode ms |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    for result in [
        *field,
        *(measure(label, fields, *with_codec(coding)) for label, coding in settings.items()),
    ]:
        click.echo(
            f"| {result.name} | {result.bytes:,.0f} | {result.bytes / standard.bytes:.1%} | {result.error:.4f} | "
            f"{result.error / standard.error:.1%} | {result.p99:.3f} | {result.fast:.3f} | {result.clipped:.3%} | "
            f"{result.flips:.4%} | {result.decode:.3f} |"
        )


def curves_of(fields: list[Flow]) -> dict[str, list[Result]]:
    """Results over quality by family, for the picture."""
    curves = {
        "field's way: two JPEGs": [
            measure(f"field's way, quality {q}", fields, *as_the_field(q)) for q in (50, 75, 90, 95)
        ]
    }
    for preset, label in (("default", "asinh s=3"), ("high-fidelity", "asinh s=2"), ("linear", "linear")):
        settings = [codec(preset, quality=quality) for quality in QUALITIES]
        curves[f"{label}, flat table"] = [measure(label, fields, *with_codec(coding)) for coding in settings]
    for preset in ("paper", "lossless"):
        curves[preset] = [measure(preset, fields, *with_codec(codec(preset)))]
    return curves


if __name__ == "__main__":
    main()
