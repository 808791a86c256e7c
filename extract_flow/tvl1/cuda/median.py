"""The compare-exchanges by which `median.cu` finds a median in registers."""

from __future__ import annotations


def median_network(count: int) -> list[tuple[int, int]]:
    """Compare-exchanges (low, high) after which the middle one of `count` values is their median.

    Batcher's odd-even merge sort without the exchanges that do not lead to the middle.
    """
    exchanges = []
    power = 1
    while power < count:
        half = power
        while half >= 1:
            for start in range(half % power, count - half, 2 * half):
                for low in range(start, min(start + half, count - half)):
                    if low // (2 * power) == (low + half) // (2 * power):
                        exchanges.append((low, low + half))
            half //= 2
        power *= 2
    needed, kept = {count // 2}, []
    for low, high in reversed(exchanges):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return kept[::-1]
