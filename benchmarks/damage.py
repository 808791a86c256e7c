"""How surely damage in videos is found: sound and damaged files of eight codecs, made here, through the video reader.

    python benchmarks/damage.py [--damaged 10] [--seed 0] [SOUND_FILE...]

Sound files are encoded in many ways (containers, B-frames, slices, fields, open groups of pictures, a cut at a key
frame); none may be refused. Damaged files are copies with bytes overwritten, a sector zeroed, or the end cut off. One
counts if its frames differ from the sound file's, and it is found if the reader refuses it. The frames that `keep` would
use are compared with the sound file's too. Files given on the command line count as sound.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import click
import numpy as np
import numpy.typing as npt

from pipeline.video import Selection, VideoError, VideoReader

FRAMES, WIDTH, HEIGHT = 50, 176, 144
Bytes = npt.NDArray[np.uint8]


class Encoding(NamedTuple):
    """How a sound file is made: encoder, suffix of the container, pixel format, options of the encoder."""

    encoder: str
    suffix: str
    pixels: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()


def encodings() -> dict[str, list[Encoding]]:
    """Per codec, the ways its sound files are made."""

    def ways(encoder: str, *variants: tuple[str, dict[str, str]], pixels: str = "yuv420p") -> list[Encoding]:
        return [Encoding(encoder, suffix, pixels, tuple(options.items())) for suffix, options in variants]

    x264 = {"crf": "23", "g": "25"}
    x265 = {"crf": "26", "g": "25"}
    quiet = "log-level=none"
    return {
        "h264": ways(
            "libx264",
            ("mp4", x264),
            ("mkv", x264 | {"coder": "vlc"}),
            ("mp4", x264 | {"profile": "baseline"}),
            ("ts", x264 | {"x264-params": "open-gop=1:bframes=3"}),
            ("mp4", x264 | {"x264-params": "slices=4"}),
            ("mov", x264 | {"x264-params": "interlaced=1"}),
            ("avi", x264 | {"bf": "0"}),
            ("mp4", x264 | {"x264-params": "intra-refresh=1"}),
        ),
        "hevc": ways(
            "libx265",
            ("mp4", x265 | {"x265-params": quiet}),
            ("mkv", x265 | {"x265-params": quiet + ":open-gop=1:bframes=4"}),
            ("ts", x265 | {"x265-params": quiet + ":repeat-headers=1"}),
            ("mp4", x265 | {"x265-params": quiet + ":slices=2"}),
            ("mov", x265 | {"x265-params": quiet + ":bframes=0"}),
            ("mkv", x265 | {"x265-params": quiet + ":wpp=0:lossless=1"}),
        ),
        "mpeg4": ways(
            "mpeg4",
            ("avi", {"b": "400k"}),
            ("mp4", {"b": "400k", "bf": "2"}),
            ("avi", {"b": "400k", "bf": "2"}),
            ("avi", {"b": "400k", "flags": "+mv4+aic"}),
            ("mkv", {"b": "400k", "data_partitioning": "1", "ps": "300"}),
            ("mp4", {"b": "1M", "flags": "+qpel+ildct+ilme"}),
        ),
        "mpeg2video": ways(
            "mpeg2video",
            ("mpg", {"b": "600k"}),
            ("ts", {"b": "600k", "bf": "2"}),
            ("mkv", {"b": "600k", "bf": "2"}),
            ("mpg", {"b": "1M", "flags": "+ildct+ilme"}),
            ("m2v", {"b": "600k", "intra_vlc": "1"}),
            ("mov", {"b": "600k", "g": "1"}),
        ),
        "mjpeg": ways(
            "mjpeg",
            ("avi", {"q": "5"}),
            ("mov", {"qmin": "2", "qmax": "2"}),
            ("mkv", {"huffman": "default"}),
            ("avi", {"huffman": "optimal"}),
            ("mp4", {"qmin": "12", "qmax": "12"}),
            pixels="yuvj420p",
        )
        + ways("mjpeg", ("avi", {}), pixels="yuvj444p"),
        "vp8": ways(
            "libvpx",
            ("webm", {"b": "400k"}),
            ("mkv", {"b": "400k", "auto-alt-ref": "1", "lag-in-frames": "16"}),
            ("webm", {"b": "400k", "error-resilient": "1"}),
            ("webm", {"b": "400k", "token-parts": "3"}),
            ("webm", {"b": "2M", "deadline": "realtime"}),
            ("avi", {"b": "400k"}),
        ),
        "vp9": ways(
            "libvpx-vp9",
            ("webm", {"b": "400k", "cpu-used": "5"}),
            ("mkv", {"b": "400k", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
            ("mp4", {"b": "400k", "error-resilient": "1", "cpu-used": "5"}),
            ("webm", {"b": "400k", "deadline": "realtime", "cpu-used": "7"}),
            ("webm", {"b": "400k", "tile-rows": "1", "cpu-used": "5"}),
            ("mp4", {"lossless": "1", "cpu-used": "5"}),
        ),
        "av1": ways(
            "libsvtav1",
            *((suffix, {"preset": preset, "crf": crf}) for suffix, preset, crf in (
                ("mp4", "10", "35"), ("mkv", "12", "30"), ("webm", "10", "50"),
                ("mp4", "12", "20"), ("mkv", "10", "45"), ("mp4", "11", "40"),
            )),
        ),
    }  # fmt: skip


def scene(seed: int) -> Iterator[Bytes]:
    """RGB frames uint8[H,W,3] of a moving texture with objects of their own motion and some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    waves = rng.uniform(0.03, 0.35, (3, 4, 3))
    paths = rng.uniform(-3, 3, (4, 2))
    starts = rng.uniform(20, 120, (4, 2))
    colours = rng.uniform(0, 255, (4, 3))
    for t in range(FRAMES):
        image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for channel in range(3):
            for fx, fy, phase in waves[channel]:
                image[..., channel] += np.sin(fx * (columns - 1.3 * t) + fy * (rows + 0.4 * t) + 9 * phase)
        image = 128 + 28 * image
        for start, path, colour in zip(starts, paths, colours, strict=True):
            y, x = start + path * t
            inside = np.hypot(rows - y % HEIGHT, columns - x % WIDTH) < 14
            image[inside] = colour
        yield np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def encode(path: Path, way: Encoding, seed: int) -> None:
    """Write a sound file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(way.encoder, rate=Fraction(25), options=dict(way.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, way.pixels
        stream.thread_count = 1
        for image in scene(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def places(path: Path) -> list[tuple[int, int]]:
    """(position, size) in the file of the video's packets after the first."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size > 80 and p.pos][1:]


def damage(data: bytes, packets: list[tuple[int, int]], number: int, rng: np.random.Generator) -> bytes:
    """A damaged copy: bytes overwritten in three places or in one, a sector zeroed, or the end cut off inside a frame."""
    copy = bytearray(data)

    def overwrite(length: int, zero: bool = False) -> None:
        position, size = packets[rng.integers(len(packets))]
        start = position + 24 + int(rng.integers(max(1, size - 24 - length)))
        copy[start : start + length] = bytes(length) if zero else rng.bytes(length)

    kind = number % 5
    if kind in (0, 1):
        for _ in range(3):
            overwrite(40)
    elif kind == 2:
        overwrite(16)
    elif kind == 3:
        overwrite(512, zero=True)
    else:
        position, size = packets[-len(packets) // 3]
        return bytes(copy[: position + size // 2])
    return bytes(copy[: len(data)])
