"""TV-L1 by OpenCV on an NVIDIA GPU, where OpenCV was built with CUDA: the field's flow, with its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract_flow.parameters import check_positive
from pipeline.options import option

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


@dataclass(frozen=True)
class Parameters:
    """OpenCV's CUDA defaults, which dense_flow, denseflow and gpu_flow use."""

    tau: float = option(0.25, "time step of the numerical scheme")
    lambda_: float = option(0.15, "weight of the data term: smaller is smoother")
    theta: float = option(0.3, "tightness between the two flow variables")
    scales: int = option(5, "pyramid levels")
    scale_step: float = option(0.8, "size of each level relative to the finer one")
    warps: int = option(5, "warps per level")
    epsilon: float = option(0.01, "stop when the mean squared change of flow is below its square")
    iterations: int = option(300, "maximum number of iterations of a warp")
    gamma: float = option(0.0, "weight of the illumination term")

    def __post_init__(self) -> None:
        check_positive(self, "tau", "lambda_", "theta", "scales", "warps", "epsilon", "iterations")
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step: expected between 0 and 1, found {self.scale_step}")


PRESETS = {"default": Parameters()}


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on a GPU; see `OpenCvCudaMethod` for its errors."""
    import cv2

    from extract_flow.opencv.gpu import OpenCvCudaMethod

    def make() -> Any:
        cuda: Any = cv2.cuda
        return cuda.OpticalFlowDual_TVL1.create(
            parameters.tau,
            parameters.lambda_,
            parameters.theta,
            parameters.scales,
            parameters.warps,
            parameters.epsilon,
            parameters.iterations,
            parameters.scale_step,
            parameters.gamma,
            False,
        )

    return OpenCvCudaMethod("opencv-cuda-tvl1", parameters, "OpticalFlowDual_TVL1", make, device)
