"""Every file after a public bug report ends as the README beside the files says.

Clips of the same kinds that the tests write themselves are in tests/pipeline/test_odd_videos.py and its neighbours.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click.testing
import pytest
from test_faulty_systems import compiled, every_stage_works_without_locks

from extract_flow.__main__ import main as extract_flow
from extract_flow.sources import find_videos
from pipeline.__main__ import main as pipeline
from pipeline.errors import InputError
from pipeline.import_dataset import import_dataset, probe
from pipeline.lists import VideosFolder, read_lists
from pipeline.paths import OutputPaths
from pipeline.shard import open_shard
from pipeline.video import Selection, VideoError, VideoReader
from slurm import queueing, scheduler
from slurm.chain import Job

pytestmark = pytest.mark.realdata
SOURCE_SIZE = Selection(short_side=None)


class Report(NamedTuple):
    """A file after a bug report: itself, an empty folder (an archive is unpacked there), and pytest's helper."""

    file: Path
    folder: Path
    monkeypatch: pytest.MonkeyPatch


@pytest.fixture(scope="session")
def reports(test_data: Path) -> Path:
    folder = test_data / "reports"
    if not folder.is_dir():
        pytest.skip(f"no files after bug reports at {folder}")
    return folder


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


def run(command: click.Command, *arguments: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command, [str(argument) for argument in arguments])


def extracted(folder: Path, output: Path, *options: str) -> click.testing.Result:
    method = ("--method", "dis", "--preset", "ultrafast", "--jobs", "1", "--short-side", "none", "--no-rgb")
    return run(extract_flow, folder, "--output", output, *method, *options)


def sound(frames: int, note: str = "") -> Callable[[Report], None]:
    """All frames come out, and only the note that belongs."""

    def check(report: Report) -> None:
        count, failure, notes = decoded(report.file)
        assert (count, failure) == (frames, "")
        assert len(notes) == bool(note)
        assert note in "".join(notes)
        header = probe(report.file)
        assert (header.width, header.height, header.fault) == (160, 120, "")

    return check


def damaged(sound_frames: int) -> Callable[[Report], None]:
    """It fails, also as a command; `keep` uses no frame behind the damage."""

    def check(report: Report) -> None:
        count, failure, _ = decoded(report.file)
        assert "damaged" in failure
        assert 0 < count <= sound_frames
        output = report.folder / "out"
        refused = extracted(report.file, output)
        assert refused.exit_code == 1
        assert "damaged" in refused.output
        kept = extracted(report.file, output, "--on-corrupt", "keep")
        assert kept.exit_code == 0, kept.output
        with open_shard(output / f"{report.file.stem}.h5") as shard:
            assert shard.frame_count == count

    return check


def frames_in_order(folder: str, frames: int) -> Callable[[Report], None]:
    def check(report: Report) -> None:
        assert decoded(report.folder / folder) == (frames, "", ())
        assert probe(report.folder / folder).frames == frames

    return check


def tsn_layout(report: Report) -> None:
    """Both commands take it: one the frames, the other the flow too."""
    frames_in_order("tsn/Walk/v1", 10)(report)
    source = report.folder / "tsn"
    for output, result in (
        ("out", extracted(source, report.folder / "out")),
        ("taken", run(pipeline, "import-flow", source, "--bound", "20", "--output", report.folder / "taken")),
    ):
        assert result.exit_code == 0, result.output
        with open_shard(report.folder / output / "Walk/v1.h5") as shard:
            assert (shard.frame_count, shard.flow_count) == (10, 9)


def thumbnails(report: Report) -> None:
    """They are not videos."""
    found = find_videos([report.folder / "thumbs"], OutputPaths(report.folder / "out"))
    assert [decoded(task.path)[0] for task in found] == [10, 10]
    made = import_dataset("folder", "x", report.folder / "thumbs").dataset
    assert sorted(made.videos) == [task.video for task in found]


def linked_class_folder(report: Report) -> None:
    """Followed or refused by both commands alike."""
    videos, output = report.folder / "lk/videos", OutputPaths(report.folder / "out")
    for command in (lambda: find_videos([videos], output), lambda: import_dataset("folder", "x", videos)):
        with pytest.raises(InputError, match=r"'run' .leads outside.*--follow-links"):
            command()
    found = find_videos([videos], output, follow_links=True)
    assert [task.video for task in found] == ["run/a1", "run/a2", "walk/b1", "walk/b2"]
    made = import_dataset("folder", "x", videos, follow_links=True).dataset
    assert sorted(made.videos) == [task.video for task in found]


