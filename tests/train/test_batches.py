"""From shards and images to batches: they hold what the reader of shards gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from made_shards import make_shard
from tiny_dataset import RECIPE

from pipeline.errors import InputError
from pipeline.shard import open_shard
from train.batches import Item, read_distinct, read_image, read_volumes, shard_positions
from train.loader import network_input
from train.recipe import Recipe
from train.sampler import TrainingReader, ValidationReader
from train.volume import RawFlow, VolumeSpec, cut, flow_indices, flow_volume, mirror, volume

SIZES = ((18, 33), (26, 20), (18, 33), (21, 21))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Shards of several sizes and lengths, one of them shorter than L."""
    folder = tmp_path_factory.mktemp("shards")
    found = []
    for i, (height, width) in enumerate(SIZES):
        path = make_shard(
            folder / f"{i}.h5",
            f"C/{i}",
            flows=2 + 5 * i,
            directions=("forward", "backward"),
            frames=True,
            height=height,
            width=width,
            seed=i,
        )
        found.append(Item(open_shard(path), i % 2, 0, f"g{i}"))
    return found


def from_flows(item: Item, spec: VolumeSpec, position: int) -> np.ndarray:
    """A stacked volume [2L,H,W] from the flows that the shard gives in pixels, one by one."""
    shard = item.source
    forward, backward = flow_indices(spec, position, shard.flow_count)
    fields = [shard.flows(i, i + 1)[0] for i in forward] + [
        shard.flows(i, i + 1, "backward")[0] for i in backward
    ]
    means = [shard.mean()[i] for i in forward] + [shard.mean("backward")[i] for i in backward]
    if spec.mean_subtraction:
        fields = [field - mean[:, None, None] for field, mean in zip(fields, means, strict=True)]
    ratio = spec.short_side / min(shard.height, shard.width)
    return np.concatenate(fields) * spec.flow_scale * ratio


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_volumes_from_levels_equal_those_from_flows(items: list[Item], direction: str) -> None:
    spec = VolumeSpec(crop=8, short_side=12, length=4, direction=direction, flow_scale=0.5)  # type: ignore[arg-type]
    for item in items:
        count = shard_positions(item.source, spec)
        positions = [0, count - 1, count // 2, 0]
        raw = read_volumes(item.source, spec, positions)
        assert isinstance(raw, RawFlow)
        for found, position in zip(flow_volume(raw, spec), positions, strict=True):
            np.testing.assert_allclose(found.numpy(), from_flows(item, spec, position), atol=1e-5)


def test_a_box_gives_that_part_of_the_whole(items: list[Item]) -> None:
    for stream in ("spatial", "temporal"):
        spec = VolumeSpec(stream=stream, crop=8, short_side=12, length=3)  # type: ignore[arg-type]
        whole = read_volumes(items[1].source, spec, [1, 2])[0]
        part = read_volumes(items[1].source, spec, [1, 2], box=(3, 5, 10, 9))[0]
        expected = whole[:, 3:13, 5:14] if stream == "spatial" else whole[..., 3:13, 5:14]
        assert torch.equal(part, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stacking": "trajectory"},
        {"direction": "both", "segments": 3},
        {"cut": "corner", "scales": (1.0, 0.75, 0.5)},
        {"stream": "spatial", "lighting": 0.0},
    ],
)
def test_a_batch_holds_what_its_samples_say(items: list[Item], changes: dict[str, object]) -> None:
    """The network's input of a padded batch, against each sample read, cut and mirrored by itself."""
    recipe = dataclasses.replace(RECIPE, **{"crop": 8, "short_side": 12, **changes})  # type: ignore[arg-type]
    spec = recipe.volume("spatial" if recipe.stream == "spatial" else "temporal")
    reader = TrainingReader(items, spec, recipe)
    keys = [(5, index) for index in range(9)]
    inputs = network_input(reader.__getitems__(keys), spec, "cpu")
    assert inputs.shape == (9, recipe.segments, spec.channels, 8, 8)
    for key, found in zip(keys, inputs, strict=True):
        sample = reader.sample(key)
        raw = read_volumes(sample.item.source, spec, sample.positions)
        whole = volume(raw, spec)
        expected = cut(whole, np.array([sample.box] * recipe.segments), spec.crop)
        if sample.flip:
            expected = mirror(expected, spec)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_samples_do_not_depend_on_the_batch_they_are_in(items: list[Item]) -> None:
    spec = RECIPE.volume("temporal")
    reader = TrainingReader(items, spec, RECIPE)
    whole = reader.__getitems__([(2, i) for i in range(8)])
    inputs = network_input(whole, spec, "cpu")
    for part in (range(0, 3), range(3, 8)):
        batch = reader.__getitems__([(2, i) for i in part])
        torch.testing.assert_close(network_input(batch, spec, "cpu"), inputs[part.start : part.stop])
        assert torch.equal(batch.label, whole.label[part.start : part.stop])
        assert torch.equal(batch.key, whole.key[part.start : part.stop])


def test_half_of_the_samples_are_mirrored_and_none_without_flip(items: list[Item]) -> None:
    spec = RECIPE.volume("temporal")
    keys = [(t, i) for t in range(20) for i in range(8)]
    flips = [TrainingReader(items, spec, RECIPE).sample(key).flip for key in keys]
    assert 50 < sum(flips) < 110
    still = TrainingReader(items, spec, dataclasses.replace(RECIPE, flip=False))
    assert not any(still.sample(key).flip for key in keys)


