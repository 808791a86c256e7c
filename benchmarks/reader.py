"""Speed of reading flow from shards beside bare cv2.imdecode and the ways others keep it.

All candidates read the same places in turns, and are compared by the median of each turn's ratio of CPU time, so that
a busy machine moves all alike. Bare imdecode decodes the same streams, held in memory. Files are in the page cache.

    python benchmarks/reader.py [--flows 60] [--length 10] [--turns 25]

GulpIO2 is measured where it is installed: pip install gulpio2 (it is no requirement of the project).
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from pipeline.codec import codec
from pipeline.export import field_levels
from pipeline.pack import write_pack
from pipeline.request import Request
from pipeline.shard import ShardAddress, Source, open_shard
from pipeline.shard_writer import ShardWriter

HEIGHT, WIDTH = 256, 340
CHECKSUMS = "CRC-32 of the streams, which every read compares"
Reader = Callable[[int, int], object]


def moving_blobs(count: int) -> npt.NDArray[np.float32]:
    """Flow float32[count,2,H,W] that codes to about the bytes of real flow: still ground, a few moving objects."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    flow = np.zeros((count, 2, HEIGHT, WIDTH), np.float32)
    for _ in range(5):
        centre, speed, radius = rng.uniform(40, 220, 2), rng.uniform(-6, 6, 2), rng.uniform(15, 45)
        for t in range(count):
            distance = np.hypot(rows - centre[0] - speed[1] * t / 4, columns - centre[1] - speed[0] * t / 4)
            inside = 1 / (1 + np.exp((distance - radius) / 2))
            flow[t] += inside * speed[:, None, None]
    noise = np.stack(
        [cv2.GaussianBlur(field, (0, 0), 6) for field in rng.normal(0, 1, (count, HEIGHT, WIDTH, 2))]
    )
    return np.ascontiguousarray(flow + 0.6 * noise.transpose(0, 3, 1, 2), np.float32)


def write_shard(path: Path, flow: npt.NDArray[np.float32], video: str) -> None:
    """One shard of forward flow."""
    coding = codec()
    request = Request(source_bytes=1, method="rendered")
    with ShardWriter(path, request, coding) as writer:
        writer.add_flows("forward", coding.quantiser.quantise(flow))
        writer.finish(
            video=video,
            source=Source(1, "", WIDTH, HEIGHT),
            fps=25,
            frames=len(flow) + 1,
            width=WIDTH,
            height=HEIGHT,
        )


def jpeg_folder(folder: Path, flow: npt.NDArray[np.float32]) -> Reader:
    """The field's way: two JPEGs per pair, each a file."""
    folder.mkdir()
    for i, field in enumerate(flow):
        for name, plane in zip("xy", field_levels(field, 20), strict=True):
            cv2.imwrite(str(folder / f"flow_{name}_{i:05d}.jpg"), plane, [cv2.IMWRITE_JPEG_QUALITY, 95])

    def read(start: int, stop: int) -> object:
        names = [str(folder / f"flow_{name}_{i:05d}.jpg") for i in range(start, stop) for name in "xy"]
        return np.stack([cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in names])

    return read


def gulp(folder: Path, flow: npt.NDArray[np.float32]) -> Reader | None:
    """GulpIO2's directory of chunks, x and y as gray images of quality 95; None where it is not installed."""
    try:
        from gulpio2.fileio import ChunkWriter, GulpDirectory
    except ImportError as error:
        click.echo(f"GulpIO2 is not measured: {error}\n")
        return None

    class Adapter:
        def __len__(self) -> int:
            return 1

        def iter_data(self, _: slice) -> object:
            frames = [plane for field in flow for plane in field_levels(field, 20)]
            yield {"id": "video", "frames": frames, "meta": {}}

    folder.mkdir()
    directory = GulpDirectory(str(folder))
    ChunkWriter(Adapter()).write_chunk(next(directory.new_chunks(1)), slice(0, 1))
    directory = GulpDirectory(str(folder))
    return lambda start, stop: directory["video", slice(2 * start, 2 * stop)][0]


