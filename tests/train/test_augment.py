"""Where samples are cut, and the colour of their light."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.sampler import centre_box, generator, lighting_noise, random_box
from train.volume import VolumeSpec

SCALES = (1.0, 0.875, 0.75, 0.66)


@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from(["random", "corner"]),
    st.sampled_from([(), SCALES]),
    st.integers(0, 999),
)
def test_boxes_lie_in_the_frame(
    height: int, width: int, cut: str, scales: tuple[float, ...], index: int
) -> None:
    spec = VolumeSpec(crop=224, short_side=256)
    top, left, rows, columns = random_box(generator(0, 0, index), height, width, spec, cut, scales)
    assert 0 <= top <= height - rows
    assert 0 <= left <= width - columns
    shorter = min(height, width)
    sides = [round(shorter * scale) for scale in scales] or [round(shorter * 224 / 256)]
    assert rows in sides
    assert columns in sides
    # The region's sides are at most one scale apart, so that people are not distorted much.
    assert abs(sides.index(rows) - sides.index(columns)) <= 1
    if cut == "corner":
        centre = ((height - rows) // 2, (width - columns) // 2)
        assert (top in (0, height - rows) and left in (0, width - columns)) or (top, left) == centre


def test_every_corner_place_and_scale_is_drawn() -> None:
    spec = VolumeSpec()
    boxes = {random_box(generator(0, 0, i), 256, 340, spec, "corner", SCALES) for i in range(3000)}
    sizes = {box[2:] for box in boxes}
    assert len(sizes) == 4 + 2 * 3
    for rows, columns in sizes:
        # With the full height there is no top and bottom to choose from.
        assert len([box for box in boxes if box[2:] == (rows, columns)]) == (3 if rows == 256 else 5)
    free = [random_box(generator(0, 0, i), 256, 340, spec) for i in range(3000)]
    assert {box[0] for box in free} == set(range(33))
    assert {box[1] for box in free} == set(range(117))


def test_the_centre_box_is_central() -> None:
    assert centre_box(256, 340, VolumeSpec()) == (16, 58, 224, 224)
    assert centre_box(128, 170, VolumeSpec()) == (8, 29, 112, 112)


def test_lighting_noise_follows_the_principal_components() -> None:
    """Krizhevsky 2012: sum over components of p_i * alpha_i * lambda_i, alpha normal with the given deviation."""
    noise = np.array([lighting_noise(generator(0, 0, i), 0.1) for i in range(4000)]) / 255
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(noise.T @ noise / len(noise), expected, rtol=0.1, atol=1e-7)
    assert not lighting_noise(generator(0, 0, 0), 0).any()
