"""Room for pixels, used again.

Fresh memory costs as much as decoding what is written to it, since every page is mapped and cleared first.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt


class ReusedMemory:
    """Room that is used again once nothing refers to it; from any thread."""

    def __init__(self) -> None:
        self._largest = 0
        self._free: list[npt.NDArray[np.uint8]] = []

    def __call__(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """An array uint8[shape] of any content; any view of it keeps its memory."""
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(0, np.uint8)
        if block.size < max(1, size):
            block = np.empty(max(1, self._largest), np.uint8)
        # What all views refer to: not an array, since a view of one refers to the array that owns the memory.
        buffer: Any = block
        lent: Any = (ctypes.c_uint8 * max(1, size)).from_buffer(buffer)
        weakref.finalize(lent, self._free.append, block).atexit = False
        return np.frombuffer(lent, np.uint8, size).reshape(shape)
