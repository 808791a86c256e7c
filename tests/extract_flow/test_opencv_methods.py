"""OpenCV's methods behind the interface of extract_flow/flow_method.py."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rendered_clips import moving_texture

from extract_flow import methods
from extract_flow.flow_method import DeviceLostError, DeviceMemoryError
from extract_flow.methods import load
from pipeline.codec import codec
from pipeline.errors import InputError
from pipeline.options import spec_of

CPU_METHODS = ["dis", "farneback", "opencv-tvl1"]
QUICK = {
    "dis": {},
    "farneback": {"scales": 2},
    "opencv-tvl1": {"scales": 3, "warps": 2, "outer_iterations": 3},
}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    colour = moving_texture(5, 60, 44)
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in colour])


@pytest.mark.parametrize("name", CPU_METHODS)
def test_a_shift_of_one_pixel_is_found(name: str, frames: np.ndarray) -> None:
    flow = load(name, **QUICK[name])(frames)
    assert flow.shape == (4, 2, 44, 60)
    assert flow.dtype == np.float32
    inner = flow[:, :, 8:-8, 8:-8]
    assert np.abs(inner[:, 0] - 1).mean() < 0.2
    assert np.abs(inner[:, 1]).mean() < 0.2


@pytest.mark.parametrize("name", CPU_METHODS)
def test_a_pairs_flow_depends_on_that_pair_alone(name: str, frames: np.ndarray) -> None:
    """Backward and longer steps included; one thread or several, alone or with others, in any order."""
    method = load(name, **QUICK[name])
    pairs = np.array([[0, 1], [1, 0], [0, 3], [4, 2]])
    together = method.run(frames, pairs)
    single = np.concatenate([method.run(frames, pair[None]) for pair in pairs[::-1]])[::-1]
    assert np.array_equal(together, single)
    assert np.array_equal(together, load(name, threads=3, **QUICK[name]).run(frames, pairs))


@pytest.mark.parametrize("name", CPU_METHODS)
def test_parameters_reach_opencv(name: str, frames: np.ndarray) -> None:
    """Against OpenCV's own objects with the same values set by name."""
    if name == "dis":
        reference = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        method = load(name, preset="ultrafast")
    elif name == "farneback":
        reference = cv2.FarnebackOpticalFlow_create(3, 0.6, False, 11, 4, 7, 1.5, 0)
        method = load(name, scales=3, scale_step=0.6, window=11, iterations=4, neighbourhood=7, sigma=1.5)
    else:
        reference = cv2.optflow.DualTVL1OpticalFlow_create()
        values = {
            "Tau": 0.2,
            "Lambda": 0.3,
            "Theta": 0.25,
            "ScalesNumber": 2,
            "WarpingsNumber": 2,
            "Epsilon": 0.02,
        }
        more = {"InnerIterations": 7, "OuterIterations": 3, "ScaleStep": 0.7, "MedianFiltering": 3}
        for key, value in {**values, **more}.items():
            getattr(reference, f"set{key}")(value)
        method = load(
            name, tau=0.2, lambda_=0.3, theta=0.25, scales=2, warps=2, epsilon=0.02, inner_iterations=7,
            outer_iterations=3, scale_step=0.7, median=3,
        )  # fmt: skip
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    expected = reference.calc(frames[0], frames[1], None)
    cv2.setNumThreads(threads)
    assert np.array_equal(method.run(frames, np.array([[0, 1]]))[0], expected.transpose(2, 0, 1))
    assert cv2.getNumThreads() == threads


@pytest.mark.parametrize("name", CPU_METHODS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (11, 40)])
def test_small_frames_have_flow(name: str, size: tuple[int, int]) -> None:
    frames = np.random.default_rng(1).integers(0, 255, (2, *size), dtype=np.uint8)
    flow = load(name, **QUICK[name])(frames)
    assert flow.shape == (1, 2, *size)
    assert np.isfinite(flow).all()


