"""TV-L1: what its parts and the whole must satisfy, against independent references."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_textures import moved, textured
from scipy import ndimage

from extract_flow import methods
from extract_flow.tvl1 import cpu, plain, solver
from extract_flow.tvl1.interpolation import SPLINE_PREFILTER
from extract_flow.tvl1.parameters import PRESETS, Parameters
from pipeline.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def clip():
    """Five frames of a texture that moves by (1.3, -0.6) pixels per frame."""
    image = textured(70, 90, seed=1, smooth=2)
    return np.stack([moved(image, 1.3 * t, -0.6 * t) for t in range(5)])


def load(preset="default", threads=1, **parameters):
    return methods.load("tvl1", device="cpu", threads=threads, preset=preset, **parameters)


VARIANTS = [
    {"preset": "field", "scales": 1, "warps": 2, "iterations": 40, "epsilon": 0.0},
    {"preset": "field", "scales": 3, "iterations": 60},
    {"preset": "default", "iterations": 25},
    {"preset": "default", "gradient": "warped", "warp_stop": 0.0, "epsilon": 0.0},
    {"preset": "default", "gradient": "target", "blur": 0.8, "median": 3},
    {"preset": "accurate"},
    {"preset": "default-1", "iterations": 25},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_flow_is_that_of_the_method_written_down_literally(variant):
    frames = np.stack([textured(45, 53, seed=5, smooth=2)] * 2)
    frames[1] = moved(frames[0], 1.6, -0.9)
    method = load(**variant)
    expected = plain.flow(*frames, Parameters(**method.parameters))
    difference = np.hypot(*(method(frames)[0] - expected))
    # float32 may stop an iteration earlier or later than float64
    assert difference.mean() < (0.002 if variant.get("epsilon") == 0.0 else 0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_moving_texture_is_followed(clip, preset):
    flow = load(preset)(clip)
    inner = flow[:, :, 10:-10, 10:-10]
    np.testing.assert_allclose(inner.mean(axis=(0, 2, 3)), [1.3, -0.6], atol=0.05)


def test_motion_beyond_the_fields_five_scales_is_followed_by_the_full_pyramid():
    image = textured(240, 320, seed=3, smooth=9)
    frames = np.stack([image, moved(image, 22, 9)])
    errors = {
        preset: np.hypot(*(load(preset)(frames)[0] - [[[22]], [[9]]]))[30:-30, 40:-40].mean()
        for preset in ("field", "default")
    }
    assert errors["default"] < 0.5 < errors["field"]


@pytest.mark.parametrize("preset", PRESETS)
def test_identical_frames_have_exactly_no_flow(clip, preset):
    assert not load(preset)(clip[[0, 0, 0]]).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_constant_frames_of_different_brightness_have_exactly_no_flow(preset):
    frames = np.stack([np.full((40, 50), level, np.uint8) for level in (0, 255, 17)])
    assert not load(preset)(frames).any()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 2), (3, 16), (16, 16), (17, 17), (15, 40)])
def test_tiny_frames_have_finite_flow(preset, shape):
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    flow = load(preset)(frames)
    assert flow.shape == (2, 2, *shape)
    assert np.isfinite(flow).all()


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    seed=st.integers(0, 1000),
    preset=st.sampled_from(tuple(PRESETS)),
    saturated=st.booleans(),
)
def test_noise_of_any_size_and_contrast_has_finite_flow(height, width, seed, preset, saturated):
    noise = np.random.default_rng(seed).integers(0, 256, (2, height, width), dtype=np.uint8)
    frames = np.where(noise > 127, 255, 0).astype(np.uint8) if saturated else noise
    assert np.isfinite(load(preset)(frames)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_flow_does_not_depend_on_batch_threads_or_order(clip, preset):
    pairs = np.array([[0, 1], [1, 0], [1, 2], [2, 1], [3, 1], [0, 4], [2, 2], [3, 4], [4, 3]])
    together = load(preset, threads=2).run(clip, pairs)
    alone = load(preset)
    for pair, flow in zip(pairs, together, strict=True):
        np.testing.assert_array_equal(
            flow, alone.run(clip[pair], np.array([[0, 1]]))[0] if pair[0] != pair[1] else 0
        )
    np.testing.assert_array_equal(together[::-1], alone.run(clip, pairs[::-1]))


def test_one_method_serves_frames_of_changing_size(clip):
    method = load()
    first = method(clip)
    method(clip[:, :30, :40])
    np.testing.assert_array_equal(method(clip), first)


def test_read_only_frames_are_accepted(clip):
    locked = clip.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(load()(locked), load()(clip))


def test_no_pairs_give_no_flow(clip):
    assert load().run(clip, np.zeros((0, 2), int)).shape == (0, 2, 70, 90)


def test_blocks_of_iterations_equal_single_ones():
    level = cpu.layout(33, 47)
    rng = np.random.default_rng(2)
    start = np.zeros((cpu.STEPS, level.size), np.float32)
    for plane in (*range(cpu.NX), cpu.RESIDUAL):
        cpu.pixels(start[plane], level)[:] = rng.normal(size=(33, 47)) * (0.1 if plane in range(2, 6) else 1)
    for p in (cpu.P11, cpu.P21):
        cpu.pixels(start[p], level)[:, -1] = 0
    for p in (cpu.P12, cpu.P22):
        cpu.pixels(start[p], level)[-1] = 0
    angle = rng.uniform(0, 7, (33, 47))
    cpu.pixels(start[cpu.NX], level)[:], cpu.pixels(start[cpu.NY], level)[:] = np.cos(angle), np.sin(angle)
    cpu.pixels(start[cpu.LIMIT], level)[:] = 0.3
    rows = np.zeros(2 * level.pitch, np.float32)
    rows[:47], rows[level.pitch :] = 1, 0.25 / 0.3
    single, blocked = start.copy(), start.copy()
    changes, last = np.zeros(5), np.zeros(5)
    for _ in range(5):
        cpu.iterate(single, level, np.float32(0.25), False, rows, 1, last)
    cpu.iterate(blocked, level, np.float32(0.25), False, rows, 5, changes)
    for plane in range(cpu.NX):
        np.testing.assert_array_equal(cpu.pixels(single[plane], level), cpu.pixels(blocked[plane], level))
    assert changes[4] == last[0]


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (31, 45)])
def test_the_median_filter_is_scipys(side, shape):
    level = cpu.layout(*shape)
    plane, work = np.zeros((2, level.size), np.float32)
    image = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    cpu.pixels(plane, level)[:] = image
    cpu.median_filter(
        plane, work, level, side, np.zeros(cpu.SCRATCH_ROWS * (level.pitch + cpu.LANES), np.float32)
    )
    expected = ndimage.median_filter(image, side, mode="nearest")
    np.testing.assert_array_equal(cpu.pixels(plane, level), expected)


def test_spline_coefficients_are_scipys():
    level = cpu.layout(29, 41)
    source, plane = np.zeros((2, level.size), np.float32)
    image = textured(29, 41, seed=6, smooth=1).astype(np.float32)
    cpu.pixels(source, level)[:] = image
    cpu.filter_plane(source, plane, level, SPLINE_PREFILTER, np.zeros(2000, np.float32))
    expected = ndimage.spline_filter(image.astype(float), order=3, mode="mirror")
    np.testing.assert_allclose(cpu.pixels(plane, level), expected, atol=0.05)


def test_pyramid_levels_are_those_of_cv2_and_end_at_16_pixels():
    sizes = [level[:2] for level in solver.pyramid_levels(256, 340, 0, 0.8)]
    image = np.zeros((256, 340), np.float32)
    for size in sizes[1:]:
        image = cv2.resize(image, None, fx=0.8, fy=0.8)
        assert image.shape == size
    assert min(sizes[-1]) >= 16 > round(min(sizes[-1]) * 0.8)
    assert len(solver.pyramid_levels(256, 340, 5, 0.8)) == 5


def test_consecutive_pairs_share_a_frame_wherever_they_can():
    steps = np.arange(6)
    pairs = np.concatenate([np.stack([steps, steps + 2], 1), np.stack([steps + 2, steps], 1)])
    ordered = pairs[solver.visiting_order(pairs)]
    loads = sum(len(set(now) - set(before)) for before, now in itertools.pairwise(ordered))
    assert loads + 2 == 8  # every frame is prepared once


def test_memory_stays_under_40_floats_per_pixel():
    for preset in PRESETS:
        tracemalloc.start()
        solver.Solver(PRESETS[preset], 256, 340)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak / 4 / (256 * 340) < 40


@pytest.mark.parametrize(
    ("name", "value"),
    [("tau", 0.3), ("tau", 0.0), ("lambda_", -1.0), ("theta", float("nan")), ("scales", -1), ("scale_step", 1.0),
     ("warps", 0), ("iterations", 0), ("epsilon", -0.1), ("interpolation", "linear"), ("gradient", "none"),
     ("median", 4), ("blur", 11.0), ("edges", -1.0), ("warp_stop", float("inf"))],
)  # fmt: skip
def test_values_outside_the_method_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=name.rstrip("_").replace("_", "-")):
        load(**{name: value})


def test_devices_that_cannot_be_used_say_so():
    with pytest.raises(InputError, match=r"gpu0.*cpu"):
        methods.load("tvl1", device="gpu0")
    assert methods.load("tvl1", device="cpu").device == "cpu"


def test_parameters_are_what_a_shard_records():
    method = load("accurate", warps=4)
    assert method.parameters == dataclasses.asdict(dataclasses.replace(PRESETS["accurate"], warps=4))


def test_compiled_code_is_kept_outside_the_installation_unless_told_otherwise(tmp_path):
    show = "import pipeline.compiled, os; print(os.environ['NUMBA_CACHE_DIR'])"
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    chosen = [
        subprocess.run([sys.executable, "-c", show], cwd=ROOT, env=environment | extra, capture_output=True, text=True,
                       check=True).stdout.strip()
        for extra in ({"XDG_CACHE_HOME": str(tmp_path)}, {"NUMBA_CACHE_DIR": "/elsewhere"})
    ]  # fmt: skip
    assert Path(chosen[0]).parent == tmp_path / "two-stream" / "numba"
    assert chosen[1] == "/elsewhere"


def middlebury(folder):
    for pair in sorted(folder.iterdir()):
        frames = np.stack(
            [cv2.imread(str(pair / name), cv2.IMREAD_GRAYSCALE) for name in ("frame10.png", "frame11.png")]
        )
        width, height = np.fromfile(pair / "flow10.flo", np.int32, 2, offset=4)
        truth = (
            np.fromfile(pair / "flow10.flo", np.float32, offset=12)
            .reshape(height, width, 2)
            .transpose(2, 0, 1)
        )
        yield frames, truth


def end_point_error(flow, truth):
    known = (np.abs(truth) < 1e9).all(axis=0)
    return np.hypot(*(flow - truth))[known].mean()


@pytest.mark.realdata
@pytest.mark.parametrize(("preset", "most"), [("default", 0.166), ("accurate", 0.164), ("default-1", 0.206)])
def test_the_error_on_middlebury_is_within_the_bound(test_data, preset, most):
    method = load(preset)
    pairs = middlebury(test_data / "flow" / "middlebury")
    assert np.mean([end_point_error(method(frames)[0], truth) for frames, truth in pairs]) <= most


@pytest.mark.realdata
def test_the_fields_preset_is_as_accurate_as_opencv_on_every_middlebury_pair(test_data):
    opencv = cv2.optflow.createOptFlow_DualTVL1()
    opencv.setOuterIterations(1)
    opencv.setInnerIterations(300)
    opencv.setMedianFiltering(1)
    method = load("field")
    for frames, truth in middlebury(test_data / "flow" / "middlebury"):
        expected = opencv.calc(*frames, None).transpose(2, 0, 1)
        assert end_point_error(method(frames)[0], truth) <= 1.03 * end_point_error(expected, truth)


@pytest.mark.realdata
def test_the_fields_preset_differs_little_from_opencv_on_real_clips(test_data):
    opencv = cv2.optflow.createOptFlow_DualTVL1()
    opencv.setOuterIterations(1)
    opencv.setInnerIterations(300)
    opencv.setMedianFiltering(1)
    method = load("field")
    for path in sorted((test_data / "clips").glob("[uh]*/*.avi")):
        video = cv2.VideoCapture(str(path))
        frames = np.stack(
            [cv2.resize(cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY), (340, 256)) for _ in range(12)]
        )
        expected = opencv.calc(frames[10], frames[11], None).transpose(2, 0, 1)
        assert np.hypot(*(method(frames[10:])[0] - expected)).mean() <= 0.04
