"""What an extraction makes of every video, and its exact translation to and from what a shard records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from extract_flow.methods import MODULES, module, resolve
from extract_flow.options import FRAMES_QUALITY, ShardOptions
from pipeline.codec import Codec, codec, codec_from
from pipeline.errors import InputError
from pipeline.paths import DEFAULT_METHOD
from pipeline.request import Request
from pipeline.video import Selection


@dataclasses.dataclass(frozen=True)
class ExtractionSettings:
    """What an extraction makes of every video.

    Attributes:
        method: name of the flow method.
        parameters: its resolved parameters, by name.
        selection: which frames, and their size.
        directions: of flow, "forward" and "backward", either or both; none where only frames are wanted.
        step: frames between the two of a pair.
        codec: of the flow.
        rgb: whether RGB frames are stored.
        rgb_quality: their JPEG quality.
        on_corrupt: "fail", or "keep" the frames before the error if there are at least 2. Not part of a request.
        overwrite: replace shards that were made with other settings. Not part of a request.
        size_was_asked: whether the user asked for the size; if not, videos that are scaled up are noted. Not part of a
            request, and ignored when settings are compared.
    """

    method: str
    parameters: Mapping[str, Any]
    selection: Selection = dataclasses.field(default_factory=Selection)
    directions: tuple[str, ...] = ("forward",)
    step: int = 1
    codec: Codec = dataclasses.field(default_factory=codec)
    rgb: bool = True
    rgb_quality: int = FRAMES_QUALITY
    on_corrupt: Literal["fail", "keep"] = "fail"
    overwrite: bool = False
    size_was_asked: bool = dataclasses.field(default=True, compare=False)

    @classmethod
    def from_options(
        cls, options: ShardOptions, parameters: Mapping[str, Any], usual_short_side: int | None
    ) -> ExtractionSettings:
        """The settings that a command's options ask for.

        Args:
            options: of the command.
            parameters: of the method, where they differ from the preset's.
            usual_short_side: in pixels, where the options give no size; None keeps the source's size.

        Raises:
            InputError: unknown names, or values that the method, the codec or the selection of frames refuses.
        """
        short_side = usual_short_side if options.short_side is None else options.short_side
        if options.size is not None or short_side == "none":
            short_side = None
        try:
            selection = Selection(
                None if short_side is None else int(short_side),
                options.size,
                options.every,
                options.start,
                options.end,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        return cls(
            method=options.method,
            parameters=dataclasses.asdict(resolve(options.method, options.preset, **parameters)),
            selection=selection,
            directions=("forward", "backward") if options.direction == "both" else (options.direction,),
            step=options.step,
            codec=codec(options.codec, options.bound, options.quality, options.bound_fixed),
            rgb=options.rgb,
            rgb_quality=cls.rgb_quality if options.rgb_quality is None else options.rgb_quality,
            on_corrupt=options.on_corrupt,
            overwrite=options.overwrite,
            size_was_asked=options.short_side is not None or options.size is not None,
        )

    def request(self, source_bytes: int) -> Request:
        """What a shard of a video of that many bytes must match to count as done."""
        selection = self.selection
        request = Request(
            source_bytes=source_bytes,
            short_side=selection.short_side if selection.size is None else None,
            size=selection.size,
            every=selection.every,
            start=selection.start,
            end=selection.end,
            directions=self.directions,
            frames=self.rgb,
            frames_quality=self.rgb_quality if self.rgb else None,
        )
        if not self.directions:
            return request
        return dataclasses.replace(
            request,
            method=self.method,
            parameters=self.parameters,
            step=self.step,
            quantiser=self.codec.quantiser.name,
            image=self.codec.image,
            quality=self.codec.quality,
        )

    def preset_of(self, made: Request) -> str:
        """The options that name the preset a shard was made with, as "--preset default-1".

        "" where the shard's method and parameters are these settings', or not those of a preset.
        """
        parameters = dict(made.parameters)
        if made.method not in MODULES or (made.method, parameters) == (self.method, dict(self.parameters)):
            return ""
        method = "" if made.method == self.method else f"--method {made.method} "
        presets = module(made.method).PRESETS.items()
        return next(
            (
                f"{method}--preset {name}"
                for name, preset in presets
                if dataclasses.asdict(preset) == parameters
            ),
            "",
        )

    @classmethod
    def from_request(cls, request: Request) -> ExtractionSettings:
        """The settings that make the shard of a request: the inverse of `request`.

        What the request leaves open keeps its default: everything about flow where it has no direction, the frames'
        quality where it has no frames.

        Raises:
            InputError: flow that was imported, or made by a method, with a parameter or codec, that this version does
                not have.
        """
        try:
            selection = Selection(request.short_side, request.size, request.every, request.start, request.end)
        except ValueError as error:
            raise InputError(f"a request for shards that no video can meet: {error}") from error
        settings = cls(
            method=DEFAULT_METHOD,
            parameters=dataclasses.asdict(resolve(DEFAULT_METHOD)),
            selection=selection,
            directions=request.directions,
            rgb=request.frames,
        )
        if request.frames_quality is not None:
            settings = dataclasses.replace(settings, rgb_quality=request.frames_quality)
        if not request.directions:
            return settings
        if request.method not in MODULES:
            raise InputError(
                f"the flow was made by {request.method!r}, which cannot be repeated here: expected one of "
                f"{', '.join(MODULES)}"
            )
        return dataclasses.replace(
            settings,
            method=request.method,
            parameters=dataclasses.asdict(resolve(request.method, **request.parameters)),
            step=request.step,
            codec=codec_from(request.quantiser, request.image, request.quality),
        )
