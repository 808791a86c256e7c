"""OpenCV's CUDA flow as a peer to measure against, in a folder of its own beside the project's OpenCV.

    python benchmarks/opencv_cuda_peer.py prepare FOLDER --wheel WHEEL      installs the wheel, NPP and NumPy in FOLDER
    python benchmarks/opencv_cuda_peer.py run PAIRS.npz RESULT.npz --method tvl1    with FOLDER as PYTHONPATH

`run` takes one pair at a time, as the field's tools do: upload, calc, download. `measure` is `run` in a process of its
own, for other benchmarks to call; nothing here imports cv2 before that. The wheel is what `make opencv-cuda` builds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Method -> its class in cv2.cuda and the arguments of `create`, in order, with the field's values: OpenCV's defaults
# for TV-L1 and Farneback, its sample's for Brox.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tvl1": (
        "OpticalFlowDual_TVL1",
        {
            "tau": 0.25,
            "lambda_": 0.15,
            "theta": 0.3,
            "scales": 5,
            "warps": 5,
            "epsilon": 0.01,
            "iterations": 300,
            "scale_step": 0.8,
            "gamma": 0.0,
        },
    ),
    "brox": (
        "BroxOpticalFlow",
        {
            "alpha": 0.197,
            "gamma": 50.0,
            "scale_step": 0.8,
            "inner_iterations": 10,
            "outer_iterations": 77,
            "solver_iterations": 10,
        },
    ),
    "farneback": (
        "FarnebackOpticalFlow",
        {
            "levels": 5,
            "scale_step": 0.5,
            "fast_pyramids": False,
            "window": 13,
            "iterations": 10,
            "neighbourhood": 5,
            "sigma": 1.1,
            "flags": 0,
        },
    ),
}


class PeerError(Exception):
    """The peer cannot be prepared or run; the message says why."""


@dataclass(frozen=True)
class Measured:
    """What a peer did.

    Attributes:
        flow: float32[n,2,H,W] in pixels.
        seconds: float64[repeats,n], from the upload of a pair's images to its downloaded flow.
        calc_seconds: float64[repeats,n], of these the computation on the GPU.
        opencv: OpenCV's version.
        parameters: the values given to `create`, by name.
    """

    flow: npt.NDArray[np.float32]
    seconds: npt.NDArray[np.float64]
    calc_seconds: npt.NDArray[np.float64]
    opencv: str
    parameters: dict[str, Any]


def parameters_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's parameters with the given ones over the field's; PeerError for names it does not have."""
    if method not in METHODS:
        raise PeerError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    defaults = METHODS[method][1]
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise PeerError(f"{method} has no parameter {', '.join(unknown)}: it takes {', '.join(defaults)}")
    return {**defaults, **given}


def check_pairs(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    """PeerError unless both are gray uint8[n,H,W] of one shape with n at least 1."""
    if first.dtype != np.uint8 or first.ndim != 3 or 0 in first.shape:
        raise PeerError(
            f"pairs: expected `first` as gray uint8[n,H,W], found {first.dtype}{list(first.shape)}"
        )
    if second.dtype != first.dtype or second.shape != first.shape:
        raise PeerError(
            f"pairs: expected `second` like `first`, uint8{list(first.shape)}, found {second.dtype}{list(second.shape)}"
        )


def measure(
    folder: Path,
    first: npt.NDArray[np.uint8],
    second: npt.NDArray[np.uint8],
    method: str,
    repeats: int = 5,
    warm_up: int = 3,
    timeout_s: float = 600.0,
    **parameters: Any,
) -> Measured:
    """Flow and times of the peer in `folder`, computed in a process of its own.

    Args:
        folder: what `prepare` filled.
        first: uint8[n,H,W], gray.
        second: uint8[n,H,W], gray.
        method: a key of `METHODS`.
        repeats: times that all pairs are timed.
        warm_up: pairs computed before that, untimed.
        timeout_s: seconds after which the process is ended.
        **parameters: over the field's.

    Raises:
        PeerError: wrong arguments, no GPU, or a peer that fails; with what it wrote.
    """
    check_pairs(first, second)
    resolved = parameters_of(method, parameters)
    with tempfile.TemporaryDirectory() as temporary:
        pairs, result = Path(temporary, "pairs.npz"), Path(temporary, "result.npz")
        np.savez(pairs, first=first, second=second)
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "run",
            str(pairs),
            str(result),
            "--method",
            method,
        ]
        command += [
            "--repeats",
            str(repeats),
            "--warm-up",
            str(warm_up),
            "--parameters",
            json.dumps(resolved),
        ]
        # PYTHONPATH comes before the environment's packages, so that cv2 is the folder's.
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "PYTHONNOUSERSITE": "1"}
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"OpenCV's {method} took longer than {timeout_s:g} s") from error
        if process.returncode:
            raise PeerError(f"OpenCV's {method} in {folder}: {process.stderr.strip() or process.returncode}")
        return load(result)


def load(result: Path) -> Measured:
    """What `run` wrote."""
    with np.load(result, allow_pickle=False) as archive:
        return Measured(
            archive["flow"],
            archive["seconds"],
            archive["calc_seconds"],
            str(archive["opencv"]),
            json.loads(str(archive["parameters"])),
        )


