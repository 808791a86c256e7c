"""Shards, packs, runs and scores of earlier commits still open, with the values that those commits read."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rendered_clips import clip

from evaluate.score_file import read_scores
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths
from pipeline.shard import open_shard
from pipeline.shard_index import index_shards
from train.checkpoint import load_checkpoint

FOLDER = Path(__file__).resolve().parent / "70a616d"
STREAMS = ("spatial", "temporal")
SPARSE = (slice(None), slice(None), slice(None, None, 8), slice(None, None, 8))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    with np.load(FOLDER / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def old(tmp_path: Path) -> DatasetPaths:
    """A copy of the old dataset that commands may write to; its videos are gone."""
    shutil.copytree(FOLDER / "data", tmp_path / "data")
    return DatasetPaths(tmp_path / "data", "old")


def invoke(package: str, *words: str) -> Result:
    """How `python -m PACKAGE WORDS` ends."""
    return CliRunner().invoke(importlib.import_module(f"{package}.__main__").main, words)


def command(old: DatasetPaths, package: str, *words: str) -> None:
    """Run `python -m PACKAGE WORDS` on the old dataset."""
    done = invoke(package, *words, "--dataset", old.dataset, "--data", str(old.data))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("shard_set", ["tvl1", "packed"])
def test_shards_read_as_when_they_were_made(expected: dict[str, Any], shard_set: str) -> None:
    """JPEG decoders may differ by a level or two, lossless flow does not."""
    shards = index_shards(DatasetPaths(FOLDER / "data", "old").shards(shard_set))
    assert len(shards) == 4
    for video, address in shards.items():
        with open_shard(address) as shard:
            assert shard.directions == (("forward", "backward") if shard_set == "packed" else ("forward",))
            for direction in shard.directions:
                flows = shard.flows(0, shard.flow_counts[direction], direction)
                np.testing.assert_allclose(
                    flows[SPARSE],
                    expected[f"{shard_set} {video} {direction}"],
                    rtol=0,
                    atol=1e-6 if shard_set == "packed" else 0.3,
                )
            frames = shard.frames(0, shard.frame_count).transpose(0, 3, 1, 2)[SPARSE]
            np.testing.assert_allclose(
                frames.astype(float), expected[f"{shard_set} {video} frames"], rtol=0, atol=3
            )


def test_shards_pass_the_verification(old: DatasetPaths) -> None:
    for shard_set in ("tvl1", "packed"):
        command(old, "pipeline", "verify", "--complete", "--shards", shard_set)


@pytest.mark.parametrize(("stream", "channels"), [("spatial", 3), ("temporal", 6)])
def test_checkpoints_give_the_network_that_was_trained(
    expected: dict[str, Any], stream: str, channels: int
) -> None:
    model = load_checkpoint(DatasetPaths(FOLDER / "data", "old").run(f"{stream}-split1")).model().eval()
    inputs = np.random.default_rng(0).normal(size=(2, channels, 32, 32)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(logits, expected[f"{stream} logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stream", STREAMS)
def test_score_files_read_as_when_they_were_written(expected: dict[str, Any], stream: str) -> None:
    scores = read_scores(
        RunPaths(DatasetPaths(FOLDER / "data", "old").run(f"{stream}-split1")).scores("test-3x5")
    )
    assert scores.videos == tuple(expected[f"{stream} videos"])
    for name in ("logits", "softmax", "views"):
        np.testing.assert_array_equal(getattr(scores, name), expected[f"{stream} scores {name}"])


def test_runs_are_scored_and_fused_as_before(old: DatasetPaths, expected: dict[str, Any]) -> None:
    """Both from the old score files as they are, and from the old shards again."""
    views = ("--frames", "3", "--crops", "5")
    files = {stream: RunPaths(old.run(f"{stream}-split1")).scores("test-3x5") for stream in STREAMS}
    before = {stream: file.read_bytes() for stream, file in files.items()}
    command(old, "evaluate", *views)
    assert {stream: file.read_bytes() for stream, file in files.items()} == before
    for file in files.values():
        file.unlink()
    command(old, "evaluate", "score", *views)
    for stream, file in files.items():
        logits = read_scores(file).logits
        np.testing.assert_allclose(logits, expected[f"{stream} scores logits"], rtol=0, atol=1e-3)


def test_an_interrupted_run_is_resumed_to_the_same_weights(old: DatasetPaths) -> None:
    run = old.run("temporal-split1")
    last = run / "checkpoint-00000004.pt"
    finished = load_checkpoint(last).weights
    last.unlink()
    recipe = shutil.copy(run / "recipe.toml", old.data / "recipe.toml")
    words = ("--stream", "temporal", "--shards", "tvl1", "--recipe", str(recipe), "--workers", "0")
    command(old, "train", *words, "--checkpoint-every", "2", "--no-tensorboard")
    resumed = load_checkpoint(last)
    assert resumed.iteration == 4
    assert resumed.weights.keys() == finished.keys()
    for name, weights in resumed.weights.items():
        torch.testing.assert_close(weights, finished[name], rtol=1e-4, atol=1e-5)


def test_predicting_with_an_old_checkpoint_asks_for_a_shard_like_its_own(
    old: DatasetPaths, tmp_path: Path
) -> None:
    """Checkpoints of then do not record how their shards were made."""
    words = ("predict", str(clip(tmp_path / "new.mp4")), "--run", str(old.run("temporal-split1")))
    refused = invoke("evaluate", *words)
    assert refused.exit_code == 1
    assert "--like SHARD" in refused.output
    shard = old.shards("tvl1") / "Left" / "v_Left_g01_c01.h5"
    done = invoke("evaluate", *words, "--like", str(shard), "--device", "cpu", "--frames", "2")
    assert done.exit_code == 0, done.output
    assert "Left" in done.output
