"""Frames to float32 and separable linear resampling on the device (`images.cu`).

A *plane* is float32[height, pitch]: rows begin at multiples of the pitch, and what lies beyond the width is padding,
which may hold anything.
"""

from __future__ import annotations

from typing import NamedTuple

from extract_flow.cuda.device import Buffer, Memory, Stream, upload
from extract_flow.cuda.kernels import Kernels, pixel_launch
from extract_flow.resampling import Taps

ROW = 8
"""A pitch is a multiple of this many pixels: the 32 bytes that a GPU reads at least."""


class Size(NamedTuple):
    """Height and width of images in pixels, and of their planes."""

    height: int
    width: int

    @property
    def pitch(self) -> int:
        """Pixels from row to row."""
        return -(-self.width // ROW) * ROW

    @property
    def area(self) -> int:
        """Float32 values of a plane."""
        return self.height * self.pitch


class DeviceTaps(NamedTuple):
    """A table of taps on the device: first int32[outputs], weights float32[outputs, taps]."""

    first: Buffer
    weights: Buffer
    taps: int


def upload_taps(taps: Taps) -> DeviceTaps:
    """Copy a table to the device."""
    return DeviceTaps(upload(taps.first), upload(taps.weights), taps.weights.shape[1])


def load_frames(
    kernels: Kernels, stream: Stream, frames: Memory, images: Memory, size: Size, count: int, scale: float
) -> None:
    """Queue uint8[count, height, width] to planes, times scale."""
    kernels.launch(
        "load_frames", *pixel_launch(size.height, size.width, count), stream, frames, images, scale, *size, size.pitch
    )  # fmt: skip


class Resampling(NamedTuple):
    """How images of one size become images of another: a table for the columns and one for the rows."""

    source: Size
    target: Size
    down: DeviceTaps
    across: DeviceTaps

    def scratch(self) -> int:
        """Float32 values of scratch per image."""
        return self.target.height * self.source.pitch


def resample(
    kernels: Kernels,
    stream: Stream,
    how: Resampling,
    source: Memory,
    target: Memory,
    scratch: Memory,
    count: int,
    factor: float = 1.0,
    odd_factor: float | None = None,
    planes: int = 1,
    group: int = 1,
) -> None:
    """Queue the resampling of `count` planes, times factor: columns first, then rows.

    Args:
        kernels: a program with `images.cu`.
        stream: where.
        how: sizes and tables.
        source: planes of `how.source`, one after the other.
        target: planes of `how.target`; may be `source` where the sizes are the same.
        scratch: room for `how.scratch() * count` float32.
        count: planes.
        factor: what every value is multiplied by.
        odd_factor: the same for planes of odd number; `factor` unless given.
        planes, group: every `planes` planes take the room of `group` planes in the target.
    """
    between = Size(how.target.height, how.source.width)
    kernels.launch(
        "resample_down", *pixel_launch(*between, count), stream, source, how.down.first, how.down.weights,
        how.down.taps, scratch, how.source.height, *between, between.pitch,
    )  # fmt: skip
    kernels.launch(
        "resample_across", *pixel_launch(*how.target, count), stream, scratch, how.across.first, how.across.weights,
        how.across.taps, factor, factor if odd_factor is None else odd_factor, target, how.target.height, between.pitch,
        how.target.width, how.target.pitch, planes, group,
    )  # fmt: skip
