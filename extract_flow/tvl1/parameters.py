"""Options of TV-L1 and its presets; nothing slow to import is loaded here, since the command line reads them for
`--help`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pipeline.options import option

GRADIENTS = ("target", "warped", "blended")
"""What `gradient` may be; the sweeps know each by its place here."""


@dataclass(frozen=True)
class Parameters:
    """Options of TV-L1; the defaults are the preset "default". Names that OpenCV has mean what they mean there."""

    tau: float = option(0.25, "time step of the dual update; above 0.25 it no longer converges")
    lambda_: float = option(0.22, "weight of the data term; smaller is smoother")
    theta: float = option(0.3, "coupling of the flow to its auxiliary copy")
    scales: int = option(
        0, "maximum number of pyramid levels; 0 for all whose smaller side is at least 16 pixels"
    )
    scale_step: float = option(0.8, "size of a level relative to the next finer one")
    warps: int = option(5, "maximum number of warps per level")
    epsilon: float = option(
        0.015, "iterations end when the RMS update of the flow falls below this, in pixels"
    )
    iterations: int = option(25, "maximum number of iterations per warp")
    warp_stop: float = option(
        0.12, "a level ends when a warp changed the flow by less RMS, in pixels; 0 never"
    )
    interpolation: str = option(
        "bspline",
        "how the target is interpolated: bspline, or cubic as in cv2.remap",
        choices=("bspline", "cubic"),
    )
    gradient: str = option(
        "blended",
        "gradient of the warped image (warped), blended with the first frame's (blended), or the target's gradient, "
        "warped, as OpenCV (target)",
        choices=GRADIENTS,
    )
    mask: bool = option(True, "drop the data term where the target lies outside the frame")
    blur: float = option(0.4, "sigma of the Gaussian that both frames are smoothed with first, in pixels")
    edges: float = option(
        0.03,
        "how far image edges loosen the smoothness, which weighs exp(-edges |image gradient|); 0 not at all",
    )
    median: int = option(5, "side of the median filter on the flow of each level: 1 (none), 3 or 5")

    def __post_init__(self) -> None:
        """Refuse values outside the method's range (ValueError)."""
        positive = {"tau": self.tau, "lambda": self.lambda_, "theta": self.theta, "warps": self.warps,
                    "iterations": self.iterations}  # fmt: skip
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, found {value}")
        for name, value in {"epsilon": self.epsilon, "warp-stop": self.warp_stop, "scales": self.scales,
                            "blur": self.blur, "edges": self.edges}.items():  # fmt: skip
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, found {value}")
        if self.tau > 0.25:
            raise ValueError(f"tau must be at most 0.25, or the iterations do not converge, found {self.tau}")
        if self.blur > 10:
            raise ValueError(f"blur must be at most 10 pixels, found {self.blur}")
        if not 0.2 <= self.scale_step <= 0.95:
            raise ValueError(f"scale-step must be between 0.2 and 0.95, found {self.scale_step}")
        if self.interpolation not in ("bspline", "cubic"):
            raise ValueError(f"interpolation must be bspline or cubic, found {self.interpolation!r}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, found {self.gradient!r}")
        if self.median not in (1, 3, 5):
            raise ValueError(f"median must be 1, 3 or 5, found {self.median}")


PLAIN = Parameters(lambda_=0.15, epsilon=0.01, iterations=30, warp_stop=0.1, blur=0.0, edges=0.0, median=1)
"""Zach, Pock and Bischof's energy as it stands: no blur, no weight of edges, no median filter."""

PRESETS = {
    "default": Parameters(),
    "accurate": Parameters(
        lambda_=0.4,
        theta=0.35,
        scale_step=0.88,
        warps=3,
        iterations=30,
        warp_stop=0.05,
        blur=0.5,
        edges=0.045,
    ),
    "field": replace(
        PLAIN, scales=5, iterations=300, warp_stop=0.0, interpolation="cubic", gradient="target", mask=False
    ),
    "default-1": PLAIN,
}
"""`field` is OpenCV's method; `default-1` was the default before this one, for datasets that were begun with it."""
