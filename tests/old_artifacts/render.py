"""Renders the artefacts of commit 70a616d that `test_old_artifacts.py` opens: shards, a pack, a run and its scores.

Run once in a checkout of that commit, with its own environment; later formats get a folder and a script of their own:

    .venv/bin/python .../tests/old_artifacts/render.py .../tests/old_artifacts/70a616d

`data/` is a data root without its videos. `expected.npz` holds what 70a616d itself read back: samples of flow and
frames of every shard, the scores, and the network's answer to a fixed input.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

CHECKOUT = Path.cwd()
NAME = "old"
WIDTH, HEIGHT, FRAMES = 48, 40, 7
MOTION = {"Left": -2, "Right": 2}
SPARSE = (slice(None), slice(None), slice(None, None, 8), slice(None, None, 8))
"""Every 8th pixel of n fields or of n frames, which are brought to [n,3,H,W]."""

RECIPE = """\
# A network as small as it goes.
model = "resnet18"
width = 0.03125
dropout = 0.3
crop = 32
short_side = 40
length = 3
batch = 4
iterations = 4
learning_rate = 0.01
schedule = "constant"
"""


def render_videos(folder: Path) -> None:
    """Two takes of each class by two people: smooth noise that moves sideways."""
    for label, motion in MOTION.items():
        for group in (1, 2):
            rng = np.random.default_rng(group)
            noise = rng.uniform(0, 255, (HEIGHT // 8, WIDTH // 8 + 8, 3)).repeat(8, 0).repeat(8, 1)
            path = folder / label / f"v_{label}_g0{group}_c01.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(f"file:{path}", "w") as container:
                stream = container.add_stream("mpeg4", rate=25)
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                for time in range(FRAMES):
                    start = 20 + motion * time
                    frame = np.ascontiguousarray(noise[:, start : start + WIDTH].astype(np.uint8))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode(None))


def write_lists(folder: Path) -> None:
    """Lists as UCF-101 has them: the first person is trained on, the second tested."""
    folder.mkdir()
    labels = list(MOTION)
    (folder / "classInd.txt").write_text("".join(f"{i} {label}\n" for i, label in enumerate(labels, 1)))
    names = {group: [f"{label}/v_{label}_g0{group}_c01.avi" for label in labels] for group in (1, 2)}
    (folder / "trainlist01.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names[1], 1)))
    (folder / "testlist01.txt").write_text("".join(f"{name}\n" for name in names[2]))


def command(*words: str | Path) -> None:
    """Run `python -m WORDS` of the checkout."""
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=CHECKOUT, check=True)


def expected(data: Path) -> dict[str, np.ndarray]:
    """What the checkout reads back from its own files."""
    import torch

    from evaluate.score_file import read_scores
    from pipeline.paths import DatasetPaths
    from pipeline.shard import open_shard
    from pipeline.shard_index import index_shards
    from train.checkpoint import load_checkpoint

    paths, found = DatasetPaths(data, NAME), {}
    for shard_set in ("tvl1", "packed"):
        for video, address in index_shards(paths.shards(shard_set)).items():
            with open_shard(address) as shard:
                for direction in shard.directions:
                    flows = shard.flows(0, shard.flow_counts[direction], direction)
                    found[f"{shard_set} {video} {direction}"] = flows[SPARSE]
                frames = shard.frames(0, shard.frame_count).transpose(0, 3, 1, 2)
                found[f"{shard_set} {video} frames"] = frames[SPARSE]
    for stream, channels in (("spatial", 3), ("temporal", 6)):
        run = paths.run(f"{stream}-split1")
        model = load_checkpoint(run).model().eval()
        inputs = np.random.default_rng(0).normal(size=(2, channels, 32, 32)).astype(np.float32)
        with torch.no_grad():
            found[f"{stream} logits"] = model(torch.from_numpy(inputs)).numpy()
        scores = read_scores(paths.scores(f"{stream}-split1", "test-3x5"))
        found |= {f"{stream} scores {name}": getattr(scores, name) for name in ("logits", "softmax", "views")}
        found[f"{stream} videos"] = np.array(scores.videos)
    return found


def main(output: Path) -> None:
    """Render everything below `output`, which is replaced."""
    sys.path.insert(0, str(CHECKOUT))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render_videos(root / "videos")
        write_lists(root / "lists")
        (root / "recipe.toml").write_text(RECIPE)
        data = root / "data"
        known = ("--dataset", NAME, "--data", data)
        command("pipeline", "import", "folder", "--name", NAME, "--videos", root / "videos", "--lists",
                root / "lists", "--data", data, "--group-pattern", r"g\d\d")  # fmt: skip
        command("extract_flow", *known, "--short-side", "none")
        command("extract_flow", *known, "--set", "packed", "--method", "dis", "--direction", "both", "--step", "2",
                "--size", "40x32", "--codec", "lossless", "--bound", "30", "--rgb-quality", "80")  # fmt: skip
        command("pipeline", "pack", *known, "--set", "packed")
        for stream in ("spatial", "temporal"):
            command("train", *known, "--stream", stream, "--shards", "tvl1", "--recipe", root / "recipe.toml",
                    "--checkpoint-every", "2", "--workers", "0", "--no-tensorboard")  # fmt: skip
        command("evaluate", *known, "--shards", "tvl1", "--frames", "3", "--crops", "5")
        values = expected(data)
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(data, output / "data", ignore=shutil.ignore_patterns("*.png", "logs"))
        np.savez_compressed(output / "expected.npz", **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
