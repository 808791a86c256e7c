"""Flow to levels to image bytes, and back.

A level is a byte; a table of 256 values gives its meaning: value = table[level] * scale + offset, in pixels. One
decoder thus serves every quantiser. The two components of a field lie one above the other in a single gray image, which
is coded as JPEG (or PNG, where nothing may be lost). docs/explanation/codec.md explains why; benchmarks/codec.py
measures it.
"""

from __future__ import annotations

import functools
import io
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.field_range import (
    FAST,
    LADDER,
    UNITS_PER_PIXEL,
    has_fast_motion,
    ladder_limits,
    ladder_rung,
    whole_pixel_offset,
)

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

DEFAULT_BOUND = 20.0
# Means are sums of whole multiples of MEAN_UNIT, so that they do not depend on the order of summation or the device.
MEAN_UNIT = 1 / UNITS_PER_PIXEL
MEAN_LIMIT = 2.0**17
JPEG_LARGEST_SIDE = 65500
BLOCK = 8


@dataclass(frozen=True)
class Quantised:
    """Flow as levels, with what is needed to read it.

    Attributes:
        levels: uint8[n,2,H,W].
        scale, offset: float32[n,2]; flow = table[levels] * scale + offset, in pixels.
        mean: float32[n,2], the mean of each component before quantisation, in pixels. Exactly: every value is limited
            to +-MEAN_LIMIT and rounded (half to even) to whole multiples of MEAN_UNIT, these are summed in int64, and
            the sum is multiplied by MEAN_UNIT and divided by H*W in float64.
        clipped: float32[n], the fraction of pixels of which a component lay outside the quantiser's range.
    """

    levels: Levels
    scale: Floats
    offset: Floats
    mean: Floats
    clipped: Floats


