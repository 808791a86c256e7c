"""What a network's input holds: chosen by a recipe, kept in every checkpoint. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.runs import STREAMS, Stream

STACKINGS = ("stack", "trajectory")
VOLUME_DIRECTIONS = ("forward", "backward", "both")
"""Directions of the flow in a volume; "both" is bi-directional."""

# ImageNet's mean colour and spread in 0..255, what torchvision's weights were trained with.
COLOUR_MEAN = (123.675, 116.28, 103.53)
COLOUR_STD = (58.395, 57.12, 57.375)


LARGEST_SIDE = 65_535
MOST_FIELDS = 10_000


@dataclass(frozen=True)
class VolumeSpec:
    """What one network input holds; part of the recipe and of every checkpoint.

    Attributes:
        stream: "spatial" (one RGB frame) or "temporal" (a stack of flow fields).
        crop: side of the square network input in pixels.
        short_side: size at which the network sees the video: its smaller side in pixels. Shards stored at another size
            are resized on the fly, and their flow vectors with them; 0 uses every shard as it is stored.
        length: L, the number of flow fields.
        stacking: "stack" samples every field at the same point, "trajectory" follows the flow.
        direction: "forward"; "backward" (L flows going back from the frame); "both" (bi-directional: L/2 forward, then
            L/2 going back).
        mean_subtraction: subtract from every field its own mean vector, as stored in the shard.
        flow_scale: network input per pixel of flow.
        colour_mean, colour_std: network input is (colour - mean) / std, with colour in 0..255.
    """

    stream: Stream = "temporal"
    crop: int = 224
    short_side: int = 256
    length: int = 10
    stacking: Literal["stack", "trajectory"] = "stack"
    direction: Literal["forward", "backward", "both"] = "forward"
    mean_subtraction: bool = True
    flow_scale: float = 1.0
    colour_mean: tuple[float, float, float] = COLOUR_MEAN
    colour_std: tuple[float, float, float] = COLOUR_STD

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("stream", self.stream, STREAMS),
            ("stacking", self.stacking, STACKINGS),
            ("direction", self.direction, VOLUME_DIRECTIONS),
        ):
            if value not in choices:
                raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
        if not 1 <= self.crop <= LARGEST_SIDE:
            raise InputError(f"crop: expected 1 to {LARGEST_SIDE:,} pixels, found {self.crop}")
        if not 0 <= self.short_side <= LARGEST_SIDE:
            raise InputError(f"short_side: expected 0 to {LARGEST_SIDE:,} pixels, found {self.short_side}")
        if self.short_side and self.short_side < self.crop:
            raise InputError(
                f"short_side {self.short_side} is smaller than crop {self.crop}: no crop fits in the frame"
            )
        if not 1 <= self.length <= MOST_FIELDS:
            raise InputError(f"length: expected 1 to {MOST_FIELDS:,} flow fields, found {self.length}")
        if self.direction == "both" and self.length % 2:
            raise InputError(
                f"length {self.length} is odd: a bi-directional volume is L/2 forward and L/2 backward flows"
            )
        for name, values in (("colour_mean", self.colour_mean), ("colour_std", self.colour_std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"{name}: expected three finite numbers, found {list(values)}")
        if not 0 < self.flow_scale < math.inf or min(self.colour_std) <= 0:
            raise InputError("flow_scale and colour_std must be positive and finite")

    @property
    def channels(self) -> int:
        """Channels of the network's input: 3, or 2L."""
        return 3 if self.stream == "spatial" else 2 * self.length

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions of flow that a shard must hold; empty for the spatial stream."""
        if self.stream == "spatial":
            return ()
        return ("forward", "backward") if self.direction == "both" else (self.direction,)

    def as_dict(self) -> dict[str, Any]:
        """Plain values (lists for tuples), for checkpoints and JSON; `from_dict` reads them back."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VolumeSpec:
        """The spec that `as_dict` described; InputError for keys that this version does not know."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(
                f"volume: unknown {', '.join(sorted(unknown))}; was it saved by a newer version?"
            )
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        for field in fields(cls):
            value = plain.get(field.name, field.default)
            kind = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise InputError(f"volume: {field.name}: expected {kind.__name__}, found {value!r}")
        return cls(**plain)
