"""Brox on the CPU: against a literal float64 reference, OpenCV's stored result, ground truth, and degenerate input."""

from __future__ import annotations

import dataclasses
import pickle

import brox_reference
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract_flow import methods
from extract_flow.brox import cpu
from extract_flow.brox.parameters import PRESETS, Parameters
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def default():
    return methods.load("brox", device="cpu")


@pytest.mark.parametrize("preset", ["default", "opencv"])
@pytest.mark.parametrize(("height", "width"), [(37, 46), (40, 33), (18, 53)])
def test_flow_equals_the_literal_reference(preset, height, width):
    # Relaxation 1.99, the preset's, amplifies rounding to 0.02 px: parity with it is tested on real data.
    options = {"relaxation": 1.95}
    frame_0 = brox_reference.textured(height, width, seed=1)
    frame_1 = brox_reference.moved(frame_0, 1.3, -0.8)
    method = methods.load("brox", device="cpu", preset=preset, **options)
    expected = brox_reference.flow(frame_0, frame_1, dataclasses.replace(PRESETS[preset], **options))
    assert np.abs(method(np.stack([frame_0, frame_1]))[0] - expected).max() < 1e-3


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 1000),
    sweeps=st.integers(1, 4), warps=st.integers(1, 3), mirror=st.booleans(), gamma=st.sampled_from([0.0, 50.0]),
)  # fmt: skip
def test_flow_equals_the_reference_at_every_size_and_option(
    height, width, seed, sweeps, warps, mirror, gamma
):
    rng = np.random.default_rng(seed)
    frames = ndimage_smooth(rng.integers(0, 256, (2, height, width)))
    options = {
        "inner_iterations": 2, "solver_iterations": sweeps, "warps": warps, "relaxation": 1.5, "gamma": gamma,
        "border": "mirror" if mirror else "mask",
    }  # fmt: skip
    method = methods.load("brox", device="cpu", **options)
    # A pixel whose target lies on the frame's edge may fall on either side of it: compare where no such pixel is near.
    expected = brox_reference.flow(*frames, dataclasses.replace(Parameters(), **options))
    assert np.median(np.abs(method(frames)[0] - expected)) < 1e-3
    assert np.isfinite(method(frames)).all()


def ndimage_smooth(frames):
    return np.stack(
        [cv2.GaussianBlur(frame.astype(np.uint8), (5, 5), 1.0).reshape(frame.shape) for frame in frames]
    )


@pytest.mark.parametrize(("height", "width"), [(45, 51), (44, 52), (45, 52), (44, 51)])
def test_many_short_blocks_give_what_one_block_gives(monkeypatch, height, width):
    """The wavefront over blocks of one row pair each, and one block that holds the whole level, differ by rounding."""
    frame_0 = brox_reference.textured(height, width, seed=2)
    frames = np.stack([frame_0, brox_reference.moved(frame_0, 2.0, 1.0)])
    flows = []
    for block in (1, 100, 10**6):
        monkeypatch.setattr(cpu, "BLOCK", block)
        flows.append(methods.load("brox", device="cpu", outer_iterations=1, warps=1)(frames))
    np.testing.assert_allclose(flows[0], flows[2], atol=1e-4)
    np.testing.assert_allclose(flows[1], flows[2], atol=1e-4)


@pytest.mark.parametrize("shift", [(0.4, 0.0), (3.0, -2.0), (9.0, 5.0)])
def test_a_translation_is_found(default, shift):
    frame_0 = brox_reference.textured(96, 120, seed=3, smooth=3)
    frame_1 = brox_reference.moved(frame_0, *shift)
    inner = default(np.stack([frame_0, frame_1]))[0][:, 16:-16, 16:-16]
    assert np.abs(inner - np.reshape(shift, (2, 1, 1))).mean() < 0.05


def test_x_is_right_and_y_is_down(default):
    frame_0 = brox_reference.textured(64, 64, seed=4, smooth=3)
    flow = default(np.stack([frame_0, np.roll(frame_0, (1, 3), axis=(0, 1))]))[0]
    assert np.median(flow[0]) == pytest.approx(3, abs=0.05)
    assert np.median(flow[1]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (15, 15), (16, 16), (17, 17), (16, 100)]
)
@pytest.mark.parametrize("preset", ["default", "opencv"])
def test_flow_of_tiny_frames_is_finite_and_of_identical_ones_zero(size, preset):
    frames = np.random.default_rng(5).integers(0, 256, (2, *size), dtype=np.uint8)
    method = methods.load("brox", device="cpu", preset=preset)
    assert np.isfinite(method(frames)).all()
    assert (method(frames[[0, 0]]) == 0).all()


@pytest.mark.parametrize("values", [(0, 0), (255, 255), (0, 255), (255, 0)])
def test_flow_of_constant_frames_is_zero(default, values):
    frames = np.stack([np.full((40, 50), value, np.uint8) for value in values])
    flow = default(frames)
    np.testing.assert_allclose(flow, 0, atol=1e-6)


def test_flow_of_saturated_noise_is_finite(default):
    frames = 255 * np.random.default_rng(6).integers(0, 2, (4, 60, 70), dtype=np.uint8)
    assert np.isfinite(default(frames)).all()


