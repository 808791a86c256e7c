"""What was asked for when a shard was made: everything that is needed to make it again from the same video."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.shard import Shard, ShardAddress, open_shard
from pipeline.shard_file import DIRECTIONS, damaged


@dataclass(frozen=True)
class Request:
    """What was asked for when a shard was made; what a new request must match for the shard to count as done.

    Attributes:
        source_bytes: size of the video file.
        short_side: the wanted smaller side in pixels.
        size: the wanted (width, height) instead; where both are None, the source's size is kept.
        every: every Nth frame was kept.
        start, end: the part of the video, in seconds; end None is its end.
        directions: of flow; a shard with more than the wanted ones will do.
        method, parameters: the flow method and all its options.
        step: frames between the two of a pair.
        quantiser, image, quality: of the flow's codec, which `pipeline.codec.codec_from` makes of them.
        frames: whether RGB frames are wanted; a shard with frames will do where none are.
        frames_quality: of the frames' JPEGs.
    """

    source_bytes: int
    short_side: int | None = None
    size: tuple[int, int] | None = None
    every: int = 1
    start: float = 0.0
    end: float | None = None
    directions: tuple[str, ...] = ("forward",)
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    step: int = 1
    quantiser: str = ""
    image: str = ""
    quality: int | None = None
    frames: bool = False
    frames_quality: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.short_side is not None:
            raise ValueError("a request has either a short side or a size")

    @property
    def size_in_words(self) -> str:
        """The wanted size as format 1 of the shard stores it: "short side 256", "340x256" or "source"."""
        if self.size is not None:
            return f"{self.size[0]}x{self.size[1]}"
        return "source" if self.short_side is None else f"short side {self.short_side}"

    def differences(self, made: Request) -> list[str]:
        """How a shard `made` by another request differs where it matters here, a line each: "step: asked 2, ..."."""
        names = ["source_bytes", "size_in_words", "every", "start", "end"]
        if self.directions and made.directions:
            names += ["method", "parameters", "step", "quantiser", "image", "quality"]
        if self.frames and made.frames:
            names += ["frames_quality"]
        lines = []
        for name in names:
            asked, found = getattr(self, name), getattr(made, name)
            if name == "parameters":
                if self.method != made.method:
                    continue  # those of different methods mean different things
                asked, found = _plain(asked), _plain(found)
                for key in sorted(asked.keys() | found.keys()):
                    if asked.get(key) != found.get(key):
                        lines.append(f"{key}: asked {asked.get(key)}, the shard has {found.get(key)}")
            elif asked != found:
                lines.append(f"{name.removesuffix('_in_words')}: asked {asked}, the shard has {found}")
        return lines

    def missing(self, made: Request) -> tuple[str, ...]:
        """What is asked for and not in a shard `made` by another request: "frames", "forward", "backward"."""
        parts = [direction for direction in self.directions if direction not in made.directions]
        return tuple(["frames"] * (self.frames and not made.frames) + parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values as JSON has them, for a checkpoint; `from_dict` reads them."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """The request that `as_dict` gave.

        Raises:
            ValueError: values that do not make a request; the message names the first.
        """
        for name, kinds in _KINDS.items():
            if not isinstance(values.get(name), kinds) or isinstance(values.get(name), bool) != (
                kinds is bool
            ):
                raise ValueError(f"{name}: expected {_described(kinds)}, found {values.get(name)!r}")
        size, directions = values["size"], tuple(values["directions"])
        if size is not None and (len(size) != 2 or not all(type(side) is int for side in size)):
            raise ValueError(f"size: expected width and height, found {size!r}")
        if any(direction not in DIRECTIONS for direction in directions):
            raise ValueError(f"directions: expected {' and '.join(DIRECTIONS)}, found {directions!r}")
        known = {name: values[name] for name in _KINDS}
        return cls(**{**known, "size": None if size is None else tuple(size), "directions": directions})


_NUMBER = (int, float)
_KINDS: Mapping[str, Any] = {
    "source_bytes": int,
    "short_side": (int, type(None)),
    "size": (list, tuple, type(None)),
    "every": int,
    "start": _NUMBER,
    "end": (*_NUMBER, type(None)),
    "directions": (list, tuple),
    "method": str,
    "parameters": Mapping,
    "step": int,
    "quantiser": str,
    "image": str,
    "quality": (int, type(None)),
    "frames": bool,
    "frames_quality": (int, type(None)),
}


def _described(kinds: Any) -> str:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON, so that tuples and lists, or 1 and 1.0, compare as a shard stores them."""
    return json.loads(json.dumps(value, sort_keys=True))


