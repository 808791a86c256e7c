"""How TV-L1 interpolates and filters images: tables of weights, which the sweeps of every device apply.

An interpolation kernel has four weights for the value and six for its derivative, cubic polynomials of the fraction,
kept in `TAPS` lanes: lane k weighs the pixel at floor(position) - 2 + k.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]

TAPS = 8
"""Lanes of an interpolation kernel (module docstring)."""


def kernel(taps: list[list[float]]) -> tuple[Plane, Plane]:
    """Polynomials of the fraction (constant first) for value and derivative: [power, lane] each, flattened.

    `taps` has those of the four weights; the derivative is the centred difference of what they interpolate.
    It is OpenCV's, which warps centred differences of the image, and on Middlebury it is more accurate than the
    spline's own derivative.
    """
    value = np.zeros((4, TAPS))
    value[:, 1:5] = np.transpose(taps)
    slope = np.zeros((4, TAPS))
    slope[:, 1:] += value[:, :-1] / 2
    slope[:, :-1] -= value[:, 1:] / 2
    return value.astype(np.float32).ravel(), slope.astype(np.float32).ravel()


A = -0.75
"""Keys' parameter, that of cv2.remap; OpenCV's CUDA code has -0.5, which is less accurate (see docs)."""
CUBIC = [[0, A, -2 * A, A], [1, 0, -A - 3, A + 2], [0, -A, 2 * A + 3, -A - 2], [0, 0, A, -A]]
SPLINE = [
    [1 / 6, -1 / 2, 1 / 2, -1 / 6],
    [2 / 3, 0, -1, 1 / 2],
    [1 / 6, 1 / 2, 1 / 2, -1 / 2],
    [0, 0, 0, 1 / 6],
]
KERNELS = {"cubic": kernel(CUBIC), "bspline": kernel(SPLINE)}


def spline_prefilter() -> Plane:
    """Taps of the filter that turns pixels into cubic B-spline coefficients, cut where they fall below 1e-4."""
    pole = np.sqrt(3) - 2
    taps = -6 * pole / (1 - pole**2) * pole ** np.arange(8)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


def gaussian(sigma: float) -> Plane:
    """Taps of a normalised Gaussian, from the centre outwards."""
    radius = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


SPLINE_PREFILTER = spline_prefilter()
