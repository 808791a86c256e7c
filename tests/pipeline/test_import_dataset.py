"""Importing: lists of every known form, folders with every kind of name, and each fault told exactly."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import catalog, checked_json, container
from pipeline import import_dataset as importing
from pipeline.catalog import Dataset
from pipeline.errors import InputError, Unreadable
from pipeline.groups import pattern_group
from pipeline.import_dataset import import_dataset, match, scan
from pipeline.lists import key_of, read_lists, split_labels, stem_of


def touch(root: Path, *names: str) -> Path:
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.mknod(root / name)
    return root


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode())
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(importing.command, [str(word) for word in words])


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.avi", "a"),
        ("a.b.avi", "a.b"),
        ("a.c.MP4", "a.c"),
        ("a.b", "a.b"),
        (".avi", ".avi"),
        ("no suffix", "no suffix"),
        ("-x; 50% [1]!.webm", "-x; 50% [1]!"),
    ],
)
def test_only_a_video_suffix_is_taken_off_a_name(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_spellings_of_one_name_have_one_key() -> None:
    assert key_of("HandStandPushups/v_HandStandPushups_g01_c01.avi") == key_of(
        "HandstandPushups/v_HandstandPushups_g01_c01.mp4"
    )
    assert key_of("Turnen/Übung.avi") == key_of("Turnen/Übung.avi")
    assert key_of("a/a.b.avi") != key_of("a/a.c.avi")


@pytest.mark.parametrize(
    ("line", "path", "numbers"),
    [
        ("a/b.avi 3", "a/b.avi", [3]),
        ("a/b.avi", "a/b.avi", []),
        ("a/my film 12.avi 7", "a/my film 12.avi", [7]),
        ("a/my film 12.mp4 240 7", "a/my film 12.mp4", [240, 7]),
        ("a/my film 12 240 7", "a/my film 12", [240, 7]),
        ("a/frames 7", "a/frames", [7]),
        ("a/b.avi,4", "a/b.avi", [4]),
        ("a/b.avi.c.avi 4", "a/b.avi.c.avi", [4]),
        ("a/plain", "a/plain", []),
    ],
)
def test_a_listed_path_may_hold_spaces_and_numbers(line: str, path: str, numbers: list[int]) -> None:
    assert split_labels(line) == (path, numbers)


# What may stand in a name that a line of a list holds: no control characters, no white space at its ends.
NAME = (
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1, max_size=12)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: not text.startswith(".") and len(text.encode()) < 150)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(NAME, st.lists(NAME, min_size=1, max_size=3).map(" ".join)),
        min_size=1,
        max_size=8,
        unique_by=lambda video: "/".join(video).lower(),
    )
)
def test_lists_of_every_form_give_back_the_names_they_were_written_with(
    tmp_path: Path, videos: list[tuple[str, str]]
) -> None:
    ids = [f"{label}/{stem}" for label, stem in videos]
    classes = sorted({label for label, _ in videos})
    train, test = ids[::2], ids[1::2]
    number = {label: index for index, label in enumerate(classes)}
    numbered = {video: f"{video}.avi {number[video.split('/')[0]]}\n" for video in ids}
    forms = {
        "ucf": {
            "trainlist01__txt": "".join(numbered[video] for video in train),
            "testlist01__txt": "".join(f"{video}.avi\r\n" for video in test),
        },
        "paths": {
            "train__txt": "".join(numbered[video] for video in train),
            "val__txt": "".join(numbered[video].replace(".avi ", ".avi 300 ") for video in test),
        },
        "csv": {
            "all_test__csv": csv_text(
                [["label", "path", "split"]]
                + [
                    [video.split("/")[0], f"{video}.avi", "train" if video in train else "test"]
                    for video in ids
                ]
            )
        },
    }
    for form, files in forms.items():
        shutil.rmtree(tmp_path / form, ignore_errors=True)
        lists = read_lists(write(tmp_path / form, **files))
        assert (lists.splits[1].train, lists.splits[1].test) == (tuple(train), tuple(test)), form
        assert set(lists.classes) == set(classes), form


def csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


# --- official datasets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ucf101(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13,320 empty files that stand in for UCF-101's videos."""
    return touch(tmp_path_factory.mktemp("ucf101"), *read_lists(test_data / "splits/ucf101").paths.values())


