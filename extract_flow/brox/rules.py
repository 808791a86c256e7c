"""The scalar rules of the method, for the CPU sweeps; `cuda/` has them in CUDA C++. Values are float32.

Notation as in Brox et al. 2004: psi'(s^2) = 1 / (2 sqrt(s^2 + eps^2)) is the derivative of the robust function, a
subscript z marks the difference between the warped second frame and the first. The unknown is the whole flow (u, v),
not its increment: `linearised` folds the flow around which the data term is linearised into the constants, so the
sweeps need neither increments nor the old flow.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.compiled import inlined

EPSILON2 = np.float32(1e-6)
"""eps^2 of the robust functions, for intensities in 0..1 (the paper's and OpenCV's value)."""

TINY = np.float32(1e-12)
"""Keeps an equation without data and without neighbours (a frame of one pixel) solvable; the solution is zero flow."""


@inlined
def reflected(index, size, low):  # type: ignore[no-untyped-def]
    """Index of the pixel that stands at `index` at most one size beyond the border.

    `low` is 0 (edge pixels repeated) or 2 (OpenCV's derivative filters: -1 -> 2, -2 -> 3; repeated at the high side).
    """
    if index < 0:
        index = low - 1 - index
    if index >= size:
        index = 2 * size - 1 - index
    return min(max(index, 0), size - 1)


@inlined
def derivative(before2, before, after, after2):  # type: ignore[no-untyped-def]
    """Derivative from the pixels at -2, -1, +1 and +2: [1 -8 0 8 -1] / 12."""
    return (np.float32(8) * (after - before) - (after2 - before2)) * np.float32(1 / 12)


@inlined
def in_frame(x, y, width, height):  # type: ignore[no-untyped-def]
    """Whether the place (x, y) lies among the centres of the frame's pixels."""
    return (x >= 0) & (y >= 0) & (x <= np.float32(width - 1)) & (y <= np.float32(height - 1))


@inlined
def near_frame(place, size):  # type: ignore[no-untyped-def]
    """`place` limited to one size beyond the frame: then conversion to an integer and `reflected` are defined."""
    return min(max(place, np.float32(-size)), np.float32(2 * size - 1))


@inlined
def bilinear(across, down):  # type: ignore[no-untyped-def]
    """Weights of the upper left, upper right, lower left and lower right pixel."""
    both = across * down
    return np.float32(1) - across - down + both, across - both, down - both, both


@inlined
def robust(squared):  # type: ignore[no-untyped-def]
    """psi'(squared): the weight of a squared residual in the next linear system."""
    return np.float32(0.5) / math.sqrt(squared + EPSILON2)


@inlined
def diffusivity(across_u, along_u, across_v, along_v):  # type: ignore[no-untyped-def]
    """Weight of the smoothness between two pixels, from the flow's gradient across and along their common edge."""
    return robust(across_u * across_u + along_u * along_u + across_v * across_v + along_v * along_v)


@inlined
def linearised(value, by_x, by_y, u, v):  # type: ignore[no-untyped-def]
    """Constant of `value + by_x * (U - u) + by_y * (V - v)` when written as `constant + by_x * U + by_y * V`."""
    return value - by_x * u - by_y * v


@inlined
def data_equations(ix, iy, iz, ixx, ixy, iyy, ixz, iyz, u, v, gamma, half_inverse_alpha):  # type: ignore[no-untyped-def]
    """Data term's share of a pixel's two equations, at the current flow (u, v).

    Brightness constancy iz + ix u + iy v = 0 and gradient constancy (ixz + ixx u + ixy v, iyz + ixy u + iyy v) = 0
    share one robust function (Brox et al. 2004, equation 4).

    Returns:
        (diagonal of u, diagonal of v, coupling, right side of u, right side of v), all divided by alpha.
    """
    brightness = iz + ix * u + iy * v
    gradient_x = ixz + ixx * u + ixy * v
    gradient_y = iyz + ixy * u + iyy * v
    squared = brightness * brightness + gamma * (gradient_x * gradient_x + gradient_y * gradient_y)
    weight = half_inverse_alpha / math.sqrt(squared + EPSILON2)
    diagonal_u = weight * (ix * ix + gamma * (ixx * ixx + ixy * ixy))
    diagonal_v = weight * (iy * iy + gamma * (iyy * iyy + ixy * ixy))
    coupling = weight * (ix * iy + gamma * ixy * (ixx + iyy))
    right_u = -weight * (ix * iz + gamma * (ixx * ixz + ixy * iyz))
    right_v = -weight * (iy * iz + gamma * (iyy * iyz + ixy * ixz))
    return diagonal_u, diagonal_v, coupling, right_u, right_v


@inlined
def step_sizes(diagonal_u, diagonal_v, smoothness, relaxation):  # type: ignore[no-untyped-def]
    """relaxation / diagonal of both equations, with one division; `smoothness` is the sum of the four diffusivities."""
    diagonal_u = diagonal_u + smoothness + TINY
    diagonal_v = diagonal_v + smoothness + TINY
    shared = relaxation / (diagonal_u * diagonal_v)
    return shared * diagonal_v, shared * diagonal_u


@inlined
def relaxed(value, keep, step, neighbours, right, coupling, other):  # type: ignore[no-untyped-def]
    """One over-relaxed Gauss-Seidel update of an unknown: `keep` is 1 - relaxation, `neighbours` the weighted sum."""
    return keep * value + step * (neighbours + right - coupling * other)