@dataclass(frozen=True, eq=False)
class Quantiser:
    """A table of values and the rule that maps flow to its levels.

    The level of a value v is the number of `edges` that are <= (v - offset) / scale, in float32. Edges lie half-way
    between neighbouring values (below zero moved up by one float, so that -v gets the mirrored level of v even on an
    edge). Where table[0] == table[1], level 0 is never given and stands for level 1 when a JPEG returns it.

    Attributes:
        name: everything that determines the table, for example "asinh s=3 bound=20"; shards record and compare it.
        table: float32[256], not decreasing.
        per_field: scale and offset follow each field's range instead of being 1 and 0: with a component's smallest and
            largest value, offset = (largest + smallest) / 2 and scale = (largest - smallest) / 2, or 1 where that
            is 0. Nothing counts as clipped then.
        ladder: offset is the mean in whole pixels, and scale the smallest of `pipeline.field_range.LADDER` at which
            few pixels are clipped, by the rules of that module. Not together with per_field.
        edges: float32[255], computed from the table; a kernel that counts them gives the same levels on any device.

    Quantisers of one name and table are equal.
    """

    name: str
    table: Floats
    per_field: bool = False
    ladder: bool = False
    edges: Floats = field(init=False)

    def __post_init__(self) -> None:
        table = np.array(self.table, dtype=np.float32)
        if table.shape != (256,) or not np.isfinite(table).all() or (np.diff(table[1:]) <= 0).any():
            raise ValueError(f"quantiser {self.name!r}: the table must be 256 finite, increasing values")
        if self.ladder and (self.per_field or table[0] != -table[255]):
            raise ValueError(f"quantiser {self.name!r}: a ladder needs a table with one bound to either side")
        table.flags.writeable = False
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "edges", level_edges(table))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quantiser):
            return NotImplemented
        return (self.name, self.per_field, self.ladder) == (
            other.name,
            other.per_field,
            other.ladder,
        ) and bool((self.table == other.table).all())

    def __hash__(self) -> int:
        return hash(self.name)

    def quantise(self, flow: Floats) -> Quantised:
        """Levels of flow float32[n,2,H,W] in pixels.

        Raises:
            ValueError: wrong shape or type, or values that are not finite.
        """
        flow = np.asarray(flow)
        if flow.dtype != np.float32 or flow.ndim != 4 or flow.shape[1] != 2 or 0 in flow.shape[2:]:
            raise ValueError(f"flow: expected float32[n,2,H,W], found {flow.dtype}{list(flow.shape)}")
        count, _, height, width = flow.shape
        pixels = np.ascontiguousarray(flow).reshape(count, 2, height * width)
        scale, offset = np.ones((count, 2), np.float32), np.zeros((count, 2), np.float32)
        levels = np.empty((count, 2, height * width), np.uint8)
        sums = np.empty((count, 2), np.int64)
        clipped = np.empty(count, np.float32)
        sum_field = _kernel("sum_field") or _sum_field_numpy
        quantise_field = _kernel("quantise_field") or _quantise_field_numpy
        bins, bins_per_unit = self._bins
        for i, (x, y) in enumerate(pixels):
            if not sum_field(x, y, np.float32(1 / MEAN_UNIT), np.float32(MEAN_LIMIT), sums[i]):
                raise ValueError(f"flow field {i} holds values that are not finite")
            self._set_range(pixels[i], sums[i], scale[i], offset[i])
            outside = quantise_field(
                x, y, offset[i], scale[i], self._padded_edges, bins, self.table[0], self.table[255], bins_per_unit,
                levels[i, 0], levels[i, 1],
            )  # fmt: skip
            clipped[i] = 0 if self.per_field else outside / (height * width)
        mean = (sums * (MEAN_UNIT / (height * width))).astype(np.float32)
        return Quantised(levels.reshape(flow.shape), scale, offset, mean, clipped)

    def _set_range(self, pixels: Floats, sums: npt.NDArray[np.int64], scale: Floats, offset: Floats) -> None:
        """Write scale and offset [2] of the field pixels[2,H*W]; they hold 1 and 0."""
        if self.per_field:
            low, high = pixels.min(axis=1), pixels.max(axis=1)
            half = (high - low) * np.float32(0.5)
            scale[:] = np.where(half == 0, np.float32(1), half)
            offset[:] = (high + low) * np.float32(0.5)
        elif self.ladder:
            offset[:] = whole_pixel_offset(sums, pixels.shape[1])
            count_beyond = _kernel("count_beyond") or _count_beyond_numpy
            beyond = count_beyond(pixels[0], pixels[1], offset, self.limits)
            scale[:] = LADDER[ladder_rung(beyond, pixels.shape[1])]

    @functools.cached_property
    def limits(self) -> Floats:
        """What `pipeline.field_range.ladder_limits` gives for this table: float32[11], for a ladder's counts."""
        return ladder_limits(self.table[255])

    @functools.cached_property
    def fast_distance(self) -> int:
        """How many levels from 128 a component counts as fast, 5 pixels at scale 1: 1..127."""
        return int(np.searchsorted(self.edges, min(FAST, float(self.table[255])), side="right")) - 128

    @functools.cached_property
    def _padded_edges(self) -> Floats:
        return np.append(self.edges, np.float32(np.inf))

    @functools.cached_property
    def _bins(self) -> tuple[npt.NDArray[np.uint8], np.float32]:
        """For each bin of equal width the number of edges in lower bins, with at most one edge to a bin."""
        low, high = self.table[0], self.table[255]
        inside = np.clip(self.edges, low, high)
        for count in (4096, 16384, 65536):
            per_unit = np.float32(count / (high - low))
            bin_of_edge = ((inside - low) * per_unit).astype(np.int64)
            if (np.diff(bin_of_edge) > 0).all():
                bin_count = int((high - low) * per_unit) + 1
                return np.searchsorted(bin_of_edge, np.arange(bin_count)).astype(np.uint8), per_unit
        raise ValueError(f"quantiser {self.name!r}: neighbouring values of the table lie too close together")


def level_edges(table: Floats) -> Floats:
    """The 255 boundaries between 256 levels, float32[255] (see `Quantiser`)."""
    values = table.astype(np.float64)
    edges = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    mirrored = table[0] == table[1]
    if mirrored:
        edges[0] = -np.inf
    below = edges < 0
    edges[below] = np.nextafter(edges[below], np.float32(np.inf))
    return edges


