"""Errors of the GPU that a network runs on, as messages for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import DeviceFailed
from pipeline.text import first_line


@contextmanager
def gpu_errors(smaller: str) -> Iterator[None]:
    """Errors of CUDA inside the block become `DeviceFailed`; other errors stay what they are.

    Args:
        smaller: the option that takes less memory.

    Raises:
        DeviceFailed: the GPU ran out of memory, or failed so that this process can compute nothing more on it.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceFailed(f"out of GPU memory: choose a smaller {smaller} ({first_line(error)})") from error
    except RuntimeError as error:
        if not of_cuda(error):
            raise
        raise DeviceFailed(
            f"the GPU failed: {first_line(error)}; look at `nvidia-smi` and the kernel's log (Xid), then run the "
            "command again: it continues from what was saved"
        ) from error


def of_cuda(error: RuntimeError) -> bool:
    """Whether torch raised it for an error of CUDA or of a library on it, after which the process is of no use."""
    kind = getattr(torch, "AcceleratorError", None)  # since torch 2.8; a plain RuntimeError before
    return (kind is not None and isinstance(error, kind)) or str(error).startswith(
        ("CUDA error", "CUDA driver error", "cuDNN error", "NCCL Error")
    )
