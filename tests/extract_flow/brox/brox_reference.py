"""The method written down literally, in float64 and without regard to speed: what the solver is compared with.

Follows OpenCV's CUDA code (NCVBroxOpticalFlow.cu, NPP_staging.cu): increments du and dv, whole-image red-black
sweeps. The centred pyramid is cv2.resize, the warp scipy's map_coordinates, the blur scipy's gaussian_filter.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy import ndimage

EPSILON2 = 1e-6


def textured(height, width, seed, smooth=1.5):
    """A random smooth texture, uint8[H, W], that fills 0..255."""
    image = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(height, width)), smooth, mode="wrap"
    )
    image = (image - image.min()) / max(np.ptp(image), 1e-9)
    return (255 * image).round().astype(np.uint8)


def moved(image, dx, dy):
    """The image moved by (dx, dy) pixels, so that the flow from `image` to it is (dx, dy); periodic, cubic splines."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    result = ndimage.map_coordinates(image.astype(float), [y - dy, x - dx], order=3, mode="grid-wrap")
    return result.clip(0, 255).round().astype(np.uint8)


def flow(frame_0, frame_1, parameters):
    """Flow float64[2, H, W] from frame_0 to frame_1, uint8[H, W]."""
    opencv = parameters.pyramid == "opencv"
    images = [frame.astype(np.float64) / 255 for frame in (frame_0, frame_1)]
    if parameters.blur > 0:
        radius = max(1, math.ceil(3 * parameters.blur))
        images = [
            ndimage.gaussian_filter(image, parameters.blur, mode="reflect", radius=radius) for image in images
        ]
    height, width = frame_0.shape
    sizes, factor = [(width, height)], np.float32(parameters.scale)
    pyramid = [images]
    while min(sizes[-1]) > 15 and len(sizes) < parameters.outer_iterations:
        sizes.append((math.ceil(np.float32(width) * factor), math.ceil(np.float32(height) * factor)))
        factor *= np.float32(parameters.scale)
        pyramid.append([_shrink(image, sizes[-1], parameters.scale, opencv) for image in pyramid[-1]])
    u = v = None
    for (width, height), (image_0, image_1) in zip(sizes[::-1], pyramid[::-1], strict=True):
        if u is None:
            u, v = np.zeros((2, height, width))
        elif opencv:
            u, v = (
                _catmull_rom(field, width, height, parameters.scale) / parameters.scale for field in (u, v)
            )
        else:
            ratio_x, ratio_y = width / u.shape[1], height / u.shape[0]
            u, v = (cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR) for field in (u, v))
            u, v = u * ratio_x, v * ratio_y
        for _ in range(parameters.warps):
            du, dv = _increment(image_0, image_1, u, v, parameters)
            u, v = u + du, v + dv
    return np.stack([u, v])


def _shrink(image, size, scale, opencv):
    if not opencv:
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _boxes(_boxes(image, size[0], scale).T, size[1], scale).T


def _boxes(image, target, scale):
    step, last = 1 / np.float32(scale), image.shape[1] - 1
    result = np.empty((image.shape[0], target))
    for i in range(target):
        begin, end = max(step * i - step, 0), min(step * i + step, last)
        weights = np.zeros(last + 2)
        weights[math.floor(begin)] = 1 - begin + math.floor(begin)
        weights[math.floor(begin) + 1 : math.ceil(end)] = 1
        if math.ceil(end) > math.floor(begin):
            weights[math.ceil(end)] += math.ceil(end) - end
        result[:, i] = image @ weights[: last + 1] / weights.sum()
    return result


def _catmull_rom(field, width, height, scale):
    def coefficient(distance):
        distance = abs(distance)
        if distance <= 1:
            return 1.5 * distance**3 - 2.5 * distance**2 + 1
        return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2 if distance < 2 else 0.0

    def along(image, target):
        columns = []
        for i in range(target):
            weights = np.array(
                [coefficient(float(np.float32(scale)) * i - tap) for tap in range(image.shape[1])]
            )
            columns.append(image @ weights / weights.sum())
        return np.stack(columns, axis=1)

    return along(along(field, width).T, height).T


