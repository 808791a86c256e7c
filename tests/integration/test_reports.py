"""Files after public bug reports (see the README beside them), and clips of the same kinds that are written here."""

from __future__ import annotations

import tarfile
from pathlib import Path

import click.testing
import pytest

from extract_flow.__main__ import main as extract_flow
from extract_flow.sources import find_videos
from pipeline.errors import InputError
from pipeline.import_dataset import import_dataset, probe
from pipeline.paths import OutputPaths
from pipeline.video import Selection, VideoError, VideoReader

pytestmark = pytest.mark.realdata
SOURCE_SIZE = Selection(short_side=None)


@pytest.fixture(scope="session")
def reports(test_data: Path) -> Path:
    folder = test_data / "reports"
    if not folder.is_dir():
        pytest.skip(f"no files after bug reports at {folder}")
    return folder


@pytest.fixture
def unpacked(reports: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder with the files of the archive that the test names."""
    with tarfile.open(reports / request.param) as archive:
        archive.extractall(tmp_path, filter="tar")
    return tmp_path


def decoded(path: Path) -> tuple[int, str, tuple[str, ...]]:
    """Frames that come out, why it failed if it did, and the notes."""
    frames = 0
    try:
        with VideoReader(path, SOURCE_SIZE) as reader:
            while count := len(reader.read(16).gray):
                frames += count
            return frames, "", reader.notes
    except VideoError as error:
        return frames, error.reason, ()


@pytest.mark.parametrize(
    ("name", "frames", "note"),
    [
        ("cover_art_is_stream_0.mp4", 25, ""),
        ("preview_track_before_main_track.mkv", 25, "another video"),
        ("cut_short_vp8.webm", 31, "says 2.00 s, it holds 1.24 s (31 frames)"),
        ("clock_steps_back.webm", 25, ""),
        ("MUST_PASS_open_gop_cut.ts", 26, ""),
    ],
)
def test_sound_files_give_all_their_frames_and_no_needless_note(
    reports: Path, name: str, frames: int, note: str
) -> None:
    count, failure, notes = decoded(reports / name)
    assert (count, failure) == (frames, "")
    assert len(notes) == bool(note)
    assert note in "".join(notes)
    header = probe(reports / name)
    assert (header.width, header.height, header.fault) == (160, 120, "")


@pytest.mark.parametrize(
    ("name", "sound"), [("damaged_h264.mp4", 50 - 10), ("cut_in_last_frame_mjpeg.avi", 31)]
)
def test_damage_that_the_decoder_conceals_fails_after_the_frames_before_it(
    reports: Path, name: str, sound: int
) -> None:
    count, failure, _ = decoded(reports / name)
    assert "damaged" in failure
    assert 0 < count <= sound


@pytest.mark.parametrize(
    ("unpacked", "folder", "frames"),
    [
        ("tsn_rawframes_one_folder.tar.gz", "tsn/Walk/v1", 10),
        ("frame_names_end_in_hash.tar.gz", "rf/Walk/t1", 6),
    ],
    indirect=["unpacked"],
)
def test_a_folder_of_pictures_is_the_frames_in_order(unpacked: Path, folder: str, frames: int) -> None:
    assert decoded(unpacked / folder) == (frames, "", ())
    assert probe(unpacked / folder).frames == frames


@pytest.mark.parametrize("unpacked", ["zero_byte_picture.tar.gz"], indirect=True)
def test_an_empty_picture_fails_and_is_named(unpacked: Path) -> None:
    count, failure, _ = decoded(unpacked / "pic/Walk/t3")
    assert count == 3
    assert failure.startswith("img_00004.jpg is empty")


@pytest.mark.parametrize("unpacked", ["videos_with_thumbnails.tar.gz"], indirect=True)
def test_thumbnails_beside_videos_are_not_videos(unpacked: Path) -> None:
    found = find_videos([unpacked / "thumbs"], OutputPaths(unpacked / "out"))
    assert [decoded(task.path)[0] for task in found] == [10, 10]
    made = import_dataset("folder", "x", unpacked / "thumbs").dataset
    assert sorted(made.videos) == [task.video for task in found]


@pytest.mark.parametrize("unpacked", ["linked_class_folder.tar.gz"], indirect=True)
def test_a_linked_class_folder_is_followed_or_refused_by_both_commands_alike(unpacked: Path) -> None:
    videos, output = unpacked / "lk/videos", OutputPaths(unpacked / "out")
    for command in (lambda: find_videos([videos], output), lambda: import_dataset("folder", "x", videos)):
        with pytest.raises(InputError, match=r"'run' .leads outside.*--follow-links"):
            command()
    found = find_videos([videos], output, follow_links=True)
    assert [task.video for task in found] == ["run/a1", "run/a2", "walk/b1", "walk/b2"]
    made = import_dataset("folder", "x", videos, follow_links=True).dataset
    assert sorted(made.videos) == [task.video for task in found]


@pytest.mark.parametrize("unpacked", ["tsn_rawframes_one_folder.tar.gz"], indirect=True)
def test_the_layout_of_tsn_is_taken_by_both_commands(unpacked: Path) -> None:
    from pipeline.__main__ import main as pipeline
    from pipeline.shard import open_shard

    run = click.testing.CliRunner().invoke
    method = ("--method", "dis", "--preset", "ultrafast", "--jobs", "1", "--short-side", "none")
    result = run(extract_flow, [str(unpacked / "tsn"), "--output", str(unpacked / "out"), *method])
    assert result.exit_code == 0, result.output
    with open_shard(unpacked / "out/Walk/v1.h5") as shard:
        assert (shard.frame_count, shard.flow_count) == (10, 9)
    taken = ["import-flow", str(unpacked / "tsn"), "--bound", "20", "--output", str(unpacked / "taken")]
    result = run(pipeline, taken)
    assert result.exit_code == 0, result.output
    with open_shard(unpacked / "taken/Walk/v1.h5") as shard:
        assert (shard.frame_count, shard.flow_count) == (10, 9)