def run(pairs: Path, method: str, repeats: int, warm_up: int, parameters: Mapping[str, Any]) -> Measured:
    """Flow and times of each pair in an npz of `first` and `second`, in this process; PeerError where it cannot."""
    resolved = parameters_of(method, parameters)
    if repeats < 1 or warm_up < 0:
        raise PeerError(f"expected at least 1 repeat and 0 warm-up pairs, found {repeats} and {warm_up}")
    try:
        with np.load(pairs, allow_pickle=False) as archive:
            first, second = archive["first"], archive["second"]
    except (OSError, KeyError, ValueError) as error:
        raise PeerError(f"{pairs}: expected an npz with `first` and `second`: {error}") from error
    check_pairs(first, second)

    import cv2

    flow_class = METHODS[method][0]
    if not hasattr(getattr(cv2, "cuda", None), flow_class):
        raise PeerError(
            f"{cv2.__file__} has no cv2.cuda.{flow_class}: give a folder made by `prepare` as PYTHONPATH"
        )
    if cv2.cuda.getCudaEnabledDeviceCount() <= 0:
        raise PeerError(f"OpenCV {cv2.__version__} with CUDA finds no usable GPU (look at `nvidia-smi`)")
    solver = getattr(cv2.cuda, flow_class).create(*resolved.values())
    images, field = (
        (cv2.cuda.GpuMat(), cv2.cuda.GpuMat()),
        cv2.cuda.GpuMat(),
    )  # buffers, kept from pair to pair
    stream = cv2.cuda.Stream.Null()

    def one_pair(i: int) -> tuple[npt.NDArray[Any], float, float]:
        nonlocal field
        started = time.perf_counter()
        for image, frame in zip(images, (first[i], second[i]), strict=True):
            # Brox alone takes float32, with values in 0..1.
            image.upload(frame * np.float32(1 / 255) if method == "brox" else frame)
        uploaded = time.perf_counter()
        field = solver.calc(images[0], images[1], field)
        stream.waitForCompletion()
        computed = time.perf_counter()
        flow = field.download()
        return flow, time.perf_counter() - started, computed - uploaded

    count = len(first)
    for i in range(warm_up):
        one_pair(i % count)
    flow = np.empty((count, 2, *first.shape[1:]), np.float32)
    seconds, calc_seconds = np.empty((repeats, count)), np.empty((repeats, count))
    for repeat in range(repeats):
        for i in range(count):
            found, seconds[repeat, i], calc_seconds[repeat, i] = one_pair(i)
            flow[i] = found.transpose(2, 0, 1)
    return Measured(flow, seconds, calc_seconds, cv2.__version__, resolved)


def prepare(folder: Path, wheel: Path) -> None:
    """Install the wheel with NPP and NumPy in `folder`, and drop the NPP libraries that its cv2 does not load.

    NPP's unused libraries are a large part of it, and the folder may have to travel to a machine without a network.

    Raises:
        PeerError: pip or the import failed, or the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PeerError(f"{folder}: expected a new or empty folder")
    if not wheel.is_file():
        raise PeerError(f"{wheel}: not found; `make opencv-cuda` builds the wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--target",
        str(folder),
        str(wheel),
    ]
    mapped = "import cv2; print(open('/proc/self/maps').read())"
    for command in (pip, [sys.executable, "-c", mapped]):
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "PYTHONNOUSERSITE": "1"}
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        if process.returncode:
            reason = process.stderr.strip()
            if "libnpp" in reason:
                reason = (
                    f"{reason.splitlines()[-1]}; this wheel does not ask for NPP, put it beside it: "
                    f"pip install --target {folder} nvidia-npp==13.0.1.2"
                )
            raise PeerError(f"{folder}: {reason}")
    for library in folder.glob("nvidia/cu*/lib/libnpp*"):
        if str(library.resolve()) not in process.stdout:
            library.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description="OpenCV's CUDA flow as a peer to measure against.")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser(
        "prepare", help="install a wheel of OpenCV with CUDA in a folder of its own"
    )
    preparing.add_argument("folder", type=Path)
    preparing.add_argument("--wheel", type=Path, required=True, help="what `make opencv-cuda` left in dist/")
    running = commands.add_parser("run", help="compute and time flow, with the folder as PYTHONPATH")
    running.add_argument("pairs", type=Path, help="npz with `first` and `second`, uint8[n,H,W]")
    running.add_argument("result", type=Path, help="npz with flow, seconds, calc_seconds, opencv, parameters")
    running.add_argument("--method", choices=sorted(METHODS), required=True)
    running.add_argument("--repeats", type=int, default=5, help="times that all pairs are timed (default: 5)")
    running.add_argument("--warm-up", type=int, default=3, help="untimed pairs before that (default: 3)")
    running.add_argument(
        "--parameters", type=json.loads, default={}, help="JSON object, over the field's values"
    )
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            prepare(options.folder, options.wheel)
            return 0
        measured = run(options.pairs, options.method, options.repeats, options.warm_up, options.parameters)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    np.savez(
        options.result,
        flow=measured.flow,
        seconds=measured.seconds,
        calc_seconds=measured.calc_seconds,
        opencv=measured.opencv,
        parameters=json.dumps(measured.parameters),
    )
    pair_ms = np.median(measured.seconds) * 1e3
    print(f"OpenCV {measured.opencv} {options.method}: {pair_ms:.2f} ms a pair, {1e3 / pair_ms:.1f} pairs/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
