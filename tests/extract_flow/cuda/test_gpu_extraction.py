"""Extraction on emulated GPUs, from video files to shards, and what becomes of compiled kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import PROJECT, environment, needs_emulator
from rendered_clips import clip

from pipeline.progress import COMPILING
from pipeline.shard import open_shard

pytestmark = [needs_emulator, pytest.mark.xdist_group("emulated GPU")]
FEW = ("--scales", "1", "--warps", "1", "--iterations", "3", "--short-side", "none", "--codec", "lossless")


def attempt(folder: Path, output: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extract_flow", str(folder), "--output", str(output), *FEW, *options]
    return subprocess.run(
        command, env=environment(**more), cwd=PROJECT, capture_output=True, text=True, check=False
    )


def extract(folder: Path, output: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    finished = attempt(folder, output, *options, **more)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of two sizes."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(24):
        clip(folder / f"c{i}.avi", frames=3 + i % 5, width=48 if i % 3 else 80, seed=i)
    return folder


def test_processes_that_share_gpus_make_every_shard_as_the_cpu_does(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "control").touch()  # as MPS's daemon leaves it
    finished = extract(
        clips, tmp_path / "gpu", "--device", "cuda", "--jobs", "4", "--processes", "2", EMULATED_GPUS="2",
        CUDA_MPS_PIPE_DIRECTORY=str(tmp_path),
    )  # fmt: skip
    assert "24 done, 0 skipped (already valid), 0 failed" in finished.stdout
    assert "4 processes side by side by MPS, 24 videos to do; starting took " in finished.stderr
    assert "GPU busy: " in finished.stderr
    assert "; bound by " in finished.stdout
    extract(clips, tmp_path / "cpu", "--device", "cpu", "--jobs", "1")
    for path in sorted((tmp_path / "cpu").glob("*.h5")):
        with open_shard(path) as expected, open_shard(tmp_path / "gpu" / path.name) as found:
            count = expected.flow_counts["forward"]
            assert found.flow_counts["forward"] == count
            pairs = zip(
                found.streams(0, count, "forward"), expected.streams(0, count, "forward"), strict=True
            )
            assert sum(one == other for one, other in pairs) >= 0.5 * count, path.name
            assert np.abs(found.mean("forward") - expected.mean("forward")).max() < 1e-4


def test_a_gpu_of_little_memory_makes_every_shard(clips: Path, tmp_path: Path) -> None:
    finished = extract(clips, tmp_path, "--device", "cuda:0", "--jobs", "1", EMULATED_MEMORY=str(4_000_000))
    assert "24 done, 0 skipped (already valid), 0 failed" in finished.stdout


def test_a_process_that_loses_its_gpu_is_replaced_and_every_shard_made(clips: Path, tmp_path: Path) -> None:
    """Once, an illegal address: every later call of that process fails."""
    finished = extract(
        clips, tmp_path / "shards", "--device", "cuda:0", "--jobs", "2", "--processes", "1",
        EMULATED_FAULT_AT="3", EMULATED_FAULT_ONCE=str(tmp_path / "once"),
    )  # fmt: skip
    assert (tmp_path / "once").exists()
    assert "24 done, 0 skipped (already valid), 0 failed" in finished.stdout


def test_a_gpu_that_fails_in_every_process_ends_the_extraction_with_the_error(
    clips: Path, tmp_path: Path
) -> None:
    finished = attempt(
        clips, tmp_path, "--device", "cuda", "--jobs", "2", "--processes", "1", EMULATED_FAULT_AT="1"
    )
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: cuda:0: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert "3 videos in a row" in last
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.rglob("*.h5"))


def test_a_gpu_that_is_gone_after_an_error_ends_the_extraction_and_not_on_the_cpu(
    clips: Path, tmp_path: Path
) -> None:
    once = str(tmp_path / "once")
    finished = attempt(
        clips, tmp_path / "shards", "--device", "auto", "--jobs", "2", "--processes", "1",
        EMULATED_FAULT_AT="3", EMULATED_FAULT_ONCE=once, EMULATED_INIT_AFTER=once,
    )  # fmt: skip
    assert finished.returncode == 1
    assert "no usable NVIDIA GPU is visible: CUDA_ERROR_NO_DEVICE" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


SMALL = """
import sys
from pathlib import Path
from extract_flow.cuda.kernels import Program, compiled
source = Path(sys.argv[1])
source.write_text('extern "C" __global__ void nothing() {}')
compiled(Program("tiny", (source,), {}), (9, 0))
"""


NOWHERE = """
import cuda.pathfinder
def missing(name):
    raise cuda.pathfinder.DynamicLibNotFoundError(f"no library {name}")
cuda.pathfinder.load_nvidia_dynamic_lib = missing
"""


def compile_one(cache: Path, log: Path, nvrtc: bool = True) -> subprocess.CompletedProcess[str]:
    """A process that needs one small program; without `nvrtc`, no library of it is found, installed or not."""
    return subprocess.run(
        [sys.executable, "-c", SMALL if nvrtc else NOWHERE + SMALL, str(log.with_name("tiny.cu"))],
        env=environment(nvrtc, XDG_CACHE_HOME=str(cache), EMULATOR_LOG=str(log)),
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_kernels_are_compiled_once_with_a_note_and_again_only_if_the_kept_ones_are_damaged(
    tmp_path: Path,
) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    first = compile_one(cache, log)
    note, took = first.stderr.splitlines()
    assert note == COMPILING
    assert took.startswith("tiny: CUDA kernels for sm_90 compiled in ")
    assert str(cache) in first.stderr
    assert log.read_text() == "--gpu-architecture=sm_90\n"
    second = compile_one(cache, log)
    assert (second.returncode, second.stderr) == (0, "")
    (kept,) = cache.rglob("*.cubin")
    assert [path for path in cache.rglob("*") if path.is_file()] == [kept]
    log.with_name("usual").touch()
    assert kept.stat().st_mode == log.with_name("usual").stat().st_mode  # other users may read it as any file
    kept.write_bytes(kept.read_bytes()[:-100])
    assert compile_one(cache, log).returncode == 0
    assert len(log.read_text().splitlines()) == 2
    assert compile_one(cache, log).stderr == ""


def test_where_kernels_cannot_be_kept_every_start_compiles_them_and_says_why(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    for _ in range(2):
        finished = compile_one(blocked, tmp_path / "log")
        assert finished.returncode == 0
        assert "they cannot be kept" in finished.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_missing_nvrtc_is_named(tmp_path: Path) -> None:
    finished = compile_one(tmp_path, tmp_path / "log", nvrtc=False)
    assert "nvidia-cuda-nvrtc" in finished.stderr
    assert "--device cpu" in finished.stderr
