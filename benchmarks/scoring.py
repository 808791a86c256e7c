"""Throughput of scoring with the network replaced by nothing, beside bare JPEG decoding of the same streams.

What is left is everything around the network: reading and decoding, hand-over between processes, dequantising, volumes,
crops, mirrors. Bare decoding is one thread of cv2.imdecode over the streams of the same positions, each once, held in
memory. Both run in turns; the ratio is the median over turns.

    python benchmarks/scoring.py [--flows 180] [--videos 8] [--workers 1] [--device cpu] [--network cnn_m_2048]

With --network NAME the real, untrained network runs as well, which says how long a video takes on this machine.
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
from train.models import build
from train.volume import VolumeSpec, flow_indices, position_count

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
        wanted = positions(position_count(spec, shard.frame_count, shard.flow_count()), views.frames)
        if spec.stream == "spatial":
            needed, part = wanted, "frames"
        else:
            needed = np.unique([flow_indices(spec, int(place), shard.flow_count())[0] for place in wanted])
            part = "forward"
        streams = [shard.streams(int(index), int(index) + 1, part)[0] for index in needed]
    return [np.frombuffer(stream, np.uint8).copy() for stream in streams]


def seconds_bare(streams: list[np.ndarray], stream: str, videos: int) -> float:
    """Time of decoding the streams of that many videos on one thread."""
    flag = cv2.IMREAD_COLOR if stream == "spatial" else cv2.IMREAD_GRAYSCALE
    begun = time.perf_counter()
    for _ in range(videos):
        for one in streams:
            cv2.imdecode(one, flag)
    return time.perf_counter() - begun


def seconds_scoring(
    path: Path, spec: VolumeSpec, views: Views, videos: int, workers: int, device: str, forward: Forward
) -> float:
    """Time from the first video's scores to the last's, so that starting the workers does not count."""
    shards = [ShardAddress(path)] * (videos + 1)
    times = [
        time.perf_counter()
        for _ in view_outputs(forward, spec, shards, views, Compute(device, 10 * views.frames, workers))
    ]
    return times[-1] - times[0]


@click.command()
@click.option("--flows", default=180, show_default=True, help="Flows of the video (UCF-101's mean is 185).")
@click.option("--videos", default=8, show_default=True, help="Videos per turn.")
@click.option("--turns", default=5, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Decoding processes.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--network", help="A network to time as well, as cnn_m_2048.")
def main(flows: int, videos: int, turns: int, workers: int, device: str, network: str | None) -> None:
    """Print videos/s of scoring without and with a network, and the ratio to bare decoding."""
    cv2.setNumThreads(1)
    views = Views()
    table = Table(
        title=f"{platform.processor() or platform.machine()}, {device}, {workers} worker(s), {views} views"
    )
    for column in ("stream", "bare decoding, videos/s", "no network, videos/s", "ratio", network or ""):
        table.add_column(column, justify="right" if column != "stream" else "left")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.h5"
        write_shard(path, flows)
        for stream in ("spatial", "temporal"):
            spec = VolumeSpec(stream)
            streams = bare_streams(path, spec, views)

            def nothing(crops: list[torch.Tensor]) -> torch.Tensor:
                return crops[0].new_zeros(sum(map(len, crops)), 101)

            ratios, bare, scoring = [], [], []
            for _ in range(turns):
                bare.append(seconds_bare(streams, stream, videos) / videos)
                scoring.append(seconds_scoring(path, spec, views, videos, workers, device, nothing) / videos)
                ratios.append(bare[-1] / scoring[-1])
            real = ""
            if network:
                model = build(network, spec.channels, 101).eval().to(device)
                count = 20 if device != "cpu" else 1

                def whole(crops: list[torch.Tensor], model: torch.nn.Module = model) -> torch.Tensor:
                    logits: torch.Tensor = model(torch.cat(crops))
                    return logits

                real = f"{count / seconds_scoring(path, spec, views, count, workers, device, whole):.3f} videos/s"
            table.add_row(
                stream,
                f"{1 / statistics.median(bare):.1f}",
                f"{1 / statistics.median(scoring):.1f}",
                f"{statistics.median(ratios):.2f}",
                real,
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
