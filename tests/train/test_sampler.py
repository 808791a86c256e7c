"""Sampling follows from (seed, iteration, index) alone, and is uniform over classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.sampler import Schedule, choose, choose_positions, class_pools, generator, share


def test_a_sample_s_numbers_do_not_depend_on_others() -> None:
    alone = generator(3, 7, 11).random(5)
    for iteration in range(3):
        generator(3, iteration, 0).random(100)
    assert np.array_equal(generator(3, 7, 11).random(5), alone)
    others = [generator(*key).random(5) for key in ((4, 7, 11), (3, 8, 11), (3, 7, 12), (3, 11, 7))]
    assert all(not np.array_equal(other, alone) for other in others)


def test_numbers_are_the_same_on_every_machine() -> None:
    """Stored values: other ones would end the resuming of older runs."""
    assert generator(0, 0, 0).integers(1 << 30, size=3).tolist() == [37303846, 12398233, 657076588]
    assert generator(1, 2, 3).integers(1 << 30, size=3).tolist() == [1011638740, 387049957, 257205237]


def test_classes_are_drawn_uniformly_whatever_their_size() -> None:
    labels = [0] * 90 + [1] * 9 + [5]
    pools = class_pools(labels)
    drawn = [choose(generator(0, 0, index), pools) for index in range(3000)]
    counts = np.bincount(np.array(labels)[drawn], minlength=6)
    assert counts[[2, 3, 4]].sum() == 0
    assert (abs(counts[[0, 1, 5]] - 1000) < 110).all()
    assert len(set(drawn)) > 90


@given(st.integers(1, 200), st.integers(1, 10), st.integers(0, 1000))
def test_segments_are_spread_over_the_video(available: int, segments: int, index: int) -> None:
    positions = choose_positions(generator(0, 0, index), available, segments)
    assert positions.shape == (segments,)
    assert (np.diff(positions) >= 0).all()
    assert positions.min() >= 0
    assert positions.max() < available
    if available >= segments:
        for k, position in enumerate(positions):
            assert k * available // segments <= position < (k + 1) * available // segments


def test_every_position_can_be_drawn() -> None:
    drawn = {int(choose_positions(generator(0, 0, index), 10, 1)[0]) for index in range(200)}
    assert drawn == set(range(10))


@given(st.integers(1, 300), st.integers(1, 9))
def test_ranks_share_a_batch_without_gap_or_overlap(batch: int, size: int) -> None:
    shares = [share(batch, rank, size) for rank in range(size)]
    assert [index for part in shares for index in part] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_hold_the_batch_in_order(micro_batch: int) -> None:
    schedule = Schedule(range(4, 12), micro_batch, 2, 5, read=2)
    chunks = list(schedule)
    assert len(chunks) == len(schedule)
    assert max(map(len, chunks)) == schedule.largest == min(micro_batch, 2)
    assert [sum(map(len, reads)) for reads in schedule.micro_batches[:-1]] == [micro_batch] * (
        len(schedule.micro_batches) - 1
    )
    assert [key for chunk in chunks for key in chunk] == [(t, i) for t in (2, 3, 4) for i in range(4, 12)]
