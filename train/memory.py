"""Memory for pixels and volumes, reused from batch to batch, as tensors: `pipeline.memory`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline import memory

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
        self._memory = memory.ReusedMemory()

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor uint8[shape]; any view of it keeps its memory."""
        return torch.from_numpy(self._memory(shape))


_volumes = ReusedMemory()


def volume_memory(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Room for float32[shape] on a device; a GPU's allocator uses its memory again anyway."""
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return _volumes((4 * math.prod(shape),)).view(torch.float32).view(shape)
