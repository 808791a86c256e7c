"""GPUs seen from outside: MPS, and how busy nvidia-smi says they are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from extract_flow.gpu_use import busy_share, mps_runs, visible_gpus


def nvidia_smi(folder: Path, script: str) -> None:
    """A program of this name that runs a shell script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_mps_runs_where_its_daemon_has_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not mps_runs()
    (tmp_path / "control").touch()
    assert mps_runs()


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda", "", ""), ("auto", "2,3", "2,3"), ("cuda:1", "", "1"), ("cuda:1", "2,3", "3"),
        ("cuda:0", "GPU-8f2e, GPU-11aa", "GPU-8f2e"), ("auto", "MIG-3d10", "MIG-3d10"),
    ],
)  # fmt: skip
def test_the_gpus_asked_about_are_those_that_are_used(
    device: str, visible: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus(device) == expected


def test_the_share_is_the_mean_of_what_nvidia_smi_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    nvidia_smi(
        tmp_path, f'printf "90\\n50\\n[N/A]\\n"; echo "$@" > {asked}.; mv {asked}. {asked}; exec sleep 9'
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with busy_share("cuda:1") as share:
        while not asked.exists():
            time.sleep(0.01)
        assert share() == pytest.approx(0.7)
    assert "--id=1 " in asked.read_text()
    assert "utilization.gpu" in asked.read_text()


MIG = "echo 'No devices were found'; exit 6", "printf '[N/A]\\n'; exec sleep 9"
"""nvidia-smi knows no part of a GPU by its name, and no share for a GPU that is divided into parts."""


@pytest.mark.parametrize("script", ["exit 9", *MIG, None])
def test_without_an_answer_the_share_is_unknown(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        nvidia_smi(tmp_path, script)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with busy_share("cuda") as share:
        assert share() is None
