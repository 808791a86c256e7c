"""Polynomial expansion: Farnebäck, SCIA 2003, as in OpenCV, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract_flow.parameters import check_choice, check_positive
from pipeline.options import option

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


@dataclass(frozen=True)
class Parameters:
    """OpenCV's own defaults."""

    scales: int = option(5, "pyramid levels")
    scale_step: float = option(0.5, "size of each level relative to the finer one")
    window: int = option(13, "width of the averaging window in pixels")
    iterations: int = option(10, "iterations at each level")
    neighbourhood: int = option(5, "width of the neighbourhood of the polynomials: 5 or 7")
    sigma: float = option(1.1, "standard deviation of the polynomials' weights; 1.1 for 5 pixels, 1.5 for 7")
    gaussian: bool = option(False, "average with a Gaussian window instead of a box: better, slower")

    def __post_init__(self) -> None:
        check_positive(self, "scales", "window", "iterations", "sigma")
        check_choice(self, "neighbourhood", 5, 7)
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step: expected between 0 and 1, found {self.scale_step}")


PRESETS = {"default": Parameters()}


def arguments(parameters: Parameters) -> dict[str, object]:
    """The keywords of both OpenCV versions' `create`."""
    import cv2

    return {
        "numLevels": parameters.scales,
        "pyrScale": parameters.scale_step,
        "fastPyramids": False,
        "winSize": parameters.window,
        "numIters": parameters.iterations,
        "polyN": parameters.neighbourhood,
        "polySigma": parameters.sigma,
        "flags": cv2.OPTFLOW_FARNEBACK_GAUSSIAN if parameters.gaussian else 0,
    }


def create(parameters: Parameters, device: str, threads: int) -> FlowMethod:
    """The method on the CPU; see `OpenCvMethod` for its errors."""
    import cv2

    from extract_flow.opencv.cpu import OpenCvMethod

    def make() -> Any:
        opencv: Any = cv2  # its stubs leave this out
        return opencv.FarnebackOpticalFlow_create(**arguments(parameters))

    return OpenCvMethod("farneback", parameters, make, device, threads)