def _size_from_words(words: str) -> tuple[int | None, tuple[int, int] | None]:
    """(short side, size) of `Request.size_in_words`; ValueError for other words."""
    if words == "source":
        return None, None
    if match := re.fullmatch(r"short side ([1-9][0-9]*)", words):
        return int(match[1]), None
    if match := re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", words):
        return None, (int(match[1]), int(match[2]))
    raise ValueError(f"its size {words!r} is neither WxH, nor a short side, nor source")


def request_of(shard: Shard) -> Request:
    """The request that a shard answers.

    Raises:
        InputError: the shard records something that no request asks for.
    """
    attributes, flow = shard.contents.attributes, shard.contents.flow
    try:
        short_side, size = _size_from_words(attributes["size"])
    except ValueError as error:
        raise damaged(shard.address, str(error)) from error
    made_by = next(iter(flow.values())).attributes if flow else {}
    names = ("method", "parameters", "step", "quantiser", "image", "quality")
    return Request(
        source_bytes=attributes["source_bytes"],
        short_side=short_side,
        size=size,
        every=attributes["every"],
        start=attributes["start"],
        end=attributes["end"],
        directions=shard.directions,
        frames=shard.has_frames,
        frames_quality=shard.contents.frames_quality,
        **{name: made_by[name] for name in names if name in made_by},
    )


class OtherWay(NamedTuple):
    """Shards of a set that were made alike, and otherwise than is asked.

    Attributes:
        videos: whose shards they are.
        made: the request that the first was made for.
        differences: as `Request.differences` lists them.
    """

    videos: list[str]
    made: Request
    differences: list[str]


def other_ways(asked: Request, made: Mapping[str, Request]) -> list[OtherWay]:
    """The shards of a set that were made otherwise than is asked, the most frequent way first.

    Args:
        asked: of any video; that a video's file has changed is no other way.
        made: video -> what its shard was made for; shards made alike may share one.
    """
    asked = dataclasses.replace(asked, source_bytes=0)
    known: dict[int, OtherWay] = {}
    ways: dict[tuple[str, ...], OtherWay] = {}
    for video, request in made.items():
        if id(request) not in known:
            differences = asked.differences(dataclasses.replace(request, source_bytes=0))
            known[id(request)] = ways.setdefault(tuple(differences), OtherWay([], request, differences))
        known[id(request)].videos.append(video)
    ways.pop((), None)
    return sorted(ways.values(), key=lambda way: -len(way.videos))


@dataclass(frozen=True)
class Standing:
    """How an existing shard answers a request: done if there are neither differences nor missing parts.

    Attributes:
        made: the request that the shard was made for.
        differences: as `Request.differences` lists them.
        missing: as `Request.missing` lists them.
    """

    made: Request
    differences: list[str]
    missing: tuple[str, ...]

    @property
    def done(self) -> bool:
        return not self.differences and not self.missing


def standing(asked: Request, made: Request) -> Standing:
    """How a shard that was `made` for a request answers another."""
    return Standing(made, asked.differences(made), asked.missing(made))


def check(address: str | Path | ShardAddress, request: Request) -> Standing:
    """Whether an existing shard opens, has intact tables, and is what is asked for. Streams are checked by `verify`.

    Raises:
        InputError: it is not a valid shard.
    """
    with open_shard(address) as shard:
        made = request_of(shard)
    return standing(request, made)
