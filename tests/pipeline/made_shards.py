"""Small shards for tests, and what went into them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.codec import codec
from pipeline.request import Request
from pipeline.shard import Shard, Source
from pipeline.shard_writer import ShardWriter

WIDTH, HEIGHT = 33, 18


def smooth_flow(
    count: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Flow float32[count,2,H,W] of a few pixels that varies slowly over the field."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = rng.uniform(0.02, 0.12, (count, 2, 2)) * np.pi
    phase = rng.uniform(0, 6, (count, 2, 1, 1))
    field = np.sin(waves[..., :1, None] * rows + waves[..., 1:, None] * columns + phase)
    return (4 * field + rng.uniform(-2, 2, (count, 2, 1, 1))).astype(np.float32)


def smooth_frames(
    count: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """RGB frames uint8[count,H,W,3]."""
    flow = smooth_flow(count * 2, height, width, seed).reshape(count, 4, height, width)[:, :3]
    return np.uint8(np.clip(128 + 15 * flow, 0, 255)).transpose(0, 2, 3, 1)


def request(preset: str = "default", **changes: object) -> Request:
    """What a shard of the given preset answers."""
    coding = codec(preset)
    usual = Request(
        source_bytes=1000,
        method="dis",
        parameters={"finest": 2, "patch": 8.0},
        quantiser=coding.quantiser.name,
        image=coding.image,
        quality=coding.quality,
    )
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def make_shard(
    path: Path,
    video: str = "Class/video",
    flows: int = 4,
    directions: tuple[str, ...] = ("forward",),
    frames: bool = False,
    preset: str = "default",
    height: int = HEIGHT,
    width: int = WIDTH,
    keep: Shard | None = None,
    seed: int = 0,
) -> Path:
    """Write a shard of `smooth_flow(flows, ..., seed)` forward and `seed + 1` backward."""
    coding = codec(preset)
    asked = request(preset, directions=directions, frames=frames, frames_quality=90 if frames else None)
    with ShardWriter(path, asked, coding, keep) as writer:
        if frames and not (keep and keep.has_frames):
            writer.add_frames(smooth_frames(flows + 1, height, width, seed))
        for offset, direction in enumerate(("forward", "backward")):
            if direction in directions and not (keep and direction in keep.directions):
                writer.begin(direction)
                flow = smooth_flow(flows, height, width, seed + offset)
                writer.add_flows(direction, coding.quantiser.quantise(flow))
        writer.finish(
            video=video,
            source=Source(1000, "0" * 64, width, height),
            fps=25.0,
            frames=flows + 1,
            width=width,
            height=height,
            device="cpu",
        )
    return path
