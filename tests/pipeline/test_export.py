"""Other tools' layouts: their names, their bytes, and back again."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import HEIGHT, WIDTH, make_shard

from extract_flow.__main__ import main as extract_flow
from pipeline import catalog, export, import_flow, status
from pipeline.catalog import Dataset, Split, Video
from pipeline.errors import Unreadable
from pipeline.shard import open_shard

NAMES = ["plain", "a.b", "-dash", "50%d", "it's", 'a"b', "a;b#c&d", "[x](y)", "ü 語"]


@pytest.fixture
def shard_file(tmp_path) -> Path:
    return make_shard(
        tmp_path / "shards" / "A" / "v.h5", video="A/v", frames=True, directions=("forward", "backward")
    )


def run(command, *arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(value=st.floats(-40, 40, width=32), bound=st.sampled_from([15.0, 20.0, 32.0]))
@settings(max_examples=100, deadline=None)
def test_the_mapping_is_that_of_the_fields_extractors(value, bound):
    def cast(v: float, low: float, high: float) -> int:
        return (
            255 if v > high else 0 if v < low else round(255 * (v - low) / (high - low))
        )  # cvRound: half to even

    assert export.field_levels(np.float32([value]), bound)[0] == cast(value, -bound, bound)


@pytest.mark.parametrize(("layout", "first"), [("tsn", 1), ("denseflow", 0)])
def test_image_layouts_have_the_tools_names_and_values(tmp_path, shard_file, layout, first):
    run(export.command, shard_file, "--layout", layout, "--output", tmp_path / "out", "--bound", 15)
    folder = tmp_path / "out" / "A" / "v"
    expected = [f"flow_{c}_{first + i:05d}.jpg" for c in "xy" for i in range(4)]
    assert names(folder) == expected + [f"img_{first + i:05d}.jpg" for i in range(5)]
    with open_shard(shard_file) as shard:
        flow, frames = shard.flows(0, 4), shard.frames(0, 5)
    for i in range(4):
        for component, c in enumerate("xy"):
            levels = np.clip(np.rint(255 * (flow[i, component].astype(float) + 15) / 30), 0, 255).astype(
                np.uint8
            )
            expected_file = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            assert (folder / f"flow_{c}_{first + i:05d}.jpg").read_bytes() == expected_file
    image = cv2.imread(str(folder / f"img_{first + 4:05d}.jpg"))
    assert np.array_equal(image[:, :, ::-1], frames[4])


def test_flo_files_are_read_by_opencv(tmp_path, shard_file):
    run(
        export.command, shard_file, "--layout", "flo", "--output", tmp_path / "out", "--direction", "backward"
    )
    with open_shard(shard_file) as shard:
        flow = shard.flows(3, 4, "backward")[0]
    assert np.array_equal(
        cv2.readOpticalFlow(str(tmp_path / "out/A/v/flow_00003.flo")), flow.transpose(1, 2, 0)
    )


def test_npy_files_are_read_by_numpy(tmp_path, shard_file):
    run(export.command, tmp_path / "shards", "--layout", "npy", "--output", tmp_path / "out")
    with open_shard(shard_file) as shard:
        assert np.array_equal(np.load(tmp_path / "out/A/v/flow.npy"), shard.flows(0, 4))
        assert np.array_equal(np.load(tmp_path / "out/A/v/frames.npy"), shard.frames(0, 5))


def test_a_second_export_keeps_what_is_there_unless_told(tmp_path, shard_file):
    arguments = [shard_file, "--layout", "tsn", "--output", tmp_path / "out"]
    run(export.command, *arguments)
    mark = tmp_path / "out" / "A" / "v" / "mark"
    mark.write_text("")
    assert "1 there already" in run(export.command, *arguments)
    assert mark.exists()
    run(export.command, *arguments, "--overwrite")
    assert not mark.exists()


def test_a_damaged_shard_leaves_no_folder_and_fails(tmp_path, shard_file):
    with open_shard(shard_file) as shard:
        place = shard.part("forward").begin + int(shard.part("forward").start[2])
    with shard_file.open("r+b") as file:
        file.seek(place)
        file.write(b"\0\0\0\0")
    make_shard(tmp_path / "shards" / "A" / "w.h5", video="A/w")
    output = run(
        export.command, tmp_path / "shards", "--layout", "tsn", "--output", tmp_path / "out", status=1
    )
    assert "1 exported, 0 there already" in output
    assert "forward 2" in output
    assert names(tmp_path / "out" / "A") == ["w"]


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_stops_the_export_at_once(tmp_path, shard_file, monkeypatch, number):
    make_shard(tmp_path / "shards" / "A" / "w.h5", video="A/w")
    tried = []

    def full(*arguments: object) -> None:
        tried.append(arguments)
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(export, "write_layout", full)
    output = run(
        export.command, tmp_path / "shards", "--layout", "npy", "--output", tmp_path / "out", status=1
    )
    assert "no space left" in output
    assert len(tried) == 1


@pytest.mark.parametrize("video", ["../v", "A/../../v", "/v", "A//v", "A/."])
def test_a_video_name_that_leads_out_of_the_output_is_refused(tmp_path, video):
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["video"] = np.bytes_(video.encode())
    assert "lead out" in run(export.command, path, "--layout", "npy", "--output", tmp_path / "out", status=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["tsn", "denseflow"])
def test_names_survive_export_and_import(tmp_path, name, layout):
    make_shard(tmp_path / "shards" / "Class" / f"{name}.h5", video=f"Class/{name}", flows=1)
    run(export.command, tmp_path / "shards", "--layout", layout, "--output", tmp_path / "out")
    run(import_flow.command, tmp_path / "out", "--bound", 20, "--output", tmp_path / "back")
    with open_shard(tmp_path / "back" / "Class" / f"{name}.h5") as shard:
        assert shard.video == f"Class/{name}"


@pytest.mark.parametrize("layout", ["tsn", "denseflow", "mmaction2's older names"])
def test_what_export_writes_comes_back_right_through_both_commands(tmp_path, shard_file, layout):
    out, folder = tmp_path / "out", tmp_path / "out" / "A" / "v"
    run(export.command, shard_file, "--layout", layout if layout == "denseflow" else "tsn", "--output", out)
    if layout.startswith("mmaction2"):
        for path in folder.glob("flow_*"):
            path.rename(folder / path.name.removeprefix("flow_"))  # x_00001.jpg
    method = ["--method", "dis", "--preset", "ultrafast", "--short-side", "none", "--jobs", 1]
    run(extract_flow, out, "--output", tmp_path / "extracted", *method)
    run(import_flow.command, out, "--bound", 20, "--output", tmp_path / "imported")
    with (
        open_shard(shard_file) as first,
        open_shard(tmp_path / "extracted" / "A" / "v.h5") as extracted,
        open_shard(tmp_path / "imported" / "A" / "v.h5") as imported,
    ):
        frames, flow = first.frames(0, 5).astype(int), first.flows(0, 4)
        for shard in (extracted, imported):
            assert (shard.video, shard.frame_count, shard.flow_count) == ("A/v", 5, 4)
        # The frames in their order, and no image of flow among them: each is nearer to its own than to any other.
        found = extracted.frames(0, 5).astype(int)
        distances = [[np.abs(one - other).mean() for other in frames] for one in found]
        assert np.argmin(distances, axis=1).tolist() == [0, 1, 2, 3, 4]
        assert np.array_equal(imported.frames(0, 5), frames)
        assert np.abs(imported.flows(0, 4) - flow).max() < 3 * 40 / 255  # a level of either coding, and JPEG


def test_several_sequences_in_a_folder_are_refused_with_both_names(tmp_path):
    names = [f"{side}_{i:05d}.jpg" for side in ("left", "right") for i in (1, 2, 3)]
    images(tmp_path / "in" / "v", *names)
    output = run(extract_flow, tmp_path / "in", "--output", tmp_path / "out", "--method", "dis", status=1)
    assert "left_00001.jpg" in output
    assert "right_00001.jpg" in output


def test_imported_flow_is_the_images_bytes_exactly(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "tsn", "--output", tmp_path / "out", "--bound", 12)
    run(import_flow.command, tmp_path / "out", "--bound", 12, "--output", tmp_path / "back")
    folder = tmp_path / "out" / "A" / "v"
    with open_shard(tmp_path / "back" / "A" / "v.h5") as shard:
        levels = shard.levels(0, 4)
        flow = shard.flows(0, 4)
        assert (shard.frame_count, shard.has_frames) == (5, True)
        assert bytes(shard.streams(2, 3, "frames")[0]) == (folder / "img_00003.jpg").read_bytes()
    for i in range(4):
        for component, c in enumerate("xy"):
            image = cv2.imread(str(folder / f"flow_{c}_{i + 1:05d}.jpg"), cv2.IMREAD_GRAYSCALE)
            assert np.array_equal(levels[i, component], image)
            assert np.allclose(flow[i, component], image * (24 / 255) - 12, atol=1e-5)


def test_a_datasets_imported_flow_is_recorded_for_status(tmp_path):
    images(tmp_path / "in" / "c" / "v", *[f"flow_{c}_{i}.jpg" for c in "xy" for i in (1, 2, 3)])
    video = Video("c/v", tmp_path / "v.avi", "c", "v")
    catalog.save(Dataset("mine", ("c",), {"c/v": video}, {}), tmp_path, tmp_path)
    given = ["--dataset", "mine", "--data", tmp_path]
    run(import_flow.command, tmp_path / "in", "--bound", 20, *given)
    assert "3 flows" in run(status.command, *given)


@pytest.mark.parametrize(("step", "direction"), [(2, "forward"), (1, "backward")])
def test_step_and_direction_survive_export_and_import(tmp_path, step, direction):
    images(tmp_path / "in" / "v", *[f"flow_{c}_{i}.jpg" for c in "xy" for i in (1, 2, 3)])
    given = [tmp_path / "in", "--bound", 20, "--step", step, "--direction", direction]
    run(import_flow.command, *given, "--output", tmp_path / "out")
    with open_shard(tmp_path / "out" / "v.h5") as shard:
        assert shard.directions == (direction,)
        assert (shard.flow_counts[direction], shard.frame_count) == (3, 3 + step)
        assert shard.step(direction) == step
    export_again = ["--layout", "denseflow", "--direction", direction, "--output", tmp_path / "again"]
    run(export.command, tmp_path / "out", *export_again)
    assert len(list((tmp_path / "again" / "v").glob("flow_x_*.jpg"))) == 3


def test_import_with_a_preset_recodes(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "tsn", "--output", tmp_path / "out")
    run(
        import_flow.command,
        tmp_path / "out",
        "--bound",
        20,
        "--output",
        tmp_path / "back",
        "--preset",
        "default",
    )
    with open_shard(tmp_path / "back" / "A" / "v.h5") as shard, open_shard(shard_file) as first:
        assert np.array_equal(shard.table(), first.table())
        assert np.abs(shard.flows(0, 4) - first.flows(0, 4)).mean() < 0.2


def test_importing_again_is_done_and_with_another_bound_refused(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "tsn", "--output", tmp_path / "out")
    arguments = [tmp_path / "out", "--output", tmp_path / "back"]
    run(import_flow.command, *arguments, "--bound", 20)
    assert "1 there already" in run(import_flow.command, *arguments, "--bound", 20)
    assert "bound: asked 15.0, the shard has 20.0" in run(
        import_flow.command, *arguments, "--bound", 15, status=1
    )
    assert "1 imported" in run(import_flow.command, *arguments, "--bound", 15, "--overwrite")


def images(folder: Path, *names: str, height: int = HEIGHT) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(
            cv2.imencode(".jpg", np.full((height, WIDTH), 128, np.uint8))[1].tobytes()
        )
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["flow_x_00001.jpg"], "only one for '1'"),
        ([f"flow_{c}_{i}.jpg" for c in "xy" for i in (1, 3)], "missing '2'"),
        ([f"flow_{c}_{i}.jpg" for c in "xy" for i in (5, 6)], "missing '0'"),
        ([f"flow_{c}_1.jpg" for c in "xy"] + ["flow_x_01.jpg"], "same number"),
        (
            [f"flow_{c}_1.jpg" for c in "xy"] + [f"img_{i}.jpg" for i in range(4)],
            "found 4 frames and 1 flows",
        ),
    ],
)
def test_incomplete_folders_are_told(tmp_path, files, message):
    images(tmp_path / "in" / "v", *files)
    output = run(import_flow.command, tmp_path / "in", "--bound", 20, "--output", tmp_path / "out", status=1)
    assert message in output


def test_images_of_different_sizes_or_none_are_told(tmp_path):
    folder = images(tmp_path / "in" / "v", *[f"flow_{c}_{i}.jpg" for c in "xy" for i in (1, 2)])
    odd = images(tmp_path / "odd", "odd.jpg", height=HEIGHT + 2) / "odd.jpg"
    arguments = [tmp_path / "in", "--bound", 20, "--output", tmp_path / "out"]
    for content, message in (
        (odd.read_bytes(), f"found {WIDTH}x{HEIGHT + 2}"),
        (b"", "none"),
        (b"x" * 50, "none"),
    ):
        (folder / "flow_y_2.jpg").write_bytes(content)
        output = run(import_flow.command, *arguments, status=1)
        assert "flow_y_2.jpg" in output
        assert message in output
    assert list((tmp_path / "out").rglob("*.h5")) == []


def test_options_that_mean_nothing_are_refused(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "npy", "--output", tmp_path, "--bound", 20, status=2)
    run(import_flow.command, tmp_path, "--bound", 20, status=2)
    assert "found none" in run(import_flow.command, tmp_path, "--bound", 20, "--output", tmp_path, status=1)


# --- lists, sizes, and what to leave out ----------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path) -> list[object]:
    """A dataset of two classes and a split, with shards; returns the options that name it."""
    videos = {}
    for label, stem, flows in (("A", "v", 4), ("B", "w", 2), ("B", "x y", 3)):
        name = f"{label}/{stem}"
        path = tmp_path / "mine" / "shards" / "tvl1" / f"{name}.h5"
        make_shard(path, name, flows=flows, frames=True)
        videos[name] = Video(name, tmp_path / f"{stem}.avi", label, stem)
    splits = {1: Split(1, ("A/v", "B/x y"), ("B/w",))}
    catalog.save(Dataset("mine", ("A", "B"), videos, splits), tmp_path, tmp_path)
    return ["--dataset", "mine", "--data", tmp_path]


def test_a_datasets_images_come_with_the_lists_that_mmaction2_and_tsn_read(tmp_path, listed):
    out = tmp_path / "out"
    assert "1 name with white space left out" in run(
        export.command, *listed, "--layout", "tsn", "--output", out
    )
    texts = {path.name: path.read_text() for path in out.glob("*.txt")}
    assert texts == {
        "classInd.txt": "1 A\n2 B\n",
        "mine_train_split_1_rawframes.txt": "A/v 5 0\n",
        "mine_val_split_1_rawframes.txt": "B/w 3 1\n",
        "mine_train_split_1_rawframes_flow.txt": "A/v 4 0\n",
        "mine_val_split_1_rawframes_flow.txt": "B/w 2 1\n",
        "mine_rgb_train_split_1.txt": f"{out}/A/v 5 0\n",
        "mine_rgb_val_split_1.txt": f"{out}/B/w 3 1\n",
        "mine_flow_train_split_1.txt": f"{out}/A/v 4 0\n",
        "mine_flow_val_split_1.txt": f"{out}/B/w 2 1\n",
    }
    for name in ("mine_rgb_train_split_1.txt", "mine_flow_val_split_1.txt"):
        folder, count, _ = texts[name].split()
        pattern = "img_*.jpg" if "rgb" in name else "flow_y_*.jpg"
        assert len(list(Path(folder).glob(pattern))) == int(count)


def test_lists_are_of_what_lies_there(tmp_path, listed):
    out = tmp_path / "out"
    run(export.command, *listed, "--layout", "denseflow", "--output", out, "--no-rgb")
    assert names(out / "B" / "w") == [f"flow_{c}_0000{i}.jpg" for c in "xy" for i in (0, 1)]
    expected = [
        "classInd.txt",
        "mine_train_split_1_rawframes_flow.txt",
        "mine_val_split_1_rawframes_flow.txt",
    ]
    assert sorted(path.name for path in out.glob("*.txt")) == expected
    run(export.command, *listed, "--layout", "denseflow", "--output", out)  # they are there, without frames
    assert sorted(path.name for path in out.glob("*.txt")) == expected


def test_no_lists_are_written_that_lack_a_video_that_failed(tmp_path, listed, monkeypatch):
    out = ("--layout", "denseflow", "--output", tmp_path / "out")
    run(export.command, *listed, *out)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.txt")}
    export_shard = export.export_shard

    def not_now(target, options):
        if target.video == "A/v":
            raise Unreadable("A/v: could not be read: EIO")
        return export_shard(target, options)

    monkeypatch.setattr(export, "export_shard", not_now)
    assert "no lists were written, since they would lack what failed" in run(
        export.command, *listed, *out, status=1
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.txt")} == before


def test_shards_named_by_path_get_no_lists(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "tsn", "--output", tmp_path / "out")
    assert names(tmp_path / "out") == ["A"]


@pytest.mark.parametrize(
    ("given", "number", "frames"),
    [([], 4, True), (["--no-rgb"], 4, False), (["--float16", "--no-rgb"], 2, False)],
)
def test_the_size_of_arrays_is_announced_before_they_are_written(tmp_path, shard_file, given, number, frames):
    output = run(export.command, shard_file, "--layout", "npy", "--output", tmp_path / "out", *given)
    size = 4 * 2 * HEIGHT * WIDTH * number + frames * 5 * 3 * HEIGHT * WIDTH
    assert f"{size / 1000:.1f} kB of npy to write" in output
    assert output.index("to write") < output.index("1 exported")
    folder = tmp_path / "out" / "A" / "v"
    assert names(folder) == ["flow.npy"] + ["frames.npy"] * frames
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= written <= size + 300
    with open_shard(shard_file) as shard:
        flow = np.load(folder / "flow.npy")
        assert flow.dtype == (np.float16 if number == 2 else np.float32)
        assert np.allclose(flow, shard.flows(0, 4), rtol=1e-3 if number == 2 else 0, atol=1e-6)


def test_arrays_that_do_not_fit_on_the_disk_are_not_begun(tmp_path, shard_file, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    output = run(export.command, shard_file, "--layout", "flo", "--output", tmp_path / "out", status=1)
    assert "export fewer videos" in output
    assert not (tmp_path / "out").exists()


def test_half_precision_goes_with_arrays_only(tmp_path, shard_file):
    run(export.command, shard_file, "--layout", "flo", "--output", tmp_path, "--float16", status=2)
