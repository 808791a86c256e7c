"""Flow that others left as numbers becomes shards: Middlebury's .flo, NumPy's arrays in the shapes people save."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import HEIGHT, WIDTH, make_shard, smooth_flow

from pipeline import export, flow_files, import_flow
from pipeline.errors import InputError, Unreadable
from pipeline.flow_files import read_flo
from pipeline.shard import open_shard
from pipeline.verify import command as verify

CLOSE = 0.15
"""Pixels of mean error that the default coding of this fast flow stays under."""


def run(command, *arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def flows_of(path: Path, count: int = 4) -> np.ndarray:
    with open_shard(path) as shard:
        assert shard.flow_count == count
        return shard.flows(0, count)


@pytest.mark.parametrize("layout", ["flo", "npy"])
def test_what_export_writes_as_numbers_comes_back_with_its_frames(tmp_path, layout):
    make_shard(tmp_path / "shards" / "A" / "v.h5", video="A/v", frames=True)
    run(export.command, tmp_path / "shards", "--layout", layout, "--output", tmp_path / "out")
    assert "1 imported" in run(import_flow.command, tmp_path / "out", "--output", tmp_path / "back")
    with (
        open_shard(tmp_path / "shards" / "A" / "v.h5") as first,
        open_shard(tmp_path / "back" / "A" / "v.h5") as back,
    ):
        assert (back.video, back.frame_count, back.has_frames) == ("A/v", 5, True)
        assert np.abs(back.flows(0, 4) - first.flows(0, 4)).mean() < CLOSE
        assert np.abs(back.frames(0, 5).astype(int) - first.frames(0, 5)).mean() < 4
    run(verify, "--deep", tmp_path / "back")
    assert "1 there already" in run(import_flow.command, tmp_path / "out", "--output", tmp_path / "back")


def test_flo_files_of_opencv_are_read_in_the_order_of_their_numbers(tmp_path):
    flow = smooth_flow(12)
    (tmp_path / "in" / "c" / "v").mkdir(parents=True)
    for index, field in enumerate(flow):
        cv2.writeOpticalFlow(
            str(tmp_path / "in" / "c" / "v" / f"frame_{index + 1}.flo"), field.transpose(1, 2, 0)
        )
    run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out")
    assert np.abs(flows_of(tmp_path / "out" / "c" / "v.h5", 12) - flow).mean() < CLOSE


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True])
def test_an_array_per_video_is_read_with_x_and_y_first_or_last(tmp_path, dtype, last):
    flow = smooth_flow(4)
    (tmp_path / "in" / "c").mkdir(parents=True)
    np.save(tmp_path / "in" / "c" / "v_raft.npy", (np.moveaxis(flow, 1, -1) if last else flow).astype(dtype))
    run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out")
    assert np.abs(flows_of(tmp_path / "out" / "c" / "v_raft.h5") - flow).mean() < CLOSE


def test_an_array_in_fortran_order_is_read(tmp_path):
    flow = smooth_flow(4)
    (tmp_path / "in" / "c").mkdir(parents=True)
    np.save(tmp_path / "in" / "c" / "v.npy", np.asfortranarray(flow))
    run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out")
    assert np.abs(flows_of(tmp_path / "out" / "c" / "v.h5") - flow).mean() < CLOSE


def test_an_array_that_is_cut_short_while_it_is_read_is_an_error_and_ends_no_process(tmp_path):
    np.save(tmp_path / "v.npy", smooth_flow(40))
    fields = flow_files.flow_numbers(tmp_path / "v.npy").fields()
    next(fields)
    os.truncate(tmp_path / "v.npy", 128 + 3 * HEIGHT * WIDTH * 2 * 4 + 5)
    with pytest.raises(InputError, match=r"v\.npy: expected 40 items, found \d+: it was cut short"):
        list(fields)


def test_an_array_per_field_makes_a_video_of_their_folder(tmp_path):
    flow = smooth_flow(4)
    (tmp_path / "in" / "c" / "v").mkdir(parents=True)
    for index, field in enumerate(flow):
        np.save(tmp_path / "in" / "c" / "v" / f"{index:04d}.npy", np.moveaxis(field, 0, -1))
    run(
        import_flow.command,
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--step",
        2,
        "--direction",
        "backward",
    )
    with open_shard(tmp_path / "out" / "c" / "v.h5") as shard:
        assert np.abs(shard.flows(0, 4, "backward") - flow).mean() < CLOSE
        assert (shard.step("backward"), shard.frame_count) == (2, 6)


def test_flow_of_a_single_field_is_a_video_too(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "v.npy", smooth_flow(1))
    run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out")
    assert flows_of(tmp_path / "out" / "v.h5", 1).shape == (1, 2, HEIGHT, WIDTH)


def flo(width: int, height: int, values: np.ndarray, tag: bytes = b"PIEH") -> bytes:
    return tag + np.array([width, height], "<i4").tobytes() + values.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0.flo", flo(2, 2, np.zeros(8), b"PIEX"), "begins with PIEH"),
        ("0.flo", flo(2, 2, np.zeros(7)), "begins with PIEH"),
        ("0.flo", flo(-2, -2, np.zeros(8)), "begins with PIEH"),
        ("0.flo", b"PIEH", "begins with PIEH"),
        ("0.flo", flo(2, 2, np.full(8, 1e10)), "8 values are unknown or not finite"),
        ("0.flo", flo(2, 2, np.array([np.nan] + 7 * [0])), "1 values are unknown or not finite"),
        ("x.flo", flo(2, 2, np.zeros(8)), "expected a number in the name"),
        ("0.flo", flo(70000, 1, np.zeros(140000)), "larger than any video"),
    ],
)
def test_a_flo_file_that_is_none_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / "in" / "v").mkdir(parents=True)
    (tmp_path / "in" / "v" / name).write_bytes(content)
    output = run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out", status=1)
    assert message in output
    assert name in output
    assert list((tmp_path / "out").rglob("*.h5")) == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 7), np.float32), "found float32 [3, 7]"),
        (np.zeros((3, 3, 8, 9), np.float32), "expected flow as float"),
        (np.zeros((3, 2, 8, 9), np.int16), "found int16"),
        (np.zeros((0, 2, 8, 9), np.float32), "expected flow as float"),
        (np.array([{}], object), "expected a NumPy array"),
        (np.full((1, 2, 8, 9), np.inf, np.float32), "144 values are unknown"),
    ],
)
def test_an_array_that_is_no_flow_is_refused_by_name(tmp_path, array, message):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "v.npy", array, allow_pickle=True)
    output = run(import_flow.command, tmp_path / "in", "--output", tmp_path / "out", status=1)
    assert message in output
    assert "v.npy" in output


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose reading fails")
def test_a_field_that_cannot_be_read_now_is_reported_as_that():
    with pytest.raises(Unreadable, match="/proc/self/mem: could not be read: Input/output error"):
        read_flo(Path("/proc/self/mem"))


def test_fields_that_do_not_follow_each_other_or_differ_in_size_are_refused(tmp_path):
    folder = tmp_path / "in" / "v"
    folder.mkdir(parents=True)
    for number, width in ((1, 4), (3, 4)):
        (folder / f"{number}.flo").write_bytes(flo(width, 3, np.zeros(6 * width)))
    arguments = [tmp_path / "in", "--output", tmp_path / "out"]
    assert "missing '2'" in run(import_flow.command, *arguments, status=1)
    (folder / "2.flo").write_bytes(flo(5, 3, np.zeros(30)))
    assert "expected 4x3 as the first field, found 5x3" in run(import_flow.command, *arguments, status=1)
    (folder / "02.flo").write_bytes(flo(4, 3, np.zeros(24)))
    assert "the same number as" in run(import_flow.command, *arguments, status=1)


def test_frames_must_fit_the_flow(tmp_path):
    folder = tmp_path / "in" / "v"
    folder.mkdir(parents=True)
    np.save(folder / "flow.npy", smooth_flow(3))
    np.save(folder / "frames.npy", np.zeros((9, HEIGHT, WIDTH, 3), np.uint8))
    arguments = [tmp_path / "in", "--output", tmp_path / "out"]
    assert "found 9 frames and 3 flows" in run(import_flow.command, *arguments, status=1)
    np.save(folder / "frames.npy", np.zeros((4, HEIGHT, WIDTH + 1, 3), np.uint8))
    assert "as the flow's size" in run(import_flow.command, *arguments, status=1)


def test_a_bound_goes_with_images_and_only_with_them(tmp_path):
    (tmp_path / "numbers").mkdir()
    np.save(tmp_path / "numbers" / "v.npy", smooth_flow(1))
    arguments = ["--output", tmp_path / "out"]
    assert "--bound goes with images" in run(
        import_flow.command, tmp_path / "numbers", *arguments, "--bound", 20, status=2
    )
    folder = tmp_path / "images" / "v"
    folder.mkdir(parents=True)
    for component in "xy":
        cv2.imwrite(str(folder / f"flow_{component}_0.jpg"), np.full((8, 8), 128, np.uint8))
    assert "give --bound PIXELS" in run(import_flow.command, tmp_path / "images", *arguments, status=2)


@pytest.mark.parametrize(("mark", "first", "direction"), [("p2", 0, "forward"), ("m2", 2, "backward")])
def test_denseflows_names_of_a_step_say_what_to_give(tmp_path, mark, first, direction):
    folder = tmp_path / "in" / "v"
    folder.mkdir(parents=True)
    for component in "xy":
        for index in range(3):
            image = np.full((8, 8), 128, np.uint8)
            cv2.imwrite(str(folder / f"flow_{component}_{mark}_{first + index:05d}.jpg"), image)
    arguments = [tmp_path / "in", "--bound", 20, "--output", tmp_path / "out"]
    assert f"give --step 2 --direction {direction}" in run(import_flow.command, *arguments, status=1)
    run(import_flow.command, *arguments, "--step", 2, "--direction", direction)
    with open_shard(tmp_path / "out" / "v.h5") as shard:
        assert (shard.flow_counts[direction], shard.step(direction), shard.frame_count) == (3, 2, 5)


@pytest.mark.parametrize("name", ["flow_x_00002.jpg", "img_00002.jpg"])
def test_a_picture_that_is_cut_short_is_an_error_and_not_gray(tmp_path, name):
    make_shard(tmp_path / "shards" / "A" / "v.h5", video="A/v", frames=True)
    run(export.command, tmp_path / "shards", "--layout", "tsn", "--output", tmp_path / "out")
    (picture,) = (tmp_path / "out").rglob(name)
    picture.write_bytes(picture.read_bytes()[:-40])
    words = [tmp_path / "out", "--output", tmp_path / "back", "--bound", 20]
    assert f"{name}: is damaged: " in run(import_flow.command, *words, status=1)
    assert not list((tmp_path / "back").rglob("*.h5"))


def test_a_set_that_was_begun_with_other_options_is_not_mixed(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / "in" / "c" / name
        folder.mkdir(parents=True)
        for component in "xy":
            cv2.imwrite(str(folder / f"flow_{component}_00001.png"), np.full((24, 32), 130, np.uint8))
    out = ("--output", tmp_path / "out")
    run(import_flow.command, tmp_path / "in", *out, "--bound", 20)
    (tmp_path / "out" / "c" / "b.h5").unlink()
    refused = run(import_flow.command, tmp_path / "in", *out, "--bound", 15, status=1)
    assert "found 1 shard made otherwise (for example c/a: bound: asked 15.0, the shard has 20.0; " in refused
    assert "1 video of 2 would be added, and nothing was made" in refused
    assert not (tmp_path / "out" / "c" / "b.h5").exists()
    run(import_flow.command, tmp_path / "in", *out, "--bound", 15, "--overwrite")
    assert "2 there already" in run(import_flow.command, tmp_path / "in", *out, "--bound", 15)
