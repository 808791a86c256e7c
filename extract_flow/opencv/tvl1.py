"""TV-L1 as in opencv_contrib (`cv2.optflow`), on the CPU: Sánchez Pérez, Meinhardt-Llopis, Facciolo, IPOL 2013.

About one pair a second at 340x256; `tvl1` is this project's own, many times faster, implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract_flow.parameters import check_choice, check_positive
from pipeline.errors import InputError
from pipeline.options import option

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


@dataclass(frozen=True)
class Parameters:
    """OpenCV's own defaults."""

    tau: float = option(0.25, "time step of the numerical scheme")
    lambda_: float = option(0.15, "weight of the data term: smaller is smoother")
    theta: float = option(0.3, "tightness between the two flow variables")
    scales: int = option(5, "pyramid levels")
    scale_step: float = option(0.8, "size of each level relative to the finer one")
    warps: int = option(5, "warps per level")
    epsilon: float = option(0.01, "stop when the mean squared change of flow is below its square")
    inner_iterations: int = option(30, "inner iterations of a warp")
    outer_iterations: int = option(10, "outer iterations of a warp, each after a median filter")
    median: int = option(5, "width of the median filter: 1 (none), 3 or 5")
    gamma: float = option(0.0, "weight of the illumination term")

    def __post_init__(self) -> None:
        check_positive(self, "tau", "lambda_", "theta", "scales", "warps", "epsilon")
        check_positive(self, "inner_iterations", "outer_iterations")
        check_choice(self, "median", 1, 3, 5)
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step: expected between 0 and 1, found {self.scale_step}")


PRESETS = {"default": Parameters()}


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on the CPU; see `OpenCvMethod` for its errors."""
    import cv2

    from extract_flow.opencv.cpu import OpenCvMethod

    if not hasattr(cv2, "optflow"):
        raise InputError(
            "opencv-tvl1 needs OpenCV's contrib modules (`pip install opencv-contrib-python-headless`), "
            "and this OpenCV has none; `tvl1` needs no OpenCV"
        )

    def make() -> Any:
        optflow: Any = cv2.optflow
        return optflow.DualTVL1OpticalFlow_create(
            tau=parameters.tau,
            lambda_=parameters.lambda_,
            theta=parameters.theta,
            nscales=parameters.scales,
            warps=parameters.warps,
            epsilon=parameters.epsilon,
            innnerIterations=parameters.inner_iterations,  # spelled so in OpenCV
            outerIterations=parameters.outer_iterations,
            scaleStep=parameters.scale_step,
            gamma=parameters.gamma,
            medianFiltering=parameters.median,
        )

    return OpenCvMethod("opencv-tvl1", parameters, make, device, threads)
