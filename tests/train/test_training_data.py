"""What a run learns from: groups held out, heads, and everything wrong told at once."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import write_image
from tiny_dataset import CLASSES, GROUPS, RECIPE, TAKES

from pipeline import hdf5, manifest
from pipeline.errors import InputError, Unreadable
from pipeline.outcome import Outcome, OutcomeLog
from pipeline.paths import DatasetPaths
from pipeline.request import Request, request_of
from pipeline.shard import open_shard
from pipeline.shard_sets import choose_shard_set
from train.batches import Item, read_volumes
from train.recipe import Recipe
from train.training_data import added_classes, common_request, gather, gather_images, hold_out
from train.video_volumes import VideoVolumes
from train.volume import VolumeSpec, cut, volume

SPEC = RECIPE.volume("temporal")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=20, max_size=120),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_whole_groups_are_held_out_and_every_class_keeps_some(
    videos: list[tuple[int, int]], share: float, seed: int
) -> None:
    items = [Item(Path(str(i)), label, 0, f"g{group}") for i, (label, group) in enumerate(videos)]
    try:
        train, held = hold_out(items, share, seed)
    except InputError:
        # Only if no group can be spared by all of its classes.
        groups = {item.group for item in items}
        for group in groups:
            labels = {item.label for item in items if item.group == group}
            assert any({item.group for item in items if item.label == label} == {group} for label in labels)
        return
    assert sorted(train + held, key=lambda item: int(str(item.source))) == items
    assert not {item.group for item in train} & {item.group for item in held}
    assert {item.label for item in train} == {item.label for item in items}
    assert hold_out(items, share, seed) == (train, held)


def test_about_the_asked_share_is_held_out() -> None:
    """As in UCF-101: 25 groups of 4 videos in each of 20 classes; groups of other classes are other groups."""
    items = [Item(Path("x"), c, 0, f"{c}-{g}") for c in range(20) for g in range(25) for _ in range(4)]
    _, held = hold_out(items, 0.1, 0)
    assert 0.08 <= len(held) / len(items) <= 0.12
    assert len({item.label for item in held}) == 20
    assert hold_out(items, 0.1, 1)[1] != held
    assert hold_out(items, 0.0, 0) == (items, [])


def test_a_split_becomes_labelled_items(tiny: DatasetPaths) -> None:
    material = gather("tiny", 1, SPEC, RECIPE, tiny.data)
    assert material.heads == {"tiny": CLASSES}
    assert len(material.train) == len(CLASSES) * (GROUPS - 1) * TAKES
    assert material.validation == []
    for item in material.train:
        assert item.name.split("/")[0] == CLASSES[item.label]
    test = gather("tiny", 1, SPEC, dataclasses.replace(RECIPE, validation="test"), tiny.data).validation
    assert len(test) == len(CLASSES) * TAKES
    assert {item.group for item in test} == {"tiny:g03"}


def test_several_datasets_are_ranges_of_one_last_layer(tiny: DatasetPaths) -> None:
    material = gather("tiny", 1, SPEC, dataclasses.replace(RECIPE, also=("other",)), tiny.data)
    assert material.heads == {"tiny": CLASSES, "other": ("Left", "Up")}
    labels = {(item.head, item.name.split("/")[0], item.label) for item in material.train}
    assert labels == {(0, "Left", 0), (0, "Right", 1), (0, "Up", 2), (1, "Left", 3), (1, "Up", 4)}


def test_added_classes_join_the_head(
    tiny: DatasetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny+other.txt").write_text("# why\nUp  # because\n\n")
    monkeypatch.setattr("train.training_data.ADDED", tmp_path)
    recipe = dataclasses.replace(RECIPE, add_classes="other", validation="0.3")
    material = gather("tiny", 1, SPEC, recipe, tiny.data)
    assert material.heads == {"tiny": (*CLASSES, "other/Up")}
    assert {item.head for item in material.train} == {0}
    assert {item.label for item in material.train} == {0, 1, 2, 3}
    with pytest.raises(
        InputError, match=r"no list of the classes of tiny that join those of other \(there: tiny\+other"
    ):
        added_classes("other", "tiny")


def test_the_shipped_list_has_the_paper_s_number_of_classes(test_data: Path) -> None:
    joining = added_classes("hmdb51", "ucf101")
    assert len(joining) == len(set(joining)) == 78
    listed = (test_data / "splits/ucf101/classInd.txt").read_text().split()
    assert set(joining) <= set(listed[1::2])


# --- what is missing or broken ---


def test_everything_missing_or_broken_is_told_at_once(tiny: DatasetPaths, tmp_path: Path) -> None:
    shutil.copytree(tiny.data, tmp_path / "data")
    paths = DatasetPaths(tmp_path / "data", "tiny")
    gone = paths.shard("tvl1", "Left/v_Left_g00_c00")
    torn = paths.shard("tvl1", "Up/v_Up_g01_c01")
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(InputError) as caught:
        gather("tiny", 1, SPEC, RECIPE, paths.data)
    message = str(caught.value)
    assert "2 of 18 videos of tiny cannot be used" in message
    assert "Left/v_Left_g00_c00: no shard" in message
    assert str(torn) in message
    assert "python -m extract_flow --dataset tiny" in message
    material = gather("tiny", 1, SPEC, RECIPE, paths.data, allow_missing=True)
    assert (len(material.train), material.left_out) == (16, 2)


def test_a_video_without_a_shard_is_shown_with_why_its_extraction_failed(
    tiny: DatasetPaths, tmp_path: Path
) -> None:
    shutil.copytree(tiny.data, tmp_path / "data")
    paths = DatasetPaths(tmp_path / "data", "tiny")
    video = "Left/v_Left_g00_c00"
    paths.shard("tvl1", video).unlink()
    log = OutcomeLog(paths.outcomes("extract_flow"))
    log.append(Outcome(video, "failed", f"{video}.mp4: cannot be decoded after 3 frames", shard_set="tvl1"))
    log.close()
    with pytest.raises(InputError) as caught:
        gather("tiny", 1, SPEC, RECIPE, paths.data)
    message = str(caught.value)
    assert f"{video}.mp4: cannot be decoded after 3 frames (no shard)" in message
    assert (
        "mend them and run python -m extract_flow --dataset tiny --direction forward --shards tvl1" in message
    )


def test_a_shard_that_cannot_be_read_now_is_not_left_out(
    tiny: DatasetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where broken ones may be: the run would learn from less than there is."""
    shutil.copytree(tiny.data, tmp_path / "data")
    paths = DatasetPaths(tmp_path / "data", "tiny")
    refused = paths.shard("tvl1", "Left/v_Left_g00_c00")
    opened = hdf5.SourceFile.__init__

    def refuse(source: hdf5.SourceFile, path: Path) -> None:
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied")
        opened(source, path)

    monkeypatch.setattr(hdf5.SourceFile, "__init__", refuse)
    (paths.shards("tvl1") / manifest.NAME).unlink(missing_ok=True)
    with pytest.raises(Unreadable, match=r"v_Left_g00_c00\.h5: could not be read: Permission denied"):
        gather("tiny", 1, SPEC, RECIPE, paths.data, allow_missing=True)


