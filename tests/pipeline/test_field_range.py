"""The range of levels of each field: the integer rules against exact arithmetic, and what they do to fields of flow."""

from __future__ import annotations

import hashlib
import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_shards import smooth_flow
from PIL import Image

from pipeline import codec as module
from pipeline.codec import Quantised, Quantiser, asinh_quantiser, codec, dequantise, linear_quantiser
from pipeline.field_range import (
    LADDER,
    RUNGS,
    UNITS_PER_PIXEL,
    has_fast_motion,
    ladder_limits,
    ladder_rung,
    whole_pixel_offset,
)

FLOW = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.just(2), st.integers(1, 60), st.integers(1, 60)),
    elements=st.floats(-700, 700, width=32),
    fill=st.floats(-90, 90, width=32),
)
UNIT = UNITS_PER_PIXEL
VECTORS = [
    # sum of fixed-point values, pixels, offset
    (0, 1, 0),
    (UNIT // 2 - 1, 1, 0),
    (UNIT // 2, 1, 1),
    (-UNIT // 2, 1, -1),
    (-UNIT // 2 + 1, 1, 0),
    (3 * UNIT // 2, 1, 2),
    (-3 * UNIT // 2, 1, -2),
    (7 * UNIT, 2, 4),
    (7 * UNIT - 1, 2, 3),
    (-7 * UNIT, 2, -4),
    (87040 * 40 * UNIT, 87040, 40),
    (-87040 * 40 * UNIT - 43520 * UNIT, 87040, -41),
    (87041 * 12 * UNIT + 87041 * UNIT // 2 - 1, 87041, 12),
    (87041 * 12 * UNIT + 87041 * UNIT // 2, 87041, 13),
]
"""Halves of a pixel round away from zero."""
BEYOND = [
    # pixels, how many lie beyond the bound from rung 0 on, rung
    (1000, [1], 0),
    (1000, [2], 1),
    (999, [1], 1),
    (1999, [1], 0),
    (1999, [2], 1),
    (2000, [2], 0),
    (87040, [88, 87], 1),
    (87040, [87], 0),
    (87040, [9000, 900, 90, 88, 87], 4),
    (64, [64] * 10, 10),
    (64, [64] * 11, 10),
]


@pytest.mark.parametrize(("total", "pixels", "offset"), VECTORS)
def test_vectors_of_the_offset(total, pixels, offset):
    assert whole_pixel_offset(np.int64(total), pixels) == offset


@given(total=st.integers(-(2**55), 2**55), pixels=st.integers(1, 2**25))
def test_the_offset_is_the_exact_mean_rounded_with_halves_away_from_zero(total, pixels):
    mean = Fraction(abs(total), pixels * UNIT)
    expected = int(mean + Fraction(1, 2)) * (1 if total > 0 else -1)
    assert whole_pixel_offset(np.int64(total), pixels) == expected


@pytest.mark.parametrize(("pixels", "beyond", "rung"), BEYOND)
def test_vectors_of_the_rung(pixels, beyond, rung):
    counts = np.array(beyond + [0] * (RUNGS - len(beyond)), np.int64)
    assert ladder_rung(counts, pixels) == rung


def test_the_ladder_doubles_every_other_rung_and_starts_at_one():
    assert LADDER.dtype == np.float32
    assert (LADDER[::2] == 2.0 ** np.arange(6)).all()
    assert (LADDER[1::2] == np.float32(2**0.5) * 2.0 ** np.arange(5, dtype=np.float32)).all()


@given(bound=st.floats(0.0625, 10000, width=32))
def test_a_value_is_within_the_bound_at_a_rung_exactly_up_to_its_limit(bound):
    limits = ladder_limits(bound)
    assert limits.dtype == np.float32
    assert limits[0] == np.float32(bound)
    assert (limits / LADDER <= np.float32(bound)).all()
    assert (np.nextafter(limits, np.float32(np.inf)) / LADDER > np.float32(bound)).all()


@pytest.mark.parametrize(("count", "fast"), [(3, False), (4, True)])
@pytest.mark.parametrize("level", [128 + 63, 128 - 63, 255, 1])
def test_motion_is_fast_from_more_than_three_percent_of_pixels_on(count, fast, level):
    levels = np.full((2, 10, 10), 128, np.uint8)
    levels[0].flat[:2] = level
    levels[1].flat[1:count] = level  # pixel 1 is fast in both components and counts once
    assert has_fast_motion(levels, 63) is fast
    assert not has_fast_motion(levels, 64) or level in (1, 255)


def test_fast_is_five_pixels_whatever_the_table():
    for quantiser in (
        asinh_quantiser(3, 20),
        asinh_quantiser(2, 20),
        asinh_quantiser(3, 64),
        linear_quantiser(20),
    ):
        level = quantiser.quantise(np.full((1, 2, 1, 1), 5, np.float32)).levels[0, 0, 0, 0]
        assert quantiser.fast_distance == level - 128
    assert codec().quantiser.fast_distance == 63 == round(127 * np.arcsinh(5 / 3) / np.arcsinh(20 / 3))
    assert codec(bound=2).quantiser.fast_distance == 127


# --- whole fields


def exact_ranges(flow: np.ndarray, quantiser: Quantiser) -> tuple[list[list[int]], list[int]]:
    """Offsets and rungs by the rules of the text, in exact arithmetic but for the float32 operations they name."""
    offsets, rungs = [], []
    for field in flow:
        pixels = field[0].size
        offset = []
        for component in field:
            total = sum(int(np.rint(np.float64(value) * UNIT)) for value in component.ravel())
            mean = Fraction(abs(total), pixels * UNIT)
            offset.append(int(mean + Fraction(1, 2)) * (1 if total > 0 else -1))
        reach = np.abs(field - np.float32(offset)[:, None, None]).max(axis=0)
        fits = [1000 * int((reach / scale > quantiser.table[255]).sum()) <= pixels for scale in LADDER]
        offsets.append(offset)
        rungs.append(fits.index(True) if True in fits else RUNGS - 1)
    return offsets, rungs


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=60, deadline=None)
@given(flow=FLOW, bound=st.sampled_from([20.0, 3.0, 64.0]))
def test_each_field_gets_the_offset_and_the_scale_of_the_rules(compiled, flow, bound):
    quantiser = codec(bound=bound).quantiser
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(module, "_kernel", lambda name: None)
        found = quantiser.quantise(flow)
    offsets, rungs = exact_ranges(flow, quantiser)
    assert found.offset.tolist() == offsets
    assert (found.scale == LADDER[rungs][:, None]).all()


@settings(max_examples=60, deadline=None)
@given(flow=FLOW)
def test_no_more_than_a_thousandth_is_clipped_below_the_last_rung(flow):
    found = codec().quantiser.quantise(flow)
    below_the_last = found.scale[:, 0] < LADDER[-1]
    pixels = flow.shape[2] * flow.shape[3]
    assert (1000 * np.rint(found.clipped * pixels)[below_the_last] <= pixels).all()


@settings(max_examples=60, deadline=None)
@given(flow=FLOW)
def test_what_is_not_clipped_is_within_half_a_step_of_its_scale(flow):
    quantiser = codec().quantiser
    found = quantiser.quantise(flow)
    scale, offset = (a[..., None, None] for a in (found.scale, found.offset))
    inside = np.clip((flow - offset) / scale, -20, 20)
    read = dequantise(found.levels, quantiser.table, found.scale, found.offset)
    half_step = np.interp(np.abs(inside), quantiser.table[129:], np.diff(quantiser.table[128:]) / 2 * 1.1)
    assert (np.abs((read - offset) / scale - inside) <= half_step + 1e-4).all()


@settings(max_examples=30, deadline=None)
@given(flow=FLOW, seed=st.integers(0, 9))
def test_the_order_of_pixels_does_not_matter(flow, seed):
    order = np.random.default_rng(seed).permutation(flow.shape[2] * flow.shape[3])
    shuffled = flow.reshape(*flow.shape[:2], -1)[..., order].reshape(flow.shape)
    one, other = codec().quantiser.quantise(flow), codec().quantiser.quantise(shuffled)
    for name in ("scale", "offset", "mean", "clipped"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_a_still_camera_keeps_zero_as_a_level_and_the_streams_of_the_fixed_bound():
    flow = smooth_flow(3, 48, 64) * np.float32(0.5)
    flow -= flow.mean(axis=(2, 3), keepdims=True)
    adaptive, fixed = codec(), codec(bound_fixed=True)
    found, expected = adaptive.quantiser.quantise(flow), fixed.quantiser.quantise(flow)
    for name in vars(expected):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert [adaptive.encode(levels) for levels in found.levels] == [
        fixed.encode(levels) for levels in expected.levels
    ]


def panned(count: int = 2) -> np.ndarray:
    """A pan of 40 px to the right, in which a square of a tenth of the field moves by 11 px to the right."""
    flow = np.zeros((count, 2, 60, 80), np.float32)
    flow[:, 0] = 40
    flow[:, 0, 20:40, 20:44] = 11
    return flow


def decoded(flow: np.ndarray, coding: module.Codec) -> tuple[np.ndarray, Quantised]:
    quantised = coding.quantiser.quantise(flow)
    height, width = flow.shape[2:]
    levels = np.stack([coding.decode(coding.encode(levels), height, width) for levels in quantised.levels])
    return dequantise(levels, coding.quantiser.table, quantised.scale, quantised.offset), quantised


def test_behind_a_pan_of_40_pixels_the_background_keeps_its_motion_after_mean_subtraction():
    flow = panned()
    background = np.s_[:, 0, 5:15, 50:75]
    for coding, expected in ((codec(), 2.9), (codec(bound_fixed=True), -17.1)):
        read, quantised = decoded(flow, coding)
        assert np.allclose(quantised.mean[:, 0], 37.1)
        assert read[background].mean() - quantised.mean[0, 0] == pytest.approx(expected, abs=0.1)


@settings(max_examples=40, deadline=None)
@given(x=st.floats(-80, 80, width=32), y=st.floats(-80, 80, width=32), seed=st.integers(0, 5))
def test_no_motion_over_a_pixel_changes_its_sign_once_the_mean_is_subtracted(x, y, seed):
    flow = smooth_flow(1, 24, 32, seed) + np.float32([x, y])[:, None, None]
    quantiser = codec().quantiser
    found = quantiser.quantise(flow)
    read = dequantise(found.levels, quantiser.table, found.scale, found.offset)
    true, kept = (field - found.mean[..., None, None] for field in (flow, read))
    assert (np.sign(true) == np.sign(kept))[np.abs(true) > 1].all()


def steps_of(stream: bytes) -> set[int]:
    (table,) = Image.open(io.BytesIO(stream)).quantization.values()
    return set(table)


@pytest.mark.parametrize(("quality", "usual", "fine"), [(None, 8, 5), (88, 4, 3), (100, 1, 1), (50, 16, 10)])
def test_fields_of_fast_motion_get_a_finer_step(quality, usual, fine):
    coding = codec(quality=quality)
    slow, fast = np.full((2, 2, 16, 16), 128, np.uint8)
    fast[1, :8] = 128 - 63
    assert steps_of(coding.encode(slow)) == {usual}
    assert steps_of(coding.encode(fast)) == {fine}
    assert steps_of(codec(quality=quality, bound_fixed=True).encode(fast)) == {usual}


def test_a_ladder_needs_a_symmetric_table_and_no_other_range():
    table = codec().quantiser.table
    with pytest.raises(ValueError, match="ladder"):
        Quantiser("both", table, per_field=True, ladder=True)
    with pytest.raises(ValueError, match="ladder"):
        Quantiser("skewed", np.linspace(-1, 2, 256, dtype=np.float32), ladder=True)


def rendered_fields() -> np.ndarray:
    """Smooth motion, fast motion, pans and zooms whose values are exact in float32: float32[6,2,40,56]."""
    rows, columns = np.mgrid[-20:20, -28:28].astype(np.float32)
    zoom = np.stack([columns, rows])
    still = np.where(np.abs(zoom) < 8, np.float32(0.375), np.float32(0))
    return np.stack(
        [still, zoom / 8, zoom * 2, still + 40, zoom * 4 - np.float32([[[61.5]], [[3]]]), still * 900]
    ).astype(np.float32)


def test_levels_of_rendered_fields_are_these_exactly():
    found = codec().quantiser.quantise(rendered_fields())
    assert found.offset.tolist() == EXPECTED_OFFSETS
    assert found.scale[:, 0].tolist() == LADDER[EXPECTED_RUNGS].tolist()
    assert hashlib.sha256(found.levels.tobytes()).hexdigest() == EXPECTED_DIGEST


EXPECTED_OFFSETS = [[0, 0], [0, 0], [-1, -1], [40, 40], [-64, -5], [90, 127]]
EXPECTED_RUNGS = [0, 0, 3, 0, 5, 8]
EXPECTED_DIGEST = "060816977c492a5c47b31690b12a4d79c3175f8712a12c9c7a9403ed61bb2b51"
