"""python -m extract_flow from files to shards: what is in them, what ends how, and what survives a kill."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from rendered_clips import clip, moving_texture, write_video

from extract_flow.methods import load
from pipeline import atomic, catalog
from pipeline.catalog import Dataset, Video
from pipeline.codec import codec
from pipeline.outcome import read_outcomes
from pipeline.shard import bad_streams, open_shard
from pipeline.shard_index import index_shards
from pipeline.video import Selection, VideoReader

PROJECT = Path(__file__).resolve().parent.parent.parent
QUICK = ("--method", "dis", "--preset", "ultrafast", "--short-side", "none")
SHORTEST_TO_KILL = 0.3


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "extract_flow", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def extract(*arguments: object, status: int = 0, jobs: int = 1, **options: object) -> tuple[str, str]:
    """Run the command, check its exit status; returns what it printed on stdout and stderr."""
    process = start(f"--jobs={jobs}", *arguments, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return out, err


def content(path: Path) -> dict[str, object]:
    """Every dataset and attribute of a shard."""
    found: dict[str, object] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()
        found.update({f"{name}@{key}": str(value) for key, value in item.attrs.items()})

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def contents(folder: Path) -> dict[str, dict[str, object]]:
    return {video: content(address.file) for video, address in index_shards(folder).items()}


def assert_sound(folder: Path) -> None:
    """Every shard opens and its streams match their check sums; nothing temporary is left."""
    for address in index_shards(folder).values():
        with open_shard(address) as shard:
            assert list(bad_streams(shard)) == []
    assert [p for p in folder.rglob("*") if atomic.is_temporary(p.name)] == []


def workers_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] not in "ZX" and "spawn_main" in command:
                found.append(int(entry.name))
    return found


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        clip(folder / f"class {i % 2}" / f"video.{i}.avi", frames=7 + i, width=48 + 8 * (i % 3), seed=i)
    return folder


# --- what is in the shards ------------------------------------------------------------


def test_flow_and_frames_are_those_of_the_video(clips: Path, tmp_path: Path) -> None:
    out, _ = extract(
        clips, "--output", tmp_path, *QUICK, "--direction", "both", "--step", 2, "--codec", "lossless"
    )
    assert out.startswith("6 done, 0 skipped (already valid), 0 failed\n")
    method, quantiser = load("dis", preset="ultrafast"), codec("lossless").quantiser
    shards = index_shards(tmp_path)
    assert sorted(shards) == sorted(f"class {i % 2}/video.{i}" for i in range(6))
    for video, address in shards.items():
        with VideoReader(clips / f"{video}.avi", Selection(None), rgb=True) as reader:
            gray, rgb = reader.read(100)
        assert rgb is not None
        with open_shard(address) as shard:
            assert (shard.video, shard.frame_count, shard.fps) == (video, len(gray), 25)
            count = len(gray) - 2
            assert shard.flow_counts["forward"] == shard.flow_counts["backward"] == count
            steps = np.arange(count)
            for direction, pairs in (("forward", (steps, steps + 2)), ("backward", (steps + 2, steps))):
                expected = method.run(gray, np.stack(pairs, axis=1), "levels", quantiser)
                assert np.array_equal(shard.levels(0, count, direction), expected.levels)
                assert np.array_equal(shard.mean(direction), expected.mean)
            assert np.abs(shard.frames(0, len(rgb)).astype(int) - rgb).mean() < 4


def test_pieces_of_any_size_give_the_same_shard(tmp_path: Path) -> None:
    """A video longer than a piece: the pairs across the border are there, and right."""
    path = clip(tmp_path / "long.avi", frames=75)
    extract(
        path, "--output", tmp_path / "out", *QUICK, "--step", 3, "--direction", "both", "--codec", "lossless"
    )
    with VideoReader(path, Selection(None)) as reader:
        gray = reader.read(100).gray
    steps = np.arange(72)
    expected = load("dis", preset="ultrafast").run(
        gray, np.stack([steps, steps + 3], axis=1), "levels", codec("lossless").quantiser
    )
    with open_shard(tmp_path / "out/long.h5") as shard:
        assert np.array_equal(shard.levels(0, 72), expected.levels)


def test_the_number_of_jobs_and_threads_changes_no_byte(clips: Path, tmp_path: Path) -> None:
    extract(clips, "--output", tmp_path / "1", *QUICK)
    extract(clips, "--output", tmp_path / "2", *QUICK, "--threads", 2, jobs=3)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_overlapped_stages_change_no_byte(clips: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from extract_flow.extraction import Destination
    from extract_flow.extraction import extract as extract_videos
    from extract_flow.methods import resolve
    from extract_flow.options import Execution
    from extract_flow.settings import ExtractionSettings
    from extract_flow.sources import find_videos
    from pipeline.paths import OutputPaths

    settings = ExtractionSettings(
        "dis", asdict(resolve("dis", "ultrafast")), Selection(None), ("forward", "backward")
    )
    for name, overlap in (("serial", False), ("overlapped", True)):
        tasks = find_videos([clips], OutputPaths(tmp_path / name))
        execution = Execution(device="cpu", jobs=3, overlap=overlap)
        destination = Destination(tmp_path / name, tmp_path / name / "outcomes")
        outcomes = extract_videos(tasks, settings, execution, destination, plain=True)
        assert {outcome.status for outcome in outcomes} == {"done"}
    assert contents(tmp_path / "serial") == contents(tmp_path / "overlapped")
    assert_sound(tmp_path / "overlapped")


def test_parts_added_later_leave_the_others_byte_for_byte(clips: Path, tmp_path: Path) -> None:
    extract(clips, "--output", tmp_path / "a", *QUICK, "--no-rgb")
    before = contents(tmp_path / "a")
    extract(clips, "--output", tmp_path / "a", *QUICK, "--no-rgb", "--direction", "both")
    extract(clips, "--output", tmp_path / "a", *QUICK, "--rgb", "--direction", "backward")
    after = contents(tmp_path / "a")
    for video, parts in before.items():
        flow = {name: value for name, value in parts.items() if name.startswith("flow/forward")}
        assert flow.items() <= after[video].items()
    extract(clips, "--output", tmp_path / "b", *QUICK, "--rgb", "--direction", "both")
    assert after == contents(tmp_path / "b")
    out, _ = extract(clips, "--output", tmp_path / "a", *QUICK, "--no-rgb")
    assert out.startswith("0 done, 6 skipped")


def test_selected_times_and_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", frames=50)
    extract(path, "--output", tmp_path, *QUICK, "--every", 3, "--start", 0.4, "--end", 1.6)
    with open_shard(tmp_path / "a.h5") as shard:
        assert shard.frame_count == 10
        assert shard.fps == pytest.approx(25 / 3)


def test_a_folder_of_pictures_is_a_video_and_gaps_are_told(tmp_path: Path) -> None:
    import cv2

    for i, frame in enumerate(moving_texture(9, 40, 32), 1):
        if i != 4:
            (tmp_path / "in/cls/stack").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / f"in/cls/stack/img_{i:05}.jpg"), frame)
    for given, video in ((tmp_path / "in", "cls/stack"), (tmp_path / "in/cls/stack", "stack")):
        out, _ = extract(given, "--output", tmp_path / "out", *QUICK)
        assert f"note: {video}: frame 4 is missing" in out
        with open_shard(tmp_path / f"out/{video}.h5") as shard:
            assert (shard.frame_count, shard.flow_count) == (8, 7)


def test_a_video_of_one_frame_has_a_shard_without_flow(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mkv", moving_texture(1, 32, 32), codec="ffv1", pixels="bgr0")
    out, _ = extract(tmp_path / "one.mkv", "--output", tmp_path, *QUICK)
    assert "it has no flow" in out
    with open_shard(tmp_path / "one.h5") as shard:
        assert (shard.frame_count, shard.flow_count) == (1, 0)
    assert extract(tmp_path / "one.mkv", "--output", tmp_path, *QUICK)[0].startswith("0 done, 1 skipped")


# --- what ends how ------------------------------------------------------------


def damage(path: Path, packet: int) -> Path:
    """Overwrite a packet of an H.264 file so that decoding it is an error."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    at, size = packets[packet].pos, packets[packet].size
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def test_a_corrupt_video_fails_or_keeps_its_frames_and_is_marked(tmp_path: Path) -> None:
    path = damage(clip(tmp_path / "bad.mp4", frames=40, codec="libx264"), 20)
    good = clip(tmp_path / "good.avi")
    out, _ = extract(path, good, "--output", tmp_path / "fail", *QUICK, status=1)
    assert out.startswith("1 done, 0 skipped (already valid), 1 failed")
    assert "cannot be decoded" in out
    assert list(index_shards(tmp_path / "fail")) == ["good"]
    out, _ = extract(path, good, "--output", tmp_path / "keep", *QUICK, "--on-corrupt", "keep")
    assert "frames before were kept" in out
    with open_shard(tmp_path / "keep/bad.h5") as shard:
        assert 2 <= shard.frame_count < 40
        assert shard.flow_count == shard.frame_count - 1
        assert "cannot be decoded" in shard.corrupt
        assert f"after {shard.frame_count} frames" in shard.corrupt


