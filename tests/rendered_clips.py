"""Small videos rendered for tests, so that they stand without the real clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt


def moving_texture(frames: int, width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """RGB uint8[frames,H,W,3]: a smooth coloured texture that moves a pixel to the right with every frame."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, : width + frames]
    waves = rng.uniform(0.05, 0.3, (3, 3, 3))
    texture = np.zeros((height, width + frames, 3))
    for channel in range(3):
        for fx, fy, phase in waves[channel]:
            texture[:, :, channel] += np.sin(fx * columns + fy * rows + 7 * phase)
    texture = np.uint8(np.interp(texture, (-3, 3), (20, 235)))
    return np.stack([texture[:, frames - t : frames - t + width] for t in range(frames)])


def write_video(
    path: Path,
    frames: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]],
    rate: int = 25,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """Encode RGB frames as a video file; the suffix of the path chooses the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.thread_count = 1
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))
    return path


def clip(
    path: Path, frames: int = 8, width: int = 48, height: int = 32, seed: int = 0, **options: object
) -> Path:
    """A video file of `moving_texture`."""
    return write_video(path, moving_texture(frames, width, height, seed), **options)  # type: ignore[arg-type]
