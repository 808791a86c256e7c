"""A small dataset whose motions a network can learn in seconds, made of shards written directly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from made_shards import request

from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video
from pipeline.codec import codec
from pipeline.paths import DatasetPaths
from pipeline.shard import Source
from pipeline.shard_writer import ShardWriter
from train.recipe import Recipe

CLASSES = ("Left", "Right", "Up")
GROUPS, TAKES = 4, 2
HEIGHT, WIDTH, FLOWS = 36, 48, 8
MOTION = {"Left": (-3.0, 0.0), "Right": (3.0, 0.0), "Up": (0.0, -3.0)}
COLOUR = {"Left": (200, 60, 60), "Right": (60, 200, 60), "Up": (60, 60, 200)}

RECIPE = Recipe(
    model="resnet18",
    width=0.125,
    dropout=0.3,
    crop=32,
    short_side=36,
    length=4,
    batch=8,
    iterations=6,
    learning_rate=0.05,
    schedule="cosine",
    mean_subtraction=False,
)
"""A tiny network, for tests to vary with dataclasses.replace."""


def make_dataset(
    root: Path, name: str = "tiny", classes: tuple[str, ...] = CLASSES, seed: int = 0
) -> DatasetPaths:
    """Videos of `GROUPS` people; motion and colour tell the class, the rest is noise. The last group is for testing."""
    paths, rng, videos = DatasetPaths(root, name), np.random.default_rng(seed), {}
    coding = codec("default")
    asked = dataclasses.replace(request(), directions=("forward", "backward"), frames=True, frames_quality=90)
    for label in classes:
        for group in range(GROUPS):
            for take in range(TAKES):
                video = f"{label}/v_{label}_g{group:02}_c{take:02}"
                motion = np.array(MOTION[label], np.float32)[:, None, None]
                # What is the clip's own all the time, and what changes.
                noise = rng.normal(0, 0.7, (1, 2, HEIGHT // 4, WIDTH // 4)) + rng.normal(
                    0, 0.2, (FLOWS, 2, 1, 1)
                )
                noise = noise.repeat(4, 2).repeat(4, 3)
                flow = (motion + noise).astype(np.float32)
                frames = rng.normal(COLOUR[label], 20, (FLOWS + 1, HEIGHT // 4, WIDTH // 4, 3))
                with ShardWriter(paths.shard("tvl1", video), asked, coding) as writer:
                    writer.add_frames(np.uint8(np.clip(frames, 0, 255)).repeat(4, 1).repeat(4, 2))
                    writer.add_flows("forward", coding.quantiser.quantise(flow))
                    writer.add_flows("backward", coding.quantiser.quantise(-flow))
                    writer.finish(
                        video=video,
                        source=Source(1, "0" * 64, WIDTH, HEIGHT),
                        fps=25.0,
                        frames=FLOWS + 1,
                        width=WIDTH,
                        height=HEIGHT,
                    )
                path = root / name / "videos" / f"{video}.avi"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"not needed")
                videos[video] = Video(video, path, label, f"g{group:02}", FLOWS + 1, WIDTH, HEIGHT)
    last = f"g{GROUPS - 1:02}"
    split = Split(
        1,
        tuple(video for video in videos if videos[video].group != last),
        tuple(video for video in videos if videos[video].group == last),
    )
    catalog.save(Dataset(name, classes, videos, {1: split}), root / name / "videos", root)
    return paths
