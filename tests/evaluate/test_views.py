"""The 25 x 10 views against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate import views


@given(st.integers(1, 3000), st.integers(1, 60))
def test_positions_are_equally_spaced_from_first_to_last(available: int, count: int) -> None:
    found = views.positions(available, count)
    assert len(found) == min(available, count)
    assert len(set(found.tolist())) == len(found)
    if len(found) > 1:
        ideal = np.linspace(0, available - 1, len(found))
        assert (found[0], found[-1]) == (0, available - 1)
        assert np.abs(found - ideal).max() <= 0.5 + 1e-9


def test_twenty_five_of_fewer_positions_takes_each_once() -> None:
    np.testing.assert_array_equal(views.positions(7, 25), np.arange(7))
    np.testing.assert_array_equal(views.positions(1, 25), [0])
    np.testing.assert_array_equal(views.positions(9, 1), [4])


@pytest.mark.parametrize(("available", "count"), [(0, 25), (5, 0)])
def test_no_position_is_an_error(available: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        views.positions(available, count)


@pytest.mark.parametrize("crops", views.CROPS)
@pytest.mark.parametrize(("height", "width", "size"), [(11, 16, 7), (8, 8, 8), (9, 13, 5)])
def test_crops_are_corners_centre_and_their_mirrors(height: int, width: int, size: int, crops: int) -> None:
    volume = torch.randn(3, 4, height, width)
    cut = views.cut_crops(volume, size, crops, negate_x=True).numpy()
    y, x = (height - size) // 2, (width - size) // 2
    centre = volume[:, :, y : y + size, x : x + size]
    corners = [
        volume[:, :, :size, :size],
        volume[:, :, :size, width - size :],
        volume[:, :, height - size :, :size],
        volume[:, :, height - size :, width - size :],
    ]
    straight = {1: [centre], 5: [*corners, centre], 10: [*corners, centre]}[crops]
    expected = [crop.numpy() for crop in straight]
    if crops == 10:
        for crop in straight:
            mirror = crop.numpy()[..., ::-1].copy()
            mirror[:, 0] *= -1  # x of the first flow
            mirror[:, 2] *= -1  # x of the second
            expected.append(mirror)
    np.testing.assert_array_equal(cut, np.stack(expected, axis=1))


def test_mirrored_frames_keep_their_colours() -> None:
    volume = torch.rand(1, 3, 6, 6)
    cut = views.cut_crops(volume, 6, 10, negate_x=False)
    torch.testing.assert_close(cut[0, 9], volume[0].flip(-1))


def test_ten_views_of_mirrored_flow_are_the_same_ten_views() -> None:
    """Mirroring a video and negating its x flow permutes the views, so averaged scores cannot change."""
    volume = torch.randn(2, 6, 9, 12)
    mirror = volume.flip(-1).clone()
    mirror[:, 0::2] *= -1
    straight = views.cut_crops(volume, 6, 10, negate_x=True)
    mirrored = views.cut_crops(mirror, 6, 10, negate_x=True)
    torch.testing.assert_close(mirrored[:, [6, 5, 8, 7, 9, 1, 0, 3, 2, 4]], straight)


@pytest.mark.parametrize(
    ("arguments", "message"), [((8, 8, 9, 10), "does not fit"), ((8, 8, 4, 3), "1, 5 or 10")]
)
def test_impossible_crops_are_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views.crop_corners(*arguments)
