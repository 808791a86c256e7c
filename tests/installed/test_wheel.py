"""A wheel is complete, and the installed command works in a folder of the user's own, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "extract_flow", "train", "evaluate", "slurm", "two_stream")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

pytestmark = pytest.mark.xdist_group("wheel")  # one worker, so that it is built once


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of what git has of the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked(*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("*.whl")
    return found


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split("\0")[:-1]


@pytest.fixture(scope="session")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two-stream` in an environment that holds the wheel and, for the requirements, this environment's packages."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", f"--python={python}"]
    subprocess.run([sys.executable, *pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return environment / "bin" / "two-stream"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with files of the user's own that have our names."""
    own = tmp_path_factory.mktemp("own")
    for name in ("train.py", "evaluate.py", "pipeline.py"):
        (own / name).write_text("raise SystemExit('a file of the user')\n")
    return own


def run(folder: Path, *words: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert [name for name in tracked(*PACKAGES) if name not in held and not name.endswith(".gitignore")] == []


def test_the_version_has_one_owner(wheel: Path, program: Path, folder: Path) -> None:
    from two_stream import __version__

    assert wheel.name.startswith(f"two_stream-{__version__}-")
    assert run(folder, program, "--version").strip() == f"two-stream, version {__version__}"
    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    assert f"\n## {__version__}\n" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_code_that_runs_is_the_wheels(program: Path, folder: Path) -> None:
    python = program.parent / "python"
    where = run(
        folder, python, "-P", "-c", "import train, pipeline; print(train.__file__, pipeline.__file__)"
    )
    assert all(path.startswith(str(program.parent.parent)) for path in where.split())


def test_videos_become_flow_and_a_network_and_a_chain_of_jobs(program: Path, folder: Path) -> None:
    run(folder, program, "pipeline", "demo", "--videos-per-class=6")
    run(folder, program, "extract-flow", "--dataset=demo", "--tasks=9", "--method=dis", "--jobs=1")
    few = ("--iterations=1", "--batch=2", "--workers=1", "--allow-missing")
    run(folder, program, "train", "--dataset=demo", "--stream=temporal", *few)
    assert (folder / "data" / "demo" / "runs" / "temporal-split1" / "recipe.toml").is_file()
    (shard, *_) = sorted((folder / "data").rglob("*.h5"))
    run(folder, program, "pipeline", "view", shard, "--output=flow.png")
    assert (folder / "flow.png").stat().st_size > 1000
    chain = run(folder, program, "slurm", "submit", "--dataset=demo", "--dry-run")
    assert chain.count("sbatch --parsable") == 5


def test_job_scripts_of_the_wheel_find_what_they_need(program: Path) -> None:
    (packages,) = program.parent.parent.glob("lib/python*/site-packages")
    scripts = sorted((packages / "slurm").glob("*.sbatch"))
    assert len(scripts) == 4
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(packages)}
    names = {"SLURM_JOB_NAME": "verify", "SLURM_JOB_ID": "1"}
    done = subprocess.run(
        ["bash", str(packages / "slurm" / "verify.sbatch"), "--help"],
        env={**environment, **names},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m pipeline verify" in done.stdout


def test_the_shell_completes_commands(program: Path, folder: Path) -> None:
    words = {"COMP_WORDS": "two-stream ex", "COMP_CWORD": "1", "_TWO_STREAM_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [program], cwd=folder, env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["plain,extract-flow"]
