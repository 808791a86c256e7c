"""benchmarks/opencv_cuda_peer.py against a stand-in for OpenCV with CUDA that says how it was called."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "opencv_cuda_peer.py"

spec = importlib.util.spec_from_file_location("opencv_cuda_peer", SCRIPT)
assert spec is not None
assert spec.loader is not None
peer = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = peer
spec.loader.exec_module(peer)

# The signatures of `create` are those in OpenCV 4.14's cudaoptflow.hpp. The "flow" of a pair is the difference and the
# sum of its images; like OpenCV's bindings, calc returns the GpuMat that holds it.
STAND_IN = """
import numpy as np

__version__ = "4.14.0"

class GpuMat:
    values = None
    def upload(self, values):
        self.values = np.array(values)
    def download(self):
        return self.values

class Solver:
    def __init__(self, dtype):
        self.dtype = dtype
    def calc(self, first, second, flow):
        assert first.values.dtype == second.values.dtype == self.dtype, first.values.dtype
        result = GpuMat()
        first, second = first.values.astype(np.float32), second.values.astype(np.float32)
        result.upload(np.stack([second - first, second + first], axis=-1))
        return result

class cuda:
    GpuMat = GpuMat
    class Stream:
        @staticmethod
        def Null():
            return cuda.Stream()
        def waitForCompletion(self):
            pass
    @staticmethod
    def getCudaEnabledDeviceCount():
        return DEVICES
    class OpticalFlowDual_TVL1:
        @staticmethod
        def create(tau=0.25, lambda_=0.15, theta=0.3, nscales=5, warps=5, epsilon=0.01, iterations=300, scaleStep=0.8,
                   gamma=0.0, useInitialFlow=False):
            found = (tau, lambda_, theta, nscales, warps, epsilon, iterations, scaleStep, gamma, useInitialFlow)
            assert found == (0.25, 0.15, 0.3, 5, 5, 0.01, ITERATIONS, 0.8, 0.0, False), found
            return Solver(np.uint8)
    class BroxOpticalFlow:
        @staticmethod
        def create(alpha=0.197, gamma=50.0, scale_factor=0.8, inner_iterations=5, outer_iterations=150,
                   solver_iterations=10):
            found = (alpha, gamma, scale_factor, inner_iterations, outer_iterations, solver_iterations)
            assert found == (0.197, 50.0, 0.8, 10, 77, 10), found
            return Solver(np.float32)
    class FarnebackOpticalFlow:
        @staticmethod
        def create(numLevels=5, pyrScale=0.5, fastPyramids=False, winSize=13, numIters=10, polyN=5, polySigma=1.1,
                   flags=0):
            assert (numLevels, pyrScale, fastPyramids, winSize, numIters, polyN, polySigma, flags) == \\
                (5, 0.5, False, 13, 10, 5, 1.1, 0)
            return Solver(np.uint8)
