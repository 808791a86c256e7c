"""Rules of pipeline/memory.py."""

from __future__ import annotations

import numpy as np

from pipeline.memory import ReusedMemory


def test_memory_is_used_again_once_no_view_of_it_is_left_and_not_before() -> None:
    memory = ReusedMemory()
    first = memory((2, 3, 4))
    first[:] = 1
    part, place = first[1:, :2], first.ctypes.data
    del first
    second = memory((24,))
    second[:] = 2
    assert second.ctypes.data != place
    assert np.all(part == 1)
    del part
    assert memory((3, 5)).ctypes.data == place
    assert memory((0, 5)).shape == (0, 5)
    assert memory((30,)).size == 30
