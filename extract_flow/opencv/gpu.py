"""What OpenCV's CUDA methods share: the check that they can run, and one solver with its device buffers.

OpenCV's CUDA flow is not thread-safe, so a method object belongs to one process and thread; run one process per GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from extract_flow.flow_method import DeviceLostError, DeviceMemoryError, FlowMethod
from pipeline.errors import InputError

LOST = (
    "illegal memory access", "unspecified launch failure", "uncorrectable ECC", "hardware stack error",
    "illegal instruction", "misaligned address", "device-side assert", "no CUDA-capable device", "unknown error",
)  # fmt: skip
"""What CUDA calls the errors after which a process can compute nothing more."""
INSTEAD = "this project's own `tvl1` and `brox` run on NVIDIA GPUs without OpenCV's help"


def require(name: str, flow_class: str, device: str) -> int:
    """The index of the GPU to use.

    Args:
        name: the method's name, for messages.
        flow_class: its class in `cv2.cuda`.
        device: "auto", "cuda" or "cuda:N".

    Raises:
        InputError: OpenCV has no such class, or sees no GPU, or not that one, or the CPU was asked for.
    """
    if not hasattr(getattr(cv2, "cuda", None), flow_class):
        raise InputError(
            f"{name} needs OpenCV built with CUDA, and the installed OpenCV {cv2.__version__} has no "
            f"cv2.cuda.{flow_class}: `make opencv-cuda` builds one; {INSTEAD}"
        )
    count = cv2.cuda.getCudaEnabledDeviceCount()  # -1 where the driver is missing
    if count < 1:
        found = "finds no NVIDIA driver" if count < 0 else "sees no NVIDIA GPU"
        raise InputError(
            f"{name} needs an NVIDIA GPU: OpenCV {cv2.__version__} has cv2.cuda.{flow_class} but {found} "
            f"(look at `nvidia-smi` and CUDA_VISIBLE_DEVICES); {INSTEAD}, and on the CPU where there is none"
        )
    index = 0 if device in ("auto", "cuda") else device.removeprefix("cuda:")
    if not str(index).isdecimal() or not int(index) < count:
        raise InputError(
            f"{name} runs on a GPU, one of cuda:0 to cuda:{count - 1} here, but the device {device!r} was asked for"
        )
    return int(index)


class OpenCvCudaMethod(FlowMethod):
    """A `cv2.cuda` dense flow; frames and flow stay in the same GpuMats from pair to pair.

    Args:
        name: the method's name.
        parameters: its `Parameters`.
        flow_class: the class in `cv2.cuda`.
        make: builds the solver, after the GPU was chosen.
        device: "auto", "cuda" or "cuda:N".
        unit_range: whether the solver takes float32 in 0..1 instead of uint8.

    Raises:
        InputError: see `require`.
    """

    def __init__(
        self,
        name: str,
        parameters: Any,
        flow_class: str,
        make: Callable[[], Any],
        device: str,
        unit_range: bool = False,
    ) -> None:
        index = require(name, flow_class, device)
        cv2.cuda.setDevice(index)
        self.name = name
        self.device = f"cuda:{index}"
        self.device_count = cv2.cuda.getCudaEnabledDeviceCount()
        self.implementation = f"OpenCV {cv2.__version__} with CUDA"
        self.parameters = dataclasses.asdict(parameters)
        self._unit_range = unit_range
        self._make, self._solver = make, make()
        self._size: tuple[int, ...] = ()
        self._frames = [cv2.cuda.GpuMat(), cv2.cuda.GpuMat()]
        self._result = cv2.cuda.GpuMat()

    def flow(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        result = np.empty((len(pairs), 2, *frames.shape[1:]), np.float32)
        if self._size not in ((), frames.shape[1:]):
            # OpenCV's TV-L1 lowers its number of scales, and keeps it low, when it gets a small frame.
            self._solver = self._make()
        self._size = frames.shape[1:]
        held = [-1, -1]  # the frame that lies in each GpuMat: neighbouring pairs share one
        try:
            for i, (before, after) in enumerate(pairs.tolist()):
                first = self._upload(frames, before, held, keep=after)
                second = self._upload(frames, after, held, keep=before)
                self._result = self._solver.calc(self._frames[first], self._frames[second], self._result)
                result[i] = self._result.download().transpose(2, 0, 1)
        except cv2.error as error:
            if "out of memory" in str(error).lower():
                raise DeviceMemoryError(f"{self.name} on {self.device}: {error}") from error
            if any(text in str(error) for text in LOST):
                raise DeviceLostError(f"{self.name}: {error}") from error
            raise
        return result

    def _upload(self, frames: npt.NDArray[np.uint8], frame: int, held: list[int], keep: int) -> int:
        """Which GpuMat holds the frame; uploads it if neither does, without replacing the frame `keep`."""
        if frame in held:
            return held.index(frame)
        place = 1 if held[0] == keep else 0
        held[place] = frame
        image = frames[frame]
        self._frames[place].upload(image * np.float32(1 / 255) if self._unit_range else image)
        return place
