"""A GPU for tests: the driver and NVRTC replaced by libraries that run the kernels' own source on the CPU.

`driver.cpp` is a libcuda.so.1, `nvrtc.cpp` a libnvrtc that compiles kernels with g++ behind `kernels.h`. Both are
preloaded into processes of their own, so that the rest of the test suite sees the machine as it is.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import pipeline.compiled  # noqa: F401  sets NUMBA_CACHE_DIR, which would follow XDG_CACHE_HOME

HERE = Path(__file__).parent
PROJECT = HERE.parents[3]


def reason_against() -> str | None:
    """Why kernels cannot be emulated here; None if they can."""
    if shutil.which("g++") is None:
        return "no C++ compiler (g++) to run the CUDA kernels on the CPU"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the emulated GPU switches its fibres in x86-64 assembly"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "needs cuda-bindings: pip install -e .[dev]"
    return None


needs_emulator = pytest.mark.skipif(reason_against() is not None, reason=str(reason_against()))


@functools.cache
def libraries() -> Path:
    """The folder of both libraries, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="emulated-gpu-"))
    for source, name in (("driver.cpp", "libcuda.so.1"), ("nvrtc.cpp", "libnvrtc.so.13")):
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name,
             HERE / source, "-ldl"],
            check=True,
        )  # fmt: skip
    return folder


def environment(nvrtc: bool = True, **more: str) -> dict[str, str]:
    """Environment of a process that sees the emulated GPU; kernels are kept from one process to the next."""
    folder = libraries()
    names = ["libcuda.so.1"] + ["libnvrtc.so.13"] * nvrtc
    return os.environ | {
        "LD_PRELOAD": ":".join(str(folder / name) for name in names),
        "EMULATOR": str(HERE),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"],
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(HERE.parent), str(HERE.parents[1] / "tvl1"),
                                       str(HERE.parents[1] / "brox")]),
    } | more  # fmt: skip


def run(script: Path, *arguments: str, **more: str) -> Any:
    """What a script prints as its last line, in JSON, on the emulated GPU."""
    finished = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment(**more), cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])
