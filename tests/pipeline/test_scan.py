"""Rules of pipeline/scan.py and pipeline/pictures.py: which videos lie in a folder, and which pictures are frames."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from extract_flow.sources import find_videos
from pipeline.errors import InputError
from pipeline.import_dataset import import_dataset
from pipeline.paths import OutputPaths
from pipeline.pictures import frames_of, list_pictures, number_gaps
from pipeline.scan import scan

FOLDER = Path("folder")
OUTPUT = OutputPaths(Path("out"))


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def order(names: list[str]) -> list[str]:
    return [picture.name for picture in frames_of(names, FOLDER)]


def random_hash(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(7))


# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["img_", "image_", "frame", ""])
@pytest.mark.parametrize("flow", [("flow_x_", "flow_y_"), ("x_", "y_"), ("flow-u-", "flow-v-")])
def test_flow_beside_frames_is_put_aside(frame: str, flow: tuple[str, str]) -> None:
    frames = [f"{frame}{n:05}.jpg" for n in range(1, 11)]
    others = [f"{name}{n:05}.jpg" for name in flow for n in range(1, 10)]
    assert order([*others, *frames]) == frames


@pytest.mark.parametrize(
    "shape",
    ["{side}_{n:03}.png", "{n:03}_{side}.png", "cam{number}_{n:03}.png", "{side}{n}.png", "{n}.{suffix}"],
)
def test_several_sequences_in_one_folder_are_refused_with_both_names(shape: str) -> None:
    sides = (("left", 1, "jpg"), ("right", 2, "png"))
    names = [shape.format(side=s, number=k, suffix=x, n=n) for s, k, x in sides for n in range(6)]
    with pytest.raises(InputError, match="2 sequences of pictures") as caught:
        order(names)
    assert names[0] in str(caught.value)
    assert names[6] in str(caught.value)


def test_copies_are_not_frames() -> None:
    frames = [f"img_{n:05}.jpg" for n in range(1, 8)]
    copies = [
        "img_00003 (1).jpg",
        "img_00004 - Copy.jpg",
        "img_00005 copy 2.jpg",
        "img_00006 - Kopie (2).jpg",
        "img_00002(1).jpg",
        "Copy of img_00007.jpg",
    ]
    assert order([*copies, *frames]) == frames
    numbered = [f"frame ({n}).jpg" for n in range(1, 12)]
    assert order(numbered[::-1]) == numbered
    runs = [f"run 5({n}).jpg" for n in range(1, 12)]
    assert order(runs[::-1]) == runs


@pytest.mark.parametrize(
    "shape",
    [
        "frame_{n:04}_{hash}.jpg",
        "frame_{n:04}_jpg.rf.{hash}.jpg",
        "{hash}_frame_{n:04}.jpg",
        "{n}-{hash}.jpg",
    ],
)
def test_the_number_that_counts_is_the_one_that_varies_along_the_sequence(shape: str) -> None:
    rng = random.Random(3)
    names = [shape.format(n=n, hash=random_hash(rng)) for n in range(1, 40) if n not in (7, 8)]
    shuffled = rng.sample(names, len(names))
    assert order(shuffled) == names
    assert number_gaps([FOLDER / name for name in names]) == ("frames 7 to 8 are missing",)


@pytest.mark.parametrize(
    "shape",
    ["frame_{n:04}_12-{m:02}-{s:02}.jpg", "12-{m:02}-{s:02}.jpg", "12-{m:02}-{s:02}_{n:04}.jpg", "t_{t:.2f}.jpg",
     "2024-01-02_12.{m:02}.{s:02}.png", "1920x1080_{n}_v2.jpg"],
)  # fmt: skip
def test_times_and_sizes_in_names_do_not_disturb_the_order(shape: str) -> None:
    names = [shape.format(n=n, m=n // 60, s=n % 60, t=n / 25) for n in range(30, 150)]
    assert order(names[::-1]) == names
    assert number_gaps([FOLDER / name for name in names]) == ()


def test_two_pictures_of_one_number_are_refused() -> None:
    with pytest.raises(InputError, match=r"'img_01\.jpg' and 'img_1\.jpg' have the same number"):
        order(["img_1.jpg", "img_01.jpg", "img_2.jpg"])


# --- folders ------------------------------------------------------------------------------------------------


def found_by_both(videos: Path, **options: bool) -> tuple[list[str], list[str]]:
    """Identities that `extract_flow FOLDER` and `import folder` find."""
    made = import_dataset("folder", "x", videos, headers=False, **options).dataset
    return [task.video for task in find_videos([videos], OUTPUT, **options)], sorted(made.videos)


def test_both_commands_see_the_same_videos(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/1.avi",
        "a/1.jpg",
        "a/1.webp",
        "a/sheet_01.png",
        "a/sheet_02.png",
        "b/.hidden.avi",
        "b/2.mkv",
    )
    touch(
        tmp_path, *(f"a/frames/img_{n:03}.jpg" for n in range(3)), "a/frames/notes.txt", "b/notes/readme.txt"
    )
    touch(tmp_path, *(f"c/tsn/{name}_{n:05}.jpg" for name in ("img", "flow_x", "flow_y") for n in (1, 2)))
    touch(tmp_path, *(f"c/flow/{name}_{n:05}.jpg" for name in ("flow_x", "flow_y") for n in (1, 2)))
    by_extraction, by_import = found_by_both(tmp_path)
    assert by_extraction == by_import == ["a/1", "a/frames", "b/2", "c/tsn"]
    assert scan(tmp_path).flow == ("c/flow",)


def test_a_folder_of_thumbnails_is_not_a_video(tmp_path: Path) -> None:
    touch(
        tmp_path, "a/r1.avi", "a/r2.avi", "a/thumbs/r1.jpg", "a/thumbs/r2.jpg", "b/r3.mp4", "b/t/r3.mp4.png"
    )
    touch(tmp_path, "c/r5.avi", "c/frames/r5.jpg", "c/frames/r6.jpg")
    by_extraction, by_import = found_by_both(tmp_path)
    assert by_extraction == by_import == ["a/r1", "a/r2", "b/r3", "c/frames", "c/r5"]


def test_links_to_folders_that_are_gone_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.avi")
    (tmp_path / "b").symlink_to("/nowhere/b")
    (tmp_path / "c").symlink_to("c")
    (tmp_path / "notes.txt").symlink_to("/nowhere/notes.txt")
    for command in (lambda: find_videos([tmp_path], OUTPUT), lambda: import_dataset("folder", "x", tmp_path)):
        with pytest.raises(
            InputError, match=r"2 links.*'b' \(leads nowhere\), 'c' \(a loop: leads to itself\)"
        ):
            command()


def test_a_frame_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"img_{n}.jpg" for n in range(3)))
    (tmp_path / "img_3.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match=r"img_3\.jpg is a link that leads nowhere"):
        list_pictures(tmp_path)


def test_one_stem_with_two_suffixes_is_refused_with_both_names_or_kept_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.avi", "a/x.mp4", "a/y.avi", "b/z.avi")
    for command in (lambda: find_videos([tmp_path], OUTPUT), lambda: import_dataset("folder", "x", tmp_path)):
        with pytest.raises(InputError, match=r"--keep-suffix") as caught:
            command()
        assert "x.avi" in str(caught.value)
        assert "x.mp4" in str(caught.value)
    by_extraction, by_import = found_by_both(tmp_path, keep_suffix=True)
    assert by_extraction == by_import == ["a/x.avi", "a/x.mp4", "a/y.avi", "b/z.avi"]


def test_links_in_a_loop_are_named_as_such(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.avi")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/here.avi").symlink_to("here.avi")
    for follow in (False, True):
        with pytest.raises(
            InputError, match=r"'a/here.avi' .a loop: leads to itself.*'a/up' .a loop: leads back"
        ):
            find_videos([tmp_path], OUTPUT, follow_links=follow)
        with pytest.raises(InputError, match="a loop: leads back to a folder it lies in"):
            import_dataset("folder", "x", tmp_path, follow_links=follow)


def test_a_folder_that_may_not_be_read_is_an_error_never_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/x.avi", "b/y.avi")
    real = os.scandir

    def guarded(path: str) -> object:
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for command in (lambda: find_videos([tmp_path], OUTPUT), lambda: import_dataset("folder", "x", tmp_path)):
        with pytest.raises(InputError, match=r"/b: cannot be read: Permission denied"):
            command()


# --- lists of videos ----------------------------------------------------------------------------------------


def test_a_list_names_videos_relative_to_itself_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = touch(tmp_path / "videos", "run/a 1.avi", "walk/b.mp4", "x.mkv")
    touch(tmp_path / "here", "own/c.avi")
    (videos / "list.txt").write_bytes(
        "\ufeffrun/a 1.avi\r\nwalk/b.mp4\n\nown/c.avi\n".encode() + os.fsencode(videos / "x.mkv") + b"\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    expected = ["own/c", "run/a 1", "walk/b", "x"]
    assert [task.video for task in find_videos([], OUTPUT, lists=[videos / "list.txt"])] == expected
    assert [task.video for task in find_videos([Path(f"@{videos / 'list.txt'}")], OUTPUT)] == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"run/a.avi\rrun/b.avi\r", ["run/a", "run/b"]),
        (b"run/a.avi \r\nrun/b.avi\t\r\n", ["run/a", "run/b"]),
        (b"run/a.avi\nrun/a.avi\n", ["run/a"]),
        ("run/a.avi\n".encode("utf-16"), "found UTF-16"),
        (b"run\\a.avi\n", "wanted 'run\\\\\\\\a.avi', found 'run/a.avi'"),
        (b"run/a.avi 3\n", "found numbers after 'run/a.avi': lists with labels"),
        (b"run/a.avi 40, 3\n", "found numbers after 'run/a.avi': lists with labels"),
    ],
)
def test_a_list_written_by_another_system_or_for_another_purpose_is_read_or_refused_with_the_reason(
    tmp_path: Path, content: bytes, found: list[str] | str
) -> None:
    touch(tmp_path, "run/a.avi", "run/b.avi")
    (tmp_path / "list.txt").write_bytes(content)
    if isinstance(found, str):
        with pytest.raises(InputError, match=rf"list\.txt.*{found}"):
            find_videos([], OUTPUT, lists=[tmp_path / "list.txt"])
    else:
        assert [task.video for task in find_videos([], OUTPUT, lists=[tmp_path / "list.txt"])] == found


def test_a_missing_path_of_a_list_is_named_by_file_and_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.avi")
    (tmp_path / "list.txt").write_text("a.avi\n" + "b" * 1000 + ".avi\n")
    with pytest.raises(InputError, match=r"list\.txt:2: ") as caught:
        find_videos([], OUTPUT, lists=[tmp_path / "list.txt"])
    assert len(str(caught.value)) < 600
    with pytest.raises(InputError, match="no such file or folder"):
        find_videos([tmp_path / "@none.txt"], OUTPUT)
