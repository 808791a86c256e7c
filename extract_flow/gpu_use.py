"""What can be seen of GPUs from outside their processes: whether MPS runs, and how busy they are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLE_EVERY = 500
"""Milliseconds between two looks at how busy the GPUs are."""


def mps_runs() -> bool:
    """Whether the daemon of CUDA's Multi-Process Service waits where processes of this environment look for it.

    With it, kernels of several processes run at the same time; without, the processes take turns on a GPU.
    """
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control").exists()


def visible_gpus(device: str) -> str:
    """The GPUs that `device` ("cuda", "auto" or "cuda:N") means, as nvidia-smi's --id takes them; "" for all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    number = device.removeprefix("cuda:")
    if not number.isdecimal():
        return visible
    names = visible.split(",")
    return names[int(number)].strip() if visible and int(number) < len(names) else number


@contextmanager
def busy_share(device: str) -> Iterator[Callable[[], float | None]]:
    """Watch how busy the GPUs are while the block runs, by nvidia-smi.

    Yields a function to be called once after the work: the mean share of the time, 0 to 1, in which kernels ran on the
    GPUs that `device` means, by any process; None where nvidia-smi is missing or reports nothing.
    """
    if shutil.which("nvidia-smi") is None:
        yield lambda: None
        return
    chosen = visible_gpus(device)
    sampler = subprocess.Popen(
        ["nvidia-smi", *([f"--id={chosen}"] if chosen else []), "--query-gpu=utilization.gpu",
         "--format=csv,noheader,nounits", f"-lms={SAMPLE_EVERY}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def share() -> float | None:
        sampler.terminate()
        samples = [int(line) for line in sampler.communicate()[0].splitlines() if line.strip().isdecimal()]
        return sum(samples) / len(samples) / 100 if samples else None

    with sampler:
        try:
            yield share
        finally:
            sampler.kill()
