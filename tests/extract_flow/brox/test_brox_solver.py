"""Level sizes and tap tables of the Brox solver against OpenCV's rules and cv2.resize."""

from __future__ import annotations

import brox_reference
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract_flow.brox import solver
from extract_flow.brox.parameters import PRESETS

sizes = st.integers(1, 200)


def matrix(taps, source):
    result = np.zeros((len(taps.first), source))
    for row, (first, weights) in enumerate(zip(taps.first, taps.weights, strict=True)):
        result[row, first : first + len(weights)] = weights
    return result


@settings(max_examples=60, deadline=None)
@given(source=sizes, preset=st.sampled_from(sorted(PRESETS)))
def test_taps_stay_inside_and_keep_constants(source, preset):
    target = int(np.ceil(source * 0.8))
    parameters = PRESETS[preset]
    for taps, size in (
        (solver.shrink(source, target, parameters), source),
        (solver.enlarge(target, source, parameters)[0], target),
        (solver.blur(source, 0.6), source),
    ):
        assert taps.first.min() >= 0
        assert taps.first.max() + taps.weights.shape[1] <= size
        np.testing.assert_allclose(taps.weights.sum(axis=1), 1, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(source=st.integers(2, 120))
def test_centred_resampling_is_cv2_area_down_and_linear_up(source):
    target = int(np.ceil(source * 0.8))
    row = np.random.default_rng(source).normal(size=(1, source))
    shrunk = row @ matrix(solver.shrink(source, target, PRESETS["default"]), source).T
    np.testing.assert_allclose(shrunk, cv2.resize(row, (target, 1), interpolation=cv2.INTER_AREA), atol=1e-5)
    taps, ratio = solver.enlarge(target, source, PRESETS["default"])
    enlarged = shrunk @ matrix(taps, target).T
    np.testing.assert_allclose(
        enlarged, cv2.resize(shrunk, (source, 1), interpolation=cv2.INTER_LINEAR), atol=1e-4
    )
    assert ratio == source / target


@settings(max_examples=30, deadline=None)
@given(source=st.integers(16, 120))
def test_opencvs_resampling_follows_its_kernels(source):
    target = int(np.ceil(source * 0.8))
    row = np.random.default_rng(source).normal(size=(1, source))
    taps = solver.shrink(source, target, PRESETS["opencv"])
    np.testing.assert_allclose(
        row @ matrix(taps, source).T, brox_reference._boxes(row, target, 0.8), atol=1e-5
    )
    taps, ratio = solver.enlarge(target, source, PRESETS["opencv"])
    coarse = np.random.default_rng(source).normal(size=(1, target))
    expected = brox_reference._catmull_rom(coarse, source, 1, 0.8)
    np.testing.assert_allclose(coarse @ matrix(taps, target).T, expected, atol=1e-4)
    assert ratio == pytest.approx(1.25)


def test_levels_go_on_while_both_sides_exceed_15_pixels():
    levels = solver.level_sizes(340, 256, 0.8, 77)
    assert levels[:3] == [(340, 256), (272, 205), (218, 164)]
    assert min(levels[-1]) <= 15 < min(levels[-2])
    assert solver.level_sizes(340, 256, 0.8, 5) == levels[:5]
    assert solver.level_sizes(15, 400, 0.8, 77) == [(15, 400)]
    assert solver.level_sizes(1, 1, 0.8, 77) == [(1, 1)]
