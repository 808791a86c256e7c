"""Rendered frames to compute flow of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 256, 340
"""The size at which the field takes times."""


def moving_frames(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Textured, slightly noisy frames: the background drifts slowly, a third of the image moves by 5 pixels a frame."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    generator = np.random.default_rng(0)
    waves = generator.uniform(0.03, 0.9, (12, 2)) * generator.choice([-1, 1], (12, 2))
    phases = generator.uniform(0, 6.28, 12)

    def texture(dx: float, dy: float) -> npt.NDArray[np.float32]:
        total = np.zeros((height, width), np.float32)
        for (across, down), phase in zip(waves, phases, strict=True):
            total += np.sin(across * (x - dx) + down * (y - dy) + phase)
        return total

    frames = []
    for i in range(count):
        image = texture(0.7 * i, -0.4 * i)
        left, top = width // 5 + 5.0 * i, height // 4 + 1.2 * i
        inside = (x > left) & (x < left + width / 3) & (y > top) & (y < top + height / 3)
        image = np.where(inside, texture(5.0 * i + 50, 1.2 * i + 20), image)
        noise = generator.normal(0, 4, image.shape)
        frames.append(np.clip(128 + 22 * image + noise, 0, 255).astype(np.uint8))
    return np.stack(frames)


def waves(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth frames that move by (1, 0.6) pixels each. On small, noisy ones rounding decides what a pixel matches."""
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for i in range(count):
        right, down = x - i, y - 0.6 * i
        frames.append(128 + 55 * np.sin(right / 2.3 + down / 4.1) + 55 * np.cos(down / 2.7 - right / 5.3))
    return np.stack(frames).astype(np.uint8)


def consecutive(count: int) -> npt.NDArray[np.int64]:
    """Forward and backward pairs of consecutive frames."""
    steps = np.arange(count - 1)
    forward = np.stack([steps, steps + 1], axis=1)
    return np.concatenate([forward, forward[:, ::-1]])


def clip(count: int) -> npt.NDArray[np.uint8]:
    """A long clip from few rendered frames, played to and fro."""
    frames = moving_frames(16, HEIGHT, WIDTH)
    order = np.concatenate([np.arange(16), np.arange(14, 0, -1)])
    return frames[np.resize(order, count)]
