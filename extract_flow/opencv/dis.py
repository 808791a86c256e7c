"""DIS, dense inverse search: Kroeger, Timofte, Dai, Van Gool, ECCV 2016, as in OpenCV. The fastest method here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract_flow.parameters import check_positive
from pipeline.options import option

LEAST_SIDE = 16
"""OpenCV refuses frames whose sides are both below 12 pixels."""

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


@dataclass(frozen=True)
class Parameters:
    """OpenCV's "medium" preset."""

    finest_scale: int = option(1, "finest pyramid level that is computed; 0 is the full size")
    iterations: int = option(25, "gradient descent steps of a patch")
    patch_size: int = option(8, "side of a patch in pixels")
    patch_stride: int = option(3, "distance between patches in pixels")
    refinement: int = option(
        5, "fixed-point iterations of the variational refinement at each level; 0 for none"
    )
    alpha: float = option(20.0, "weight of smoothness in the refinement")
    delta: float = option(5.0, "weight of constant colour in the refinement")
    gamma: float = option(10.0, "weight of constant gradient in the refinement")
    epsilon: float = option(0.01, "regularisation of the refinement's penalties")

    def __post_init__(self) -> None:
        check_positive(self, "iterations", "patch_size", "patch_stride", "epsilon")
        check_positive(self, "finest_scale", "refinement", "alpha", "delta", "gamma", zero=True)
        if self.patch_size < 4 or self.patch_stride > self.patch_size:
            raise ValueError(
                f"patch_size: expected 4 or more and no less than the patch_stride of {self.patch_stride}, "
                f"found {self.patch_size}"
            )


PRESETS = {
    "default": Parameters(),
    "fast": Parameters(finest_scale=2, iterations=16, patch_stride=4),
    "ultrafast": Parameters(finest_scale=2, iterations=12, patch_stride=4, refinement=0),
}


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on the CPU; see `OpenCvMethod` for its errors."""
    import cv2

    from extract_flow.opencv.cpu import OpenCvMethod

    def make() -> Any:
        opencv: Any = cv2  # its stubs leave this out
        solver = opencv.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        solver.setFinestScale(parameters.finest_scale)
        solver.setGradientDescentIterations(parameters.iterations)
        solver.setPatchSize(parameters.patch_size)
        solver.setPatchStride(parameters.patch_stride)
        solver.setVariationalRefinementIterations(parameters.refinement)
        solver.setVariationalRefinementAlpha(parameters.alpha)
        solver.setVariationalRefinementDelta(parameters.delta)
        solver.setVariationalRefinementGamma(parameters.gamma)
        solver.setVariationalRefinementEpsilon(parameters.epsilon)
        return solver

    return OpenCvMethod("dis", parameters, make, device, threads, LEAST_SIDE)
