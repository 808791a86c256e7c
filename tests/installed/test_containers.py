"""What the image definitions copy and run, checked and run outside of a container."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NEEDED = {
    "pipeline", "extract_flow", "train", "evaluate", "slurm", "two_stream",
    "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
}  # fmt: skip
DOCKERFILE = (PROJECT / "containers" / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (PROJECT / "containers" / "two-stream.def").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The text of a section of the Apptainer definition."""
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_both_images_hold_what_the_project_is_installed_from() -> None:
    docker = {
        word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    }
    pairs = [line.split() for line in section("files").splitlines() if line.strip()]
    assert docker == NEEDED
    assert {source for source, _ in pairs} == NEEDED
    assert all(target == f"/opt/two-stream/{source}" for source, target in pairs)


def test_both_images_install_alike() -> None:
    def install(text: str) -> str:
        found = re.search(r"/opt/environment/bin/pip install .*", text)
        assert found is not None
        return re.sub(r"\{\{ (\w+) \}\}", r"$\1", found[0])

    assert install(DOCKERFILE) == install(section("post"))
    assert re.search(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE)[1] in DEFINITION  # type: ignore[index]


def test_the_test_of_the_definition_passes(tmp_path: Path) -> None:
    program = tmp_path / "two-stream"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m two_stream "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["bash", "-euc", section("test")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wrapped(tmp_path: Path, apptainer: str) -> dict[str, str]:
    """An environment in which `python` is the wrapper and `apptainer` a script."""
    program = tmp_path / "apptainer"
    program.write_text(f"#!/bin/bash\n{apptainer}\n")
    program.chmod(0o755)
    return {
        "PATH": f"{PROJECT / 'containers' / 'bin'}:{tmp_path}:{os.environ['PATH']}",
        "TWO_STREAM_IMAGE": "/images/two stream.sif",
        "APPTAINER_OPTIONS": "--nv --bind /scratch",
    }


def test_the_wrapper_runs_python_of_the_image(tmp_path: Path) -> None:
    environment = wrapped(tmp_path, "printf '%s\\n' \"$@\"")
    words = ["-m", "train", "--run=a b"]
    done = subprocess.run(["python", *words], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "exec", "--nv", "--bind", "/scratch", "/images/two stream.sif", "python", *words,
    ]  # fmt: skip


def test_the_wrapper_names_what_is_missing(tmp_path: Path) -> None:
    environment = wrapped(tmp_path, "exit 3")
    del environment["TWO_STREAM_IMAGE"]
    done = subprocess.run(
        ["python", "-m", "train"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "TWO_STREAM_IMAGE" in done.stderr


def test_a_signal_reaches_what_the_wrapper_has_become(tmp_path: Path) -> None:
    environment = wrapped(
        tmp_path, "trap 'echo saving; exit 75' USR1; echo ready; while true; do sleep 0.05; done"
    )
    with subprocess.Popen(["python"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "saving\n"
    assert process.returncode == 75
