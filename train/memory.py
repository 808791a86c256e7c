"""Memory for pixels and volumes, reused from batch to batch.

Fresh memory costs as much as decoding or computing what is written to it, since every page is mapped and cleared first.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Memory = Callable[[tuple[int, ...]], Tensor]
"""Room for pixels: a uint8 tensor of the shape given, contiguous, with arbitrary content."""


def plain_memory(shape: tuple[int, ...]) -> Tensor:
    """Newly allocated memory."""
    return torch.empty(shape, dtype=torch.uint8)


def memory_for(device: torch.device) -> Memory:
    """Room for what is going to a device."""
    return pinned_memory if device.type == "cuda" else ReusedMemory()


def pinned_memory(shape: tuple[int, ...]) -> Tensor:
    """Pinned memory, which torch reuses once nothing refers to it and the copies from it are done."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class ReusedMemory:
    """Memory that is reused once nothing refers to it; may be called from any thread."""

    def __init__(self) -> None:
        self._largest = 0
        self._free: list[npt.NDArray[np.uint8]] = []

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor uint8[shape]; any view of it keeps its memory."""
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(0, np.uint8)
        if block.size < size:
            block = np.empty(self._largest, np.uint8)
        lent = block[:size]  # an array of its own, to which the tensor's storage refers until it ends
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(shape)


_volumes = ReusedMemory()


def volume_memory(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Room for float32[shape] on a device; a GPU's allocator uses its memory again anyway."""
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return _volumes((4 * math.prod(shape),)).view(torch.float32).view(shape)
