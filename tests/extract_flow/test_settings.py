"""What a shard records gives back the settings that made it, exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered_clips import clip

from extract_flow.clip import VideoTask
from extract_flow.methods import MODULES, load, module
from extract_flow.options import ShardOptions
from extract_flow.settings import ExtractionSettings
from extract_flow.worker import make
from pipeline.codec import PRESETS
from pipeline.errors import InputError
from pipeline.request import Request, request_of
from pipeline.shard import open_shard

SIZES = st.one_of(
    st.fixed_dictionaries({"short_side": st.none() | st.just("none") | st.integers(1, 4000)}),
    st.fixed_dictionaries({"size": st.tuples(st.integers(1, 4000), st.integers(1, 4000))}),
)
METHODS = st.sampled_from([(name, preset) for name in MODULES for preset in module(name).PRESETS])
TIMES = st.tuples(st.floats(0, 1e4), st.none() | st.floats(0.001, 1e4)).map(
    lambda times: {"start": times[0], "end": None if times[1] is None else times[0] + times[1]}
)


@st.composite
def options_of_extraction(draw: st.DrawFn) -> ShardOptions:
    """Options that the command accepts."""
    method, preset = draw(METHODS)
    codec = draw(st.sampled_from(sorted(PRESETS)))
    rgb = draw(st.booleans())
    return ShardOptions(
        method=method,
        preset=preset,
        direction=draw(st.sampled_from(["forward", "backward", "both"])),
        step=draw(st.integers(1, 9)),
        rgb=rgb,
        rgb_quality=draw(st.none() | st.integers(1, 100)) if rgb else None,
        every=draw(st.integers(1, 9)),
        codec=codec,
        bound=None if codec == "paper" else draw(st.none() | st.floats(0.01, 10000)),
        bound_fixed=codec == "default" and draw(st.booleans()),
        quality=None if codec == "lossless" else draw(st.none() | st.integers(1, 100)),
        **draw(SIZES),
        **draw(TIMES),
    )


@settings(max_examples=300)
@given(options_of_extraction(), st.sampled_from([None, 256]), st.integers(0, 2**40))
def test_settings_come_back_from_their_request(
    options: ShardOptions, usual: int | None, source_bytes: int
) -> None:
    """Also through the plain values that a checkpoint stores."""
    made = ExtractionSettings.from_options(options, {}, usual)
    request = made.request(source_bytes)
    again = ExtractionSettings.from_request(Request.from_dict(request.as_dict()))
    assert again == made
    assert again.request(source_bytes) == request
    assert np.array_equal(again.codec.quantiser.table, made.codec.quantiser.table)
    assert again.codec.quantiser.per_field == made.codec.quantiser.per_field
    assert again.codec.quantiser.ladder == made.codec.quantiser.ladder


@given(st.data())
def test_single_parameters_come_back_with_their_types(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["tvl1", "brox"]))
    warps = data.draw(st.integers(1, 20))
    blur = data.draw(st.floats(0, 10))
    made = ExtractionSettings.from_options(ShardOptions(method=name), {"warps": warps, "blur": blur}, 256)
    again = ExtractionSettings.from_request(made.request(1))
    assert again.parameters == made.parameters
    assert again.parameters["warps"] == warps
    assert again.parameters["blur"] == blur
    assert {key: type(value) for key, value in again.parameters.items()} == {
        key: type(value) for key, value in made.parameters.items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": "lossless"},
        {"codec": "high-fidelity"},
        {"codec": "paper", "quality": 80},
        {"bound": 30.0, "quality": 90},
        {"bound_fixed": True},
        {"bound": 0.5},
        {"size": (40, 36), "step": 2},
        {"short_side": "none", "direction": "both", "every": 2},
        {"rgb": False, "start": 0.1, "end": 0.3},
    ],
)
def test_a_shard_made_again_from_what_it_records_has_the_same_streams(tmp_path: Path, changes: dict) -> None:
    options = ShardOptions(method="dis", preset="ultrafast", **changes)
    made = ExtractionSettings.from_options(options, {}, 32)
    video = clip(tmp_path / "a.avi", frames=9)
    method = load("dis", preset="ultrafast")
    first = VideoTask("c/a", video, tmp_path / "first.h5")
    assert make(0, first, made, method, "cpu").outcome.status == "done"
    with open_shard(first.shard) as shard:
        again = ExtractionSettings.from_request(request_of(shard))
        assert again == made
        second = VideoTask("c/a", video, tmp_path / "second.h5")
        method = load(again.method, **again.parameters)
        assert make(0, second, again, method, "cpu").outcome.status == "done"
        with open_shard(second.shard) as other:
            assert request_of(other) == request_of(shard)
            for direction in shard.directions:
                count = shard.flow_counts[direction]
                assert count > 0
                assert other.streams(0, count, direction) == shard.streams(0, count, direction)
            if shard.has_frames:
                frames = shard.frame_count
                assert other.streams(0, frames, "frames") == shard.streams(0, frames, "frames")


def test_frames_alone_leave_flow_at_its_defaults() -> None:
    request = Request(source_bytes=7, short_side=64, directions=(), frames=True, frames_quality=80)
    again = ExtractionSettings.from_request(request)
    assert (again.method, again.directions, again.rgb, again.rgb_quality) == ("tvl1", (), True, 80)
    assert again.request(7) == request


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "imported", "parameters": {"bound": 20.0}}, "imported"),
        ({"parameters": {"speed": 2}}, "dis has no parameter 'speed'"),
        ({"parameters": {"name": "x"}}, "dis has no parameter 'name'"),
        ({"parameters": {"iterations": -1}}, "iterations: expected more than 0"),
        ({"quantiser": "log bound=3"}, "unknown quantiser 'log bound=3'"),
        ({"image": "webp"}, "unknown image coding 'webp'"),
        ({"every": 0}, "every: expected 1 or more"),
    ],
)
def test_what_this_version_cannot_make_is_refused(changes: dict, message: str) -> None:
    made = ExtractionSettings.from_options(ShardOptions(method="dis"), {}, 256).request(1)
    with pytest.raises(InputError, match=message):
        ExtractionSettings.from_request(dataclasses.replace(made, **changes))