@pytest.fixture(scope="module")
def hmdb51(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return touch(tmp_path_factory.mktemp("hmdb51"), *read_lists(test_data / "splits/hmdb51").paths.values())


@pytest.mark.realdata
def test_ucf101_is_imported_with_its_published_figures(test_data: Path, ucf101: Path, tmp_path: Path) -> None:
    counts = test_data / "splits/ucf101/flow_counts.tsv"
    told = run(
        *("ucf101", "--videos", ucf101, "--lists", test_data / "splits/ucf101", "--counts", counts),
        *("--no-probe", "--data", tmp_path),
    )
    assert told.exit_code == 0, told.output
    made = catalog.load_dataset("ucf101", tmp_path)
    assert (len(made.classes), len(made.videos)) == (101, 13_320)
    assert {n: (len(s.train), len(s.test)) for n, s in made.splits.items()} == {
        1: (9_537, 3_783),
        2: (9_586, 3_734),
        3: (9_624, 3_696),
    }
    assert made.classes[0] == "ApplyEyeMakeup"
    assert made.classes[36] == "HandstandPushups"
    assert made.label("HandstandPushups/v_HandStandPushups_g01_c01") == 36
    assert made.videos["HandstandPushups/v_HandStandPushups_g01_c01"].frames == 77 + 1
    # 25 groups a class, held out by every split: Soomro et al. 2012.
    assert len({video.group for video in made.videos.values()}) == 101 * 25
    assert all(catalog.shared_groups(made, number) == [] for number in made.splits)
    # The published total of flows of this dataset's pairs.
    assert sum((video.frames or 0) - 1 for video in made.videos.values()) == 2_469_975


@pytest.mark.realdata
def test_hmdb51_is_imported_with_its_published_figures(test_data: Path, hmdb51: Path) -> None:
    made = import_dataset("hmdb51", "hmdb51", hmdb51, test_data / "splits/hmdb51", headers=False).dataset
    assert (len(made.classes), len(made.videos)) == (51, 6_766)
    for split in made.splits.values():
        train = Counter(video.split("/")[0] for video in split.train)
        test = Counter(video.split("/")[0] for video in split.test)
        assert set(train.values()) == {70}
        assert set(test.values()) == {30}
    assert made.classes == tuple(sorted(made.classes))
    odd = "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_le_goo_3"
    assert made.videos[f"brush_hair/{odd}"].group == "brush_hair/Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!"
    assert f"brush_hair/{odd}" not in made.splits[1].train + made.splits[1].test
    # The official splits keep the clips of one source video on one side: Kuehne et al. 2011, section 3.
    assert all(catalog.shared_groups(made, number) == [] for number in made.splits)


@pytest.fixture
def few(tmp_path: Path) -> tuple[Path, Path]:
    """Videos and lists as UCF-101 has them: two classes, three groups, CRLF, the spelling that differs."""
    stems = [f"v_{name}_g0{group}_c01" for name in ("Archery", "HandStandPushups") for group in (1, 2, 3)]
    paths = [f"{'Archery' if 'Archery' in stem else 'HandstandPushups'}/{stem}.avi" for stem in stems]
    lists = write(
        tmp_path / "lists",
        classInd__txt="1 Archery\r\n2 HandstandPushups\r\n",
        trainlist01__txt="".join(f"{path} {1 + ('Hand' in path)}\r\n" for path in paths if "g01" not in path),
        testlist01__txt="".join(f"{path}\r\n" for path in paths if "g01" in path) + "\r\n",
    )
    return touch(tmp_path / "videos", *paths), lists


def test_lists_with_crlf_give_classes_labels_and_sides(few: tuple[Path, Path]) -> None:
    made = import_dataset("folder", "few", *few, headers=False).dataset
    assert made.classes == ("Archery", "HandstandPushups")
    assert made.splits[1].test == ("Archery/v_Archery_g01_c01", "HandstandPushups/v_HandStandPushups_g01_c01")
    assert len(made.splits[1].train) == 4
    assert made.videos["Archery/v_Archery_g02_c01"].group == "Archery/g02"


def test_without_a_class_list_the_labels_of_the_train_lists_order_the_classes(tmp_path: Path) -> None:
    # Sorted by name HammerThrow comes first; UCF-101's labels have Hammering first.
    lists = write(
        tmp_path / "lists",
        trainlist01__txt="HammerThrow/a.avi 2\nHammering/b.avi 1\n",
        testlist01__txt="HammerThrow/c.avi\nHammering/d.avi\n",
    )
    assert read_lists(lists).classes == ("Hammering", "HammerThrow")
    write(lists, trainlist01__txt="Hammering/a.avi 2\nHammering/b.avi 1\n")
    with pytest.raises(
        InputError, match=r"trainlist01.txt:2: expected label 2 of Hammering on an earlier line"
    ):
        read_lists(lists)


@pytest.mark.parametrize("folder", ["HandStandPushups", "HandstandPushups"])
@pytest.mark.parametrize("word", ["HandStandPushups", "HandstandPushups"])
def test_both_spellings_of_handstand_pushups_are_one_class(
    few: tuple[Path, Path], folder: str, word: str
) -> None:
    videos, lists = few
    shutil.rmtree(videos / "HandstandPushups")
    touch(videos, *(f"{folder}/v_{word}_g0{group}_c01.avi" for group in (1, 2, 3)))
    made = import_dataset("folder", "few", videos, lists, headers=False).dataset
    assert sorted(video for video in made.videos if "Hand" in video) == [
        f"HandstandPushups/v_HandStandPushups_g0{group}_c01" for group in (1, 2, 3)
    ]


def test_missing_videos_are_an_error_that_names_and_counts_them(few: tuple[Path, Path]) -> None:
    (few[0] / "Archery/v_Archery_g02_c01.avi").unlink()
    with pytest.raises(InputError, match=r"missing: 1 of 6 listed videos: 'Archery/v_Archery_g02_c01'"):
        import_dataset("folder", "few", *few, headers=False)


def test_missing_videos_are_left_out_if_allowed(few: tuple[Path, Path]) -> None:
    (few[0] / "Archery/v_Archery_g02_c01.avi").unlink()
    imported = import_dataset("folder", "few", *few, headers=False, allow_missing=True)
    assert imported.dataset.missing == ("Archery/v_Archery_g02_c01",)
    assert len(imported.dataset.videos) == 5
    assert len(imported.dataset.splits[1].train) == 3
    assert any("1 of 6 listed videos are left out" in note for note in imported.notes)


def test_a_folder_with_none_of_the_listed_videos_is_an_error_even_if_missing_is_allowed(
    few: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no videos found"):
        import_dataset("folder", "few", write(tmp_path / "none"), few[1], allow_missing=True)
    with pytest.raises(InputError, match="none of the 6 listed videos is there"):
        import_dataset("folder", "few", touch(tmp_path / "other", "a/x.avi"), few[1], allow_missing=True)


def test_videos_that_no_list_names_are_told_and_left_out(few: tuple[Path, Path]) -> None:
    touch(few[0], "Archery/v_Archery_g09_c01.avi")
    imported = import_dataset("folder", "few", *few, headers=False)
    assert len(imported.dataset.videos) == 6
    assert any("1 video not in the lists" in note and "g09" in note for note in imported.notes)


@pytest.mark.parametrize("second", ["v_Archery_g02_c01.mp4", "v_Archery_g02_c01/img_00001.jpg"])
def test_two_files_of_one_stem_are_an_error_that_names_both(few: tuple[Path, Path], second: str) -> None:
    touch(few[0], f"Archery/{second}")
    with pytest.raises(InputError, match="duplicates: 1 video") as caught:
        import_dataset("folder", "few", *few, headers=False)
    assert "v_Archery_g02_c01.avi" in str(caught.value)
    assert second.split("/")[0] in str(caught.value)


def test_all_faults_are_told_at_once(few: tuple[Path, Path]) -> None:
    touch(few[0], "Archery/v_Archery_g02_c01.mp4")
    (few[0] / "Archery/v_Archery_g03_c01.avi").unlink()
    (few[0] / "Archery/link.avi").symlink_to("/etc/hostname")
    touch(few[0], "Archery/own.avi")
    with pytest.raises(InputError) as caught:
        import_dataset("folder", "few", *few, headers=False)
    told = ("missing: 1", "duplicates: 1", "links: 1", "extra: 1")
    assert [word in str(caught.value) for word in told] == [True] * 4


def test_a_transcoded_or_flat_copy_is_the_same_dataset(few: tuple[Path, Path], tmp_path: Path) -> None:
    for path in (few[0]).rglob("*.avi"):
        path.rename(path.with_suffix(".webm"))
    assert len(import_dataset("folder", "few", *few, headers=False).dataset.videos) == 6
    flat = touch(tmp_path / "flat", *(path.name for path in few[0].rglob("*.webm")))
    assert len(import_dataset("folder", "few", flat, few[1], headers=False).dataset.videos) == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trainlist01.txt", "../Archery/x.avi 1\n", "trainlist01.txt:1.*leaves the folder"),
        ("trainlist01.txt", "/Archery/x.avi 1\n", "trainlist01.txt:1.*leaves the folder"),
        ("testlist01.txt", "Archery/a.avi\nArchery/../../x.avi\n", "testlist01.txt:2.*leaves the folder"),
        ("trainlist01.txt", "Archery/x.avi 2\n", "expected label 1 of Archery.*found 2"),
        ("trainlist01.txt", "Rowing/x.avi 1\n", "'Rowing' is not in classInd.txt"),
        ("trainlist01.txt", "x.avi 1\n", "expected Class/name.avi"),
        ("trainlist01.txt", "Archery/x.avi 1\nArchery/x.webm 1\n", "trainlist01.txt:2.*listed twice"),
        ("trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\n", "both sides of split 1"),
        ("trainlist01.txt", "Archery/x.avi 1\nArchery/x.mp4 1\n", "listed twice"),
        ("classInd.txt", "² Archery\n", "classInd.txt:1.*expected a new number"),
        ("classInd.txt", "one Archery\n", "classInd.txt:1.*expected a new number"),
        ("classInd.txt", "1 Archery\n1 Bowling\n", "classInd.txt:2.*expected a new number"),
    ],
)
def test_a_bad_line_of_a_list_is_named_with_its_file_and_number(
    few: tuple[Path, Path], name: str, text: str, message: str
) -> None:
    (few[1] / name).write_text(text)
    with pytest.raises(InputError, match=message):
        import_dataset("folder", "few", *few, headers=False)


