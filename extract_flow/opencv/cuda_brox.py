"""Brox by OpenCV on an NVIDIA GPU, where OpenCV was built with CUDA: the flow of the two-stream paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract_flow.parameters import check_positive
from pipeline.options import option

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


@dataclass(frozen=True)
class Parameters:
    """OpenCV's sample values, which the field uses, on gray in 0..1."""

    alpha: float = option(0.197, "weight of smoothness")
    gamma: float = option(50.0, "weight of constant gradient")
    scale_step: float = option(0.8, "size of each level relative to the finer one")
    inner_iterations: int = option(10, "lagged non-linearity iterations at each level")
    outer_iterations: int = option(77, "maximum number of pyramid levels")
    solver_iterations: int = option(10, "linear solver iterations of each inner one")

    def __post_init__(self) -> None:
        check_positive(self, "alpha", "inner_iterations", "outer_iterations", "solver_iterations")
        check_positive(self, "gamma", zero=True)
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step: expected between 0 and 1, found {self.scale_step}")


PRESETS = {"default": Parameters()}


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on a GPU; see `OpenCvCudaMethod` for its errors."""
    import cv2

    from extract_flow.opencv.gpu import OpenCvCudaMethod

    def make() -> Any:
        cuda: Any = cv2.cuda
        return cuda.BroxOpticalFlow.create(
            parameters.alpha,
            parameters.gamma,
            parameters.scale_step,
            parameters.inner_iterations,
            parameters.outer_iterations,
            parameters.solver_iterations,
        )

    return OpenCvCudaMethod("opencv-cuda-brox", parameters, "BroxOpticalFlow", make, device, unit_range=True)
