"""Dropout by key: the same masks wherever and in whatever company a sample is computed."""

from __future__ import annotations

import numpy as np
import torch

from train.models.dropout import KeyedDropout, keyed_uniform

MASK = (1 << 64) - 1


def splitmix(value: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def test_numbers_are_splitmix64_s() -> None:
    keys = [0, 1, -1, 2**62 + 12345, -(2**63)]
    found = keyed_uniform(torch.tensor(keys), 4)
    for row, key in zip(found, keys, strict=True):
        for i, number in enumerate(row.tolist(), 1):
            expected = splitmix((splitmix(key & MASK) + i * 0x9E3779B97F4A7C15) & MASK) >> 40
            assert number == expected / 2**24


def test_a_sample_is_dropped_alike_in_any_batch() -> None:
    dropout = KeyedDropout(0.5).train()
    features, keys = torch.ones(6, 100), torch.arange(6) * 1000003
    together = dropout(features, keys)
    assert torch.equal(dropout(features[2:4], keys[2:4]), together[2:4])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(KeyedDropout(0.5, layer=7).train()(features, keys), together)


def test_share_and_scale_are_those_of_dropout() -> None:
    for p in (0.1, 0.5, 0.9):
        dropped = KeyedDropout(p).train()(torch.ones(64, 4096), torch.arange(64))
        assert abs(float((dropped == 0).float().mean()) - p) < 0.005
        kept = dropped[dropped != 0]
        np.testing.assert_allclose(kept.numpy(), 1 / (1 - p), rtol=1e-6)
        # Neighbouring keys and neighbouring features are not correlated.
        mask = (dropped == 0).float() - p
        assert abs(float((mask[1:] * mask[:-1]).mean())) < 0.003
        assert abs(float((mask[:, 1:] * mask[:, :-1]).mean())) < 0.003


def test_evaluation_drops_nothing() -> None:
    features = torch.randn(3, 5)
    assert torch.equal(KeyedDropout(0.9).eval()(features, torch.arange(3)), features)


def test_without_keys_torch_s_generator_decides() -> None:
    dropped = KeyedDropout(0.5).train()(torch.ones(10, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
