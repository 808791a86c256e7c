"""Rendered frames whose flow is known."""

from __future__ import annotations

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
