"""A kernel with its signature: launched on a GPU, run in the simulator, or compiled without either.

Signatures are explicit so that a launch never compiles for other types than those that tests compile for, and scalars
are cast to them, which also gives the simulator the GPU's float32 arithmetic.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.cuda import config

from extract_flow.cuda.device import SIMULATED

FLOATS = types.Array(types.float32, 1, "C")
FIELDS = types.Array(types.float32, 3, "C")
"""float32[n,H,W]"""
BYTES = types.Array(types.uint8, 1, "C")
INTS = types.Array(types.int32, 1, "C")
LONGS = types.Array(types.int64, 1, "C")
F4, I4, I8 = types.float32, types.int32, types.int64

STATIC_SHARED_MEMORY = 48 * 1024
"""Dynamic shared memory above this many bytes has to be asked for, kernel by kernel."""

Grid = tuple[int, ...]

# Some launches have a block per pair only, and a batch may be small.
vars(config)["CUDA_LOW_OCCUPANCY_WARNINGS"] = 0


class Kernel:
    """A CUDA kernel.

    Args:
        function: the kernel in Python.
        *signature: numba types of its arguments.
        fastmath: approximate division and square roots, fused multiply-adds, no denormals. Without it the result is
            IEEE float32, as quantisation needs.
        registers: most registers per thread, or None.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *signature: Any,
        fastmath: bool = True,
        registers: int | None = None,
    ) -> None:
        self.function, self.signature, self.fastmath, self.registers = (
            function,
            signature,
            fastmath,
            registers,
        )
        self._casts = [_cast(argument) for argument in signature]
        self._shared: dict[int, int] = {}

    @functools.cached_property
    def _dispatcher(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        options: dict[str, Any] = {"fastmath": self.fastmath, "max_registers": self.registers}
        return cuda.jit(**options)(self.function)

    def launch(self, grid: Grid, block: Grid, stream: Any, *arguments: Any, shared: int = 0) -> None:
        """Queue the kernel on a stream.

        Args:
            grid: blocks in x, y, z.
            block: threads per block in x, y, z.
            stream: a numba stream; 0 is the default one.
            *arguments: device arrays and numbers, which are cast to the signature's types.
            shared: bytes of dynamic shared memory.
        """
        cast = [c(a) if c else a for c, a in zip(self._casts, arguments, strict=True)]
        if not SIMULATED:
            self._prepare(shared)
        self._dispatcher[grid, block, stream, shared](*cast)

    def _prepare(self, shared: int) -> None:
        """Compile for the current GPU, and ask for the shared memory if it is more than a kernel has by default."""
        device = cuda.get_current_device()
        if self._shared.get(device.id, -1) >= shared:
            return
        self._dispatcher.compile(self.signature)
        if shared > STATIC_SHARED_MEMORY:
            for overload in self._dispatcher.overloads.values():
                allow_shared_memory(overload.library.get_cufunc().handle, shared, device.id)
        self._shared[device.id] = shared


def allow_shared_memory(handle: Any, size: int, device: int) -> None:
    """Let a compiled kernel have `size` bytes of dynamic shared memory; by default it may have 48 KB."""
    driver = importlib.import_module("numba.cuda.cudadrv.driver").driver
    bindings = importlib.import_module("cuda.bindings.driver")
    attribute = bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    if isinstance(handle, bindings.CUkernel):
        driver.cuKernelSetAttribute(attribute, size, handle, device)
    else:  # older versions of numba-cuda
        driver.cuFuncSetAttribute(handle, attribute, size)


def _cast(argument: Any) -> Callable[[Any], Any] | None:
    return None if isinstance(argument, types.Array) else getattr(np, str(argument))


def image_launch(height: int, width: int, count: int) -> tuple[Grid, Grid]:
    """Grid and block for kernels whose threads step over the pixels of `count` images (see `images.py`).

    The simulator starts about a thousand threads a second, so there a few threads take all pixels.
    """
    if SIMULATED:
        return (1, 1, count), (2, 1, 1)
    return (-(-width // 32), -(-height // 8), count), (32, 8, 1)
