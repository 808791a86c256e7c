"""Volumes against slow references that follow the paper's formulas word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.codec import codec
from pipeline.errors import InputError
from train.volume import (
    RawFlow,
    RawFrames,
    VolumeSpec,
    cut,
    cut_side,
    dequantise,
    flow_indices,
    flow_volume,
    frame_volume,
    mirror,
    mirror_where,
    position_count,
)


def raw_flow(
    rng: np.random.Generator, count: int, length: int, height: int, width: int, zoom: float = 1.0
) -> RawFlow:
    """Random levels with a table, scales, offsets and means of their own for every field."""
    return RawFlow(
        levels=torch.from_numpy(rng.integers(0, 256, (count, length, 2, height, width)).astype(np.uint8)),
        table=torch.from_numpy(rng.normal(0, 2, (count, length, 256)).astype(np.float32)),
        scale=torch.from_numpy(rng.uniform(0.5, 2, (count, length, 2)).astype(np.float32)),
        offset=torch.from_numpy(rng.normal(0, 1, (count, length, 2)).astype(np.float32)),
        mean=torch.from_numpy(rng.normal(0, 1, (count, length, 2)).astype(np.float32)),
        size=torch.tensor([[height, width]] * count),
        zoom=torch.full((count,), zoom),
    )


@pytest.mark.parametrize("stacking", ["stack", "trajectory"])
@pytest.mark.parametrize(("bound_fixed", "expected"), [(False, 2.9), (True, -17.1)])
def test_behind_a_pan_of_40_pixels_the_background_moves_by_what_the_mean_leaves(
    stacking: str, bound_fixed: bool, expected: float
) -> None:
    """The paper's formula gives 40 - 37.1: a tenth of the field moves by 11 px, and the stored mean is exact."""
    flow = np.zeros((2, 2, 60, 80), np.float32)
    flow[:, 0] = 40
    flow[:, 0, 20:40, 20:44] = 11
    quantised = codec(bound_fixed=bound_fixed).quantiser.quantise(flow)
    raw = RawFlow(
        levels=torch.from_numpy(quantised.levels[None]),
        table=torch.from_numpy(codec().quantiser.table.copy())[None, None],
        scale=torch.from_numpy(quantised.scale[None]),
        offset=torch.from_numpy(quantised.offset[None]),
        mean=torch.from_numpy(quantised.mean[None]),
        size=torch.tensor([[60, 80]]),
        zoom=torch.ones(1),
    )
    spec = VolumeSpec(length=2, stacking=stacking, mean_subtraction=True, flow_scale=1.0)  # type: ignore[arg-type]
    background = flow_volume(raw, spec)[0, 0::2, 5:15, 10:70]
    np.testing.assert_allclose(background, expected, atol=0.1)


def pixel_by_pixel(raw: RawFlow) -> np.ndarray:
    """Flow in pixels, one look-up at a time: float64[N,L,2,H,W]."""
    levels, flow = raw.levels.numpy(), np.empty(raw.levels.shape)
    for index in np.ndindex(*levels.shape):
        n, k, c = index[:3]
        flow[index] = raw.table[n, k, levels[index]] * raw.scale[n, k, c] + raw.offset[n, k, c]
    return flow