def _derivative(image, axis, opencv):
    image = np.moveaxis(image, axis, -1)
    size = image.shape[-1]

    def pixel(index):
        index = np.where(index < 0, 1 - index if opencv else -1 - index, index)
        index = np.where(index >= size, 2 * size - index - 1, index)
        return image[..., index.clip(0, size - 1)]

    at = np.arange(size)
    result = (8 * (pixel(at + 1) - pixel(at - 1)) - (pixel(at + 2) - pixel(at - 2))) / 12
    return np.moveaxis(result, -1, axis)


def _increment(image_0, image_1, u, v, parameters):
    height, width = u.shape
    opencv = parameters.pyramid == "opencv"
    y, x = np.mgrid[:height, :width].astype(np.float64)
    inside = (x + u >= 0) & (y + v >= 0) & (x + u <= width - 1) & (y + v <= height - 1)
    data_weight = inside if parameters.border == "mask" else np.ones_like(inside)

    def warp(image):
        return ndimage.map_coordinates(image, [y + v, x + u], order=1, mode="reflect")

    ix1, iy1 = (_derivative(image_1, axis, opencv) for axis in (1, 0))
    ix0, iy0 = (_derivative(image_0, axis, opencv) for axis in (1, 0))
    ix, iy, iz = warp(ix1), warp(iy1), warp(image_1) - image_0
    ixx, ixy, iyy = (warp(_derivative(image, axis, opencv)) for image, axis in ((ix1, 1), (iy1, 1), (iy1, 0)))
    ixz, iyz = ix - ix0, iy - iy0
    gamma, omega = parameters.gamma, parameters.relaxation
    red = (x + y) % 2 == 0
    du, dv = np.zeros((2, height, width))
    for _ in range(parameters.inner_iterations):
        west, north = _diffusivities(u + du, v + dv)
        east, south = np.zeros_like(west), np.zeros_like(north)
        east[:, :-1], south[:-1] = west[:, 1:], north[1:]
        residual = (iz + ix * du + iy * dv) ** 2 + gamma * (
            (ixz + ixx * du + ixy * dv) ** 2 + (iyz + ixy * du + iyy * dv) ** 2
        )
        data = data_weight * 0.5 / np.sqrt(residual + EPSILON2) / parameters.alpha
        total = west + east + north + south + 1e-12
        diagonal_u = data * (ix**2 + gamma * (ixx**2 + ixy**2)) + total
        diagonal_v = data * (iy**2 + gamma * (iyy**2 + ixy**2)) + total
        coupling = data * (ix * iy + gamma * ixy * (ixx + iyy))
        constant_u = data * (ix * iz + gamma * (ixx * ixz + ixy * iyz))
        constant_v = data * (iy * iz + gamma * (iyy * iyz + ixy * ixz))

        def around(field, increment, weights=(west, east, north, south)):
            whole = np.pad(field + increment, 1, mode="edge")
            neighbours = whole[1:-1, :-2], whole[1:-1, 2:], whole[:-2, 1:-1], whole[2:, 1:-1]
            return sum(w * (n - field) for w, n in zip(weights, neighbours, strict=True))

        for _ in range(parameters.solver_iterations):
            for colour in (red, ~red):
                new = (1 - omega) * du + omega / diagonal_u * (around(u, du) - constant_u - coupling * dv)
                du = np.where(colour, new, du)
                new = (1 - omega) * dv + omega / diagonal_v * (around(v, dv) - constant_v - coupling * du)
                dv = np.where(colour, new, dv)
    return du, dv


def _diffusivities(u, v):
    """Between each pixel and its left, and its upper neighbour; 0 across the border."""
    across, along = np.zeros_like(u), np.zeros_like(u)
    squared_x, squared_y = np.zeros_like(u), np.zeros_like(u)
    for field in (u, v):
        p = np.pad(field, 1, mode="symmetric")
        here, left, up = p[1:-1, 1:-1], p[1:-1, :-2], p[:-2, 1:-1]
        sloped_y = (p[2:, 1:-1] + p[2:, :-2] - p[:-2, 1:-1] - p[:-2, :-2]) / 4
        sloped_x = (p[1:-1, 2:] + p[:-2, 2:] - p[1:-1, :-2] - p[:-2, :-2]) / 4
        squared_x += (here - left) ** 2 + sloped_y**2
        squared_y += (here - up) ** 2 + sloped_x**2
    across, along = (0.5 / np.sqrt(squared + EPSILON2) for squared in (squared_x, squared_y))
    across[:, 0], along[0] = 0, 0
    return across, along
