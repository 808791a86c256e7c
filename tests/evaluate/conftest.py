"""A small dataset with shards of two sizes, some shorter than L, and untrained networks that score it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_shards import make_shard

from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video
from pipeline.paths import DatasetPaths
from pipeline.runs import RunRecord
from train.checkpoint import Checkpoint, save_checkpoint
from train.models import build
from train.recipe import Recipe, to_toml
from train.volume_spec import VolumeSpec

CLASSES = ("Bow", "Wave é")
LENGTHS = (9, 30, 4, 12, 2, 40)


def add_run(paths: DatasetPaths, stream: str, split: int = 1, seed: int = 0, **volume: object) -> Path:
    """A finished run with an untrained network of 24 pixels; returns its checkpoint."""
    torch.manual_seed(seed)
    values: dict[str, object] = {"crop": 24, "short_side": 32, "length": 5, **volume}
    spec = VolumeSpec(stream=stream, **values)  # type: ignore[arg-type]
    recipe = Recipe(model="resnet18", dropout=0.5, iterations=1, **values).as_dict()  # type: ignore[arg-type]
    run = RunRecord(paths.dataset, stream, split, {paths.dataset: "tvl1"})
    network = build("resnet18", spec.channels, len(CLASSES), 0.5, spec.crop)
    folder = paths.run(f"{stream}-split{split}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint-00000001.pt"
    save_checkpoint(path, Checkpoint(network.state_dict(), recipe, run, spec, {paths.dataset: CLASSES}, 1))
    (folder / "recipe.toml").write_text(to_toml(recipe, run))
    (folder / "log.jsonl").write_text(
        '{"iteration": 1, "loss": 0.7, "accuracy": 0.5, "learning_rate": 0.01}\n'
    )
    return path


def make_dataset(root: Path) -> DatasetPaths:
    """Twelve videos of two classes, two splits; half of the shards are wide, half are tall."""
    paths = DatasetPaths(root, "tiny")
    videos = {}
    for label in CLASSES:
        for number, flows in enumerate(LENGTHS):
            video = f"{label}/v_{number}"
            height, width = ((36, 48), (50, 34))[number % 2]
            make_shard(
                paths.shard("tvl1", video),
                video,
                flows,
                ("forward", "backward"),
                frames=True,
                height=height,
                width=width,
                seed=len(videos),
            )
            source = root / "videos" / f"{video}.avi"
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(b"not needed")
            videos[video] = Video(video, source, label, f"{label} {number // 2}", flows + 1, width, height)
    names = tuple(videos)
    first = tuple(name for name in names if int(name[-1]) < 4)
    second = tuple(name for name in names if int(name[-1]) >= 4)
    splits = {1: Split(1, second, first), 2: Split(2, first, second)}
    catalog.save(Dataset("tiny", CLASSES, videos, splits), root / "videos", root)
    return paths


@pytest.fixture(scope="session")
def scored_data(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """The dataset with a run of each stream; tests that write ask for `own_data`."""
    paths = make_dataset(tmp_path_factory.mktemp("evaluate"))
    add_run(paths, "spatial")
    add_run(paths, "temporal")
    return paths


@pytest.fixture
def own_data(scored_data: DatasetPaths, tmp_path: Path) -> DatasetPaths:
    """A copy that a test may change."""
    import shutil

    shutil.copytree(scored_data.data, tmp_path / "data")
    return DatasetPaths(tmp_path / "data", "tiny")
