"""Every command that takes long prints its rate and the time left, as lines where there is no terminal."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from rendered_clips import clip  # noqa: E402

from pipeline import progress  # noqa: E402
from two_stream.__main__ import main  # noqa: E402

NETWORK = (
    "--recipe small --width 0.125 --crop 24 --short-side 32 --length 2 --batch 4 --iterations 4 --clip 0 "
    "--no-tensorboard --device cpu --threads 1 --log-every 1"
)
COMMANDS = {
    "import": "pipeline import folder --name mine --videos {0}/videos --data {0} --jobs 1",
    "extract-flow": "extract-flow --dataset mine --data {0} --method dis --preset ultrafast --short-side 32 --jobs 1",
    "train": "train --dataset mine --data {0} --stream temporal --shards dis " + NETWORK,
    "score": "evaluate score --dataset mine --data {0} --split 1 --frames 2 --crops 1 --device cpu --workers 1",
    "features": "evaluate features --dataset mine --data {0} --run temporal-split1 --frames 2 --crops 1 --device cpu",
    "features of videos": "evaluate features {0}/videos --run {0}/mine/runs/temporal-split1 --frames 2 --crops 1 "
    "--device cpu --workers 0 --output {0}/features.h5",
    "predict": "evaluate predict {0}/videos --run {0}/mine/runs/temporal-split1 --frames 2 --crops 1 --device cpu "
    "--workers 0",
    "time line": "evaluate predict {0}/videos --run {0}/mine/runs/temporal-split1 --frames 2 --crops 1 --device cpu "
    "--workers 0 --window 0.2 --output {0}/lines",
    "verify": "pipeline verify --dataset mine --data {0} --jobs 1",
    "verify --deep": "pipeline verify --dataset mine --data {0} --deep --jobs 1",
    "export": "pipeline export --dataset mine --data {0} --layout denseflow --output {0}/exported",
    "import-flow": "pipeline import-flow {0}/exported --bound 20 --output {0}/imported",
    "pack": "pipeline pack {0}/imported",
    "pack --unpack": "pipeline pack {0}/imported --unpack",
}
"""In an order in which each finds what it needs."""


class Leaps:
    """A clock that leaps eleven seconds whenever somebody looks."""

    leapt = 0.0

    def __call__(self) -> float:
        self.leapt += 11
        return time.monotonic() + self.leapt


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed on stderr."""
    root = tmp_path_factory.mktemp("progress")
    for label in ("Left", "Right"):
        for number in range(3):
            clip(root / "videos" / label / f"v_{label}_g0{number}_c01.avi", 8, 52, 40, number)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "clock", Leaps())
        for name, words in COMMANDS.items():
            result = CliRunner().invoke(main, words.format(root).split())
            assert result.exit_code == 0, f"{name}: {result.output} {result.exception!r}"
            found[name] = result.stderr
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_log_has_the_rate_and_the_time_left(printed: dict[str, str], command: str) -> None:
    lines = printed[command].splitlines()
    assert any(re.search(r"\d/\d.*, [\d.,e-]+ \w+/s, .*\d (s|min) left", line) for line in lines), "\n".join(
        lines
    )
    last = [line for line in lines if re.search(r"[\d.] \w+/s", line)][-1]
    assert "left" not in last