def test_nothing_worth_keeping_fails_in_both_policies(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").write_bytes(b"")
    out, _ = extract(tmp_path / "empty.avi", "--output", tmp_path, *QUICK, "--on-corrupt", "keep", status=1)
    assert f"failed: empty: {tmp_path}/empty.avi: the file is empty" in out


def test_other_parameters_are_an_error_that_shows_both_or_made_anew(clips: Path, tmp_path: Path) -> None:
    video = clips / "class 0/video.0.avi"
    extract(video, "--output", tmp_path, *QUICK)
    before = content(tmp_path / "video.0.h5")
    out, _ = extract(video, "--output", tmp_path, *QUICK, "--iterations", 7, "--step", 2, status=1)
    assert "iterations: asked 7, the shard has 12" in out
    assert "step: asked 2, the shard has 1" in out
    assert content(tmp_path / "video.0.h5") == before
    extract(video, "--output", tmp_path, *QUICK, "--iterations", 7, "--overwrite")
    assert content(tmp_path / "video.0.h5") != before
    out, _ = extract(video, "--output", tmp_path, *QUICK, "--iterations", 7, "--overwrite")
    assert out.startswith("0 done, 1 skipped")


def test_resuming_with_another_default_says_once_what_differs_and_which_preset_continues(
    clips: Path, tmp_path: Path
) -> None:
    first = sorted((clips / "class 0").iterdir())
    extract(*first, "--output", tmp_path, "--no-rgb", "--short-side", 32, "--preset", "default-1")
    out, _ = extract(*first, "--output", tmp_path, "--no-rgb", "--short-side", 32, status=1)
    assert out.count("--preset default-1") == 1
    assert "failed: 3 videos (video.0, video.2, video.4): its shard was made with other settings" in out
    assert "lambda_: asked 0.22, the shard has 0.15" in out
    out, _ = extract(*first, "--output", tmp_path, "--no-rgb", "--short-side", 32, "--preset", "default-1")
    assert out.startswith("0 done, 3 skipped")


@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_set_begun_with_other_settings_is_not_mixed_and_each_array_task_says_so(
    tmp_path: Path, task: int
) -> None:
    root = tmp_path / "videos"
    (root / "a").mkdir(parents=True)
    videos = {}
    for number in range(3):
        clip(root / f"a/v{number}.avi", 3, 48, 32)
        videos[f"a/v{number}"] = Video(f"a/v{number}", root / f"a/v{number}.avi", "a", "g", 3, 48, 32)
    catalog.save(Dataset("mine", ("a",), videos, {}), root, tmp_path)
    again = ("--dataset", "mine", "--data", tmp_path, "--no-rgb", "--short-side", 32)
    shards = tmp_path / "mine/shards/tvl1"
    extract(*again, "--preset", "default-1", "--task", 0, "--tasks", 3)
    (begun,) = index_shards(shards)
    before = content(shards / f"{begun}.h5")
    share = ("--task", task, "--tasks", 3)
    out, err = extract(*again, *share, status=1)
    assert not out
    assert "2 videos of 3 would be made with these, while shards that are there were made with others" in err
    assert f"1 video (for example {begun}): " in err
    assert "lambda_: asked 0.22, the shard has 0.15" in err
    assert "--preset default-1" in err
    assert "--shards" in err
    assert "--overwrite" in err
    assert list(index_shards(shards)) == [begun]
    out, _ = extract(*again, "--preset", "default-1", *share)
    assert out.startswith("0 done, 1 skipped" if task == 0 else "1 done, 0 skipped")
    assert content(shards / f"{begun}.h5") == before


def test_overwrite_makes_a_set_anew_and_another_video_may_have_other_settings(
    clips: Path, tmp_path: Path
) -> None:
    first, *others = sorted((clips / "class 0").iterdir())
    extract(first, "--output", tmp_path, *QUICK)
    extract(others[0], "--output", tmp_path, *QUICK, "--step", 2)
    out, _ = extract(first, *others, "--output", tmp_path, *QUICK, "--step", 2, "--overwrite")
    assert out.startswith("2 done, 1 skipped")


def test_shards_of_another_codec_are_refused_with_one_line_and_kept(clips: Path, tmp_path: Path) -> None:
    extract(clips, "--output", tmp_path, *QUICK, "--bound-fixed")
    before = {video: content(address.file) for video, address in index_shards(tmp_path).items()}
    out, err = extract(clips, "--output", tmp_path, *QUICK, status=1)
    assert out.startswith("0 done, 0 skipped (already valid), 6 failed")
    assert (out + err).count(
        "quantiser: asked asinh s=3 bound=20 ladder, the shard has asinh s=3 bound=20;"
    ) == 1
    assert "process" not in err, "no worker is needed to see it"
    assert {video: content(address.file) for video, address in index_shards(tmp_path).items()} == before
    out, _ = extract(clips, "--output", tmp_path, *QUICK, "--bound-fixed")
    assert out.startswith("0 done, 6 skipped")


def test_a_damaged_shard_is_made_again(clips: Path, tmp_path: Path) -> None:
    video = clips / "class 0/video.0.avi"
    extract(video, "--output", tmp_path, *QUICK)
    before = content(tmp_path / "video.0.h5")
    data = (tmp_path / "video.0.h5").read_bytes()
    (tmp_path / "video.0.h5").write_bytes(data[: len(data) // 2])
    out, _ = extract(video, "--output", tmp_path, *QUICK)
    assert "recreated, because it was damaged" in out
    assert content(tmp_path / "video.0.h5") == before


def test_a_video_that_changed_is_not_taken_for_done(tmp_path: Path) -> None:
    clip(tmp_path / "a.avi", frames=8)
    extract(tmp_path / "a.avi", "--output", tmp_path, *QUICK)
    clip(tmp_path / "a.avi", frames=11)
    out, _ = extract(tmp_path / "a.avi", "--output", tmp_path, *QUICK, status=1)
    assert "source_bytes: asked" in out


HOSTILE = [
    "-dash",
    " lead and trail ",
    "50% %03d",
    'it\'s "q"',
    "a;b",
    "c#d",
    "e&f",
    "[g] (h)!",
    "é漢字",
    "two.dots.x",
    "$(id)",
]


def test_hostile_names_go_through_and_resume(tmp_path: Path) -> None:
    plain = clip(tmp_path / "plain.avi", frames=4)
    for name in HOSTILE:
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        shutil.copy(plain, folder / f"{name}.avi")
    extract(tmp_path / "in", "--output", tmp_path / "out", *QUICK)
    assert set(index_shards(tmp_path / "out")) == {f"{name}/{name}" for name in HOSTILE}
    assert set(read_outcomes(tmp_path / "out/outcomes")) == {f"{name}/{name}" for name in HOSTILE}
    assert extract(tmp_path / "in", "--output", tmp_path / "out", *QUICK)[0].startswith(
        f"0 done, {len(HOSTILE)} skipped"
    )
    shutil.copy(plain, tmp_path / "-x.a.avi")
    command = [sys.executable, "-m", "extract_flow", "--output", "o", *QUICK, "--", "-x.a.avi"]
    subprocess.run(
        command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True
    )
    assert list(index_shards(tmp_path / "o")) == ["-x.a"]


def test_a_name_that_cannot_be_stored_costs_that_video_only(tmp_path: Path) -> None:
    plain = clip(tmp_path / "in/plain.avi", frames=3)
    shutil.copy(plain, tmp_path / "in/two\nlines.avi")
    shutil.copy(plain, os.fsencode(tmp_path / "in") + b"/\xff.avi")
    out, error = extract(tmp_path / "in", "--output", tmp_path / "out", *QUICK, status=1)
    assert out.startswith("1 done, 0 skipped (already valid), 2 failed")
    assert error.count("cannot be stored") == 2, "before the work begins"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        ((), "name what to extract", 2),
        (("x.avi",), "--output DIR is missing", 2),
        (("x.avi", "--output", "o", "--method", "dis"), "x.avi: no such file or folder", 1),
        (("--dataset", "none-such"), "none-such", 1),
        (("--dataset", "../x"), "cannot be the name of a dataset", 1),
        (
            ("x.avi", "--output", "o", "--method", "dis", "--tau", "0.1"),
            "--tau is not an option of the method dis",
            2,
        ),
        (("x.avi", "--output", "o", "--method", "dis", "--iterations", "many"), "--iterations", 2),
        (
            ("x.avi", "--output", "o", "--method", "dis", "--iterations", "0"),
            "iterations: expected more than 0",
            1,
        ),
        (("x.avi", "--output", "o", "--size", "340"), "write it as 340x256", 2),
        (
            ("x.avi", "--output", "o", "--method", "dis", "--end", "1", "--start", "2"),
            "end: expected more than",
            1,
        ),
        (("x.avi", "--output", "o", "--method", "dis", "--codec", "best"), "unknown codec preset 'best'", 1),
        (("x.avi", "--output", "o", "--task", "2", "--tasks", "2"), "expected 0 to 1", 2),
    ],
)
def test_wrong_usage_says_what_is_right(arguments: tuple, message: str, status: int, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from extract_flow.__main__ import main

    result = CliRunner().invoke(main, [*arguments], env={"TWO_STREAM_DATA": str(tmp_path)})
    assert result.exit_code == status
    assert message in result.output


def test_a_device_that_is_not_there_ends_the_run(clips: Path, tmp_path: Path) -> None:
    _, err = extract(clips, "--output", tmp_path, "--method", "dis", "--device", "cuda", status=1)
    assert "error: dis runs on the CPU only" in err


def test_two_videos_for_one_shard_are_refused(clips: Path, tmp_path: Path) -> None:
    clip(tmp_path / "a/x.avi", frames=2)
    clip(tmp_path / "b/x.mkv", frames=2)
    _, err = extract(tmp_path / "a/x.avi", tmp_path / "b/x.mkv", "--output", tmp_path / "o", *QUICK, status=1)
    assert "would both become" in err


def test_array_tasks_together_make_everything_once(clips: Path, tmp_path: Path) -> None:
    for task in range(3):
        out, _ = extract(clips, "--output", tmp_path, *QUICK, "--task", task, "--tasks", 3)
        assert out.startswith("2 done, 0 skipped")
    assert len(index_shards(tmp_path)) == 6


def test_what_is_done_starts_no_worker(clips: Path, tmp_path: Path) -> None:
    extract(clips, "--output", tmp_path, *QUICK)
    files = sorted((tmp_path / "outcomes").iterdir())
    out, err = extract(clips, "--output", tmp_path, *QUICK)
    assert out.startswith("0 done, 6 skipped")
    assert "process" not in err
    assert sorted((tmp_path / "outcomes").iterdir()) == files


# --- deaths ------------------------------------------------------------


def test_a_worker_killed_in_mid_run_costs_its_video_only(tmp_path: Path) -> None:
    for i in range(4):
        clip(tmp_path / f"in/{i}.avi", frames=12, width=96, height=80, seed=i)
    process = start(
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--method",
        "opencv-tvl1",
        "--short-side",
        "none",
        "--jobs",
        2,
    )
    wait_for(lambda: len(workers_of(process.pid)) == 2)
    assert process.stderr is not None
    process.stderr.readline()  # the workers are ready, and have work
    time.sleep(SHORTEST_TO_KILL)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert out.startswith("3 done, 0 skipped (already valid), 1 failed")
    assert "the worker was killed by SIGKILL (out of memory?)" in out
    assert_sound(tmp_path / "out")
    again, _ = extract(
        tmp_path / "in", "--output", tmp_path / "out", "--method", "opencv-tvl1", "--short-side", "none"
    )
    assert again.startswith("1 done, 3 skipped (already valid), 0 failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_leaves_nothing_half_made_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    for i in range(30):
        clip(tmp_path / f"in/{i}.avi", frames=30, width=96, height=80, seed=i)
    process = start(tmp_path / "in", "--output", tmp_path / "out", *QUICK, "--jobs", 1)
    assert process.stderr is not None
    process.stderr.readline()
    wait_for(lambda: index_shards(tmp_path / "out"))
    workers = workers_of(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out + err
    assert f"stopped by {number.name}" in err
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert_sound(tmp_path / "out")
    done = len(index_shards(tmp_path / "out"))
    assert 0 < done < 30
    assert extract(tmp_path / "in", "--output", tmp_path / "out", *QUICK)[0].startswith(
        f"{30 - done} done, {done} skipped"
    )


def test_killed_fifty_times_then_run_once_is_as_if_undisturbed(tmp_path: Path) -> None:
    """kill -9 of the run at random moments: 30 times on its way to the first video, 20 times while it makes shards."""
    for i in range(60):
        clip(tmp_path / f"in/{i}.avi", frames=4, width=48, height=32, seed=i)
    shutil.copytree(tmp_path / "in", tmp_path / "in/more")
    arguments = (tmp_path / "in", "--output", tmp_path / "out", *QUICK, "--direction", "both", "--jobs", 1)
    rng = random.Random(7)
    left_behind = 0

    def files() -> set[Path]:
        return set((tmp_path / "out").rglob("*"))

    for attempt in range(50):
        before = files()
        process = start(*arguments)
        if attempt % 5 < 3:
            time.sleep(rng.uniform(0, 0.6))
        else:
            wait_for(lambda before=before: files() - before)
            time.sleep(rng.uniform(0, 0.05))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        wait_for(lambda workers=workers: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        left_behind += any(atomic.is_temporary(path.name) for path in files())
    assert index_shards(tmp_path / "out")
    assert left_behind
    out, _ = extract(*arguments)
    assert ", 0 failed" in out
    assert not out.startswith("0 done")
    assert_sound(tmp_path / "out")
    assert len(read_outcomes(tmp_path / "out/outcomes")) == 120
    extract(tmp_path / "in", "--output", tmp_path / "undisturbed", *QUICK, "--direction", "both")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_two_runs_at_once_end_with_every_shard_valid(tmp_path: Path) -> None:
    for i in range(16):
        clip(tmp_path / f"in/{i}.avi", frames=6, seed=i)
    runs = [start(tmp_path / "in", "--output", tmp_path / "out", *QUICK, "--jobs", 2) for _ in range(2)]
    for process in runs:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        done, skipped = (int(part.split()[0]) for part in out.splitlines()[0].split(", ")[:2])
        assert done + skipped == 16
    assert_sound(tmp_path / "out")
    assert len(index_shards(tmp_path / "out")) == 16
    assert {outcome.status for outcome in read_outcomes(tmp_path / "out/outcomes").values()} == {"done"}


def test_a_full_disk_ends_the_run_with_earlier_shards_intact(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("a small tmpfs can be mounted by root only, and not in every container")
    try:
        for i in range(40):
            clip(tmp_path / f"in/{i:02}.avi", frames=8, width=64, height=64, seed=i)
        _, err = extract(tmp_path / "in", "--output", disk, *QUICK, status=1)
        assert "error: " in err
        assert "no space left" in err
        assert 0 < len(index_shards(disk)) < 40
        assert_sound(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_costs_only_the_videos_that_exceed_it(tmp_path: Path) -> None:
    clip(tmp_path / "in/large.avi", frames=60, width=160, height=160)
    clip(tmp_path / "in/small.avi", frames=3, width=32, height=32)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    out, _ = extract(tmp_path / "in", "--output", tmp_path / "out", *QUICK, status=1, preexec_fn=limit)
    assert out.startswith("1 done, 0 skipped (already valid), 1 failed")
    assert "no space left to write it" in out
    assert_sound(tmp_path / "out")


# --- real files ------------------------------------------------------------


@pytest.mark.realdata
def test_every_real_clip_ends_as_a_shard_or_a_reason(test_data: Path, tmp_path: Path) -> None:
    arguments = (
        test_data / "clips",
        "--output",
        tmp_path,
        "--method",
        "dis",
        "--preset",
        "ultrafast",
        "--short-side",
        64,
    )
    out, _ = extract(*arguments, status=1)
    assert out.startswith("8 done, 0 skipped (already valid), 2 failed")
    assert (
        "truncated_h264.mp4: cannot be decoded: invalid data found when processing input after 28 frames"
        in out
    )
    assert "zero_bytes.webm: the file is empty" in out
    assert "its header says 451 frames, it holds 69" in out
    assert_sound(tmp_path)
    counts = {
        video.split("/")[1]: open_shard(address).frame_count
        for video, address in index_shards(tmp_path).items()
    }
    assert counts["no_duration"] == 74
    assert counts["header_says_451_has_69"] == 69
    out, _ = extract(*arguments, "--on-corrupt", "keep", status=1)
    assert out.startswith("1 done, 8 skipped (already valid), 1 failed")


@pytest.mark.realdata
def test_a_small_real_dataset_is_extracted_whole(test_data: Path, tmp_path: Path) -> None:
    out, _ = extract(test_data / "weizmann4/videos", "--output", tmp_path, *QUICK, "--no-rgb")
    assert out.startswith("72 done, 0 skipped (already valid), 0 failed")
    assert_sound(tmp_path)
    records = [
        json.loads(line)
        for path in (tmp_path / "outcomes").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sum(record["flows"] for record in records) == sum(
        open_shard(address).flow_count for address in index_shards(tmp_path).values()
    )


def test_small_videos_are_scaled_up_with_a_word_that_names_the_way_out(tmp_path: Path) -> None:
    for number in range(2):
        clip(tmp_path / "in" / f"v{number}.avi", 3, 48, 32)
    way = ("--method", "dis", "--preset", "ultrafast", "--no-rgb")
    out, _ = extract(tmp_path / "in", "--output", tmp_path / "out", *way)
    assert out.count("--short-side none") == 1, "one line for all"
    assert "note: 2 videos (v0, v1)" in out
    assert "frames included" not in out, "there are none"
    assert f"shards: {tmp_path / 'out'}" in out
    out, _ = extract(tmp_path / "in", "--output", tmp_path / "own", *way, "--short-side", "none")
    assert "scaled up" not in out


def test_what_another_method_made_is_reported_before_any_work_and_only_once(tmp_path: Path) -> None:
    for number in range(3):
        clip(tmp_path / "in" / f"v{number}.avi", 3, 48, 32)
    way = ("--no-rgb", "--short-side", 32, "--preset", "ultrafast", "--method", "dis")
    extract(tmp_path / "in", "--output", tmp_path / "out", *way)
    clip(tmp_path / "in" / "new.avi", 3, 48, 32)
    other = ("--no-rgb", "--short-side", 32, "--method", "farneback")
    out, err = extract(tmp_path / "in", "--output", tmp_path / "out", *other, status=1)
    (first,) = (line for line in err.splitlines() if line.startswith("failed"))
    assert first.startswith("failed: 3 videos")
    assert "method: asked farneback, the shard has dis" in first
    assert not re.search(r"asked None|has None|finest", first), "parameters of two methods are not compared"
    assert err.index("failed") < err.index("1 video to do")
    assert out.startswith("1 done, 0 skipped (already valid), 3 failed")
    assert "failed: " not in out, "they were reported before"
