"""Losses of a batch whose samples belong to several heads, exact over micro-batches and processes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


class Samples(NamedTuple):
    """B samples of K snippets on the device: inputs float32[B,K,C,H,W], label and head int64[B], keys int64[B,K]."""

    inputs: Tensor
    label: Tensor
    head: Tensor
    keys: Tensor


def join(parts: Sequence[Samples]) -> Samples:
    """Samples one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Samples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def split(samples: Samples, pieces: int) -> list[Samples]:
    """Samples in at most `pieces` parts of nearly equal size."""
    count = len(samples.label)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [Samples(*(tensor[a:b] for tensor in samples)) for a, b in itertools.pairwise(edges) if a < b]


def head_losses(
    logits: Tensor, label: Tensor, head: Tensor, ranges: Sequence[tuple[int, int]], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What these samples contribute to the loss of the whole batch: the sum over heads of each head's mean loss.

    Args:
        logits: [B,classes] of all heads.
        label, head: int64[B]; labels are columns of the last layer.
        ranges: columns of each head.
        counts: samples of each head in the whole batch, over all processes and micro-batches.

    Returns:
        The loss, and detached float32[heads,3]: summed loss, number correct, number of samples.
    """
    loss = logits.new_zeros(())
    stats = []
    for i, ((start, stop), count) in enumerate(zip(ranges, counts, strict=True)):
        # Samples of other heads are left out by value: leaving them out by shape would wait for the device.
        mine, own = head == i, logits[:, start:stop]
        wanted = torch.where(mine, label - start, IGNORED)
        summed = F.cross_entropy(own, wanted, reduction="sum", ignore_index=IGNORED)
        loss = loss + summed / max(count, 1)
        correct = (own.argmax(dim=1) == wanted).sum()
        stats.append(torch.stack([summed.detach(), correct.float(), mine.sum().float()]))
    return loss, torch.stack(stats)


def mean_losses(stats: Tensor) -> Tensor:
    """Mean loss of each head, from stats [...,heads,3] as `head_losses` returns them; 0 for a head without samples."""
    return stats[..., 0] / stats[..., 2].clamp(min=1)


def validation_stats(
    logits: Tensor, label: Tensor, head: Tensor, ranges: Sequence[tuple[int, int]]
) -> Tensor:
    """Per head: summed loss, top-1 correct, top-5 correct, number of samples; float64[heads,4].

    Args:
        logits: [B,classes] of all heads, on the CPU as all the rest.
        label, head: int64[B].
        ranges: columns of each head.
    """
    stats = torch.zeros(len(ranges), 4, dtype=torch.float64)
    logits = logits.double()
    for i, (start, stop) in enumerate(ranges):
        mine = head == i
        own, wanted = logits[mine, start:stop], label[mine] - start
        if len(wanted):
            ranked = own.topk(min(5, stop - start), dim=1).indices == wanted[:, None]
            stats[i, 0] = F.cross_entropy(own, wanted, reduction="sum")
            stats[i, 1], stats[i, 2], stats[i, 3] = ranked[:, 0].sum(), ranked.any(dim=1).sum(), len(wanted)
    return stats
