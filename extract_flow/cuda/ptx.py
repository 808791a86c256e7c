"""PTX of a kernel for any GPU, and what ptxas says of it, on machines without a GPU.

numba-cuda asks for the current device and looks for libdevice by way of NVRTC, neither of which is needed to compile;
`compile_ptx` answers in their place. It needs NVVM and ptxas, that is a CUDA toolkit (`toolkit`).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

from numba import cuda, types

from extract_flow.cuda.kernel import Kernel

Capability = tuple[int, int]


class Resources(NamedTuple):
    """What ptxas reports of a kernel: per thread, except shared (bytes of static shared memory per block)."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@functools.cache
def toolkit() -> Path | None:
    """The CUDA toolkit that holds NVVM and ptxas: $CUDA_HOME, where ptxas is, or /usr/local/cuda*; None without one."""
    candidates = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    if found := shutil.which("ptxas"):
        candidates.append(Path(found).resolve().parent.parent)
    candidates += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    for folder in candidates:
        if (folder / "bin" / "ptxas").exists() and (
            folder / "nvvm" / "libdevice" / "libdevice.10.bc"
        ).exists():
            return folder
    return None


def compile_ptx(kernel: Kernel, capability: Capability) -> str:
    """PTX of a kernel for a compute capability, for example (9, 0).

    Raises:
        RuntimeError: there is no CUDA toolkit.
    """
    folder = toolkit()
    if folder is None:
        raise RuntimeError("no CUDA toolkit with NVVM and ptxas was found: set CUDA_HOME to one")
    os.environ.setdefault("CUDA_HOME", str(folder))
    device = SimpleNamespace(compute_capability=capability)
    libdevice = folder / "nvvm" / "libdevice" / "libdevice.10.bc"
    with (
        mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device),
        mock.patch("numba.cuda.cudadrv.nvrtc.get_arch_option", _architecture),
        mock.patch("numba.cuda.cudadrv.nvvm.get_libdevice", return_value=str(libdevice)),
        mock.patch("numba.cuda.cudadrv.nvvm.open_libdevice", libdevice.read_bytes),
    ):
        text, _ = cuda.compile_ptx(
            kernel.function, types.void(*kernel.signature), cc=capability, fastmath=kernel.fastmath
        )
    return str(text)


def _architecture(major: int, minor: int, arch: str = "") -> str:
    return f"compute_{major}{minor}{arch}"


def resources(kernel: Kernel, capability: Capability) -> Resources:
    """Registers, shared memory and spills of a kernel, by ptxas.

    Raises:
        RuntimeError: no CUDA toolkit, or ptxas refuses the kernel (the message is its own).
    """
    text = compile_ptx(kernel, capability)
    folder = toolkit()
    assert folder is not None
    limit = [] if kernel.registers is None else [f"--maxrregcount={kernel.registers}"]
    command = [str(folder / "bin" / "ptxas"), "-v", f"--gpu-name=sm_{capability[0]}{capability[1]}", *limit,
               "--output-file", os.devnull, "-"]  # fmt: skip
    finished = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"ptxas: {finished.stderr.strip()}")
    return Resources(
        *(
            _number(pattern, finished.stderr)
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes smem",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
            )
        )
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0
