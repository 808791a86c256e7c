"""TV-L1 written down literally, in float64 and without regard to speed: what the solver is compared with.

The loop of OpenCV's `cuda::OpticalFlowDual_TVL1` in the variables of the paper (Zach, Pock, Bischof 2007); the
pyramid is cv2.resize, the warp scipy's map_coordinates or a direct sum over Keys' kernel.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage


def textured(height, width, seed, smooth=1.5):
    """A random smooth periodic texture, uint8[H,W], that fills 0..255."""
    image = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(height, width)), smooth, mode="wrap"
    )
    image = (image - image.min()) / max(np.ptp(image), 1e-9)
    return (255 * image).round().astype(np.uint8)


def moved(image, dx, dy):
    """The image moved by (dx, dy) pixels, so that the flow from `image` to it is (dx, dy); periodic."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    result = ndimage.map_coordinates(image.astype(float), [y - dy, x - dx], order=3, mode="grid-wrap")
    return result.clip(0, 255).round().astype(np.uint8)


def flow(frame_0, frame_1, parameters):
    """Flow float64[2,H,W] between two frames uint8[H,W]."""
    images = [frame.astype(np.float64) for frame in (frame_0, frame_1)]
    if parameters.blur > 0:
        radius = max(1, int(np.ceil(3 * parameters.blur)))
        images = [ndimage.gaussian_filter(i, parameters.blur, mode="mirror", radius=radius) for i in images]
    pyramid = [images]
    step = parameters.scale_step
    while parameters.scales == 0 or len(pyramid) < parameters.scales:
        smaller = [cv2.resize(i, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR) for i in pyramid[-1]]
        if min(smaller[0].shape) < 16:
            break
        pyramid.append(smaller)
    u = np.zeros((2, *pyramid[-1][0].shape))
    for source, target in pyramid[::-1]:
        size = source.shape[::-1]
        u = (
            np.stack([cv2.resize(c, size, interpolation=cv2.INTER_LINEAR) for c in u])
            if u[0].shape != source.shape
            else u
        )
        if source is not pyramid[-1][0]:
            u = u / step
        u = refine(source, target, u, parameters)
    return u


def refine(source, target, u, parameters):
    """All warps of one level."""
    tau, theta, bound = parameters.tau, parameters.theta, parameters.lambda_ * parameters.theta
    p = np.zeros((2, 2, *source.shape))  # [component of the flow, axis x or y]
    g = np.ones(source.shape)
    if parameters.edges > 0:
        steepness = np.hypot(*forward(source))
        g = (1 + np.minimum(parameters.edges * steepness, 2.5) / 8) ** -8
    for _ in range(parameters.warps):
        start = u.copy()
        warped, gradient, inside = warp(source, target, u, parameters)
        squared = (gradient**2).sum(axis=0)
        constant = warped - (gradient * u).sum(axis=0) - source
        for _ in range(parameters.iterations):
            rho = constant + (gradient * u).sum(axis=0)
            with np.errstate(divide="ignore", invalid="ignore"):
                within = np.where(squared > np.finfo(np.float32).eps, -rho / squared, 0)
            d = (
                np.where(rho < -bound * squared, bound, np.where(rho > bound * squared, -bound, within))
                * inside
            )
            v = u + d * gradient
            new = np.stack([v[c] + theta * divergence(p[c]) for c in range(2)])
            change = ((new - u) ** 2).sum()
            u = new
            for c in range(2):
                slope = forward(u[c])
                p[c] = (p[c] + tau / theta * slope) / (1 + tau / theta * np.hypot(*slope) / g)
            if change <= parameters.epsilon**2 * source.size:
                break
        if ((u - start) ** 2).sum() <= parameters.warp_stop**2 * source.size:
            break
    if parameters.median > 1:
        u = np.stack([ndimage.median_filter(c, parameters.median, mode="nearest") for c in u])
    return u


def forward(image):
    """Forward differences in x and y, zero at the far borders."""
    across, down = np.zeros((2, *image.shape))
    across[:, :-1] = np.diff(image, axis=1)
    down[:-1] = np.diff(image, axis=0)
    return np.stack([across, down])


def divergence(p):
    """The negative adjoint of `forward`."""
    across, down = p.copy()
    across[:, 1:] -= p[0][:, :-1]
    down[1:] -= p[1][:-1]
    return across + down


def centred(image):
    """Centred differences, the border repeated."""
    padded = np.pad(image, 1, mode="edge")
    return np.stack([padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]]) / 2


def five_taps(image):
    """The derivative [1 -8 0 8 -1] / 12, the border repeated."""
    taps = np.array([1, -8, 0, 8, -1]) / 12
    return np.stack([ndimage.correlate1d(image, taps, axis=axis, mode="nearest") for axis in (1, 0)])


def keys(distance):
    """Keys' cubic kernel with a = -3/4."""
    a, distance = -0.75, np.abs(distance)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def interpolate(image, x, y, interpolation):
    """The image at real coordinates."""
    if interpolation == "bspline":
        return ndimage.map_coordinates(image, [y, x], order=3, mode="mirror")
    padded = np.pad(image, 8, mode="edge")
    x, y = (np.clip(c, -2, size + 1) for c, size in ((x, image.shape[1]), (y, image.shape[0])))
    total = np.zeros_like(x)
    for j in range(-1, 3):
        for i in range(-1, 3):
            column, row = np.floor(x).astype(int) + i, np.floor(y).astype(int) + j
            total += keys(x - column) * keys(y - row) * padded[row + 8, column + 8]
    return total


def warp(source, target, u, parameters):
    """The target at x + u, its gradient there, and where there is a data term."""
    height, width = source.shape
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = x + u[0], y + u[1]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    warped = interpolate(target, x, y, parameters.interpolation)
    if parameters.gradient == "target":
        ahead = (
            interpolate(target, x + 1, y, parameters.interpolation),
            interpolate(target, x, y + 1, parameters.interpolation),
        )
        behind = (
            interpolate(target, x - 1, y, parameters.interpolation),
            interpolate(target, x, y - 1, parameters.interpolation),
        )
        gradient = (np.stack(ahead) - np.stack(behind)) / 2
    elif parameters.gradient == "warped":
        gradient = centred(warped)
    else:
        gradient = 0.6 * five_taps(warped) + 0.4 * five_taps(source)
    return warped, gradient, inside if parameters.mask else np.ones_like(inside)
