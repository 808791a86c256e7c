"""The 25 x 10 views against slow, obvious references."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_shards import make_shard

from evaluate import inference, views
from pipeline.decoder import StreamBlock, decode_fields
from pipeline.shard import ShardAddress, open_shard
from train.batches import read_distinct, shard_positions
from train.volume_spec import VolumeSpec


@given(st.integers(1, 3000), st.integers(1, 60))
def test_positions_are_equally_spaced_from_first_to_last(available: int, count: int) -> None:
    found = views.positions(available, count)
    assert len(found) == min(available, count)
    assert len(set(found.tolist())) == len(found)
    if len(found) > 1:
        ideal = np.linspace(0, available - 1, len(found))
        assert (found[0], found[-1]) == (0, available - 1)
        assert np.abs(found - ideal).max() <= 0.5 + 1e-9


def test_twenty_five_of_fewer_positions_takes_each_once() -> None:
    np.testing.assert_array_equal(views.positions(7, 25), np.arange(7))
    np.testing.assert_array_equal(views.positions(1, 25), [0])
    np.testing.assert_array_equal(views.positions(9, 1), [4])


@pytest.mark.parametrize(("available", "count"), [(0, 25), (5, 0)])
def test_no_position_is_an_error(available: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        views.positions(available, count)


@pytest.mark.parametrize("crops", views.CROPS)
@pytest.mark.parametrize(("height", "width", "size"), [(11, 16, 7), (8, 8, 8), (9, 13, 5)])
def test_crops_are_corners_centre_and_their_mirrors(height: int, width: int, size: int, crops: int) -> None:
    volume = torch.randn(3, 4, height, width)
    spec = VolumeSpec("temporal", crop=size, short_side=0, length=2)
    cut = torch.stack(inference.crop_views(volume, spec, crops), dim=1).numpy()
    y, x = (height - size) // 2, (width - size) // 2
    centre = volume[:, :, y : y + size, x : x + size]
    corners = [
        volume[:, :, :size, :size],
        volume[:, :, :size, width - size :],
        volume[:, :, height - size :, :size],
        volume[:, :, height - size :, width - size :],
    ]
    straight = {1: [centre], 5: [*corners, centre], 10: [*corners, centre]}[crops]
    expected = [crop.numpy() for crop in straight]
    if crops == 10:
        for crop in straight:
            mirror = crop.numpy()[..., ::-1].copy()
            mirror[:, 0] *= -1  # x of the first flow
            mirror[:, 2] *= -1  # x of the second
            expected.append(mirror)
    np.testing.assert_array_equal(cut, np.stack(expected, axis=1))


def test_mirrored_frames_keep_their_colours() -> None:
    volume = torch.rand(1, 3, 6, 6)
    cut = torch.stack(inference.crop_views(volume, VolumeSpec("spatial", crop=6, short_side=0), 10), dim=1)
    torch.testing.assert_close(cut[0, 9], volume[0].flip(-1))


def test_ten_views_of_mirrored_flow_are_the_same_ten_views() -> None:
    """Mirroring a video and negating its x flow permutes the views, so averaged scores cannot change."""
    volume = torch.randn(2, 6, 9, 12)
    mirror = volume.flip(-1).clone()
    mirror[:, 0::2] *= -1
    spec = VolumeSpec("temporal", crop=6, short_side=0, length=3)
    straight = torch.stack(inference.crop_views(volume, spec, 10), dim=1)
    mirrored = torch.stack(inference.crop_views(mirror, spec, 10), dim=1)
    torch.testing.assert_close(mirrored[:, [6, 5, 8, 7, 9, 1, 0, 3, 2, 4]], straight)


@pytest.mark.parametrize(
    ("arguments", "message"), [((8, 8, 9, 10), "does not fit"), ((8, 8, 4, 3), "1, 5 or 10")]
)
def test_impossible_crops_are_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views.crop_corners(*arguments)


def test_crops_are_resized_to_the_size_that_the_network_was_trained_for() -> None:
    """A shard stored at 32 pixels, a network that sees 16: a crop of 12 is 24 stored pixels, shrunk."""
    volume = torch.rand(2, 3, 32, 40)
    cut = torch.stack(inference.crop_views(volume, VolumeSpec("spatial", crop=12, short_side=16), 5), dim=1)
    assert cut.shape == (2, 5, 3, 12, 12)
    expected = torch.nn.functional.interpolate(
        volume[:, :, :24, 16:], size=(12, 12), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(cut[:, 1], expected)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("crops", [1, 5, 10])
def test_views_straight_from_bytes_are_those_from_fields_bit_for_bit(
    direction: str, crops: int, tmp_path: Path
) -> None:
    path = make_shard(tmp_path / "a.h5", flows=7, directions=("forward", "backward"), height=19, width=23)
    spec = VolumeSpec(crop=8, short_side=19, length=4, direction=direction, flow_scale=0.3)
    with open_shard(path) as shard, ThreadPoolExecutor(2) as pool:
        fields = read_distinct(shard, spec, np.arange(shard_positions(shard, spec)))
        ways = [
            inference.views_of_fields(fields, spec, crops, torch.device("cpu")),
            inference.views_of_bytes(fields, spec, crops, pool),
        ]
        found = []
        for write in ways:
            assert write is not None
            rows = fields.rows[1:]
            found.append(torch.full((crops, len(rows), 8, 8, 8), float("nan")))
            write(rows, found[-1])
    assert found[0].numpy().tobytes() == found[1].numpy().tobytes()


@pytest.mark.parametrize("changes", [{"crop": 7}, {"short_side": 38}, {"stacking": "trajectory"}])
def test_views_that_need_more_than_a_look_up_are_not_made_from_bytes(
    changes: dict[str, int | str], tmp_path: Path
) -> None:
    spec = VolumeSpec(**{"crop": 8, "short_side": 19, "length": 4, **changes})  # type: ignore[arg-type]
    with open_shard(make_shard(tmp_path / "a.h5", height=19)) as shard, ThreadPoolExecutor(1) as pool:
        fields = read_distinct(shard, spec, np.arange(1))
        assert inference.views_of_bytes(fields, spec, 1, pool) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_every_flow_is_read_and_decoded_once_however_many_views_it_is_part_of(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_shard(tmp_path / f"{i}.h5", flows=9 + i, height=19) for i in range(2)]
    decoded: list[int] = []

    def counted(block: StreamBlock, targets: np.ndarray, *others: object, **more: object) -> None:
        decoded.append(len(targets))
        decode_fields(block, targets, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.shard.decode_fields", counted)
    spec = VolumeSpec(crop=8, short_side=19, length=4)
    found = inference.view_outputs(
        lambda batch: batch[0].mean((1, 2, 3))[:, None], spec, [ShardAddress(path) for path in paths],
        views.Views(frames=5, crops=10), inference.Compute(batch=20, workers=workers),
    )  # fmt: skip
    assert [(one.video, one.outputs.shape) for one in found] == [(0, (50, 1)), (1, (50, 1))]
    # Positions 0, 1, 3, 4, 5 of the first and 0, 2, 3, 5, 6 of the second use every flow of theirs.
    assert sorted(decoded) == [9, 10]
