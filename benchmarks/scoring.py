"""Throughput of scoring with the network replaced by nothing, beside bare JPEG decoding of the same streams.

What is left is everything around the network: reading and decoding, dequantising, mirrors, crops. Bare decoding is one
thread of cv2.imdecode over the streams of the same positions, each once, held in memory. "Up to fields" is reading,
decoding and the mean-subtracted float32 fields of which every view consists, and "with crops" all of it, with the
views of a batch put side by side as a network takes them. All run in turns; ratios of CPU time, medians over turns.

    python benchmarks/scoring.py [--flows 180] [--videos 8] [--workers 1] [--device cpu] [--network cnn_m_2048]

The flow is rendered, or with --shard FILE that of a real shard, which is less noisy and so quicker to decode.

With --network NAME the real, untrained network runs as well, and its time on tensors that are ready, as a share of the
time of scoring: CPU time on a CPU, so that other work on the machine moves it less.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from evaluate.inference import Compute, Forward, view_outputs
from evaluate.views import Views, positions
from pipeline.codec import codec
from pipeline.request import Request
from pipeline.shard import ShardAddress, Source, open_shard
from pipeline.shard_writer import ShardWriter
from train.batches import read_distinct, shard_positions
from train.models import build
from train.volume import Memory, VolumeSpec, flow_indices, memory_for, position_count, volume

HEIGHT, WIDTH = 256, 340


def write_shard(path: Path, flows: int) -> None:
    """A shard of rendered frames and flow at 340x256: a moving texture over a moving ground."""
    random = np.random.default_rng(0)
    coding = codec()
    texture = cv2.GaussianBlur(random.normal(0, 1, (HEIGHT, WIDTH + flows + 1, 3)), (0, 0), 2)
    texture = np.clip(128 + 250 * texture, 0, 255).astype(np.uint8)
    frames = np.stack([texture[:, t : t + WIDTH] for t in range(flows + 1)])
    field = np.stack(
        [cv2.GaussianBlur(one, (0, 0), 8) for one in random.normal(0, 20, (flows, HEIGHT, WIDTH, 2))]
    )
    request = Request(
        source_bytes=1,
        method="rendered",
        quantiser=coding.quantiser.name,
        image=coding.image,
        frames=True,
        frames_quality=90,
    )
    with ShardWriter(path, request, coding) as writer:
        writer.add_frames(frames)
        writer.add_flows("forward", coding.quantiser.quantise(np.float32(field).transpose(0, 3, 1, 2).copy()))
        source = Source(1, "0" * 64, WIDTH, HEIGHT)
        writer.finish(
            video="class/video",
            source=source,
            fps=25,
            frames=flows + 1,
            width=WIDTH,
            height=HEIGHT,
            device="none",
        )


def bare_streams(path: Path, spec: VolumeSpec, views: Views) -> list[np.ndarray]:
    """The JPEG streams that one video's positions need, each once."""
    with open_shard(path) as shard:
        wanted = positions(position_count(spec, shard.frame_count, shard.flow_count), views.frames)
        if spec.stream == "spatial":
            needed, part = wanted, "frames"
        else:
            needed = np.unique([flow_indices(spec, int(place), shard.flow_count)[0] for place in wanted])
            part = "forward"
        streams = [shard.streams(int(index), int(index) + 1, part)[0] for index in needed]
    return [np.frombuffer(stream, np.uint8).copy() for stream in streams]


def seconds_bare(streams: list[np.ndarray], stream: str, videos: int) -> float:
    """CPU time of decoding the streams of that many videos on one thread."""
    flag = cv2.IMREAD_COLOR if stream == "spatial" else cv2.IMREAD_GRAYSCALE
    begun = time.process_time()
    for _ in range(videos):
        for one in streams:
            cv2.imdecode(one, flag)
    return time.process_time() - begun


def seconds_fields(path: Path, spec: VolumeSpec, views: Views, videos: int, memory: Memory) -> float:
    """CPU time of reading that many videos up to the fields that views consist of."""
    begun = time.process_time()
    for _ in range(videos):
        with open_shard(path) as shard:
            wanted = positions(shard_positions(shard, spec), views.frames)
            fields = read_distinct(shard, spec, wanted, memory)
        volume(fields.raw, fields.spec)
    return time.process_time() - begun