def test_lists_that_are_not_the_official_ones_are_told_figure_by_figure(few: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="not the official lists of UCF-101") as caught:
        import_dataset("ucf101", "ucf101", *few, headers=False)
    assert "classes: expected 101, found 2" in str(caught.value)
    assert "videos to train on in split 1: expected 9,537, found 4" in str(caught.value)
    assert "videos to test on in split 3: expected 3,696, found 0" in str(caught.value)


def test_hmdb_tags_trailing_spaces_and_odd_names_are_read(tmp_path: Path) -> None:
    names = [
        "A;B#&[1](x)!_wave_f_cm_np1_ba_med_0.avi",
        "My clip_wave_u_nm_np10_fr_goo_5.avi",
        "c_wave_u_nm_np1_fr_goo_6.avi",
    ]
    lists = write(
        tmp_path / "lists",
        wave_test_split1__txt=f"{names[0]} 1 \n{names[1]} 2 \n{names[2]} 0 \n",
        wave_test_split2__txt=f"{names[0]} 2 \n{names[1]} 1 \n{names[2]} 1 \n",
    )
    videos = touch(tmp_path / "videos", *(f"wave/{name}" for name in names))
    made = import_dataset("folder", "h", videos, lists, headers=False).dataset
    ids = [f"wave/{name[:-4]}" for name in names]
    assert (made.splits[1].train, made.splits[1].test) == ((ids[0],), (ids[1],))
    assert (set(made.splits[2].train), made.splits[2].test) == ({ids[1], ids[2]}, (ids[0],))
    assert [made.videos[video].group for video in ids] == ["wave/A;B#&[1](x)!", "wave/My clip", "wave/c"]
    write(lists, wave_test_split1__txt=f"{names[0]} 3 \n")
    with pytest.raises(InputError, match=r"wave_test_split1.txt:1: expected a name and the tag 0, 1 or 2"):
        read_lists(lists)


