"""Requests: how a shard was made survives the shard and JSON, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_shards import make_shard

from pipeline.errors import InputError
from pipeline.request import Request, request_of
from pipeline.shard import open_shard

SIDES = st.integers(1, 65535)
REQUESTS = st.builds(
    Request,
    source_bytes=st.integers(0, 1 << 40),
    size=st.none() | st.tuples(SIDES, SIDES),
    every=st.integers(1, 100),
    start=st.floats(0, 1e6),
    end=st.none() | st.floats(0, 1e6),
    directions=st.sampled_from([(), ("forward",), ("backward",), ("forward", "backward")]),
    method=st.sampled_from(["tvl1", "brox"]),
    parameters=st.dictionaries(st.text(max_size=8), st.integers() | st.booleans() | st.text(max_size=8)),
    step=st.integers(1, 9),
    quantiser=st.text(max_size=20),
    image=st.sampled_from(["jpeg flat", "png"]),
    quality=st.none() | st.integers(1, 100),
    frames=st.booleans(),
    frames_quality=st.none() | st.integers(1, 100),
)


@given(REQUESTS, st.none() | SIDES)
def test_a_request_survives_json(request: Request, short_side: int | None) -> None:
    if request.size is None:
        request = Request(**{**vars(request), "short_side": short_side})
    assert Request.from_dict(json.loads(json.dumps(request.as_dict()))) == request


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_bytes", "1"),
        ("size", [340]),
        ("size", [340, "256"]),
        ("directions", ["sideways"]),
        ("frames", 1),
        ("step", True),
        ("parameters", []),
        ("quantiser", None),
    ],
)
def test_values_that_are_no_request_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Request.from_dict({**Request(source_bytes=1).as_dict(), name: value})


@pytest.mark.parametrize(
    ("words", "short_side", "size"),
    [("short side 256", 256, None), ("340x256", None, (340, 256)), ("source", None, None)],
)
def test_the_words_of_format_1_are_read_as_a_size(
    tmp_path: Path, words: str, short_side: int | None, size: tuple[int, int] | None
) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["size"]
        file.attrs.create("size", words.encode(), dtype=h5py.string_dtype("utf-8", len(words)))
    with open_shard(path) as shard:
        found = request_of(shard)
    assert (found.short_side, found.size) == (short_side, size)
    assert found.size_in_words == words


def test_other_words_are_damage(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["size"]
        file.attrs.create("size", b"large", dtype=h5py.string_dtype("utf-8", 5))
    with open_shard(path) as shard, pytest.raises(InputError, match="its size 'large' is neither"):
        request_of(shard)
