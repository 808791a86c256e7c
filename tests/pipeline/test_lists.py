"""Lists that others wrote: absolute paths, several labels, duplicates, other names than on disk, endless lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.catalog import Dataset
from pipeline.errors import InputError
from pipeline.import_dataset import Imported, import_dataset
from pipeline.lists import read_lists

NAMES = ("run/a1.mp4", "run/a2.mp4", "walk/b1.mp4", "walk/b2.mp4")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return touch(tmp_path / "videos", *NAMES)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(videos: Path, **files: str) -> Path:
    lists = videos.parent / "lists"
    lists.mkdir(exist_ok=True)
    for name, text in files.items():
        (lists / name.replace("__", ".")).write_bytes(text.encode())
    return lists


def imported(videos: Path, **files: str) -> Imported:
    return import_dataset("folder", "x", videos, write(videos, **files), headers=False)


def fault(videos: Path, **files: str) -> str:
    with pytest.raises(InputError) as caught:
        imported(videos, **files)
    return str(caught.value)


def sides(dataset: Dataset) -> tuple[set[str], set[str]]:
    return set(dataset.splits[1].train), set(dataset.splits[1].test)


# --- absolute paths -------------------------------------------------------------------------------------------------


def test_absolute_paths_inside_the_folder_of_the_videos_are_relative_to_it(videos: Path) -> None:
    forms = {
        "paths": {
            "train__csv": f"{videos}/run/a1.mp4 0\n{videos}/walk/b1.mp4 1\n",
            "val__csv": f"{videos}/run/a2.mp4 0\n{videos}//walk/b2.mp4 1\n",
        },
        "csv": {
            "all__csv": "label,path,split\n"
            + "".join(
                f"{name.split('/')[0]},{videos}/{name},{'train' if '1.' in name else 'test'}\n"
                for name in NAMES
            )
        },
        "ucf": {
            "trainlist01__txt": f"{videos}/run/a1.mp4 1\n{videos}/walk/b1.mp4 2\n",
            "testlist01__txt": f"{videos}/run/a2.mp4\n{videos}/walk/b2.mp4\n",
        },
        "hmdb": {
            "run_test_split1__txt": f"{videos}/run/a1.mp4 1\n{videos}/run/a2.mp4 2\n",
            "walk_test_split1__txt": "b1.mp4 1\nb2.mp4 2\n",
        },
    }
    for form, files in forms.items():
        made = imported(videos, **files).dataset
        assert sides(made) == ({"run/a1", "walk/b1"}, {"run/a2", "walk/b2"}), form
        assert made.classes == ("run", "walk"), form
        for path in (videos.parent / "lists").iterdir():
            path.unlink()


def test_absolute_paths_are_found_through_links_to_the_folder(videos: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(videos)
    files = {
        "train__txt": f"{link}/run/a1.mp4 0\n{tmp_path}/lists/../videos/walk/b1.mp4 1\n",
        "val__txt": f"{videos}/run/a2.mp4 0\n{link}/walk/b2.mp4 1\n",
    }
    for root in (videos, link):
        assert sides(imported(root, **files).dataset) == ({"run/a1", "walk/b1"}, {"run/a2", "walk/b2"})


@pytest.mark.parametrize(
    "path", ["/other/run/a1.mp4", "{}s/run/a1.mp4", "{}/../a1.mp4", "{}", "/", "{}/a\0.mp4"]
)
def test_absolute_paths_elsewhere_are_refused_by_file_and_line(videos: Path, path: str) -> None:
    line = path.replace("{}", str(videos))
    assert "train.txt:2: the path " in fault(videos, train__txt=f"run/a2.mp4 0\n{line} 0\n")
    with pytest.raises(InputError, match=r"train.txt:1.*leaves the folder"):
        read_lists(write(videos, train__txt="/run/a1.mp4 0\n"))


# --- more numbers than the format has -------------------------------------------------------------------------------

MANY_NUMBERS = {
    "labels of a video, one of which is 0": "run/a1.mp4 0 1\nwalk/b1.mp4 1 0\n",
    "labels of some videos": "walk/b1.mp4 1\nrun/a1.mp4 3 1\n",
    "labels of some videos, commas": "walk/b1.mp4,1\nrun/a1.mp4,3,1\n",
    "two labels of every video": "run/a1.mp4 3 1\nwalk/b1.mp4 2 4\n",
    "two large labels of every video": "run/a1.mp4 30 11\nwalk/b1.mp4 20 44\n",
    "three labels": "run/a1.mp4 1 2 3\n",
    "many labels": f"run/a1.mp4 {' '.join(map(str, range(80)))}\n",
    "start, frames, label of a folder": "run/t1 1 30 0\n",
    "start, frames, label of folders with numbers in their names": "run/t 2 1 30 0\n",
    "no frames": "run/t1 0 1\n",
    "labels of some folders": "run/t1 3\nrun/t 2 4 1\n",
}


@pytest.mark.parametrize("text", MANY_NUMBERS.values(), ids=MANY_NUMBERS)
def test_more_numbers_than_the_format_has_are_refused_by_file_and_line(videos: Path, text: str) -> None:
    touch(videos, "run/t1/img_1.jpg", "run/t 2/img_1.jpg")
    told = fault(videos, train__txt=text, val__txt="run/a2.mp4 0\n")
    assert f"train.txt:{text.count(chr(10)) if 'some' in _name(text) else 1}: " in told
    assert "several labels" in told
    assert len(told) < 600


def _name(text: str) -> str:
    return next(name for name, value in MANY_NUMBERS.items() if value == text)


@pytest.mark.parametrize(
    "files",
    [
        {"trainlist01__txt": "run/a1.mp4 1 2\n", "testlist01__txt": "run/a2.mp4\n"},
        {"trainlist01__txt": "run/a1.mp4 120 1\n", "testlist01__txt": "run/a2.mp4\n"},
        {"run_test_split1__txt": "a1.mp4 1 2\na2.mp4 2\n"},
        {"train__csv": "label,path\nrun,run/a1.mp4,walk\n"},
    ],
)
def test_official_lists_and_tables_have_their_own_number_of_columns(
    videos: Path, files: dict[str, str]
) -> None:
    (name, *_), line = files, 2 if "train__csv" in files else 1
    assert f"{name.replace('__', '.')}:{line}: expected " in fault(videos, **files)


def test_frames_and_labels_of_folders_and_of_videos_are_still_read(videos: Path) -> None:
    touch(videos, "run/t 2/img_1.jpg", "walk/w 12/img_1.jpg")
    made = imported(videos, train__txt="run/t 2 1 0\nwalk/w 12 240 1\n", val__txt="run/a1.mp4 30 0\n").dataset
    assert sides(made) == ({"run/t 2", "walk/w 12"}, {"run/a1"})


# --- duplicates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["{path},{label}\n", '"{path}",{label}\n', '"{path}","{label}"\n'])
@pytest.mark.parametrize("header", ["", "path,label\n"])
def test_a_csv_with_and_without_a_header_or_quotes_is_the_same_list(
    videos: Path, header: str, row: str
) -> None:
    lists = videos.parent / "lists"
    lists.mkdir()
    for side, number in (("train", 1), ("val", 2)):
        rows = [row.format(path=f"{name}{number}.mp4", label=k) for k, name in enumerate(("run/a", "walk/b"))]
        (lists / f"{side}.csv").write_text(header + "".join(rows))
    made = import_dataset("folder", "x", videos, lists).dataset
    assert made.classes == ("run", "walk")
    assert sides(made) == ({"run/a1", "walk/b1"}, {"run/a2", "walk/b2"})


def test_identical_rows_are_accepted_with_a_count(videos: Path) -> None:
    text = f"run/a1.mp4 0\nwalk/b1.mp4 1\nrun/a1.mp4 0\n{videos}/run/a1.mp4 0\n"
    made = imported(videos, train__txt=text, val__txt="run/a2.mp4 0\n")
    assert made.dataset.splits[1].train == ("run/a1", "walk/b1")
    (note,) = (note for note in made.notes if note.startswith("duplicates"))
    assert (
        note
        == f"duplicates: 2 rows the same as an earlier one, for example {videos.parent}/lists/train.txt:3"
    )


def test_all_rows_that_contradict_an_earlier_one_are_reported_at_once(videos: Path) -> None:
    told = fault(
        videos,
        train__txt="run/a1.mp4 0\nwalk/b1.mp4 1\nrun/a1.webm 0\nwalk/b1.mp4 0\n",
        val__txt="run/a1.mp4 0\nrun/a2.mp4 0\n",
    ).splitlines()
    assert len(told) == 3
    assert any("train.txt:4: 'walk/b1.mp4' has label '0', but '1' at " in line for line in told)
    assert any("train.txt:3: 'run/a1.webm' is listed twice (first at " in line for line in told)
    assert any("val.txt:1: 'run/a1.mp4' is in both sides of split 1 (first at " in line for line in told)


def test_of_very_many_contradictions_some_are_shown_and_all_are_counted(videos: Path) -> None:
    rows = "".join(f"run/{number}.mp4 0\nrun/{number}.avi 0\n" for number in range(5000))
    told = fault(videos, train__txt=rows).splitlines()
    assert len(told) == 21
    assert told[-1] == "and 4,980 more"


# --- other names than on disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"train__txt": "run\\a1.mp4 0\nwalk\\b1.mp4 1\n", "val__txt": "run\\a2.mp4 0\n"},
        {"trainlist01__txt": "run\\a1.mp4 1\n", "testlist01__txt": "run\\a2.mp4\n"},
        {"train__csv": "label,path\nrun,C:\\data\\run\\a1.mp4\n"},
    ],
)
def test_backslashes_are_refused_with_a_wanted_and_a_found_name(videos: Path, files: dict[str, str]) -> None:
    told = fault(videos, **files)
    assert re.search(r"lists/\w+\.\w+:[12]: wanted '.*run\\(a[12].mp4)', found 'run/\1'", told)


def test_a_name_may_hold_a_backslash(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "run/a\\1.mp4", "walk/b.mp4")
    made = imported(videos, train__txt="run/a\\1.mp4 0\n", val__txt="walk/b.mp4 1\n").dataset
    assert set(made.videos) == {"run/a\\1", "walk/b"}


@pytest.mark.parametrize("listed", ["Run/A1.mp4", "run/v_a1.mp4", "run/a1.orig.mp4", "run/a 1.mp4"])
def test_other_names_than_on_disk_are_shown_with_the_nearest_one(videos: Path, listed: str) -> None:
    rest = "walk/b1.mp4 1\nrun/a2.mp4 0\n"
    for told in (
        fault(videos, train__txt=f"{listed} 0\n", val__txt=rest),
        fault(videos, train__txt=f"{listed} 0\n", val__txt=""),
    ):
        assert f"wanted for example '{listed}', found 'run/a1.mp4'" in told


# --- what is shown --------------------------------------------------------------------------------------------------

LONG = "x" * 100_000
ODD = "\x1b[2J\u202e"


@pytest.mark.parametrize(
    "files",
    [
        {"train__txt": f"{LONG}{ODD}\n"},
        {"train__txt": f"{ODD}{LONG}.mp4 0\n"},
        {"train__txt": f"/{ODD}{LONG}.mp4 0\n"},
        {"train__txt": f"../{ODD}{LONG}.mp4 0\n"},
        {"train__txt": f"run/{LONG}.mp4 {'1 ' * 1000}\n"},
        {"train__txt": f"run/a1.mp4 0\nrun/{ODD}{LONG} 1 2 3\n"},
        {"train__csv": f"label,path\n{ODD}{LONG},\n"},
        {"train__csv": f"label,path\nrun,run/a1.mp4,{ODD}{LONG}\n"},
        {"trainlist01__txt": f"{LONG}{ODD}\n"},
        {"trainlist01__txt": f"{LONG}{ODD}/x.avi 1 2\n"},
        {"trainlist01__txt": "run/a1.mp4 1\n", "classInd__txt": f"1 {LONG}{ODD}\n1 {LONG}\n"},
        {"trainlist01__txt": f"{LONG}{ODD}/x.avi 1\n", "classInd__txt": "1 run\n"},
        {"run_test_split1__txt": f"{ODD}{LONG} 3\n"},
        {"run_test_split1__txt": f"{ODD}{LONG}.avi 1\n"},
    ],
)
def test_a_line_is_never_shown_beyond_200_characters_nor_with_control_characters(
    videos: Path, files: dict[str, str]
) -> None:
    told = fault(videos, **files).replace(str(videos.parent), "")
    assert "x" * 201 not in told
    assert len(told) < 700
    assert not set(ODD[0] + ODD[-1]) & set(told)


@pytest.mark.parametrize(
    "line", [f"a{' ' * 1_000_000}x", f"a{' 1' * 500_000}", f"{'a.mp4 1 ' * 100_000}x", ". 1"]
)
def test_an_odd_line_is_refused_without_delay(videos: Path, line: str) -> None:
    assert "train.txt:1: " in fault(videos, train__txt=f"{line}\n")


def test_lines_may_end_as_on_an_old_macintosh(videos: Path) -> None:
    made = imported(videos, train__txt="run/a1.mp4 0\rwalk/b1.mp4 1\r", val__txt="run/a2.mp4 0\r\n").dataset
    assert sides(made) == ({"run/a1", "walk/b1"}, {"run/a2"})