@click.command()
@click.option("--flows", type=click.IntRange(1), default=60, show_default=True, help="Of each video.")
@click.option(
    "--videos", type=click.IntRange(1), default=40, show_default=True, help="For loose beside packed shards."
)
@click.option(
    "--length", type=click.IntRange(1), default=10, show_default=True, help="Consecutive flows per read."
)
@click.option("--turns", type=click.IntRange(3), default=25, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the ratios as JSON.")
def main(flows: int, videos: int, length: int, turns: int, as_json: bool) -> None:
    """Measure reading."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, flow = Path(scratch), moving_blobs(flows)
        write_shard(folder / "video.h5", flow, "video")
        shard = open_shard(folder / "video.h5")
        write_shard(folder / "panned.h5", flow + np.float32(30), "panned")
        panned = open_shard(
            folder / "panned.h5"
        )  # the same levels, but for rounding, at an offset of 30 pixels
        streams = [bytes(stream) for stream in shard.streams(0, flows)]
        click.echo(
            f"{flows} flows of {WIDTH}x{HEIGHT}, {np.mean([len(s) for s in streams]):,.0f} bytes each\n"
        )

        def bare(start: int, stop: int) -> object:
            return [
                cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE)
                for stream in streams[start:stop]
            ]

        readers: dict[str, Reader | None] = {
            "bare cv2.imdecode": bare,
            "Shard.levels": shard.levels,
            CHECKSUMS: lambda start, stop: [zlib.crc32(stream) for stream in streams[start:stop]],
            "Shard.flows": shard.flows,
            "Shard.flows of a pan": panned.flows,
            "one JPEG per file": jpeg_folder(folder / "jpegs", flow),
            "GulpIO2": gulp(folder / "gulp", flow),
        }
        ratios = compare({name: read for name, read in readers.items() if read}, flows, length, turns, rng)
        ratios["checksums of Shard.levels"] = ratios["Shard.levels"] / ratios[CHECKSUMS]
        click.echo(f"\nThe checksums take {ratios['checksums of Shard.levels']:.2%} of Shard.levels.")
        ratios |= compare_packed(folder, flow[:length], videos, turns, rng)
    click.echo(json.dumps(ratios) if as_json else "")


def compare(
    readers: dict[str, Reader], flows: int, length: int, turns: int, rng: np.random.Generator
) -> dict[str, float]:
    """Print milliseconds per pair and speed in relation to the first reader."""
    length = min(length, flows)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(turns + 2):
        spent = dict.fromkeys(readers, 0.0)
        for start in rng.integers(0, flows - length + 1, 12).tolist():
            for name, read in readers.items():
                began = time.process_time()
                read(start, start + length)
                spent[name] += time.process_time() - began
        if turn >= 2:  # the first ones compile, and fill caches
            for name, total in spent.items():
                seconds[name].append(total / (12 * length) * 1e3)
    first = np.array(next(iter(seconds.values())))
    click.echo("| reader | ms/pair | speed |\n|---|---|---|")
    ratios = {}
    for name, values in seconds.items():
        ratios[name] = float(np.median(first / np.array(values)))
        click.echo(f"| {name} | {np.median(values):.3f} | {ratios[name]:.0%} |")
    return ratios


def compare_packed(
    folder: Path, flow: npt.NDArray[np.float32], videos: int, turns: int, rng: np.random.Generator
) -> dict[str, float]:
    """Opening shards at random and reading one volume each, from loose files and from one pack."""
    loose = [ShardAddress(folder / "loose" / f"{i}.h5") for i in range(videos)]
    for i, address in enumerate(loose):
        write_shard(address.file, flow, str(i))
    write_pack(folder / "all.h5pack", loose)
    packed = [ShardAddress(folder / "all.h5pack", f"/{i}") for i in range(videos)]

    def reading(addresses: list[ShardAddress], decode: bool) -> Reader:
        def read(start: int, _: int) -> object:
            with open_shard(addresses[start]) as shard:
                return shard.levels(0, len(flow)) if decode else None

        return read

    click.echo(f"\nOpening one of {videos} shards and reading {len(flow)} flows (ms per shard):\n")
    return compare(
        {
            "loose: open and read": reading(loose, True),
            "packed: open and read": reading(packed, True),
            "loose: open": reading(loose, False),
            "packed: open": reading(packed, False),
        },
        videos,
        1,
        turns,
        rng,
    )


if __name__ == "__main__":
    main()