def test_shards_without_what_the_volume_needs_are_told(tiny: DatasetPaths, tmp_path: Path) -> None:
    from made_shards import make_shard

    shutil.copytree(tiny.data, tmp_path / "data")
    paths = DatasetPaths(tmp_path / "data", "tiny")
    for video, directions in (("Left/v_Left_g00_c00", ("forward",)), ("Left/v_Left_g00_c01", ())):
        make_shard(paths.shard("tvl1", video), video, directions=directions, frames=not directions)
    both = dataclasses.replace(RECIPE, direction="both")
    with pytest.raises(InputError) as caught:
        gather("tiny", 1, both.volume("temporal"), both, paths.data)
    assert "no backward flow" in str(caught.value)
    assert "no forward and backward flow" in str(caught.value)
    with pytest.raises(InputError, match="1 of 18 videos of tiny cannot be used"):
        gather("tiny", 1, RECIPE.volume("spatial"), RECIPE, paths.data)


def test_shard_sets_are_chosen_by_name_or_because_there_is_one(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "d")
    with pytest.raises(InputError, match="no shards yet; make them with"):
        choose_shard_set(paths, None)
    paths.shards("brox").mkdir(parents=True)
    assert choose_shard_set(paths, None) == "brox"
    paths.shards("dis").mkdir()
    with pytest.raises(InputError, match=r"brox, dis.*choose one with --shards"):
        choose_shard_set(paths, None)
    assert choose_shard_set(paths, "dis") == "dis"
    with pytest.raises(InputError, match="shard set 'nv'"):
        choose_shard_set(paths, "nv")
    paths.shards("tvl1").mkdir()
    assert choose_shard_set(paths, None) == "tvl1"


# --- images ---


def test_a_folder_of_images_per_class(tmp_path: Path) -> None:
    for part, label, count in (("train", "n01", 2), ("train", "n02", 1), ("val", "n02", 1)):
        for i in range(count):
            write_image(tmp_path / part / label / f"{i}.png", 20, 20, (9, 9, 9))
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no image")
    material = gather_images(tmp_path, "imagenet")
    assert material.heads == {"imagenet": ("n01", "n02")}
    assert [item.label for item in material.train] == [0, 0, 1]
    assert [item.label for item in material.validation] == [1]
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder per class of train, found ILSVRC2012"):
        gather_images(tmp_path, "imagenet")
    with pytest.raises(InputError, match=r"expected train/<class>/\*\.JPEG"):
        gather_images(tmp_path / "val", "imagenet")


# --- the public dataset ---