def test_levels_are_the_quantised_flow(frames: np.ndarray) -> None:
    method, quantiser = load("dis"), codec().quantiser
    pairs = np.array([[0, 1], [2, 1]])
    levels = method.run(frames, pairs, "levels", quantiser)
    expected = quantiser.quantise(method.run(frames, pairs))
    for field in dataclasses.fields(expected):
        assert np.array_equal(getattr(levels, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_frames_have_no_flow(count: int) -> None:
    assert load("dis")(np.zeros((count, 20, 30), np.uint8)).shape == (0, 2, 20, 30)


@pytest.mark.parametrize(
    "name", [name for name in methods.MODULES if name.startswith("opencv") or name in CPU_METHODS]
)
def test_every_parameter_has_a_line_of_help(name: str) -> None:
    module = methods.module(name)
    assert all(spec_of(field).help for field in dataclasses.fields(module.Parameters))
    assert isinstance(module.PRESETS["default"], module.Parameters)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dis", {"scales": 3}, "dis has no parameter 'scales': it takes alpha, "),
        ("dis", {"patch_size": 3}, "patch_size: expected 4 or more"),
        ("dis", {"epsilon": float("nan")}, "epsilon: expected more than 0, found nan"),
        ("farneback", {"neighbourhood": 6}, "neighbourhood: expected one of 5, 7, found 6"),
        ("opencv-tvl1", {"scale_step": 1.0}, "scale_step: expected between 0 and 1"),
        ("dis", {"preset": "none"}, "dis has no preset 'none': choose one of default, fast, ultrafast"),
        ("tvl1", {"scales": "x"}, "tvl1: scales must be a number, found 'x'"),
        ("raft", {}, "unknown flow method 'raft': choose one of tvl1"),
        ("dis", {"device": "cuda"}, "dis runs on the CPU only"),
        ("opencv-cuda-brox", {}, "cv2.cuda.BroxOpticalFlow"),
    ],
)
def test_wrong_requests_say_what_would_be_right(name: str, values: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(name, **values)
    assert message in str(caught.value)


# --- cv2.cuda, played by OpenCV's CPU code ----------------------------------------------------------------------------


class FakeGpuMat:
    """Counts uploads, and holds what a GpuMat would."""

    uploads = 0

    def upload(self, array: np.ndarray) -> None:
        FakeGpuMat.uploads += 1
        self.array = array.copy()

    def download(self) -> np.ndarray:
        return self.array


class FakeFlow:
    """Any of the three classes: the CPU's DIS, recording how it was made and called."""

    created: tuple = ()
    dtypes: tuple = ()
    fail = False
    reason = "out of memory"

    @classmethod
    def create(cls, *arguments: object) -> FakeFlow:
        FakeFlow.created = arguments
        return cls()

    def calc(self, before: FakeGpuMat, after: FakeGpuMat, flow: FakeGpuMat) -> FakeGpuMat:
        if FakeFlow.fail:
            raise cv2.error(f"(-217:Gpu API call) {FakeFlow.reason} in function 'allocate'")
        FakeFlow.dtypes = (before.array.dtype, after.array.dtype)
        images = [np.rint(m.array * 255) if m.array.dtype == np.float32 else m.array for m in (before, after)]
        solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow.array = solver.calc(images[0].astype(np.uint8), images[1].astype(np.uint8), None)
        return flow


def fake_cuda(monkeypatch: pytest.MonkeyPatch, devices: int = 2, classes: bool = True) -> list[int]:
    chosen: list[int] = []
    names = ["OpticalFlowDual_TVL1", "BroxOpticalFlow", "FarnebackOpticalFlow"] if classes else []
    monkeypatch.setattr(
        cv2,
        "cuda",
        SimpleNamespace(
            getCudaEnabledDeviceCount=lambda: devices,
            setDevice=chosen.append,
            GpuMat=FakeGpuMat,
            **dict.fromkeys(names, FakeFlow),
        ),
    )
    FakeFlow.fail = False
    return chosen


CUDA_ARGUMENTS = {
    "opencv-cuda-tvl1": (0.25, 0.15, 0.3, 5, 5, 0.01, 300, 0.8, 0.0, False),
    "opencv-cuda-brox": (0.197, 50.0, 0.8, 10, 77, 10),
    "opencv-cuda-farneback": (5, 0.5, False, 13, 10, 5, 1.1, 0),
}


@pytest.mark.parametrize("name", CUDA_ARGUMENTS)
def test_cuda_methods_have_the_fields_parameters_and_give_the_flow(
    name: str, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fake_cuda(monkeypatch)
    method = load(name, device="cuda:1")
    assert chosen == [1]
    assert FakeFlow.created == CUDA_ARGUMENTS[name]
    assert (method.device, method.device_count) == ("cuda:1", 2)
    assert cv2.__version__ in method.implementation
    pairs = np.array([[0, 1], [1, 0], [1, 2], [3, 4]])
    FakeGpuMat.uploads = 0
    flow = method.run(frames, pairs)
    assert FakeGpuMat.uploads == 5  # each frame once as long as pairs share it
    expected = np.dtype(np.float32 if name == "opencv-cuda-brox" else np.uint8)
    assert FakeFlow.dtypes == (expected, expected)
    assert np.abs(flow - load("dis").run(frames, pairs)).max() < 1


def test_pairs_of_one_frame_with_itself_and_unordered_pairs_are_right(
    frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(monkeypatch)
    pairs = np.array([[2, 2], [2, 0], [4, 2], [0, 4], [4, 4], [1, 3]])
    flow = load("opencv-cuda-tvl1").run(frames, pairs)
    assert np.abs(flow - load("dis").run(frames, pairs)).max() < 1


@pytest.mark.parametrize(
    ("devices", "classes", "device", "message"),
    [
        (2, False, "auto", "has no cv2.cuda.OpticalFlowDual_TVL1"),
        (-1, True, "auto", "finds no NVIDIA driver"),
        (0, True, "cuda", "sees no NVIDIA GPU"),
        (2, True, "cuda:2", "one of cuda:0 to cuda:1"),
        (1, True, "cpu", "runs on a GPU"),
    ],
)
def test_what_is_missing_is_said(
    devices: int, classes: bool, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(monkeypatch, devices, classes)
    with pytest.raises(InputError) as caught:
        load("opencv-cuda-tvl1", device=device)
    assert message in str(caught.value)
    if message.startswith(("has", "finds", "sees")):
        assert "`tvl1` and `brox`" in str(caught.value)


def test_too_little_device_memory_is_told_apart(frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    method = load("opencv-cuda-tvl1")
    FakeFlow.fail = True
    with pytest.raises(DeviceMemoryError):
        method.run(frames, np.array([[0, 1]]))


def test_a_lost_gpu_is_told_apart(frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    method = load("opencv-cuda-tvl1")
    monkeypatch.setattr(FakeFlow, "fail", True)
    monkeypatch.setattr(FakeFlow, "reason", "an illegal memory access was encountered")
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        method.run(frames, np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("name", "values"), [("dis", {"finest_scale": 2}), ("tvl1", {"scales": 3}), ("brox", {})]
)
def test_a_methods_repr_is_the_call_that_makes_it(name: str, values: dict) -> None:
    method = load(name, device="cpu", **values)
    again = eval(repr(method), {"load": load})
    assert repr(method).startswith(f"load({name!r}, device='cpu', ")
    assert (again.parameters, repr(again)) == (method.parameters, repr(method))
    assert method.parameters.items() >= values.items()
