"""The compare-exchanges by which `median.cu` finds a median in registers."""

from __future__ import annotations

from collections.abc import Iterator


def merge_sort_network(count: int) -> Iterator[tuple[int, int]]:
    """Batcher's odd-even merge sort of `count` values: compare-exchanges (low, high)."""
    powers = [1 << k for k in range(max(0, count - 1).bit_length())]
    for power in powers:  # merges sorted runs of this length
        for half in (p for p in reversed(powers) if p <= power):
            for low in range(half % power, count - half):
                chosen = (low - half % power) % (2 * half) < half
                if chosen and low // (2 * power) == (low + half) // (2 * power):
                    yield low, low + half


def median_network(count: int) -> list[tuple[int, int]]:
    """Compare-exchanges after which the middle one of `count` values is their median: those that lead to the middle."""
    needed, kept = {count // 2}, []
    for low, high in reversed(list(merge_sort_network(count))):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return kept[::-1]