def test_the_public_dataset_gives_the_trainer_s_volumes(tiny: DatasetPaths) -> None:
    dataset = VideoVolumes("tiny", 1, "test", SPEC, data=tiny.data)
    assert len(dataset) == len(CLASSES) * TAKES
    assert dataset.classes == CLASSES
    volumes, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))
    assert volumes.shape == (len(dataset), SPEC.channels, SPEC.crop, SPEC.crop)
    for i, video in enumerate(dataset.videos):
        assert CLASSES[labels[i]] == video.split("/")[0]
        shard = open_shard(tiny.shard("tvl1", video))
        whole = volume(read_volumes(shard, SPEC, [2]), SPEC)
        torch.testing.assert_close(volumes[i], cut(whole, torch.tensor([[2, 8, 32, 32]]), 32)[0])


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_the_public_dataset_s_augmentation_follows_from_seed_and_epoch(
    stream: str, tiny: DatasetPaths
) -> None:
    spec = RECIPE.volume(stream)
    dataset = VideoVolumes("tiny", 1, "train", spec, data=tiny.data, augment=True)
    first = dataset[3][0]
    assert torch.equal(dataset[3][0], first)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[3][0], first)


def test_the_public_dataset_names_what_is_missing(tiny: DatasetPaths) -> None:
    with pytest.raises(InputError, match="has no split 2"):
        VideoVolumes("tiny", 2, "train", SPEC, data=tiny.data)
    with pytest.raises(ValueError, match="expected train or test"):
        VideoVolumes("tiny", 1, "validation", SPEC, data=tiny.data)


def test_validation_of_the_recipe_reaches_the_groups(tiny: DatasetPaths) -> None:
    recipe: Recipe = dataclasses.replace(RECIPE, validation="0.3")
    material = gather("tiny", 1, VolumeSpec(crop=32, short_side=36, length=4), recipe, tiny.data)
    assert len({item.group for item in material.validation}) == 1
    assert len(material.validation) == len(CLASSES) * TAKES


# --- how the shards were made ---


def temporal(**changes: object) -> Request:
    from made_shards import request

    return dataclasses.replace(request(), **changes)  # type: ignore[arg-type]


def test_the_common_request_is_what_the_network_s_input_depends_on() -> None:
    """Sizes of the videos, parts that the stream does not read and their settings may vary."""
    made = {
        "a/1": temporal(source_bytes=5, frames=True, frames_quality=90),
        "a/2": temporal(source_bytes=6, frames=True, frames_quality=80),
        "a/3": temporal(source_bytes=7, directions=("forward", "backward")),
    }
    common = common_request(made, VolumeSpec(), "d")
    assert common.differences(temporal(source_bytes=0)) == []
    assert (common.source_bytes, common.directions, common.frames) == (0, ("forward",), False)
    frames = {
        "a/1": temporal(frames=True, frames_quality=90),
        "a/2": temporal(frames=True, frames_quality=90, method="brox", parameters={"alpha": 1}, step=2),
        "a/3": temporal(frames=True, frames_quality=90, directions=(), method=""),
    }
    spatial = common_request(frames, VolumeSpec(stream="spatial"), "d")
    assert (spatial.directions, spatial.frames, spatial.frames_quality) == ((), True, 90)


@pytest.mark.parametrize(
    ("stream", "change", "found"),
    [
        ("temporal", {"step": 2}, "step 2 instead of 1"),
        ("temporal", {"parameters": {"finest": 2, "patch": 4.0}}, "patch 4.0 instead of 8.0"),
        ("temporal", {"quality": 50}, "quality 50 instead of"),
        ("temporal", {"short_side": 256}, "short_side 256 instead of None"),
        ("spatial", {"frames_quality": 50}, "frames_quality 50 instead of 90"),
        ("spatial", {"size": (340, 256)}, r"size \[340, 256\] instead of None"),
        ("spatial", {"every": 2}, "every 2 instead of 1"),
    ],
)
def test_shards_that_were_made_differently_are_grouped_by_what_differs(
    stream: str, change: dict[str, object], found: str
) -> None:
    usual = temporal(frames=True, frames_quality=90)
    made = {f"a/{i}": usual for i in range(5)}
    made |= {f"b/{i}": dataclasses.replace(usual, **change) for i in range(2)}  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"5 videos made(.|\n)*2 videos \(for example b/0\): {found}"):
        common_request(made, VolumeSpec(stream=stream), "demo")  # type: ignore[arg-type]


def test_a_set_with_a_shard_of_another_kind_is_refused_before_training(
    tiny: DatasetPaths, tmp_path: Path
) -> None:
    from made_shards import make_shard

    shutil.copytree(tiny.data, tmp_path / "data")
    paths = DatasetPaths(tmp_path / "data", "tiny")
    made = gather("tiny", 1, SPEC, RECIPE, paths.data).requests["tiny"]
    with open_shard(paths.shard("tvl1", "Left/v_Left_g00_c00")) as shard:
        assert made.differences(dataclasses.replace(request_of(shard), source_bytes=0)) == []
    make_shard(paths.shard("tvl1", "Left/v_Left_g00_c00"), "Left/v_Left_g00_c00", preset="lossless")
    with pytest.raises(
        InputError, match=r"tiny, shard set tvl1: (.|\n)*1 video \(for example Left/v_Left_g00_c00"
    ):
        gather("tiny", 1, SPEC, RECIPE, paths.data)