def _sum_field_numpy(
    x: Floats, y: Floats, unit: np.float32, limit: np.float32, sums: npt.NDArray[np.int64]
) -> bool:
    """`codec_kernels.sum_field` where numba is not installed."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    for component, pixels in enumerate((x, y)):
        sums[component] = np.rint(np.clip(pixels, -limit, limit) * unit).astype(np.int64).sum()
    return True


def _count_beyond_numpy(x: Floats, y: Floats, offset: Floats, limits: Floats) -> npt.NDArray[np.int64]:
    """`codec_kernels.count_beyond` where numba is not installed."""
    reach = np.sort(np.maximum(np.abs(x - offset[0]), np.abs(y - offset[1])))
    return reach.size - np.searchsorted(reach, limits, side="right").astype(np.int64)


def _quantise_field_numpy(
    x: Floats, y: Floats, offset: Floats, scale: Floats, edges: Floats, bins: object, lowest: np.float32,
    highest: np.float32, bins_per_unit: object, x_levels: Levels, y_levels: Levels,
) -> int:  # fmt: skip
    """`codec_kernels.quantise_field` where numba is not installed."""
    outside = np.zeros(x.size, bool)
    for component, (pixels, levels) in enumerate(((x, x_levels), (y, y_levels))):
        values = (pixels - offset[component]) / scale[component]
        outside |= (values < lowest) | (values > highest)
        levels[:] = np.searchsorted(edges, np.clip(values, lowest, highest), side="right")
    return int(outside.sum())


@functools.cache
def _kernel(name: str) -> Callable[..., Any] | None:
    try:
        from pipeline import codec_kernels
    except ImportError:
        return None
    return getattr(codec_kernels, name)


def dequantise(
    levels: Levels, table: Floats, scale: Floats, offset: Floats, out: Floats | None = None
) -> Floats:
    """Flow in pixels: table[levels] * scale + offset.

    Args:
        levels: uint8[n,2,H,W].
        table: float32[256].
        scale, offset: float32[n,2].
        out: float32[n,2,H,W] to write into, if there is one to reuse.

    Returns:
        float32[n,2,H,W].
    """
    levels = np.ascontiguousarray(levels)
    out = np.empty(levels.shape, np.float32) if out is None else out
    values = value_table(table)
    for i in range(len(levels)):
        values.read_field(levels[i], scale[i], offset[i], out[i])
    return out


class ValueTable:
    """The values of a table's levels, ready for fast look-up. Made by `value_table`.

    Attributes:
        values: float32[256].
        pairs: uint64[65536], both values of each two neighbouring levels, which halves the look-ups.
    """

    def __init__(self, values: Floats) -> None:
        self.values = values
        pairs = np.empty((256, 256, 2), np.float32)
        pairs[:, :, 0] = values  # the first of two levels is the low byte
        pairs[:, :, 1] = values[:, None]
        self.pairs = pairs.view(np.uint64).reshape(65536)

    def read_field(self, levels: Levels, scale: Floats, offset: Floats, out: Floats) -> None:
        """out[c] = values[levels[c]] * scale[c] + offset[c].

        Args:
            levels: uint8[2,H,W], each component contiguous.
            scale, offset: float32[2].
            out: contiguous float32[2,H,W].
        """
        if levels.flags.c_contiguous and scale[0] == scale[1] and offset[0] == offset[1]:
            self._read(levels, scale[0], offset[0], out)
        else:
            for component in range(2):
                self._read(levels[component], scale[component], offset[component], out[component])

    def _read(self, levels: Levels, scale: np.float32, offset: np.float32, out: Floats) -> None:
        flat, target = levels.reshape(-1), out.reshape(-1)
        usual = bool(scale == 1 and offset == 0)
        even = flat.size % 2 == 0 and sys.byteorder == "little" and target.ctypes.data % 8 == 0
        look_up_pairs = _kernel("look_up_pairs" if usual else "look_up_scaled_pairs")
        if even and look_up_pairs is not None:
            words = flat.view(np.uint16), self.pairs, target.view(np.uint64)
            look_up_pairs(*words) if usual else look_up_pairs(*words, scale, offset)
            return
        values = self.values if usual else self.values * scale + offset
        if (look_up := _kernel("look_up")) is not None:
            look_up(flat, values, target)
        else:
            np.take(values, flat, out=target)


def value_table(table: Floats) -> ValueTable:
    """The look-up of a table's values; those of the last few tables are kept from call to call."""
    return _value_table(np.ascontiguousarray(table, np.float32).tobytes())