"""


def folder_with(tmp_path: Path, devices: int = 1, iterations: int = 300, text: str = STAND_IN) -> Path:
    (tmp_path / "cv2.py").write_text(f"DEVICES, ITERATIONS = {devices}, {iterations}\n{text}")
    return tmp_path


@pytest.fixture
def pairs():
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (2, 3, 6, 8), dtype=np.uint8)


@pytest.mark.parametrize("method", peer.METHODS)
def test_a_peer_is_given_the_fields_parameters_and_the_images_that_it_takes(tmp_path, pairs, method):
    measured = peer.measure(folder_with(tmp_path), *pairs, method, repeats=2, warm_up=1)
    scale = np.float32(1 / 255 if method == "brox" else 1)
    first, second = pairs.astype(np.float32) * scale
    np.testing.assert_allclose(
        measured.flow, np.stack([second - first, second + first], axis=1), rtol=1e-6, atol=1e-6
    )
    assert measured.flow.dtype == np.float32
    assert measured.opencv == "4.14.0"
    assert measured.parameters == peer.METHODS[method][1]


def test_each_pair_is_timed_in_every_repeat_and_calc_is_a_part_of_it(tmp_path, pairs):
    measured = peer.measure(folder_with(tmp_path), *pairs, "tvl1", repeats=4)
    assert measured.seconds.shape == measured.calc_seconds.shape == (4, 3)
    assert (measured.calc_seconds > 0).all()
    assert (measured.calc_seconds < measured.seconds).all()


def test_given_parameters_reach_the_solver_and_the_result(tmp_path, pairs):
    measured = peer.measure(folder_with(tmp_path, iterations=30), *pairs, "tvl1", repeats=1, iterations=30)
    assert measured.parameters["iterations"] == 30


def test_a_machine_without_a_gpu_is_told(tmp_path, pairs):
    with pytest.raises(peer.PeerError, match=r"OpenCV 4\.14\.0 with CUDA finds no usable GPU"):
        peer.measure(folder_with(tmp_path, devices=-1), *pairs, "brox")


def test_an_opencv_without_cuda_is_told_with_its_place(tmp_path, pairs):
    with pytest.raises(peer.PeerError, match=r"cv2\.py has no cv2\.cuda\.BroxOpticalFlow"):
        peer.measure(folder_with(tmp_path, text="class cuda: pass"), *pairs, "brox")


def test_a_failing_solver_is_told_with_what_it_wrote(tmp_path, pairs):
    with pytest.raises(peer.PeerError, match="AssertionError"):
        peer.measure(folder_with(tmp_path), *pairs, "tvl1", iterations=31)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32), "expected `first` as gray uint8"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), "expected `first` as gray uint8"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), "expected `first` as gray uint8"),
        (np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8), "expected `second` like `first`"),
    ],
)
def test_pairs_of_the_wrong_kind_are_refused(tmp_path, first, second, reason):
    with pytest.raises(peer.PeerError, match=reason):
        peer.measure(tmp_path, first, second, "tvl1")


def test_unknown_methods_and_parameters_are_refused_with_the_known_ones(tmp_path, pairs):
    with pytest.raises(peer.PeerError, match="choose one of tvl1, brox, farneback"):
        peer.measure(tmp_path, *pairs, "dis")
    with pytest.raises(peer.PeerError, match="no parameter taau: it takes tau, lambda_"):
        peer.measure(tmp_path, *pairs, "tvl1", taau=0.1)


def test_the_command_names_an_input_that_is_no_npz(tmp_path):
    (tmp_path / "pairs.npz").write_text("text")
    command = [
        sys.executable,
        SCRIPT,
        "run",
        tmp_path / "pairs.npz",
        tmp_path / "result.npz",
        "--method",
        "tvl1",
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert f"error: {tmp_path / 'pairs.npz'}: expected an npz with `first` and `second`" in process.stderr


def test_prepare_leaves_a_full_folder_alone_and_names_a_missing_wheel(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(peer.PeerError, match="expected a new or empty folder"):
        peer.prepare(tmp_path, tmp_path / "cv2.whl")
    with pytest.raises(peer.PeerError, match="make opencv-cuda"):
        peer.prepare(tmp_path / "new", tmp_path / "cv2.whl")
    assert (tmp_path / "file").exists()


def test_prepare_says_how_a_wheel_without_npp_gets_it(tmp_path, monkeypatch):
    def fails(command, **_):
        missing = "Traceback ...\nImportError: libnppial.so.13: cannot open shared object file"
        return subprocess.CompletedProcess(command, int("-c" in command), "", missing)

    monkeypatch.setattr(peer.subprocess, "run", fails)
    (tmp_path / "cv2.whl").touch()
    with pytest.raises(
        peer.PeerError, match=r"ImportError: libnppial.*pip install --target .*new nvidia-npp=="
    ):
        peer.prepare(tmp_path / "new", tmp_path / "cv2.whl")


def test_the_peers_parameters_are_those_of_the_flow_methods_of_the_same_name():
    from extract_flow.opencv import cuda_brox, cuda_farneback, cuda_tvl1, farneback

    assert peer.METHODS["tvl1"][1] == dataclasses.asdict(cuda_tvl1.Parameters())
    assert peer.METHODS["brox"][1] == dataclasses.asdict(cuda_brox.Parameters())
    arguments = farneback.arguments(cuda_farneback.PRESETS["default"])
    assert list(peer.METHODS["farneback"][1].values()) == list(arguments.values())
