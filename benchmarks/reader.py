"""Speed of reading flow from shards beside bare cv2.imdecode and the ways others keep it.

All candidates read the same places in turns, and are compared by the median of each turn's ratio of CPU time, so that
a busy machine moves all alike. Bare imdecode decodes the same streams, held in memory. Files are in the page cache.

    python benchmarks/reader.py [--flows 60] [--length 10] [--turns 25]
    python benchmarks/reader.py --shards DATA/ucf101/shards/tvl1

The flow is rendered, or that of real shards. Its noise decides the ratios: libjpeg transforms every block, our decoder
those with detail.

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
from pipeline.shard import Shard, ShardAddress, Source, open_shard
from pipeline.shard_index import index_shards
from pipeline.shard_writer import ShardWriter

HEIGHT, WIDTH = 256, 340
CHECKSUMS = "CRC-32 of the streams, which every read compares"
Reader = Callable[[int, int], object]
Run = tuple[Shard, int, int, list[bytes]]
"""A shard, the first of its flows and the one after the last, and their streams."""


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
@click.option(
    "--shards", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Real shards to read."
)
def main(flows: int, videos: int, length: int, turns: int, as_json: bool, shards: Path | None) -> None:
    """Measure reading."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(1)
    if shards is not None:
        ratios = compare_real(shards, videos, length, turns, rng)
        click.echo(json.dumps(ratios) if as_json else "")
        return
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


def compare_real(
    folder: Path, videos: int, length: int, turns: int, rng: np.random.Generator
) -> dict[str, float]:
    """Runs of flows at random places of the first shards of a set, those with and without an offset or scale apart."""
    usual: list[Run] = []
    scaled: list[Run] = []
    for address in list(index_shards(folder).values())[:videos]:
        shard = open_shard(address)
        for start in rng.integers(0, max(len(shard) - length, 0) + 1, 6).tolist():
            stop = min(start + length, len(shard))
            as_stored = (shard.scale()[start:stop] == 1).all() and (shard.offset()[start:stop] == 0).all()
            streams = [bytes(stream) for stream in shard.streams(start, stop)]
            (usual if as_stored else scaled).append((shard, start, stop, streams))
    ratios: dict[str, float] = {}
    for what, runs in (("as stored", usual), ("with an offset or scale of their own", scaled)):
        if not runs:
            continue
        size = np.mean([len(stream) for *_, streams in runs for stream in streams])
        click.echo(f"\n{len(runs)} runs of {length} flows {what}, {size:,.0f} bytes each\n")

        def bare(i: int, _: int, runs: list[Run] = runs) -> object:
            return [
                cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE) for stream in runs[i][3]
            ]

        readers: dict[str, Reader] = {
            "bare cv2.imdecode": bare,
            "Shard.levels": lambda i, _, runs=runs: runs[i][0].levels(runs[i][1], runs[i][2]),
            "Shard.flows": lambda i, _, runs=runs: runs[i][0].flows(runs[i][1], runs[i][2]),
        }
        found = compare(readers, len(runs), 1, turns, rng, per_read=length)
        ratios |= {f"{name}, {what}": ratio for name, ratio in found.items()}
    return ratios


def compare(
    readers: dict[str, Reader],
    flows: int,
    length: int,
    turns: int,
    rng: np.random.Generator,
    per_read: int | None = None,
) -> dict[str, float]:
    """Print milliseconds per pair and speed beside the first reader; a read is of `length` pairs if not given."""
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
                seconds[name].append(total / (12 * (per_read or length)) * 1e3)
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