def bilinear(field: np.ndarray, x: float, y: float) -> float:
    """A field [H,W] between its pixels; outside, the nearest pixel of the border."""
    height, width = field.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = math.floor(x), math.floor(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = x - left, y - top
    upper = (1 - a) * field[top, left] + a * field[top, right]
    lower = (1 - a) * field[bottom, left] + a * field[bottom, right]
    return (1 - b) * upper + b * lower


def trajectories(flow: np.ndarray) -> np.ndarray:
    """I(u,v,2k-1..2k) = d_k(p_k), with p_1 = (u,v) and p_k = p_{k-1} + d_{k-1}(p_{k-1}): [L,2,H,W]."""
    length, _, height, width = flow.shape
    result = np.empty_like(flow)
    for v in range(height):
        for u in range(width):
            x, y = float(u), float(v)
            for k in range(length):
                step = bilinear(flow[k, 0], x, y), bilinear(flow[k, 1], x, y)
                result[k, :, v, u] = step
                x, y = x + step[0], y + step[1]
    return result


def reference(raw: RawFlow, spec: VolumeSpec) -> np.ndarray:
    """The whole volume, [N,2L,H,W]."""
    flow = pixel_by_pixel(raw)
    volumes = []
    for n, fields in enumerate(flow):
        if spec.stacking == "trajectory":
            halves = np.split(fields, 2) if spec.direction == "both" else [fields]
            fields = np.concatenate([trajectories(half) for half in halves])
        channels = []
        for k in range(spec.length):
            for c in range(2):
                subtracted = float(raw.mean[n, k, c]) if spec.mean_subtraction else 0.0
                channels.append((fields[k, c] - subtracted) * float(raw.zoom[n]) * spec.flow_scale)
        volumes.append(channels)
    return np.array(volumes)


@pytest.mark.parametrize("mean_subtraction", [True, False])
@pytest.mark.parametrize(
    ("stacking", "direction"), [("stack", "forward"), ("trajectory", "forward"), ("trajectory", "both")]
)
def test_volumes_equal_the_formulas(stacking: str, direction: str, mean_subtraction: bool) -> None:
    spec = VolumeSpec(
        crop=4,
        short_side=8,
        length=4,
        stacking=stacking,
        direction=direction,
        mean_subtraction=mean_subtraction,
        flow_scale=0.7,
    )
    raw = raw_flow(np.random.default_rng(1), 2, 4, 7, 9, zoom=1.5)
    volumes = flow_volume(raw, spec)
    assert volumes.shape == (2, 8, 7, 9)
    np.testing.assert_allclose(volumes.numpy(), reference(raw, spec), atol=2e-4)


def test_leading_dimensions_are_kept() -> None:
    spec = VolumeSpec(crop=4, short_side=8, length=2, stacking="trajectory")
    raw = raw_flow(np.random.default_rng(2), 6, 2, 5, 6)
    nested = RawFlow(*(part.unflatten(0, (2, 3)) for part in raw))
    assert torch.equal(flow_volume(nested, spec), flow_volume(raw, spec).unflatten(0, (2, 3)))


def test_padding_is_never_sampled_by_trajectories() -> None:
    spec = VolumeSpec(crop=4, short_side=8, length=3, stacking="trajectory", mean_subtraction=False)
    raw = raw_flow(np.random.default_rng(3), 1, 3, 6, 8)
    padded = raw._replace(levels=F.pad(raw.levels, (0, 5, 0, 4), value=0))
    volumes = flow_volume(padded, spec)[..., :6, :8]
    torch.testing.assert_close(volumes, flow_volume(raw, spec), atol=2e-5, rtol=1e-5)


def test_trajectories_of_uniform_motion_are_that_motion() -> None:
    table = torch.arange(256, dtype=torch.float32) - 128
    raw = raw_flow(np.random.default_rng(4), 1, 5, 6, 7)._replace(
        levels=torch.tensor([130, 127], dtype=torch.uint8)[:, None, None].expand(1, 5, 2, 6, 7).contiguous(),
        table=table.expand(1, 5, 256).contiguous(),
        scale=torch.ones(1, 5, 2),
        offset=torch.zeros(1, 5, 2),
    )
    spec = VolumeSpec(crop=4, short_side=0, length=5, stacking="trajectory", mean_subtraction=False)
    volumes = flow_volume(raw, spec)
    assert (volumes[:, 0::2] == 2).all()
    assert (volumes[:, 1::2] == -1).all()


@pytest.mark.parametrize(("height", "width"), [(5, 6), (5, 7), (1, 1), (64, 64)])
def test_the_device_path_equals_the_cpu_path(height: int, width: int) -> None:
    """The gather that GPUs use, run here on the CPU, against the table look-up."""
    raw = raw_flow(np.random.default_rng(5), 2, 3, height, width)
    values = (raw.table[..., None, :] * raw.scale[..., None] + raw.offset[..., None]).view(-1, 256)
    gathered = torch.gather(values, 1, raw.levels.reshape(len(values), -1).long()).view(raw.levels.shape)
    assert torch.equal(dequantise(raw.levels, raw.table, raw.scale, raw.offset), gathered)


# --- which flows ---


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 3), st.data())
def test_every_flow_begins_where_the_one_before_ends(
    length: int, flows: int, step: int, data: st.DataObject
) -> None:
    direction = data.draw(st.sampled_from(["forward", "backward"] + ["both"] * (length % 2 == 0)))
    spec = VolumeSpec(length=length, direction=direction)
    count = position_count(spec, flows + step, flows, step)
    full = flows > (length - 1) * step
    assert count == (flows - (length - 1) * step if full else 1)
    position = data.draw(st.integers(0, count - 1))
    forward, backward = flow_indices(spec, position, flows, step)
    assert len(forward) == {"forward": length, "both": length // 2, "backward": 0}[direction]
    assert len(forward) + len(backward) == length
    for indices in (forward, backward):
        assert all(0 <= index < flows for index in indices)
    if full:
        assert (np.diff(forward) == step).all()
        assert (np.diff(backward) == -step).all()
        if direction == "both":
            # Forward flow i leaves frame i, backward flow i leaves frame i + step: both halves leave the same frame.
            assert forward[0] == backward[0] + step


def test_the_paper_s_example_of_a_bidirectional_volume() -> None:
    """L = 10: five forward flows from frame tau, then the flows from tau to tau-1, ..., tau-4 to tau-5."""
    forward, backward = flow_indices(VolumeSpec(length=10, direction="both"), 7, 30)
    tau = 12
    assert forward.tolist() == [tau, tau + 1, tau + 2, tau + 3, tau + 4]
    assert backward.tolist() == [tau - 1, tau - 2, tau - 3, tau - 4, tau - 5]


def test_short_videos_repeat_their_last_flow() -> None:
    assert flow_indices(VolumeSpec(length=5), 0, 3)[0].tolist() == [0, 1, 2, 2, 2]
    assert flow_indices(VolumeSpec(length=5, direction="backward"), 0, 3)[1].tolist() == [2, 1, 0, 0, 0]
    forward, backward = flow_indices(VolumeSpec(length=6, direction="both"), 0, 4)
    assert (forward.tolist(), backward.tolist()) == ([2, 3, 3], [1, 0, 0])
    assert position_count(VolumeSpec(length=5), 1, 0) == 0


def test_odd_length_cannot_be_bidirectional() -> None:
    with pytest.raises(InputError, match="length 5 is odd"):
        VolumeSpec(length=5, direction="both")


@pytest.mark.parametrize(
    "values",
    [
        {"stream": "audio"},
        {"stacking": "pile"},
        {"direction": "up"},
        {"crop": 0},
        {"crop": 300},
        {"length": 0},
        {"flow_scale": 0},
    ],
)
def test_impossible_volumes_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        VolumeSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_a_spec_survives_its_dictionary(stream: str) -> None:
    spec = VolumeSpec(stream=stream, length=6, direction="both", colour_mean=(1.0, 2.0, 3.0))  # type: ignore[arg-type]
    assert VolumeSpec.from_dict(spec.as_dict()) == spec
    assert spec.channels == (3 if stream == "spatial" else 12)
    with pytest.raises(InputError, match="newer"):
        VolumeSpec.from_dict({**spec.as_dict(), "colour": 1})


# --- cutting, resizing, mirroring ---


def test_frames_become_centred_colours_with_noise() -> None:
    spec = VolumeSpec(stream="spatial", colour_mean=(10, 20, 30), colour_std=(2, 4, 5))
    pixels = np.random.default_rng(6).integers(0, 256, (2, 3, 5, 6, 3)).astype(np.uint8)
    noise = torch.tensor([[[1.0, 2.0, 3.0]], [[-1.0, 0.0, 4.0]]])
    volumes = frame_volume(RawFrames(torch.from_numpy(pixels), torch.zeros(2, 3, 2)), spec, noise)
    shifted = pixels + noise.numpy()[:, :, None, None]
    expected = (shifted - [10, 20, 30]) / [2, 4, 5]
    np.testing.assert_allclose(volumes.numpy(), np.moveaxis(expected, -1, -3), atol=1e-5)


def test_mirroring_flow_negates_x_only() -> None:
    volumes = torch.randn(2, 6, 3, 4)
    mirrored = mirror(volumes, VolumeSpec(length=3))
    assert torch.equal(mirrored[:, 0::2], -volumes[:, 0::2].flip(-1))
    assert torch.equal(mirrored[:, 1::2], volumes[:, 1::2].flip(-1))
    assert torch.equal(mirror(mirrored, VolumeSpec(length=3)), volumes)
    frames = torch.randn(2, 3, 3, 4)
    assert torch.equal(mirror(frames, VolumeSpec(stream="spatial")), frames.flip(-1))
    some = mirror_where(volumes, torch.tensor([True, False]), VolumeSpec(length=3))
    assert torch.equal(some, torch.stack([mirrored[0], volumes[1]]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([(4, 4), (8, 8), (6, 4), (3, 7)]), min_size=1, max_size=6), st.integers(0, 2**16)
)
def test_cutting_equals_slicing_and_resizing_one_by_one(sizes: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    volumes = torch.from_numpy(rng.normal(size=(len(sizes), 2, 9, 10)).astype(np.float32))
    boxes = [(int(rng.integers(10 - h)), int(rng.integers(11 - w)), h, w) for h, w in sizes]
    result = cut(volumes, torch.tensor(boxes), 4)
    for volume, (top, left, height, width), found in zip(volumes, boxes, result, strict=True):
        region = volume[None, :, top : top + height, left : left + width]
        expected = F.interpolate(region, size=(4, 4), mode="bilinear", antialias=True, align_corners=False)[0]
        torch.testing.assert_close(found, expected)


def test_boxes_that_leave_the_volume_are_refused() -> None:
    for box in ((0, 0, 9, 4), (-1, 0, 4, 4), (0, 3, 4, 4), (0, 0, 0, 4)):
        with pytest.raises(ValueError, match="boxes"):
            cut(torch.zeros(1, 1, 8, 6), torch.tensor([box]), 4)


@pytest.mark.parametrize(
    ("short_side", "height", "width", "side"),
    [(256, 256, 340, 224), (256, 128, 170, 112), (0, 240, 320, 224)],
)
def test_the_cut_region_shows_the_same_part_of_a_frame_at_any_stored_size(
    short_side: int, height: int, width: int, side: int
) -> None:
    assert cut_side(VolumeSpec(crop=224, short_side=short_side), height, width) == side


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit in a stored frame of 64x64"):
        cut_side(VolumeSpec(crop=224, short_side=0), 64, 64)


def test_flow_grows_with_the_frame() -> None:
    """A shard at half the size gives the network the same numbers: half the flow, twice the zoom."""
    raw = raw_flow(np.random.default_rng(7), 1, 2, 4, 4)
    half = raw._replace(scale=raw.scale / 2, offset=raw.offset / 2, mean=raw.mean / 2, zoom=raw.zoom * 2)
    spec = VolumeSpec(crop=4, short_side=8, length=2)
    torch.testing.assert_close(flow_volume(half, spec), flow_volume(raw, spec))
