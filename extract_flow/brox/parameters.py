"""Options of the Brox method and its presets; nothing slow to import is loaded here, since `--help` reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.options import option


@dataclass(frozen=True)
class Parameters:
    """Options of the method; the first six carry OpenCV's names (cv::cuda::BroxOpticalFlow).

    Raises:
        ValueError: a value outside its range.
    """

    alpha: float = option(0.197, "weight of the smoothness")
    gamma: float = option(50.0, "weight of gradient constancy against brightness constancy")
    scale: float = option(0.8, "size of a pyramid level relative to the next finer one")
    inner_iterations: int = option(3, "updates of the robust weights for each warp")
    outer_iterations: int = option(
        77, "maximum number of pyramid levels; fewer where a level's smaller side reaches 15 pixels"
    )
    solver_iterations: int = option(
        7, "sweeps of the linear solver (red-black SOR) for each update of the weights"
    )
    relaxation: float = option(1.95, "over-relaxation of the linear solver")
    warps: int = option(3, "warps of the second frame on each level")
    blur: float = option(0.6, "standard deviation in pixels of the blur before the pyramid; 0 for none")
    pyramid: str = option(
        "centred",
        "'centred': levels share their centre, area means down, linear up; 'opencv': OpenCV's resampling",
        choices=("centred", "opencv"),
    )
    border: str = option(
        "mask",
        "where the flow leads out of the frame: 'mask' drops the data term, 'mirror' reflects the frame (OpenCV)",
        choices=("mask", "mirror"),
    )

    def __post_init__(self) -> None:
        """Refuse values for which the method is not defined."""
        for name in ("alpha", "gamma", "scale", "relaxation", "blur"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, found {getattr(self, name)}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, found {self.alpha}")
        if self.gamma < 0:
            raise ValueError(f"gamma must be 0 or more, found {self.gamma}")
        if not 0.1 <= self.scale <= 0.95:
            raise ValueError(f"scale must be between 0.1 and 0.95, found {self.scale}")
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation must be between 0 and 2 (exclusive), found {self.relaxation}")
        if not 0 <= self.blur <= 10:
            raise ValueError(f"blur must be between 0 and 10 pixels, found {self.blur}")
        for name in ("inner_iterations", "outer_iterations", "solver_iterations", "warps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name, choices in (("pyramid", ("centred", "opencv")), ("border", ("mask", "mirror"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")


PRESETS = {
    "default": Parameters(),
    "accurate": Parameters(warps=6),
    "opencv": Parameters(
        inner_iterations=10,
        solver_iterations=10,
        relaxation=1.99,
        warps=1,
        blur=0.0,
        pyramid="opencv",
        border="mirror",
    ),
}
"""`opencv` reproduces cv::cuda::BroxOpticalFlow(0.197, 50, 0.8, 10, 77, 10); `accurate` takes about twice the time."""
