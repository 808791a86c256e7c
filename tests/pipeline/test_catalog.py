"""The catalogue: what is recorded comes back, and nothing that is read from a record is trusted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import catalog, checked_json
from pipeline.catalog import Dataset, Split, Video
from pipeline.errors import InputError, OtherFormat
from pipeline.paths import DatasetPaths

NAMES = ["it's 100%/a.b", "it's 100%/a.c", "-x/ü;#&[(!", '-x/ä "q"']


def dataset(root: Path, name: str = "mine", **changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": name,
        "classes": ("it's 100%", "-x"),
        "videos": {
            video_id: Video(
                video_id, root / f"{video_id}.avi", video_id.split("/")[0], f"g{index}", 10, 64, 48
            )
            for index, video_id in enumerate(NAMES)
        },
        "splits": {1: Split(1, (NAMES[0], NAMES[2]), (NAMES[1], NAMES[3]))},
    }
    return Dataset(**{**fields, **changes})


def test_a_recorded_dataset_is_read_back_unchanged(tmp_path: Path) -> None:
    made = dataset(tmp_path / "films", missing=("-x/gone",), origin={"kind": "folder", "listed": 5})
    catalog.save(made, tmp_path / "films", tmp_path / "data")
    assert catalog.load_dataset("mine", tmp_path / "data") == made
    assert catalog.known_datasets(tmp_path / "data") == ["mine"]
    assert [made.label(video) for video in NAMES] == [0, 0, 1, 1]


def test_a_dataset_whose_videos_lie_beside_its_record_can_be_moved(tmp_path: Path) -> None:
    root = DatasetPaths(tmp_path / "old", "mine").videos
    catalog.save(dataset(root), root, tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    video = catalog.load_dataset("mine", tmp_path / "new").videos[NAMES[0]]
    assert video.path == tmp_path / "new/mine/videos" / f"{NAMES[0]}.avi"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("demo", "pipeline demo"),
        ("ucf101", "import ucf101 --videos"),
        ("mine", "import folder --videos DIR --name mine"),
    ],
)
def test_an_unknown_dataset_says_which_command_makes_it_known(
    tmp_path: Path, name: str, command: str
) -> None:
    with pytest.raises(InputError, match=command):
        catalog.load_dataset(name, tmp_path)


@pytest.mark.parametrize("name", ["../x", "$(shell touch x)", "; rm -rf x", ""])
def test_a_name_that_is_no_plain_name_is_a_bad_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a dataset"):
        catalog.load_dataset(name, tmp_path)


def test_a_video_on_both_sides_of_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split 1 has 1 videos on both sides.*a\.b"):
        dataset(tmp_path, splits={1: Split(1, (NAMES[0],), (NAMES[0],))})


def test_a_split_with_unknown_or_repeated_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown videos to test on: '-x/none'"):
        dataset(tmp_path, splits={2: Split(2, (NAMES[0],), ("-x/none",))})
    with pytest.raises(InputError, match="twice to train on"):
        dataset(tmp_path, splits={2: Split(2, (NAMES[0], NAMES[0]), ())})


def test_a_class_that_is_not_named_or_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which the classes do not name"):
        dataset(tmp_path, classes=("-x",))
    with pytest.raises(InputError, match="named twice"):
        dataset(tmp_path, classes=("it's 100%", "-x", "-x"))


def test_groups_on_both_sides_are_found(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    assert catalog.shared_groups(made, 1) == []
    videos = {key: Video(key, video.path, video.label, "same") for key, video in made.videos.items()}
    assert catalog.shared_groups(dataset(tmp_path, videos=videos), 1) == ["same"]
    with pytest.raises(InputError, match=r"no split 4 \(it has: 1\)"):
        made.split(4)


def change(record: Any, keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        record = record[key]
    if value is None:
        del record[keys[-1]]
    else:
        record[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("videos", NAMES[0], "path"), "../outside.avi", "leaves the folder"),
        (("videos", NAMES[0], "path"), "/etc/passwd", "leaves the folder"),
        (("videos", NAMES[0], "path"), 3, "damaged record"),
        (("videos", NAMES[0], "frames"), -1, "damaged record"),
        (("videos", NAMES[0], "frames"), "10", "damaged record"),
        (("videos", NAMES[0], "group"), None, "damaged record"),
        (
            ("videos", "../a"),
            {"path": "a", "group": "", "frames": 1, "width": 1, "height": 1},
            "cannot be the name",
        ),
        (("splits",), [], "damaged record"),
        (("splits", "1", "train"), [[]], "damaged record"),
        (("format",), "zip", "damaged record"),
        (("version",), 99, "version 99"),
        (("name",), "other", "damaged record"),
        (("origin",), None, "damaged record"),
        (("classes",), ["-x"], "do not name"),
        (("videos", NAMES[0], "frames"), 10**400, "damaged record"),
        (("videos", NAMES[0], "path"), "a\0b", "damaged record"),
        (("videos", NAMES[0], "path"), "\ud800", "damaged record"),
        (("root",), "a\0b", "damaged record"),
        (("splits", "-1"), {"train": [], "test": []}, "counted from 1"),
    ],
)
def test_a_record_with_a_wrong_part_is_refused_with_its_name(
    tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    path = catalog.save(dataset(tmp_path), tmp_path, tmp_path / "data")
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record, keys, value)
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        catalog.load_dataset("mine", tmp_path / "data")
    assert "mine" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = DatasetPaths(tmp_path, "mine").record
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match="record"):
        catalog.load_dataset("mine", tmp_path)


def test_a_failed_write_leaves_the_earlier_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = catalog.save(dataset(tmp_path), tmp_path, tmp_path / "data")
    before = path.read_bytes()

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(InputError, match="no space"):
        catalog.save(dataset(tmp_path, splits={}), tmp_path, tmp_path / "data")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_record_is_checked_by_its_bytes_and_earlier_ones_by_their_values(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    split = made.splits[1]
    made = dataclasses.replace(
        made, splits={number: dataclasses.replace(split, number=number) for number in range(1, 12)}
    )
    path = catalog.save(made, tmp_path, tmp_path / "data")
    text = path.read_bytes()
    assert checked_json.is_intact(text)
    assert list(catalog.load_dataset("mine", tmp_path / "data").splits) == list(range(1, 12))
    values = json.loads(text)
    assert checked_json.fault(values, catalog.KEYS) is None
    path.write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    assert catalog.load_dataset("mine", tmp_path / "data") == made
    path.write_bytes(text.replace(b'"short_side": 256', b'"short_side": 257'))
    with pytest.raises(InputError, match="checksum"):
        catalog.load_dataset("mine", tmp_path / "data")


def test_the_published_facts_add_up() -> None:
    ucf101, hmdb51 = catalog.FACTS["ucf101"], catalog.FACTS["hmdb51"]
    assert all(train + test == ucf101.videos for train, test in ucf101.splits.values())
    assert set(hmdb51.splits.values()) == {(70 * hmdb51.classes, 30 * hmdb51.classes)}


def test_a_flipped_bit_in_a_record_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = catalog.save(dataset(tmp_path), tmp_path, tmp_path / "data")
    whole, expected = path.read_bytes(), catalog.load_dataset("mine", tmp_path / "data")
    for place in range(0, 8 * len(whole), 5):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert catalog.load_dataset("mine", tmp_path / "data") == expected
        except InputError:
            continue


def test_a_record_of_a_later_version_is_named_and_not_replaced(tmp_path: Path) -> None:
    path = catalog.save(dataset(tmp_path), tmp_path, tmp_path)
    record = json.loads(path.read_text())
    del record[checked_json.KEY]
    later = json.dumps(checked_json.with_checksum({**record, "version": 2, "new": 1}))
    path.write_text(later)
    for attempt in (
        lambda: catalog.load_dataset("mine", tmp_path),
        lambda: catalog.save(dataset(tmp_path), tmp_path, tmp_path),
    ):
        with pytest.raises(OtherFormat, match="has version 2, and this program reads version 1"):
            attempt()
    assert path.read_text() == later
    path.write_text(later.replace('"version": 2', '"version": 3'))  # damage, which importing again mends
    catalog.save(dataset(tmp_path), tmp_path, tmp_path)
    assert catalog.load_dataset("mine", tmp_path) == dataset(tmp_path)


def test_a_record_without_a_checksum_is_of_an_earlier_version(tmp_path: Path) -> None:
    path = catalog.save(dataset(tmp_path), tmp_path, tmp_path / "data")
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["crc32"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert catalog.load_dataset("mine", tmp_path / "data").name == "mine"