def test_validation_looks_at_the_centre_at_equally_spaced_positions(items: list[Item]) -> None:
    spec = VolumeSpec(crop=8, short_side=12, length=3)
    reader = ValidationReader(items, spec, 3)
    sample = reader.sample((0, 3))
    count = shard_positions(items[3].source, spec)
    assert count == 15
    assert sample.positions.tolist() == [2, 7, 12]
    assert (sample.flip, sample.box) == (False, (3, 3, 14, 14))


def test_open_files_are_limited(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.batches.OPEN_FILES", 2)
    reader = ValidationReader(items, VolumeSpec(crop=8, short_side=12, length=3), 1)
    reader.__getitems__([(0, i) for i in range(4)])
    assert [item.source._descriptor is not None for item in items] == [False, False, True, True]


def test_a_damaged_stream_is_named(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.h5", "C/a", flows=3)
    shard = open_shard(path)
    stream = bytes(shard.streams(1, 2)[0])
    data = path.read_bytes()
    assert data.count(stream) == 1
    path.write_bytes(data.replace(stream, bytes(len(stream))))
    with pytest.raises(InputError, match=r"a\.h5: damaged shard: forward 1"):
        read_volumes(shard, VolumeSpec(length=3), [0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"segments": 4, "flip": False},
        {"cut": "corner", "scales": (1.0, 0.75, 0.5)},
        {"scales": (1.0, 0.66), "segments": 30},
        {"stream": "spatial", "lighting": 0.3},
    ],
)
def test_samples_drawn_together_are_those_drawn_one_by_one(
    items: list[Item], changes: dict[str, object]
) -> None:
    """Against NumPy's own generators, in numbers at which rejected draws occur."""
    recipe = dataclasses.replace(RECIPE, **{"crop": 8, "short_side": 12, **changes})  # type: ignore[arg-type]
    spec = recipe.volume("spatial" if recipe.stream == "spatial" else "temporal")
    for some in (items, items[:1]):
        reader = TrainingReader(some, spec, recipe)
        keys = [(iteration, index) for iteration in (0, 7, 80_000) for index in range(100)]
        for key, found in zip(keys, reader.samples(keys), strict=True):
            expected = reader.sample(key)
            assert found.positions.tolist() == expected.positions.tolist()
            assert (found.item, found.box, found.flip, found.key) == (
                expected.item, expected.box, expected.flip, expected.key,
            )  # fmt: skip
            assert found.noise.tobytes() == expected.noise.tobytes() or not recipe.lighting


@pytest.mark.parametrize(
    "changes", [{}, {"direction": "both"}, {"direction": "backward"}, {"stream": "spatial"}]
)
def test_distinct_fields_make_the_same_volumes(items: list[Item], changes: dict[str, str]) -> None:
    spec = VolumeSpec(**{"crop": 8, "short_side": 12, "length": 4, **changes})  # type: ignore[arg-type]
    for item in items:
        positions = np.unique(np.linspace(0, shard_positions(item.source, spec) - 1, 5).astype(np.int64))
        distinct = read_distinct(item.source, spec, positions)
        used = np.unique(distinct.rows)
        assert used.tolist() == list(range(len(distinct.raw.size)))
        expected = volume(read_volumes(item.source, spec, positions), spec)
        for start, stop in ((0, len(positions)), (len(positions) // 2, len(positions))):
            part = distinct.part(start, stop)
            fields = volume(part.raw, part.spec)
            found = fields[torch.from_numpy(part.rows)].flatten(1, 2)
            assert torch.equal(found, expected[start:stop])


def test_a_flipped_bit_that_still_decodes_is_an_error(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.h5", "C/a", flows=3)
    shard = open_shard(path)
    data = bytearray(path.read_bytes())
    whole = bytes(shard.streams(1, 2)[0])
    for bit in range(len(whole) * 4, len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        image = cv2.imdecode(np.frombuffer(changed, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is not None:
            break
    at = data.index(whole) + bit // 8
    data[at] = changed[bit // 8]
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.h5: damaged shard: forward 1 fails its checksum"):
        read_volumes(shard, VolumeSpec(length=3), [0])


# --- images ---


def write_image(path: Path, height: int, width: int, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), colour[::-1], np.uint8))


def test_images_are_rgb_with_the_smaller_side_resized(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 40, 60, (250, 100, 20))
    image = read_image(tmp_path / "a.png", 16)
    assert image.shape == (16, 24, 3)
    assert image[0, 0].tolist() == [250, 100, 20]
    (tmp_path / "b.JPEG").write_bytes(b"no image")
    for name in ("b.JPEG", "c.JPEG"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name, 16)


def test_batches_of_images_hold_their_crops(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 0, 250)]
    for i, colour in enumerate(colours):
        write_image(tmp_path / f"{i}.png", 40, 30 + 20 * i, colour)
    items = [Item(tmp_path / f"{i}.png", i, 0, str(i)) for i in range(2)]
    recipe = Recipe(stream="spatial", crop=8, short_side=10, batch=6, lighting=0.0)
    spec = recipe.volume("spatial")
    batch = TrainingReader(items, spec, recipe).__getitems__([(0, i) for i in range(6)])
    inputs = network_input(batch, spec, "cpu")
    mean, std = torch.tensor(spec.colour_mean), torch.tensor(spec.colour_std)
    for label, image in zip(batch.label.tolist(), inputs[:, 0], strict=True):
        torch.testing.assert_close(image[:, 0, 0], (torch.tensor(colours[label]) - mean) / std)
