"""Folders of results: continued with the same settings only, and never by an earlier version than wrote them."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest

from evaluate import features
from evaluate.result_folder import claim, read_settings
from pipeline import checked_json
from pipeline.errors import InputError, OtherFormat, Unreadable

SETTINGS = {"per": "video", "views": '{"frames": 2}', "split": 1}


def test_a_folder_is_continued_with_the_same_settings_only(tmp_path: Path) -> None:
    for _ in range(2):
        claim(tmp_path / "out", "features.json", SETTINGS)
    assert read_settings(tmp_path / "out" / "features.json") == SETTINGS
    with pytest.raises(InputError, match="another network, other videos or views"):
        claim(tmp_path / "out", "features.json", {**SETTINGS, "per": "view"})


def test_a_folder_without_a_version_as_earlier_versions_made_it_is_continued(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text(json.dumps(SETTINGS))
    claim(tmp_path, "features.json", SETTINGS)
    assert json.loads((tmp_path / "features.json").read_text()) == SETTINGS


def test_a_folder_of_a_later_version_is_left_with_overwrite_as_well(tmp_path: Path) -> None:
    later = checked_json.with_checksum({"format": "two-stream features", "version": 2, "more": 1})
    (tmp_path / "features.json").write_text(json.dumps(later))
    (tmp_path / "a.npy").write_bytes(b"x")
    with pytest.raises(OtherFormat, match="version 2"):
        claim(tmp_path, "features.json", SETTINGS)
    with pytest.raises(OtherFormat, match="version 2"):
        features.prepare(tmp_path, overwrite=True)
    assert (tmp_path / "a.npy").exists()


def test_a_flipped_bit_in_the_settings_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    claim(tmp_path, "features.json", SETTINGS)
    path = tmp_path / "features.json"
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        place, data = draw.randrange(8 * len(whole)), bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = read_settings(path)
        except InputError:
            continue
        assert found == SETTINGS


@pytest.mark.parametrize("text", ["[]", "null", "[" * 9000, "1e999", "{", "\udcff"])
def test_anything_else_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "features.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"features\.json: damaged"):
        claim(tmp_path, "features.json", SETTINGS)


def test_settings_that_cannot_be_read_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path, "features.json", SETTINGS)

    def refuse(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Unreadable, match="could not be read: Input/output error"):
        features.prepare(tmp_path, overwrite=True)
    assert (tmp_path / "features.json").exists()
