"""RGB pictures as files: PNG and JPEG, and as moving pictures MP4 and GIF. Each appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import atomic
from pipeline.codec import Levels

STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
MOVING_SUFFIXES = (".mp4", ".gif")
JPEG_QUALITY = 92
FASTEST_GIF = 50
"""Frames per second; viewers slow down GIFs that ask for more."""


def write_still(path: Path, picture: Levels) -> None:
    """A picture uint8[H,W,3] as PNG or JPEG, by the suffix of the name.

    Raises:
        InputError: it cannot be written.
    """
    from PIL import Image

    settings = {} if path.suffix.lower() == ".png" else {"quality": JPEG_QUALITY, "subsampling": 0}
    kind = "png" if path.suffix.lower() == ".png" else "jpeg"
    with atomic.writing(path) as temporary:
        Image.fromarray(picture).save(temporary, format=kind, **settings)


def write_moving(path: Path, pictures: Iterable[Levels], fps: float) -> None:
    """Pictures uint8[H,W,3] of one size as MP4 or GIF, by the suffix of the name.

    Raises:
        InputError: it cannot be written.
    """
    (encode_gif if path.suffix.lower() == ".gif" else encode_video)(path, pictures, fps)


def encode_video(path: Path, pictures: Iterable[Levels], fps: float) -> None:
    """RGB pictures uint8[H,W,3] of one size as H.264 in MP4; odd sides are padded by a pixel, as the codec needs."""
    import av

    with atomic.writing(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as container:
        stream: Any = None
        for picture in pictures:
            odd: npt.NDArray[np.int64] = np.array(picture.shape[:2]) % 2
            even = np.pad(picture, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") if odd.any() else picture
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = *even.shape[:2], "yuv420p"
                stream.options = {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def encode_gif(path: Path, pictures: Iterable[Levels], fps: float) -> None:
    """RGB pictures uint8[H,W,3] of one size as an endless GIF of 256 colours."""
    from PIL import Image

    every = max(1, round(fps / FASTEST_GIF))
    images = (Image.fromarray(picture) for number, picture in enumerate(pictures) if number % every == 0)
    with atomic.writing(path) as temporary:
        next(images).save(
            temporary, format="gif", save_all=True, append_images=images, duration=1000 * every / fps, loop=0
        )
