"""Which GPU to use, what it has, and its memory errors as `DeviceMemoryError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from numba import cuda
from numba.cuda import config

from extract_flow.flow_method import DeviceMemoryError
from pipeline.errors import InputError

SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", False))
"""Kernels run in numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1), for tests on tiny images."""

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

SIMULATED_SHARED_MEMORY = 99 * 1024


def device_count() -> int:
    """GPUs that this process can see; CUDA_VISIBLE_DEVICES limits and orders them. 0 without a driver."""
    try:
        return len(cuda.gpus) if cuda.is_available() else 0
    except cuda.cudadrv.error.CudaSupportError:
        return 0


def available() -> bool:
    """Whether a GPU can be used."""
    return device_count() > 0


def select(method: str, device: str) -> int:
    """Make a GPU this thread's own and return its index among the visible ones.

    Args:
        method: the method's name, for messages.
        device: "auto", "cuda" or "cuda:N".

    Raises:
        InputError: there is no usable GPU, or not that one.
    """
    count = device_count()
    if count == 0:
        raise InputError(
            f"{method} on {device}: no usable NVIDIA GPU is visible (look at `nvidia-smi`, the driver and "
            "CUDA_VISIBLE_DEVICES); use --device cpu"
        )
    number = "0" if device in ("auto", "cuda") else device.removeprefix("cuda:")
    if not number.isdecimal() or int(number) >= count:
        raise InputError(
            f"{method}: expected the device cpu, cuda or one of cuda:0 to cuda:{count - 1}, found {device!r}"
        )
    cuda.select_device(int(number))
    return int(number)


def shared_memory() -> int:
    """Bytes of dynamic shared memory that one block may have on the current GPU."""
    if SIMULATED:
        return SIMULATED_SHARED_MEMORY
    return int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


def free_memory() -> int:
    """Bytes of free memory on the current GPU."""
    return 1 << 30 if SIMULATED else int(cuda.current_context().get_memory_info().free)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Raise DeviceMemoryError, naming `what`, where the GPU runs out of memory inside the block."""
    try:
        yield
    except Exception as error:
        if getattr(error, "code", None) == OUT_OF_MEMORY or "OUT_OF_MEMORY" in str(error):
            raise DeviceMemoryError(f"{what}: the GPU has too little memory ({error})") from error
        raise
