"""TV-L1 in plain NumPy, in float64 and without regard to speed: the page on which the algorithm can be read.

`refine` is the method; the rest is what it takes for granted: derivatives, interpolation and the image pyramid. The
variables are those of Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007).
Tests compare the sweeps of `cpu.py`, which compute the same some hundred times as fast, with this page.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from extract_flow.tvl1.parameters import Parameters

Image = npt.NDArray[np.float64]
"""[H,W]"""
Field = npt.NDArray[np.float64]
"""[2,H,W]: x and y components of a vector at each pixel."""

SMALLEST_SIDE = 16
FLAT = float(np.finfo(np.float32).eps)
"""Squared gradient under which a pixel says nothing about motion."""


def flow(frame_0: npt.NDArray[np.uint8], frame_1: npt.NDArray[np.uint8], parameters: Parameters) -> Field:
    """Flow float64[2,H,W] in pixels between two gray frames uint8[H,W], from coarse to fine."""
    pyramid = image_pyramid(frame_0, frame_1, parameters)
    u = np.zeros((2, *pyramid[-1][0].shape))
    for level in range(len(pyramid) - 1, -1, -1):
        source, target = pyramid[level]
        if u.shape[1:] != source.shape:
            u = np.stack([cv2.resize(c, source.shape[::-1], interpolation=cv2.INTER_LINEAR) for c in u])
            u /= parameters.scale_step
        u = refine(source, target, u, parameters)
    return u


def refine(source: Image, target: Image, u: Field, parameters: Parameters) -> Field:
    """The flow of one pyramid level, from the coarser level's flow u: warps, each with its iterations."""
    tau, theta, weight = parameters.tau, parameters.theta, parameters.lambda_ * parameters.theta
    p = np.zeros((2, *u.shape))  # the dual variable of each component of u
    g = smoothness_weight(source, parameters.edges)
    for _ in range(parameters.warps):
        before = u
        warped, gradient, visible = warp(source, target, u, parameters)
        squared = (gradient**2).sum(axis=0)
        constant = warped - source - (gradient * u).sum(axis=0)
        for _ in range(parameters.iterations):
            # v: the data term, a problem of one pixel (proposition 3)
            rho = constant + (gradient * u).sum(axis=0)
            step = np.clip(-rho / np.maximum(squared, FLAT), -weight, weight) * (squared > FLAT) * visible
            v = u + step * gradient
            # u and p: denoising by total variation (proposition 1)
            new = v + theta * np.stack([divergence(dual) for dual in p])
            p = np.stack(
                [
                    (dual + tau / theta * forward(c)) / (1 + tau / theta * np.hypot(*forward(c)) / g)
                    for dual, c in zip(p, new, strict=True)
                ]
            )
            converged = ((new - u) ** 2).sum() <= parameters.epsilon**2 * source.size
            u = new
            if converged:
                break
        if ((u - before) ** 2).sum() <= parameters.warp_stop**2 * source.size:
            break
    return np.stack([ndimage.median_filter(c, parameters.median, mode="nearest") for c in u])


def forward(image: Image) -> Field:
    """Forward differences in x and y, zero at the far borders."""
    difference = np.zeros((2, *image.shape))
    difference[0, :, :-1] = np.diff(image, axis=1)
    difference[1, :-1] = np.diff(image, axis=0)
    return difference


def divergence(p: Field) -> Image:
    """Backward differences summed: the negative adjoint of `forward`."""
    total = p.sum(axis=0)
    total[:, 1:] -= p[0][:, :-1]
    total[1:] -= p[1][:-1]
    return total


def smoothness_weight(image: Image, edges: float) -> Image:
    """g = exp(-edges |grad I0|) in the approximation (1 + x/8)^-8, at least that of exp(-2.5)."""
    return (1 + np.minimum(edges * np.hypot(*forward(image)), 2.5) / 8) ** -8


def warp(source: Image, target: Image, u: Field, parameters: Parameters) -> tuple[Image, Field, Image]:
    """The target at x + u, the image gradient there, and 1 where there is a data term, else 0."""
    height, width = source.shape
    y, x = np.mgrid[:height, :width] + u[::-1]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    visible = inside.astype(float) if parameters.mask else np.ones_like(source)
    warped = interpolate(target, x, y, parameters.interpolation)
    if parameters.gradient == "target":
        ahead = [interpolate(target, x + dx, y + dy, parameters.interpolation) for dx, dy in ((1, 0), (0, 1))]
        behind = [
            interpolate(target, x - dx, y - dy, parameters.interpolation) for dx, dy in ((1, 0), (0, 1))
        ]
        return warped, (np.stack(ahead) - np.stack(behind)) / 2, visible
    if parameters.gradient == "warped":
        return warped, derivative(warped, [-1 / 2, 0, 1 / 2]), visible
    five = [1 / 12, -8 / 12, 0, 8 / 12, -1 / 12]
    return warped, 0.6 * derivative(warped, five) + 0.4 * derivative(source, five), visible


def derivative(image: Image, taps: list[float]) -> Field:
    """Correlation with the taps along x and along y, the border repeated."""
    return np.stack([ndimage.correlate1d(image, taps, axis=axis, mode="nearest") for axis in (1, 0)])


def interpolate(image: Image, x: Image, y: Image, interpolation: str) -> Image:
    """The image at real coordinates: its cubic spline mirrored at the border, or Keys' cubic convolution, a = -3/4."""
    if interpolation == "bspline":
        return np.asarray(ndimage.map_coordinates(image, [y, x], order=3, mode="mirror"))
    height, width = image.shape
    padded = np.pad(image, 8, mode="edge")
    x, y = np.clip(x, -2, width + 1), np.clip(y, -2, height + 1)
    total = np.zeros_like(x)
    for j in range(-1, 3):
        for i in range(-1, 3):
            column, row = np.floor(x).astype(int) + i, np.floor(y).astype(int) + j
            total += keys(x - column) * keys(y - row) * padded[row + 8, column + 8]
    return total


def keys(distance: Image) -> Image:
    """Keys' cubic kernel with a = -3/4, that of cv2.remap."""
    a, distance = -0.75, np.abs(distance)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def image_pyramid(
    frame_0: npt.NDArray[np.uint8], frame_1: npt.NDArray[np.uint8], parameters: Parameters
) -> list[list[Image]]:
    """Both frames at every level, finest first."""
    images = [frame.astype(np.float64) for frame in (frame_0, frame_1)]
    if parameters.blur > 0:
        radius = max(1, int(np.ceil(3 * parameters.blur)))
        images = [ndimage.gaussian_filter(i, parameters.blur, mode="mirror", radius=radius) for i in images]
    pyramid = [images]
    while parameters.scales == 0 or len(pyramid) < parameters.scales:
        height, width = (round(side * parameters.scale_step) for side in pyramid[-1][0].shape)
        if min(height, width) < SMALLEST_SIDE:
            break
        step = parameters.scale_step
        smaller = [cv2.resize(image, None, fx=step, fy=step) for image in pyramid[-1]]  # bilinear
        pyramid.append([np.asarray(image, np.float64) for image in smaller])
    return pyramid
