"""Dropout whose masks are a function of the sample's (seed, iteration, index), not of a generator's state.

So a sample has the same mask on any number of processes, in any micro-batch, on a CPU or a GPU, and after resuming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INCREMENT = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of int64 (torch's own is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def scramble(value: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) on int64, wrapping; the same numbers on every device."""
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def keyed_uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1): float32[N,count] from keys int64[N]."""
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _INCREMENT
    return _shift(scramble(scramble(keys)[:, None] + counter), 40).to(torch.float32) * 2.0**-24


class KeyedDropout(nn.Module):
    """Inverted dropout on features [N,F]; masks from `keys` int64[N] if given, else from torch's generator.

    Attributes:
        p: share of the features set to zero.
        layer: number of the layer, so that a network's dropout layers have different masks.
    """

    def __init__(self, p: float, layer: int = 0) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def forward(self, features: Tensor, keys: Tensor | None = None) -> Tensor:
        if not self.training or self.p == 0:
            return features
        if keys is None:
            return F.dropout(features, self.p)
        kept = keyed_uniform(keys + self.layer, features.shape[1]) >= self.p
        return features * kept * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"
