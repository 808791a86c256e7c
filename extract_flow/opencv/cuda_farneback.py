"""Polynomial expansion (Farnebäck, SCIA 2003) by OpenCV on an NVIDIA GPU, where OpenCV was built with CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from extract_flow.opencv.farneback import PRESETS, Parameters, arguments

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod

__all__ = ["PRESETS", "Parameters", "create"]


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on a GPU; see `OpenCvCudaMethod` for its errors."""
    import cv2

    from extract_flow.opencv.gpu import OpenCvCudaMethod

    def make() -> Any:
        cuda: Any = cv2.cuda
        return cuda.FarnebackOpticalFlow.create(*arguments(parameters).values())

    return OpenCvCudaMethod("opencv-cuda-farneback", parameters, "FarnebackOpticalFlow", make, device)