def absolute_paths(report: Report) -> None:
    lists = report.folder / "absin"
    for path in lists.iterdir():
        path.write_text(path.read_text().replace("/path/to/unpacked", os.fspath(report.folder)))
    made = import_dataset("folder", "x", report.folder / "vids", lists).dataset
    split = made.split(1)
    assert (set(split.train), set(split.test)) == ({"run/a1", "walk/b1"}, {"run/a2", "walk/b2"})
    assert made.classes == ("run", "walk")


def two_labels(report: Report) -> None:
    """Refused by file and line."""
    for name in ("train_list.txt", "val_list.txt"):
        with pytest.raises(InputError, match=rf"{name}:[12]: .*several labels"):
            read_lists(report.folder / "ml2" / name, None, VideosFolder(report.folder / "vids"))
    with pytest.raises(InputError, match=r"train_list.txt:1: .*several labels"):
        import_dataset("folder", "x", report.folder / "vids", report.folder / "ml2")


def empty_picture(report: Report) -> None:
    count, failure, _ = decoded(report.folder / "pic/Walk/t3")
    assert count == 3
    assert failure.startswith("img_00004.jpg is empty")
    assert "\n" not in failure


def without_locks(report: Report) -> None:
    library = compiled(report.file, report.folder / "library.so")
    every_stage_works_without_locks({"LD_PRELOAD": str(library), "TMPDIR": str(report.folder)})


def banner(report: Report) -> None:
    """The chain is sent; where that fails, what could not be cancelled is named: this site's scancel always fails."""

    def submit() -> list[str]:
        jobs = [
            Job(
                stage,
                f"{stage}-toy",
                None,
                {},
                [f"--job-name={stage}-toy"],
                f"slurm/{stage}.sbatch",
                [],
                waits,
            )
            for stage, waits in (("flow", None), ("verify", "afterok"), ("train", "afterok"))
        ]
        return [each.job for each in queueing.submit_all(jobs, report.folder)]

    programs = report.folder / "banner"
    report.monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    report.monkeypatch.setenv("FAKE_SLURM", str(report.folder))
    assert submit() == ["519605", "519606", "519607"]
    # Its squeue has every job pending: nothing may be called cancelled.
    report.monkeypatch.setattr(scheduler, "never_starts", lambda found: "it never starts")
    with pytest.raises(InputError, match="could not be cancelled: job 519608") as caught:
        submit()
    assert "could not be cancelled: job 519608 (pending; scancel: Invalid job id)" in str(caught.value)


CASES: dict[str, Callable[[Report], None]] = {
    "cover_art_is_stream_0.mp4": sound(25),
    "preview_track_before_main_track.mkv": sound(25, "another video"),
    "damaged_h264.mp4": damaged(50 - 10),
    "cut_in_last_frame_mjpeg.avi": damaged(31),
    "cut_short_vp8.webm": sound(31, "says 2.00 s, it holds 1.24 s (31 frames)"),
    "clock_steps_back.webm": sound(25),
    "MUST_PASS_open_gop_cut.ts": sound(26),
    "tsn_rawframes_one_folder.tar.gz": tsn_layout,
    "videos_with_thumbnails.tar.gz": thumbnails,
    "linked_class_folder.tar.gz": linked_class_folder,
    "list_absolute_paths.tar.gz": absolute_paths,
    "list_two_labels.tar.gz": two_labels,
    "frame_names_end_in_hash.tar.gz": frames_in_order("rf/Walk/t1", 6),
    "zero_byte_picture.tar.gz": empty_picture,
    "no_flock_preload.c": without_locks,
    "slurm_wrapper_with_banner.tar.gz": banner,
}


def test_every_file_of_the_folder_has_a_case(reports: Path) -> None:
    assert sorted(CASES) == sorted(path.name for path in reports.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("name", CASES)
def test_a_file_after_a_bug_report_ends_as_its_readme_says(
    reports: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = reports / name
    if name.endswith(".tar.gz"):
        with tarfile.open(file) as archive:
            archive.extractall(tmp_path, filter="tar")
    CASES[name](Report(file, tmp_path, monkeypatch))