def seconds_scoring(
    path: Path, spec: VolumeSpec, views: Views, videos: int, workers: int, device: str, forward: Forward
) -> float:
    """CPU time of scoring that many videos."""
    shards, begun = [ShardAddress(path)] * videos, time.process_time()
    for _ in view_outputs(forward, spec, shards, views, Compute(device, 10 * views.frames, workers)):
        pass
    return time.process_time() - begun


def network_share(path: Path, spec: VolumeSpec, views: Views, device: str, name: str, workers: int) -> str:
    """Scoring with a real network: its time per video, and the share that the network on ready tensors takes of it."""
    model = build(name, spec.channels, 101, crop=spec.crop).eval().to(device)
    count, ready = (20 if device != "cpu" else 1), []
    clock = time.perf_counter if device != "cpu" else time.process_time

    def whole(views: list[torch.Tensor]) -> torch.Tensor:
        ready[:] = views
        logits: torch.Tensor = model(ready[0])
        return logits

    def alone() -> float:
        begun = clock()
        with torch.inference_mode():
            for _ in range(count):
                model(ready[0]).cpu()
        return clock() - begun

    def scored() -> float:
        shards, begun = [ShardAddress(path)] * count, clock()
        for _ in view_outputs(whole, spec, shards, views, Compute(device, 10 * views.frames, workers)):
            pass
        return clock() - begun

    scored()
    pairs = [(alone(), scored()) for _ in range(3)]
    share = statistics.median(network / both for network, both in pairs)
    return f"{statistics.median(both for _, both in pairs) / count:.2f} s/video, network {share:.3f} of it"


@click.command()
@click.option("--flows", default=180, show_default=True, help="Flows of the video (UCF-101's mean is 185).")
@click.option("--videos", default=8, show_default=True, help="Videos per turn.")
@click.option("--turns", default=5, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Decoding threads.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--crop", default=224, show_default=True, help="Side of the views, of frames of 256 rows.")
@click.option(
    "--frames", default=25, show_default=True, help="Positions per video; fewer for a slow network."
)
@click.option("--network", help="A network to time as well, as cnn_m_2048.")
@click.option(
    "--shard", type=click.Path(exists=True, path_type=Path), help="A real shard with frames and flow."
)
@click.option("--stream", "only", type=click.Choice(["spatial", "temporal"]), help="[default: both]")
def main(
    flows: int,
    videos: int,
    turns: int,
    workers: int,
    device: str,
    crop: int,
    frames: int,
    network: str | None,
    shard: Path | None,
    only: str | None,
) -> None:
    """Print the CPU time of scoring without a network, its ratio to bare decoding, and a network's share of scoring."""
    cv2.setNumThreads(1)
    views = Views(frames=frames)
    table = Table(
        title=f"{platform.processor() or platform.machine()}, {device}, {workers} thread(s), {views} views"
    )
    for column in (
        "stream",
        "bare decoding, ms/video",
        "up to fields",
        "ratio",
        "with crops",
        "ratio",
        network or "",
    ):
        table.add_column(column, justify="right" if column != "stream" else "left")
    with tempfile.TemporaryDirectory() as folder:
        path = shard or Path(folder) / "video.h5"
        if shard is None:
            write_shard(path, flows)
        for stream in [only] if only else ["spatial", "temporal"]:
            spec = VolumeSpec(stream, crop=crop, short_side=HEIGHT)
            streams = bare_streams(path, spec, views)

            def nothing(views: list[torch.Tensor]) -> torch.Tensor:
                return views[0].new_zeros(sum(map(len, views)), 101)

            found, memory = [], memory_for(torch.device("cpu"))
            for turn in range(turns + 1):
                measured = (
                    seconds_bare(streams, stream, videos),
                    seconds_fields(path, spec, views, videos, memory),
                    seconds_scoring(path, spec, views, videos, workers, device, nothing),
                )
                if turn:  # the first compiles
                    found.append(measured)
            bare, fields, scoring = (
                1e3 * statistics.median(column) / videos for column in zip(*found, strict=True)
            )
            table.add_row(
                stream,
                f"{bare:.1f}",
                f"{fields:.1f}",
                f"{statistics.median(one[0] / one[1] for one in found):.2f}",
                f"{scoring:.1f}",
                f"{statistics.median(one[0] / one[2] for one in found):.2f}",
                network_share(path, spec, views, device, network, workers) if network else "",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
