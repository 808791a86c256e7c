"""`python -m train` as users start it: several processes, signals, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.paths import DatasetPaths

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "train"))

from tiny_dataset import make_dataset  # noqa: E402

TINY = [
    "--dataset",
    "tiny",
    "--recipe",
    "small",
    "--no-tensorboard",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--log-every",
    "1",
]
SMALL = [
    "--width",
    "0.125",
    "--crop",
    "32",
    "--short-side",
    "36",
    "--length",
    "4",
    "--batch",
    "8",
    "--iterations",
    "3",
    "--clip",
    "0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    make_dataset(root, "other", ("Left", "Up"), seed=1)
    make_dataset(root)
    return root


def environment(data: Path, **more: str) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_"))
    }
    return {
        **kept,
        "TWO_STREAM_DATA": str(data),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        **more,
    }


def train(data: Path, *options: str, processes: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; `processes` > 0 goes through torchrun."""
    launcher = [sys.executable, "-m", "train"]
    if processes:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            "train",
        ]
    return subprocess.run(
        [*launcher, *TINY, *options],
        cwd=PROJECT,
        env=environment(data, **more),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def losses(data: Path, run: str) -> list[float]:
    text = (DatasetPaths(data, "tiny").run(run) / "log.jsonl").read_text()
    return [record["loss"] for record in map(json.loads, text.splitlines()) if "loss" in record]


def weights(data: Path, run: str) -> dict[str, torch.Tensor]:
    path = sorted(DatasetPaths(data, "tiny").run(run).glob("checkpoint-*.pt"))[-1]
    return torch.load(path, weights_only=True)["weights"]


NO_NORM = [
    "--model",
    "cnn_m_2048",
    "--width",
    "1",
    "--crop",
    "48",
    "--short-side",
    "54",
    "--dropout",
    "0.5",
    "--learning-rate",
    "0.01",
]


def test_losses_are_the_same_on_1_2_and_4_processes_with_dropout_and_two_heads(data: Path) -> None:
    options = [*SMALL, *NO_NORM, "--batch", "7", "--workers", "0", "--also", "other", "--validation", "0.3"]
    expected = None
    for processes in (0, 2, 4):
        done = train(data, *options, "--name", f"ranks{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
        found = losses(data, f"ranks{processes}")
        expected = expected or found
        assert len(found) == 3
        assert found == pytest.approx(expected, rel=1e-5)
    for name, tensor in weights(data, "ranks0").items():
        torch.testing.assert_close(weights(data, "ranks4")[name], tensor, atol=1e-6, rtol=1e-4)


def test_srun_s_variables_bring_processes_together(data: Path) -> None:
    """Two processes with the variables that srun sets, no name of a node among them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
    }
    slurm |= {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_LOCALID": "0", "MASTER_PORT": str(port)}
    options = [*TINY, *SMALL, *NO_NORM, "--workers", "1", "--name", "srun"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "train", *options],
            cwd=PROJECT,
            env=environment(data, SLURM_PROCID=str(rank), **slurm),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], output
    assert train(data, *SMALL, *NO_NORM, "--workers", "0", "--name", "alone").returncode == 0
    assert losses(data, "srun") == pytest.approx(losses(data, "alone"), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_ends_with_the_same_bits(
    data: Path, number: signal.Signals
) -> None:
    run, options = f"stopped{number}", [*SMALL, "--iterations", "40", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *TINY, *options, "--name", run],
        cwd=PROJECT,
        env=environment(data),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = DatasetPaths(data, "tiny").run(run) / "log.jsonl"
    for _ in range(3000):
        if (log.is_file() and log.read_text().count("\n") > 4) or process.poll() is not None:
            break
        time.sleep(0.05)
    # As SLURM does, to every process of the job: the loader's workers must not die of it.
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "the same command resumes" in errors
    assert 4 < len(losses(data, run)) < 40
    assert train(data, *options, "--name", run).returncode == 0
    assert train(data, *options, "--workers", "0", "--name", f"straight{number}").returncode == 0
    assert losses(data, run) == losses(data, f"straight{number}")
    for name, tensor in weights(data, f"straight{number}").items():
        assert torch.equal(weights(data, run)[name], tensor), name


def test_missing_shards_end_every_process_with_one_message(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "tiny", tmp_path / "tiny")
    DatasetPaths(tmp_path, "tiny").shard("tvl1", "Up/v_Up_g00_c00").unlink()
    done = train(tmp_path, *SMALL, "--name", "x", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("1 of 18 videos of tiny cannot be used") == 1
    # torchrun itself ends with a traceback, our processes do not.
    assert "train/__main__.py" not in done.stderr
    done = train(tmp_path, *SMALL, "--name", "x", "--allow-missing")
    assert done.returncode == 0
    assert "1 left out" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["--recipe", "smal"], "did you mean 'small'?"),
        (["--split", "9"], "has no split 9"),
        (["--dataset", "nowhere"], "make it known with"),
        (["--name", "../x"], "cannot be the name of a run"),
        (["--batch", "8", "--set", "batch=9"], "batch is given twice: 8 and 9"),
        (["--stream", "spatial", "--recipe", "temporal-stack10"], "this recipe is for the temporal stream"),
        (
            ["--init", "none.pt"],
            "none.pt: expected a checkpoint, a file of weights or a run's folder, found no such file",
        ),
        (["--device", "cuda"], "no usable GPU"),
        (["--direction", "both", "--length", "3"], "length 3 is odd"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    data: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    from train.__main__ import main

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    result = CliRunner(env=environment(data)).invoke(main, [*TINY, *SMALL, *options])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ") or "error: " in result.stderr
