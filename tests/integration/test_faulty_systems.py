"""Commands on file systems without locks, and on shards and score files that are damaged while threads read them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_shards import make_shard

from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.shard import open_shard

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "train"))

from tiny_dataset import make_dataset  # noqa: E402

STAGES = ("import", "extract", "pack", "unpack", "export", "train", "score", "features", "fuse")
TRAIN = [
    "--dataset=tiny",
    "--stream=spatial",
    "--recipe=small",
    "--width=0.125",
    "--crop=32",
    "--short-side=36",
]
TRAIN += ["--batch=4", "--iterations=1", "--workers=2", "--device=cpu", "--threads=1", "--no-tensorboard"]
SCORE = ["score", "--dataset=tiny", "--run=sound", "--frames=2", "--crops=1", "--workers=2", "--device=cpu"]


def compiled(source: Path, library: Path) -> Path:
    """A library to preload; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the library that makes calls fail")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def every_stage_works_without_locks(environment: dict[str, str]) -> None:
    """Every stage of benchmarks/endurance.py, undisturbed but for flock, which always fails with ENOLCK."""
    probe = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    locked = run("-c", probe, __file__, **environment)
    assert "No locks available" in locked.stderr, "the library does not work"
    stages = ("--kills=0", "--faults=0", "--flips=0", "--stages=")
    done = run("benchmarks/endurance.py", *stages, **environment, ENDURANCE_FAULTS="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "undisturbed" in line] == [*STAGES]


def test_every_command_works_where_files_cannot_be_locked(tmp_path: Path) -> None:
    asked = {"CALL": "flock", "UNDER": "/", "NUMBER": "37", "NTH": "1", "STAYS": "1"}
    library = compiled(PROJECT / "tests" / "integration" / "faults.c", tmp_path / "library.so")
    faults = {f"FAULT_{name}": value for name, value in asked.items()}
    every_stage_works_without_locks({**faults, "LD_PRELOAD": str(library), "TMPDIR": str(tmp_path)})


# --- damage that threads meet ---


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception" not in done.stdout + done.stderr
    assert len(errors) == 1, done.stderr
    assert all(word in errors[0] for word in words), done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == errors[0], "nothing follows the error"


@pytest.fixture
def trained(tmp_path: Path) -> DatasetPaths:
    """The small dataset with a run of one iteration, read by two threads."""
    paths = make_dataset(tmp_path)
    done = run("-m", "train", *TRAIN, "--run", "sound", TWO_STREAM_DATA=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return paths


def test_damage_that_loader_threads_meet_is_one_line(trained: DatasetPaths) -> None:
    shards = sorted(trained.shards("tvl1").rglob("*.h5"))
    whole = {path: path.read_bytes() for path in shards}
    for path in shards:
        with open_shard(path) as shard:
            frames = [bytes(stream) for stream in shard.streams(0, shard.frame_count, "frames")]
        data = whole[path]
        for stream in frames:
            data = data.replace(stream, bytes(len(stream)))
        path.write_bytes(data)
    data_root = {"TWO_STREAM_DATA": str(trained.data)}
    done = run("-m", "train", *TRAIN, "--run", "damaged", **data_root)
    one_line(done, ".h5: damaged shard: frames ", "fails its checksum")
    done = run("-m", "evaluate", *SCORE, **data_root)
    one_line(done, ".h5: damaged shard: frames ", "fails its checksum")
    for path in shards:
        path.write_bytes(whole[path][:-100])
    done = run("-m", "evaluate", *SCORE, **data_root)
    one_line(done, ".h5: ", "damaged shard")
    assert not list(trained.run("sound").rglob("test*.h5")), "no scores of damaged videos"
    for path in shards:
        path.write_bytes(whole[path])
    done = run("-m", "evaluate", *SCORE, **data_root)
    assert done.returncode == 0, done.stderr


def test_a_shard_that_is_cut_short_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.h5", "C/a", flows=4)
    with open_shard(path) as shard:
        os.truncate(path, shard.contents.flow["forward"].begin + 10)
        with pytest.raises(InputError, match=r"a\.h5"):
            shard.flows(0, 4)
