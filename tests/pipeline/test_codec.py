"""Quantisers against the formulas of the literature, image coding against what it must keep."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_shards import smooth_flow
from PIL import Image

from pipeline import codec as module
from pipeline.codec import (
    PRESETS,
    Quantiser,
    codec,
    codec_from,
    decode_levels,
    dequantise,
    image_size,
    linear_quantiser,
)
from pipeline.errors import InputError

ZERO_CENTRED = ["default", "high-fidelity", "linear", "lossless"]
FLOW = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.just(2), st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(-60, 60, width=32),
)


def values(quantised: module.Quantised, quantiser: Quantiser) -> np.ndarray:
    scale, offset = (a[..., None, None] for a in (quantised.scale, quantised.offset))
    return quantiser.table[quantised.levels] * scale + offset


@pytest.mark.parametrize("preset", ZERO_CENTRED)
def test_tables_are_antisymmetric_with_level_128_exactly_zero_and_level_0_read_as_1(preset):
    table = codec(preset).quantiser.table
    assert table[128] == 0
    assert (table[1:] == -table[:0:-1]).all()
    assert table[0] == table[1]
    assert table[255] == 20


def test_default_levels_follow_the_asinh_formula():
    flow = np.linspace(-25, 25, 2 * 40 * 40, dtype=np.float32).reshape(1, 2, 40, 40)
    expected = np.rint(127 * np.arcsinh(np.clip(flow, -20, 20) / 3.0) / np.arcsinh(20 / 3)) + 128
    levels = codec(bound_fixed=True).quantiser.quantise(flow).levels
    # Edges lie half-way between values, which asinh puts within a ten-thousandth of half-way between levels.
    assert np.abs(levels - expected).max() <= 1
    assert (levels != expected).mean() < 0.005


def test_field_levels_are_the_bytes_of_the_literature():
    flow = np.random.default_rng(0).uniform(-25, 25, (2, 2, 50, 50)).astype(np.float32)
    flow[0, 0, 0, :3] = 0, 20, -20
    expected = np.clip(np.rint(255 * (flow.astype(np.float64) + 20) / 40), 0, 255)
    assert (codec("field").quantiser.quantise(flow).levels == expected).all()


def test_field_images_decode_to_what_two_jpegs_of_quality_95_hold():
    flow = smooth_flow(1, height=37, width=50)
    coding = codec("field")
    levels = coding.quantiser.quantise(flow).levels[0]
    expected = [
        cv2.imdecode(cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_GRAYSCALE)
        for plane in levels
    ]
    assert (coding.decode(coding.encode(levels), 37, 50) == expected).all()


def test_paper_preset_spans_each_component_of_each_field():
    flow = smooth_flow(3) * np.array([[[[0.1]], [[9]]]], np.float32)
    quantised = codec("paper").quantiser.quantise(flow)
    read = values(quantised, codec("paper").quantiser)
    assert np.allclose(read.min(axis=(2, 3)), flow.min(axis=(2, 3)), atol=1e-5)
    assert np.allclose(read.max(axis=(2, 3)), flow.max(axis=(2, 3)), atol=1e-5)
    half_step = (flow.max(axis=(2, 3)) - flow.min(axis=(2, 3))) / 254 / 2
    assert (np.abs(read - flow).max(axis=(2, 3)) <= half_step * 1.001).all()
    assert (quantised.clipped == 0).all()


def test_paper_preset_keeps_a_constant_field_exactly():
    flow = np.full((1, 2, 5, 6), 3.7, np.float32)
    quantised = codec("paper").quantiser.quantise(flow)
    assert (values(quantised, codec("paper").quantiser) == flow).all()


@pytest.mark.parametrize("preset", list(PRESETS))
@settings(max_examples=40, deadline=None)
@given(flow=FLOW)
def test_level_is_the_number_of_edges_at_or_below_the_value(preset, flow):
    quantiser = codec(preset).quantiser
    quantised = quantiser.quantise(flow)
    scaled = (flow - quantised.offset[..., None, None]) / quantised.scale[..., None, None]
    assert (quantised.levels == (quantiser.edges <= scaled[..., None]).sum(axis=-1)).all()


@pytest.mark.parametrize("preset", ZERO_CENTRED)
@settings(max_examples=40, deadline=None)
@given(flow=FLOW)
def test_mirrored_flow_gets_mirrored_levels(preset, flow):
    quantiser = codec(preset).quantiser
    assert (quantiser.quantise(-flow).levels == 256 - quantiser.quantise(flow).levels.astype(int)).all()


def test_mirroring_holds_on_the_edges_themselves():
    quantiser = codec(bound_fixed=True).quantiser
    edges = np.abs(quantiser.edges[1:]).reshape(1, 2, 1, 127)
    assert (quantiser.quantise(-edges).levels == 256 - quantiser.quantise(edges).levels.astype(int)).all()


@settings(max_examples=40, deadline=None)
@given(flow=FLOW)
def test_error_within_the_bound_is_at_most_half_a_step(flow):
    quantiser = codec(bound_fixed=True).quantiser
    read = values(quantiser.quantise(flow), quantiser)
    inside = np.clip(flow, -20, 20)
    half_step = np.interp(np.abs(inside), quantiser.table[129:], np.diff(quantiser.table[128:]) / 2 * 1.1)
    assert (np.abs(read - inside) <= half_step).all()


@settings(max_examples=40, deadline=None)
@given(flow=FLOW)
def test_clipped_counts_pixels_of_which_a_component_lies_beyond_the_bound(flow):
    expected = (np.abs(flow) > 20).any(axis=1).mean(axis=(1, 2))
    assert np.allclose(codec(bound_fixed=True).quantiser.quantise(flow).clipped, expected)


@settings(max_examples=40, deadline=None)
@given(flow=FLOW)
def test_means_are_those_before_quantisation(flow):
    mean = codec().quantiser.quantise(flow).mean
    assert np.allclose(mean, flow.mean(axis=(2, 3), dtype=np.float64), atol=1e-6, rtol=1e-6)


def test_means_do_not_depend_on_the_order_of_pixels():
    flow = np.random.default_rng(1).normal(0, 3, (1, 2, 64, 64)).astype(np.float32)
    shuffled = np.random.default_rng(2).permuted(flow.reshape(1, 2, -1), axis=2).reshape(flow.shape)
    assert np.array_equal(codec().quantiser.quantise(flow).mean, codec().quantiser.quantise(shuffled).mean)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compiled", [True, False])
def test_flow_that_is_not_finite_is_refused(value, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(module, "_kernel", lambda name: None)
    flow = np.zeros((3, 2, 4, 5), np.float32)
    flow[1, 1, 3, 4] = value
    with pytest.raises(ValueError, match="field 1"):
        codec().quantiser.quantise(flow)


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 3, 4, 5), (1, 2, 0, 5)])
def test_flow_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="expected float32"):
        codec().quantiser.quantise(np.zeros(shape, np.float32))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_without_numba_everything_is_the_same(preset, monkeypatch):
    coding, flow = codec(preset), smooth_flow(2) * 8
    compiled = coding.quantiser.quantise(flow)
    read = dequantise(compiled.levels, coding.quantiser.table, compiled.scale, compiled.offset)
    monkeypatch.setattr(module, "_kernel", lambda name: None)
    plain = coding.quantiser.quantise(flow)
    for name in ("levels", "scale", "offset", "mean", "clipped"):
        assert np.array_equal(getattr(compiled, name), getattr(plain, name)), name
    assert np.array_equal(read, dequantise(plain.levels, coding.quantiser.table, plain.scale, plain.offset))


@settings(max_examples=30, deadline=None)
@given(
    levels=arrays.arrays(np.uint8, st.tuples(st.just(2), st.just(2), st.integers(1, 7), st.integers(1, 7))),
    scale=st.floats(0.125, 3, width=32),
    offset=st.floats(-3, 3, width=32),
)
def test_dequantised_flow_is_table_times_scale_plus_offset(levels, scale, offset):
    table = codec().quantiser.table
    scales = np.array([[1, scale], [scale, 1]], np.float32)
    offsets = np.array([[0, offset], [offset, 0]], np.float32)
    expected = table[levels] * scales[..., None, None] + offsets[..., None, None]
    assert np.array_equal(dequantise(levels, table, scales, offsets), expected)


@settings(max_examples=30, deadline=None)
@given(levels=arrays.arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 40), st.integers(1, 40))))
def test_lossless_returns_every_level(levels):
    levels = np.maximum(levels, 1)
    coding = codec("lossless")
    height, width = levels.shape[1:]
    assert np.array_equal(coding.decode(coding.encode(levels), height, width), levels)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "lossless"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 17), (17, 3), (8, 8), (18, 33), (240, 320)])
def test_jpeg_keeps_size_and_about_the_levels_whatever_the_size(preset, height, width):
    coding = codec(preset)
    levels = coding.quantiser.quantise(smooth_flow(1, height, width)).levels[0]
    read = coding.decode(coding.encode(levels), height, width)
    assert read.shape == levels.shape
    assert np.abs(read.astype(int) - levels).mean() < 4


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "lossless"])
def test_noise_which_codes_worst_still_goes_through(preset):
    levels = np.random.default_rng(0).integers(1, 256, (2, 120, 160), np.uint8)
    assert (
        codec(preset, quality=100).decode(codec(preset, quality=100).encode(levels), 120, 160).shape
        == levels.shape
    )


def test_x_and_y_do_not_leak_into_each_other():
    levels = np.stack([np.full((13, 16), 1, np.uint8), np.full((13, 16), 255, np.uint8)])
    assert np.array_equal(codec().decode(codec().encode(levels), 13, 16), levels)


def test_streams_are_baseline_jpegs_with_one_flat_table():
    image = Image.open(io.BytesIO(codec().encode(np.full((2, 16, 24), 128, np.uint8))))
    assert image.mode == "L"
    assert image.size == (24, 32)
    assert list(image.quantization.values()) == [[8] * 64]
    assert "progressive" not in image.info


def test_level_0_that_jpeg_undershoots_to_is_read_as_1():
    levels = np.full((2, 16, 16), 1, np.uint8)
    levels[:, ::2, ::3] = 60
    coding = codec(quality=20)
    assert cv2.imdecode(np.frombuffer(coding.encode(levels), np.uint8), cv2.IMREAD_GRAYSCALE).min() == 0
    assert coding.decode(coding.encode(levels), 16, 16).min() == 1


@pytest.mark.parametrize("preset", list(PRESETS))
def test_image_size_is_read_from_the_header(preset):
    assert image_size(codec(preset).encode(np.full((2, 16, 24), 128, np.uint8))) == (32, 24)


def test_a_stream_of_another_size_is_refused_before_it_is_decoded(monkeypatch):
    stream = codec().encode(np.full((2, 16, 24), 128, np.uint8))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="24x32"):
        decode_levels(stream, 8, 24)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), garbage=st.binary(max_size=60))
def test_damaged_streams_raise_value_error_if_they_give_no_levels(cut, garbage):
    stream = codec().encode(np.full((2, 16, 24), 128, np.uint8))
    for damaged in (
        stream[: min(cut, len(stream))],
        garbage,
        stream[:cut] + garbage + stream[cut + len(garbage) :],
    ):
        with contextlib.suppress(ValueError):
            assert decode_levels(damaged, 16, 24).shape == (2, 16, 24)


def test_quality_and_bound_change_what_they_say():
    levels = codec().quantiser.quantise(smooth_flow(1, 64, 64)).levels[0]
    sizes = [len(codec(quality=quality).encode(levels)) for quality in (30, 75, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert codec(bound=32).quantiser.table[255] == 32
    assert codec("linear", bound=12.7).quantiser.table[129] == np.float32(0.1)
    assert codec("field", bound=15).quantiser.table[0] == -15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "choose one of default"),
        ({"bound": 0}, "bound"),
        ({"bound": float("nan")}, "bound"),
        ({"preset": "paper", "bound": 20}, "no bound"),
        ({"preset": "lossless", "quality": 90}, "no quality"),
        ({"preset": "lossless", "bound_fixed": True}, "leave --bound-fixed out"),
        ({"quality": 101}, "quality"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        codec(**arguments)


@pytest.mark.parametrize("table", [np.zeros(256), np.arange(255.0), np.full(256, np.nan), -np.arange(256.0)])
def test_a_table_that_does_not_ascend_is_no_quantiser(table):
    with pytest.raises(ValueError, match="table"):
        Quantiser("bad", table)


def test_names_tell_quantisers_apart():
    bounded = [preset for preset in PRESETS if preset != "paper"]
    names = {codec(preset, bound=bound).quantiser.name for preset in bounded for bound in (15, 20)}
    assert len(names | {codec("paper").quantiser.name}) == 2 * 5 + 1
    assert codec("lossless").quantiser == codec(bound_fixed=True).quantiser != codec().quantiser
    assert linear_quantiser(20).name == "linear bound=20"


@given(
    st.sampled_from(sorted(PRESETS)),
    st.none() | st.floats(0.01, 10000),
    st.none() | st.integers(1, 100),
    st.booleans(),
)
def test_what_a_shard_records_gives_its_codec_again(preset, bound, quality, bound_fixed):
    try:
        made = codec(preset, bound, quality, bound_fixed)
    except InputError:  # an option that the preset has no use for
        return
    again = codec_from(made.quantiser.name, made.image, made.quality)
    assert again == made
    assert np.array_equal(again.quantiser.table, made.quantiser.table)
    assert again.quantiser.per_field == made.quantiser.per_field
    assert again.quantiser.ladder == made.quantiser.ladder


def test_codecs_of_other_values_are_unequal():
    assert codec() == codec("default", 20.0, 75)
    others = codec(bound=30), codec(quality=76), codec(bound_fixed=True), codec("lossless"), codec("field")
    assert len({codec(), *others}) == 6
    assert codec(bound=20.000001).quantiser.name != codec(bound=20.000002).quantiser.name


@pytest.mark.parametrize(
    ("quantiser", "image", "quality"),
    [
        ("", "png", None),
        ("asinh bound=20", "png", None),
        ("asinh s=0 bound=20", "png", None),
        ("linear bound=nan", "png", None),
        ("linear bound=20.0", "png", None),
        ("linear bound=20 ladder", "jpeg flat", 75),
        ("range ladder", "png", None),
        ("asinh s=3 bound=20  ladder", "png", None),
        ("asinh s=3 bound=20", "jpeg flat by speed", None),
        ("range", "webp", 75),
        ("range", "png", 75),
        ("range", "jpeg flat", None),
        ("range", "jpeg flat", 0),
    ],
)
def test_a_codec_that_no_version_made_is_refused(quantiser, image, quality):
    with pytest.raises(InputError, match=r"quantiser|image coding"):
        codec_from(quantiser, image, quality)


def test_too_large_for_jpeg_says_so():
    with pytest.raises(ValueError, match="lossless"):
        codec().encode(np.full((2, 1, 70000), 128, np.uint8))