@functools.lru_cache(maxsize=8)
def _value_table(table: bytes) -> ValueTable:
    return ValueTable(np.frombuffer(table, np.float32))


# --- image coding ----------------------------------------------------------------------------------------------------


def stack_components(levels: Levels, block: int = BLOCK) -> Levels:
    """x over y as one image; x is padded to whole blocks, so that no block of the coder holds both."""
    rows = -levels.shape[1] % block
    return np.concatenate([levels[0], np.repeat(levels[0][-1:], rows, axis=0), levels[1]])


def split_components(image: Levels, height: int) -> Levels:
    """What `stack_components` put into an image, as a view uint8[2,H,W]; contiguous where nothing was added to x."""
    rows, width = image.shape
    return np.ndarray((2, height, width), np.uint8, image, strides=((rows - height) * width, width, 1))


def image_size(stream: bytes | memoryview) -> tuple[int, int]:
    """(height, width) from the header of a JPEG or PNG, without decoding it; ValueError if it is neither."""
    head = bytes(stream[:4096])
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    if head[:2] != b"\xff\xd8":
        raise ValueError("neither a JPEG nor a PNG image")
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 5 : at + 7], "big"), int.from_bytes(head[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    raise ValueError("a JPEG without a frame header")


def decode_image(stream: bytes | memoryview, height: int, width: int) -> Levels:
    """The gray image of x over y as coded: uint8[H',W], x in the first `height` rows and y in the last.

    Raises:
        ValueError: the stream is not an image, or not one of such a field.
    """
    import cv2

    rows, columns = image_size(stream)
    if columns != width or rows not in (2 * height, height + height + (-height % BLOCK)):
        raise ValueError(f"an image of {columns}x{rows}, which holds no flow of {width}x{height}")
    image = cv2.imdecode(
        np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if image is None or image.shape != (rows, columns):
        raise ValueError("an image that cannot be decoded")
    return np.asarray(image, np.uint8)


def decode_levels(
    stream: bytes | memoryview, height: int, width: int, lowest: int = 1, out: Levels | None = None
) -> Levels:
    """Levels uint8[2,H,W] of one stream; levels under `lowest` (JPEG may undershoot) are read as `lowest`.

    Raises:
        ValueError: the stream is not an image, or not one of such a field.
    """
    components = split_components(decode_image(stream, height, width), height)
    out = np.empty((2, height, width), np.uint8) if out is None else out
    return np.maximum(components, _floor(height, width, lowest), out=out)


@functools.lru_cache(maxsize=4)
def _floor(height: int, width: int, lowest: int) -> Levels:
    """The lowest level as a whole field: NumPy's maximum is ten times slower with a scalar."""
    return np.full((2, height, width), lowest, np.uint8)


def lowest_level(table: Floats) -> int:
    """1 where the table is zero-centred (level 0 stands for 1), 0 where all 256 levels are in use."""
    return int(table[0] == table[1])


def encode_jpeg(image: Levels, *, quality: int | None = None, step: int | None = None) -> bytes:
    """A gray baseline JPEG with optimised Huffman codes.

    Every frequency is quantised by `step`, or by the standard luminance table of that `quality`.
    """
    from PIL import Image

    tables: dict[str, Any] = {"quality": quality} if step is None else {"qtables": [[step] * 64]}
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", optimize=True, **tables)
    return stream.getvalue()


def flat_step(quality: int, fast: bool = False) -> int:
    """The step of a flat table: the one that `quality` gives the lowest frequency in the standard table (75: 8, 88: 4).

    That is libjpeg's scaling of 16, the first entry of the standard luminance table, for a quality of 1 to 100. Fields
    with `fast` motion get five eighths of it (75: 5).
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = min(max((16 * percent + 50) // 100, 1), 255)
    return (5 * step + 4) // 8 if fast else step


def encode_png(image: Levels) -> bytes:
    """A gray PNG; every filter and compression level 6, a good balance of time and size."""
    import cv2

    done, stream = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not done:
        raise ValueError("PNG encoding failed")
    return stream.tobytes()


@dataclass(frozen=True)
class Codec:
    """A quantiser and how its levels are coded as an image; equal ones write the same bytes.

    Attributes:
        quantiser: flow <-> levels.
        image: "jpeg flat" (one step for all frequencies), "jpeg flat by speed" (as flat, with a finer step for fields
            of fast motion, see `pipeline.field_range.has_fast_motion`), "jpeg standard" (the standard table) or "png".
        quality: 1..100, or None for PNG.
    """

    quantiser: Quantiser
    image: str
    quality: int | None

    def encode(self, levels: Levels) -> bytes:
        """Levels uint8[2,H,W] as one image stream; ValueError for another shape or a side too long for JPEG."""
        if levels.dtype != np.uint8 or levels.ndim != 3 or levels.shape[0] != 2 or 0 in levels.shape:
            raise ValueError(f"levels: expected uint8[2,H,W], found {levels.dtype}{list(levels.shape)}")
        if self.quality is None:
            return encode_png(stack_components(levels, block=1))
        image = stack_components(levels)
        if max(image.shape) > JPEG_LARGEST_SIDE:
            raise ValueError(
                f"flow of {levels.shape[2]}x{levels.shape[1]} is too large for JPEG: use the lossless preset"
            )
        if self.image == "jpeg standard":
            return encode_jpeg(image, quality=self.quality)
        fast = self.image == "jpeg flat by speed" and has_fast_motion(levels, self.quantiser.fast_distance)
        return encode_jpeg(image, step=flat_step(self.quality, fast))

    def decode(self, stream: bytes | memoryview, height: int, width: int) -> Levels:
        """Levels uint8[2,H,W] of a stream; ValueError if it is not an image of such a field."""
        return decode_levels(stream, height, width, lowest_level(self.quantiser.table))


# --- presets ---------------------------------------------------------------------------------------------------------


def asinh_quantiser(softness: float, bound: float, ladder: bool = False) -> Quantiser:
    """Zero-centred and companded: level = round(127 asinh(v/s) / asinh(bound/s)) + 128.

    With a ladder, v is the value after each field's offset and scale (`Quantiser.ladder`).
    """
    positive = softness * np.sinh(np.arange(1, 128) * (math.asinh(bound / softness) / 127))
    positive[-1] = bound
    name = f"asinh s={_exact(softness)} bound={_exact(bound)}" + " ladder" * ladder
    return Quantiser(name, zero_centred(positive), ladder=ladder)


def linear_quantiser(bound: float) -> Quantiser:
    """Zero-centred, 127 equal steps to either side."""
    return Quantiser(f"linear bound={_exact(bound)}", zero_centred(np.arange(1, 128) * (bound / 127)))


def field_quantiser(bound: float) -> Quantiser:
    """The literature's mapping, level = round(255 (v + bound) / (2 bound)): zero lies between levels 127 and 128."""
    return Quantiser(
        f"field bound={_exact(bound)}", (np.arange(256) * (2 * bound / 255) - bound).astype(np.float32)
    )


def range_quantiser() -> Quantiser:
    """Each field's components over their own range, as in the two-stream paper (section 5)."""
    return Quantiser("range", zero_centred(np.arange(1, 128) / 127), per_field=True)


def _exact(number: float) -> str:
    """The shortest decimal that reads back as the same number, without ".0" where it is whole."""
    return repr(float(number)).removesuffix(".0")


def zero_centred(positive: npt.NDArray[np.floating]) -> Floats:
    """The antisymmetric table with the 127 given values above level 128, zero there, and level 0 as level 1."""
    values = positive.astype(np.float32)
    return np.concatenate([-values[-1:], -values[::-1], np.zeros(1, np.float32), values])


IMAGE_CODINGS = ("jpeg flat", "jpeg flat by speed", "jpeg standard", "png")

PRESETS = {
    "default": (lambda bound: asinh_quantiser(3, bound, ladder=True), "jpeg flat by speed", 75),
    "high-fidelity": (lambda bound: asinh_quantiser(2, bound), "jpeg flat", 88),
    "linear": (linear_quantiser, "jpeg flat", 75),
    "paper": (lambda _: range_quantiser(), "jpeg standard", 95),
    "field": (field_quantiser, "jpeg standard", 95),
    "lossless": (lambda bound: asinh_quantiser(3, bound), "png", None),
}


DEFAULT_WITH_FIXED_BOUND = (lambda bound: asinh_quantiser(3, bound), "jpeg flat", 75)


def codec(
    preset: str = "default",
    bound: float | None = None,
    quality: int | None = None,
    bound_fixed: bool = False,
) -> Codec:
    """The codec of a preset, with another bound or JPEG quality if wanted.

    Args:
        preset: a key of `PRESETS`.
        bound: pixels, 20 unless given. Components beyond it are clipped; in the default preset, beyond it times the
            field's scale, counted from the field's offset.
        quality: 1..100; the preset's own unless given.
        bound_fixed: the default preset with scale 1 and offset 0 in every field, and one JPEG step.

    Raises:
        InputError: an unknown preset, a value out of range, or an option that the preset does not take.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown codec preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if bound is not None and preset == "paper":
        raise InputError("the paper preset takes each field's own range: it has no bound")
    if bound_fixed and preset != "default":
        raise InputError(
            f"the {preset} preset has no bound that follows the field: leave --bound-fixed out, which goes with the "
            "default preset"
        )
    if bound is not None and not (math.isfinite(bound) and 0.01 <= bound <= 10000):
        raise InputError(f"bound: expected pixels between 0.01 and 10000, found {bound}")
    quantiser, image, usual_quality = DEFAULT_WITH_FIXED_BOUND if bound_fixed else PRESETS[preset]
    if quality is not None and usual_quality is None:
        raise InputError(f"the {preset} preset has no quality: nothing is lost after quantisation")
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality: expected 1 to 100, found {quality}")
    return Codec(quantiser(DEFAULT_BOUND if bound is None else float(bound)), image, quality or usual_quality)


def codec_from(quantiser: str, image: str, quality: int | None) -> Codec:
    """The codec that a shard records: exactly the one that wrote its flow.

    Args:
        quantiser: `Quantiser.name`.
        image, quality: `Codec.image` and `Codec.quality`.

    Raises:
        InputError: a name or value that no codec of this version has.
    """
    if image not in IMAGE_CODINGS:
        raise InputError(
            f"unknown image coding {image!r}: expected one of {', '.join(map(repr, IMAGE_CODINGS))}"
        )
    valid = quality is None if image == "png" else quality is not None and 1 <= quality <= 100
    if not valid:
        raise InputError(
            f"image coding {image!r} of quality {quality}: expected 1 to 100 for JPEG, none for PNG"
        )
    return Codec(quantiser_named(quantiser), image, quality)


def quantiser_named(name: str) -> Quantiser:
    """The quantiser of that `Quantiser.name`.

    Raises:
        InputError: no quantiser of this version has that name.
    """
    parts = re.fullmatch(r"(asinh|linear|field|range)(?: s=(\S+))?(?: bound=(\S+))?( ladder)?", name)
    try:
        kind, softness, bound, ladder = parts.groups() if parts else ("", None, None, None)
        found = {
            "asinh": lambda: asinh_quantiser(
                float(softness or "nan"), float(bound or "nan"), ladder is not None
            ),
            "linear": lambda: linear_quantiser(float(bound or "nan")),
            "field": lambda: field_quantiser(float(bound or "nan")),
            "range": range_quantiser,
        }[kind]()
    except (KeyError, ValueError, ArithmeticError) as error:
        raise InputError(f"unknown quantiser {name!r}: it was not made by this version") from error
    if found.name != name:
        raise InputError(f"unknown quantiser {name!r}: expected {found.name!r}")
    return found