# --- other tools' lists --------------------------------------------------------------------------------------------


def test_kinetics_csv_names_videos_by_id_and_times(tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split,is_cc\n"
    lists = write(
        tmp_path / "lists",
        train__csv=head + '"playing, loudly",-abc,3,13,train,0\njogging,x;y,100,110,train,0\n',
        val__csv=head + "jogging,_def,0,10,val,0\n",
        test__csv="youtube_id,time_start,time_end,split\nzzz,0,10,test\n",
    )
    videos = touch(
        tmp_path / "videos",
        "train/playing, loudly/-abc_000003_000013.mp4",
        "train/jogging/x;y_000100_000110.mp4",
        "val/jogging/_def_000000_000010.mkv",
    )
    imported = import_dataset("folder", "k", videos, lists, headers=False)
    made = imported.dataset
    assert made.classes == ("jogging", "playing, loudly")
    assert set(made.splits[1].train) == {"playing, loudly/-abc_000003_000013", "jogging/x;y_000100_000110"}
    assert made.splits[1].test == ("jogging/_def_000000_000010",)
    assert any("test.csv" in note for note in imported.notes)


def test_kinetics_folders_with_underscores_for_spaces_are_found(tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    lists = write(
        tmp_path / "lists",
        train__csv=head + "air drumming,a,0,10,train\n",
        val__csv=head + "air drumming,b,0,10,val\n",
    )
    videos = touch(tmp_path / "videos", "air_drumming/a_000000_000010.mp4", "b_000000_000010.mp4")
    made = import_dataset("folder", "k", videos, lists, headers=False).dataset
    assert list(made.videos) == ["air drumming/a_000000_000010", "air drumming/b_000000_000010"]


def test_path_label_lists_take_names_from_folders_or_from_classes(tmp_path: Path) -> None:
    lists = write(
        tmp_path / "lists",
        x_train_split_1_videos__txt="run/a b.mp4 1\nwalk/c.mp4 0\n",
        x_val_split_1_videos__txt="run/d.mp4 1\n",
        x_train_split_2_videos__txt="run/d.mp4 1\n",
        x_val_split_2_videos__txt="walk/c.mp4 0\n",
    )
    videos = touch(tmp_path / "videos", "run/a b.mp4", "walk/c.mp4", "run/d.mp4")
    made = import_dataset("folder", "m", videos, lists, headers=False).dataset
    assert made.classes == ("walk", "run")
    assert made.splits[1].train == ("run/a b", "walk/c")
    assert made.splits[2].test == ("walk/c",)
    named = import_dataset(
        "folder", "m", videos, lists, class_names=["gehen", "laufen"], headers=False
    ).dataset
    assert named.classes == ("gehen", "laufen")
    assert named.splits[1].test == ("laufen/d",)
    with pytest.raises(InputError, match="label 1, but --classes names 1"):
        import_dataset("folder", "m", videos, lists, class_names=["gehen"], headers=False)


def test_a_test_list_beside_a_validation_list_is_what_the_split_tests_on(tmp_path: Path) -> None:
    lists = write(
        tmp_path / "lists", train__txt="a/1.mp4 0\n", val__txt="a/2.mp4 0\n", test__txt="a/3.mp4 0\n"
    )
    videos = touch(tmp_path / "videos", "a/1.mp4", "a/2.mp4", "a/3.mp4")
    imported = import_dataset("folder", "m", videos, lists, headers=False)
    assert (imported.dataset.splits[1].train, imported.dataset.splits[1].test) == (("a/1",), ("a/3",))
    assert "a/2" in imported.dataset.videos
    assert any("validation" in note for note in imported.notes)


def test_rawframe_lists_with_frame_counts_find_folders_of_frames(tmp_path: Path) -> None:
    lists = write(
        tmp_path / "lists", train_rawframes__txt="a/clip 1 2 0\n", val_rawframes__txt="a/clip.2 1 0\n"
    )
    videos = touch(
        tmp_path / "videos", "a/clip 1/img_00001.jpg", "a/clip 1/img_00002.jpg", "a/clip.2/img_00001.png"
    )
    made = import_dataset("folder", "m", videos, lists, headers=False).dataset
    assert list(made.videos) == ["a/clip 1", "a/clip.2"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.txt", "a/1.mp4\n", "train.txt:1: expected `path label`"),
        ("train.txt", "../1.mp4 0\n", "train.txt:1.*leaves the folder"),
        ("train.csv", "label,youtube_id,time_start\nx,y,0\n", "train.csv:2: expected a label and a path"),
        ("other.csv", "label,path\nx,y.mp4\n", "says train, val or test"),
        ("train.txt", "a/x.mp4 0\nb/x.mp4 0\n", "would both be the video"),
        ("train.csv", "label,youtube_id,time_start,time_end\nx,y,0,inf\n", "train.csv:2: expected a label"),
        ("train.csv", f"label,path\nx,{'y' * 200_000}\n", "train.csv:1: is not valid CSV"),
        ("train.txt", f"a/x.mp4 {'1' * 5000}\n", "train.txt:1: expected `path label`"),
        ("notes.txt", "nothing\n", "no lists found"),
        ("train.txt", "", "no lists found"),
    ],
)
def test_lists_that_cannot_be_understood_say_where_and_why(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write(tmp_path / "lists", **{name.replace(".", "__"): text})
    with pytest.raises(InputError, match=message):
        read_lists(tmp_path / "lists")


# --- folders -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "two words/a b.avi",
    "-rf/--help.mp4",
    "100%/50% off.avi",
    'it\'s/"quoted".avi',
    "a;b/c#d&e.avi",
    "[x]/(y)!.avi",
    "Ringe/Übung – 体操.avi",
    "$(ls)/`ls`.avi",
    "dots/a.b.avi",
    "dots/a.c.avi",
]


def test_hostile_names_go_through_unchanged(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", *HOSTILE)
    told = run("folder", "--videos", videos, "--name", "odd", "--data", tmp_path / "data")
    assert told.exit_code == 0, told.output
    made = catalog.load_dataset("odd", tmp_path / "data")
    assert set(made.videos) == {name.rsplit(".", 1)[0] for name in HOSTILE}
    assert all(video.path.is_file() for video in made.videos.values())


def test_hidden_files_and_other_kinds_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.avi", "a/._x.avi", "a/notes.txt", ".git/y.avi", "a/poster.jpg", "a/Thumbs.db")
    assert scan(tmp_path).videos == ("a/x.avi",)


def test_a_folder_of_numbered_frames_is_a_video_and_one_of_other_pictures_is_not(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/clip/img_00001.jpg",
        "a/clip/img_00002.jpg",
        "a/scans/front.png",
        "a/mixed/1.jpg",
        "a/mixed/x.avi",
    )
    assert scan(tmp_path).videos == ("a/clip", "a/mixed/x.avi")


def test_names_that_no_system_can_pass_on_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.avi", "a/line\nbreak.avi", os.fsdecode(b"a/latin-\xfc.avi"))
    with pytest.raises(InputError, match="names: 2 names that cannot be used") as caught:
        import_dataset("folder", "x", tmp_path, headers=False)
    assert r"'a/line\nbreak.avi'" in str(caught.value)
    assert str(caught.value).isascii()


def test_links_that_lead_outside_are_refused_unless_asked_for(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "x.avi", "class/y.avi")
    videos = touch(tmp_path / "videos", "a/1.avi")
    (videos / "a/inside.avi").symlink_to("1.avi")
    assert scan(videos).videos == ("a/1.avi", "a/inside.avi")
    (videos / "a/x.avi").symlink_to(outside / "x.avi")
    (videos / "b").symlink_to(outside / "class")
    assert scan(videos).outside == ("a/x.avi", "b")
    with pytest.raises(InputError, match="links: 2 links that lead outside"):
        import_dataset("folder", "x", videos, headers=False)
    made = import_dataset("folder", "x", videos, headers=False, follow_links=True).dataset
    assert set(made.videos) == {"a/1", "a/inside", "a/x", "b/y"}
    (videos / "a/broken.avi").symlink_to("nowhere.avi")
    (videos / "a/loop.avi").symlink_to("loop.avi")
    assert scan(videos, follow_links=True).outside == ("a/broken.avi", "a/loop.avi")


def test_a_folder_without_lists_gets_three_splits_that_hold_out_every_group_once(tmp_path: Path) -> None:
    videos = touch(
        tmp_path,
        *(
            f"{label}/v_x_g{group:02d}_c{take:02d}.avi"
            for label in "ab"
            for group in range(7)
            for take in (1, 2)
        ),
    )
    made = import_dataset("folder", "x", videos, headers=False).dataset
    assert len(made.splits) == 3
    assert sorted(sum((split.test for split in made.splits.values()), ())) == sorted(made.videos)
    for number, split in made.splits.items():
        assert sorted(split.train + split.test) == sorted(made.videos)
        assert catalog.shared_groups(made, number) == []


def test_a_class_with_one_group_is_never_held_out(tmp_path: Path) -> None:
    made = import_dataset(
        "folder", "x", touch(tmp_path, "a/1.avi", "b/1.avi", "b/2.avi", "b/3.avi"), headers=False
    ).dataset
    assert all("a/1" in split.train for split in made.splits.values())


def test_a_person_in_several_classes_is_held_out_of_all_of_them_at_once(tmp_path: Path) -> None:
    videos = touch(
        tmp_path, *(f"a/{person}-1.avi" for person in ("ann", "bob", "cy")), "b/bob-1.avi", "b/cy-1.avi"
    )
    made = import_dataset("folder", "x", videos, group=pattern_group("^([a-z]+)-"), headers=False).dataset
    assert [split.test for split in made.splits.values()] == [
        ("a/ann-1",),
        ("a/bob-1", "b/bob-1"),
        ("a/cy-1", "b/cy-1"),
    ]


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    videos = touch(tmp_path, "train/a/1.avi", "train/b/2.avi", "val/a/3.avi", "test/b/4.avi")
    made = import_dataset("folder", "x", videos, headers=False).dataset
    assert (made.splits[1].train, made.splits[1].test) == (("a/1", "b/2"), ("b/4",))
    shutil.rmtree(videos / "test")
    made = import_dataset("folder", "x", videos, headers=False).dataset
    assert made.splits[1].test == ("a/3",)
    touch(videos, "val/a/1.avi")
    with pytest.raises(InputError, match=r"a/1: train/a/1.avi and val/a/1.avi"):
        import_dataset("folder", "x", videos, headers=False)


def test_a_pattern_takes_the_group_from_the_stem(tmp_path: Path) -> None:
    videos = touch(
        tmp_path / "videos",
        *(
            f"{label}/{person}-{take}.avi"
            for label in "ab"
            for person in ("ann", "bob", "cy")
            for take in "12"
        ),
    )
    told = run(
        "folder", "--videos", videos, "--name", "x", "--group-pattern", "^([a-z]+)-", "--data", tmp_path
    )
    assert told.exit_code == 0, told.output
    made = catalog.load_dataset("x", tmp_path)
    assert {video.group for video in made.videos.values()} == {"ann", "bob", "cy"}
    assert all(catalog.shared_groups(made, number) == [] for number in made.splits)
    assert run("folder", "--videos", videos, "--name", "x", "--group-pattern", "(").exit_code == 1


def test_groups_on_both_sides_are_told(few: tuple[Path, Path]) -> None:
    imported = import_dataset("folder", "few", *few, group=pattern_group("^v"), headers=False)
    assert "split 1: 1 group on both sides: 'v'" in imported.notes


def test_a_folder_one_level_too_high_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "UCF-101/deep/er/than/any/x.avi")
    with pytest.raises(InputError, match=f"is it {re.escape(str(tmp_path / 'UCF-101'))}"):
        import_dataset("folder", "x", tmp_path)


def test_videos_without_folders_of_classes_are_told(tmp_path: Path) -> None:
    videos = touch(tmp_path / "class", "1.avi", "2.avi")
    with pytest.raises(
        InputError, match=f"no video lies in a folder of a class.*is it {re.escape(str(tmp_path))}"
    ):
        import_dataset("folder", "x", videos)


# --- headers and counts --------------------------------------------------------------------------------------------


def film(path: Path, frames: int, width: int = 32, height: int = 16) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            picture = np.full((height, width, 3), index * 10, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_frames_and_sizes_come_from_headers_and_folders(tmp_path: Path) -> None:
    from PIL import Image

    film(tmp_path / "a/one.avi", 7)
    film(tmp_path / "a/two.mkv", 5)
    (tmp_path / "a/three").mkdir()
    for index in (1, 2, 3):
        Image.new("RGB", (20, 10)).save(tmp_path / f"a/three/{index}.png")
    (tmp_path / "a/four.avi").write_bytes(b"no video")
    imported = import_dataset("folder", "x", tmp_path)
    seen = {video.id: (video.frames, video.width, video.height) for video in imported.dataset.videos.values()}
    assert seen == {
        "a/one": (7, 32, 16),
        "a/two": (5, 32, 16),
        "a/three": (3, 20, 10),
        "a/four": (None, None, None),
    }
    assert any("1 video whose header cannot be read: a/four: " in note for note in imported.notes)


def test_a_system_out_of_file_handles_stops_an_import_instead_of_recording_videos_without_counts(
    tmp_path: Path,
) -> None:
    film(tmp_path / "a/one.avi", 7)
    program = (
        "import os, resource, sys; from pathlib import Path; import cv2, h5py, numpy, av, av.error;"
        "from pipeline.import_dataset import check_read, probe; from pipeline.errors import Unreadable\n"
        "path = Path(sys.argv[1]); check_read({'a/one': probe(path)}, 5)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)\n"
        "try: check_read({'a/one': probe(path)}, 5)\n"
        "except Unreadable as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a/one.avi")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 video could not be read: a/one: " in ran.stdout
    assert "oo many open files" in ran.stdout


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_videos_that_the_system_does_not_let_be_read_are_listed_and_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for name in ("one", "two", "three"):
        film(tmp_path / f"videos/a/{name}.avi", 7)
    refused = tmp_path / "videos/a/one.avi", tmp_path / "videos/a/two.avi"

    def refusing(call: Any) -> Any:
        def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
            if path in refused:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *arguments, **more)

        return refuse

    monkeypatch.setattr(container, "_open", refusing(container._open))
    monkeypatch.setattr(Path, "open", refusing(Path.open))
    words = ["folder", "--videos", tmp_path / "videos", "--name", "x", "--data", tmp_path / "data"]
    done = CliRunner().invoke(importing.command, [str(word) for word in words])
    assert done.exit_code == 1
    reason = os.strerror(number)
    assert (
        f"2 videos could not be read: a/one: {reason}, a/two: {reason}; nothing was recorded" in done.output
    )
    assert not (tmp_path / "data").exists()


def test_a_video_on_which_ffmpeg_reports_an_error_of_the_system_is_damaged_if_its_bytes_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg's demuxers report EIO and ENOMEM for what they find in a file, too."""
    film(tmp_path / "one.avi", 7)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(container, "_open", refuse)
    assert importing.probe(tmp_path / "one.avi") == importing.Header(fault="Input/output error")


def test_an_import_over_a_record_of_a_later_version_is_refused_before_the_work(tmp_path: Path) -> None:
    record = tmp_path / "data/x/dataset.json"
    record.parent.mkdir(parents=True)
    later = {"format": catalog.FORMAT, "version": catalog.VERSION + 1}
    record.write_text(json.dumps(checked_json.with_checksum(later)))
    (tmp_path / "videos").mkdir()  # in which the work would find no video
    words = ["folder", "--videos", tmp_path / "videos", "--name", "x", "--data", tmp_path / "data"]
    done = CliRunner().invoke(importing.command, [str(word) for word in words])
    assert done.exit_code == 1
    assert "the dataset's record has version 2" in done.output


def test_a_record_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "dataset.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Unreadable, match="could not be read: Permission denied"):
        catalog.check_replaceable(tmp_path / "dataset.json")


def test_known_counts_go_before_headers(tmp_path: Path) -> None:
    film(tmp_path / "a/one.avi", 7)
    counts = importing.read_counts(
        write(tmp_path / "c", n__tsv="video\tflows\r\none\t9\r\na/two\t4\r\n") / "n.tsv"
    )
    assert counts == {"one": 10, "a/two": 5}
    assert import_dataset("folder", "x", tmp_path, counts=counts).dataset.videos["a/one"].frames == 10
    assert importing.read_counts(write(tmp_path / "c", n__csv="video,frames\na, b,9\n") / "n.csv") == {
        "a, b": 9
    }
    with pytest.raises(InputError, match=r"n.tsv:2: expected a video and a count"):
        importing.read_counts(write(tmp_path / "c", n__tsv="video\tflows\none nine\n") / "n.tsv")
    with pytest.raises(InputError, match="expected a first line"):
        importing.read_counts(write(tmp_path / "c", n__tsv="one\t9\n") / "n.tsv")


@pytest.mark.realdata
def test_the_small_real_dataset_holds_people_out(test_data: Path) -> None:
    root = test_data / "weizmann4"
    made: Dataset = import_dataset("folder", "weizmann4", root / "videos", root / "splits", jobs=1).dataset
    assert (len(made.classes), len(made.videos)) == (4, 72)
    assert all(catalog.shared_groups(made, number) == [] for number in (1, 2, 3))
    assert all(51 <= (video.frames or 0) <= 146 for video in made.videos.values())
    assert {(video.width, video.height) for video in made.videos.values()} == {(64, 64)}


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_records_nothing_if_anything_is_wrong(few: tuple[Path, Path], tmp_path: Path) -> None:
    (few[0] / "Archery/v_Archery_g02_c01.avi").unlink()
    call = ["folder", "--videos", few[0], "--lists", few[1], "--name", "few", "--data", tmp_path / "data"]
    told = run(*call)
    assert told.exit_code == 1
    assert "missing: 1 of 6" in told.output
    assert not (tmp_path / "data").exists()
    assert run(*call, "--allow-missing").exit_code == 0
    assert catalog.known_datasets(tmp_path / "data") == ["few"]


def test_what_the_command_needs_is_a_matter_of_usage(few: tuple[Path, Path]) -> None:
    assert run("folder", "--videos", few[0]).exit_code == 2
    assert run("ucf101", "--videos", few[0]).exit_code == 2
    assert run("folder", "--videos", few[0], "--name", "../x").exit_code == 1


def test_match_prefers_the_listed_folder_over_a_flat_file(tmp_path: Path) -> None:
    lists = read_lists(write(tmp_path / "lists", train__txt="a/x.avi 0\n", test__txt="a/y.avi 0\n"))
    matching = match(lists, scan(touch(tmp_path / "videos", "a/x.avi", "x.avi", "a/y.avi")))
    assert matching.paths == {"a/x": "a/x.avi", "a/y": "a/y.avi"}
    assert matching.extra == ("x.avi",)