def test_result_does_not_depend_on_batch_threads_or_earlier_calls():
    rng = np.random.default_rng(7)
    frames = np.stack([brox_reference.textured(50, 61, seed) for seed in range(12)])
    pairs = rng.integers(0, 12, (40, 2))
    threaded = methods.load("brox", device="cpu", threads=3)
    together = threaded.run(frames, pairs)
    other = methods.load("brox", device="cpu")
    other(np.stack([brox_reference.textured(80, 90, seed) for seed in range(2)]))
    for pair, flow in zip(pairs[::5], together[::5], strict=True):
        alone = other.run(frames[pair], np.array([[0, 1]]))[0]
        assert alone.tobytes() == flow.tobytes()
    assert threaded.run(frames, pairs).tobytes() == together.tobytes()


def test_large_frames_are_prepared_a_few_at_a_time(monkeypatch):
    frames = np.stack([brox_reference.textured(30, 40, seed) for seed in range(12)])
    method = methods.load("brox", device="cpu", threads=2)
    expected = method(frames)
    held = []
    prepare = cpu.prepare_frame
    monkeypatch.setattr(cpu, "PREPARED_BYTES", 1)
    monkeypatch.setattr(cpu, "prepare_frame", lambda *rest: (held.append(id(rest[4][0])), prepare(*rest)))
    fresh = methods.load("brox", device="cpu", threads=2)
    assert fresh(frames).tobytes() == expected.tobytes()
    assert len(held) == 12
    assert len(set(held)) <= 3


def test_no_pairs_give_no_flow(default):
    frames = np.zeros((1, 20, 30), np.uint8)
    assert default(frames).shape == (0, 2, 20, 30)


def test_an_error_in_a_thread_is_raised_and_leaves_the_method_usable(monkeypatch):
    method = methods.load("brox", device="cpu", threads=2)
    frames = np.stack([brox_reference.textured(20, 20, seed) for seed in range(4)])
    expected = method(frames)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "solve_pair", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            method(frames)
    assert method(frames).tobytes() == expected.tobytes()


def test_each_frame_is_prepared_once_for_forward_and_backward_flow(monkeypatch, default):
    prepared = []
    prepare = cpu.prepare_frame
    monkeypatch.setattr(
        cpu, "prepare_frame", lambda frame, *rest: (prepared.append(1), prepare(frame, *rest))
    )
    frames = np.stack([brox_reference.textured(20, 30, seed) for seed in range(30)])
    steps = np.arange(29)
    pairs = np.concatenate([np.stack([steps, steps + 1], 1), np.stack([steps + 1, steps], 1)])
    default.run(frames, pairs)
    assert len(prepared) == 30


def test_parameters_are_recorded_and_survive_pickling(default):
    assert default.parameters == dataclasses.asdict(PRESETS["default"])
    assert pickle.loads(pickle.dumps(PRESETS["opencv"])) == PRESETS["opencv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be above 0, found 0.0"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"gamma": -1.0}, "gamma must be 0 or more"),
        ({"scale": 1.0}, "scale must be between"),
        ({"relaxation": 2.0}, "relaxation must be between 0 and 2"),
        ({"blur": -0.1}, "blur must be between"),
        ({"warps": 0}, "warps must be at least 1, found 0"),
        ({"pyramid": "other"}, "one of centred, opencv, found 'other'"),
        ({"threads": 0}, "expected at least 1 thread, found 0"),
        ({"device": "tpu"}, "unknown device 'tpu': choose auto, cpu, cuda or cuda:N"),
    ],
)
def test_values_outside_their_range_are_refused(options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        methods.load("brox", **({"device": "cpu"} | options))


# ---- real data ----


def read_gold(path):
    rows, columns = np.fromfile(path, np.int32, 2)
    return np.fromfile(path, np.float32, offset=8).reshape(2, rows, columns)


@pytest.mark.realdata
def test_preset_opencv_reproduces_opencvs_stored_result(test_data):
    folder = test_data / "flow" / "brox_gold"
    frames = np.stack(
        [cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in ("frame0.png", "frame1.png")]
    )
    flow = methods.load("brox", device="cpu", preset="opencv")(frames)[0]
    for name in ("brox_optical_flow.bin", "brox_optical_flow_cc20.bin"):
        gold = read_gold(folder / name)
        difference = np.hypot(*(flow - gold))
        assert difference.mean() < 0.01
        assert np.percentile(difference, 99) < 0.06
        for ours, theirs in zip(flow, gold, strict=True):
            assert 1 - np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] <= 1e-3


@pytest.mark.realdata
def test_default_is_better_than_opencv_on_middlebury(test_data, default):
    errors = []
    for folder in sorted((test_data / "flow" / "middlebury").iterdir()):
        frames = [
            cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in ("frame10.png", "frame11.png")
        ]
        width, height = np.fromfile(folder / "flow10.flo", np.int32, 2, offset=4)
        truth = (
            np.fromfile(folder / "flow10.flo", np.float32, offset=12)
            .reshape(height, width, 2)
            .transpose(2, 0, 1)
        )
        known = (np.abs(truth) < 1e9).all(axis=0)
        errors.append(np.hypot(*(default(np.stack(frames))[0] - truth))[known].mean())
    assert np.mean(errors) <= 0.21  # OpenCV's way: 0.271


@pytest.mark.realdata
def test_default_hardly_amplifies_noise_of_rounding_size(test_data):
    """A relative change of 1e-7 in alpha stands for another machine's rounding."""
    folder = test_data / "flow" / "brox_gold"
    frames = np.stack(
        [cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE) for name in ("frame0.png", "frame1.png")]
    )
    one = methods.load("brox", device="cpu")(frames)
    other = methods.load("brox", device="cpu", alpha=0.197 * (1 + 2e-7))(frames)
    assert 0 < np.hypot(*(one - other)[0]).mean() < 1e-4
