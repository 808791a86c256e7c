"""Pictures of flow: the Middlebury colours and the paper's figure 2."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import make_shard, request
from PIL import Image

from pipeline import flow_pictures, view
from pipeline.codec import codec
from pipeline.flow_colours import component_gray, flow_colours, wheel_picture
from pipeline.flow_pictures import EDGE, GAP, MARGIN
from pipeline.pack import write_pack
from pipeline.shard import ShardAddress, Source, open_shard
from pipeline.shard_writer import ShardWriter
from pipeline.typical_flow import typical_flow


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(view.command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def reference_colour(x: float, y: float) -> np.ndarray:
    """colorcode.cpp of the Middlebury site, one pixel at a time."""
    wheel = [(255, 255 * i // 15, 0) for i in range(15)] + [(255 - 255 * i // 6, 255, 0) for i in range(6)]
    wheel += [(0, 255, 255 * i // 4) for i in range(4)] + [(0, 255 - 255 * i // 11, 255) for i in range(11)]
    wheel += [(255 * i // 13, 0, 255) for i in range(13)] + [(255, 0, 255 - 255 * i // 6) for i in range(6)]
    radius, angle = np.hypot(x, y), np.arctan2(-y, -x) / np.pi
    position = (angle + 1) / 2 * (len(wheel) - 1)
    k = int(position)
    colour = []
    for channel in range(3):
        low, high = wheel[k][channel] / 255, wheel[(k + 1) % len(wheel)][channel] / 255
        value = (1 - (position - k)) * low + (position - k) * high
        colour.append(int(255 * (1 - radius * (1 - value) if radius <= 1 else value * 0.75)))
    return np.array(colour)


def test_colours_are_those_of_middlebury():
    flow = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 30, 40)).astype(np.float32)
    flow[:, 0, 0] = 0
    expected = np.array(
        [[reference_colour(*map(float, flow[:, r, c])) for c in range(40)] for r in range(30)]
    )
    assert np.abs(flow_colours(flow, 1.0).astype(int) - expected).max() <= 1


def test_still_pixels_are_white_and_rightward_motion_is_red():
    flow = np.zeros((2, 1, 2), np.float32)
    flow[0, 0, 1] = 3
    colours = flow_colours(flow, 3.0)
    assert (colours[0, 0] == 255).all()
    assert colours[0, 1, 0] == 255
    assert colours[0, 1, 1:].max() < 30


def test_components_are_gray_with_positive_bright():
    gray = component_gray(np.array([[-2, -1, 0, 1, 2]], np.float32), 1.0)[0, :, 0]
    assert list(gray) == [0, 0, 128, 255, 255]


def test_the_key_shows_each_direction_in_its_colour():
    picture = wheel_picture(61)
    assert (picture[30, 30] == 255).all()
    assert (picture[0, 0] == 255).all()
    for column, row in ((0.9, 0.1), (0, 0.9), (-0.9, 0.1), (0.5, -0.6)):
        expected = reference_colour(column, row)
        assert (
            np.abs(picture[30 + round(30 * row), 30 + round(30 * column)].astype(int) - expected).max() < 12
        )


@pytest.mark.parametrize(("frames", "panels"), [(True, 4), (False, 3)])
def test_a_picture_shows_frame_flow_x_and_y_side_by_side(tmp_path, frames, panels):
    path = make_shard(tmp_path / "x.h5", frames=frames, width=240, height=180)
    run(path, "--output", tmp_path / "v.png", "--index", 2, "--full-colour", 6)
    picture = np.asarray(Image.open(tmp_path / "v.png"))
    with open_shard(path) as shard:
        flow = shard.flows(2, 3)[0]
        expected = [flow_colours(flow, 6.0), *(component_gray(each, 6.0) for each in flow)]
        if frames:
            expected.insert(0, shard.frames(2, 3)[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.png", "x.h5"]
    for place, panel in enumerate(expected):
        left = MARGIN + place * (240 + GAP)
        column = picture[:, left : left + 240]
        (top,) = [y for y in range(len(column) - 179) if (column[y : y + 180] == panel).all()]
        assert (column[top - 1] == EDGE).all()
    assert panels == len(expected)
    key = picture[:, MARGIN + panels * (240 + GAP) :]
    assert any(
        (key[y : y + 106, x : x + 106] == wheel_picture(106)).all() for y in range(70) for x in range(30)
    )


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".PNG"])
def test_the_suffix_chooses_the_format(tmp_path, suffix):
    path = make_shard(tmp_path / "x.h5", width=64, height=48)
    run(path, "--output", tmp_path / f"v{suffix}")
    assert Image.open(tmp_path / f"v{suffix}").format == ("PNG" if suffix == ".PNG" else "JPEG")


def write_flows(path: Path, flows: np.ndarray, video: str = "Class/video") -> Path:
    """A shard of the given flow, float32[n,2,H,W]."""
    coding = codec()
    with ShardWriter(path, request(), coding) as writer:
        writer.begin("forward")
        writer.add_flows("forward", coding.quantiser.quantise(flows))
        writer.finish(
            video=video, source=Source(1, "0" * 64, 32, 24), fps=25.0, frames=len(flows) + 1, width=32, height=24,
            device="cpu",
        )  # fmt: skip
    return path


def moving(speeds: list[float]) -> np.ndarray:
    """Flow of a corner at each speed, to the right."""
    flows = np.zeros((len(speeds), 2, 24, 32), np.float32)
    flows[:, 0, :12, :16] = np.array(speeds)[:, None, None]
    return flows


def test_the_flow_that_is_shown_is_neither_a_cut_nor_still(tmp_path):
    speeds = [2.0, 0, 3, 0, 25, 0, 2.5, 0, 30, 0]  # repeated frames, and two cuts
    with open_shard(write_flows(tmp_path / "x.h5", moving(speeds))) as shard:
        typical = typical_flow(shard, "forward")
    assert typical.index == 6
    assert typical.fastest == pytest.approx(3, rel=0.1)


def test_a_clip_of_one_flow_or_of_no_motion_has_a_typical_flow(tmp_path):
    for speeds in ([5.0], [0.0, 0, 0], [1.0, 40]):
        with open_shard(write_flows(tmp_path / "x.h5", moving(speeds))) as shard:
            assert 0 <= typical_flow(shard, "forward").index < len(speeds)


def test_all_pictures_of_a_clip_have_one_scale(tmp_path):
    path = make_shard(tmp_path / "x.h5", flows=6, width=64, height=48)
    scales = {run(path, "--index", index).rpartition("full colour is ")[2] for index in range(6)}
    assert len(scales) == 1


def test_the_picture_is_saved_beside_the_shard(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = make_shard(tmp_path / "x.h5", video="Class/a.b")
    assert ", a typical one" in run(path)
    assert (tmp_path / "x.flow.png").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_member_of_a_pack_is_shown_and_saved_beside_the_pack(tmp_path):
    loose = [make_shard(tmp_path / f"{stem}.h5", video=f"Class/{stem}") for stem in "ab"]
    pack = tmp_path / "set" / "shards.h5pack"
    write_pack(pack, map(ShardAddress, loose))
    assert "of Class/b" in run(pack / "Class" / "b")
    assert (tmp_path / "set" / "b.flow.png").exists()
    assert "2 of 2 clips" in run(pack)


def test_a_place_that_cannot_be_written_is_an_error_that_names_output(tmp_path):
    path = make_shard(tmp_path / "x.h5")
    (tmp_path / "x.flow.png").mkdir()
    assert "--output FILE names another place" in run(path, status=1)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_moving_picture_shows_every_flow(tmp_path, suffix):
    path = make_shard(tmp_path / "x.h5", frames=True, flows=6, height=35, width=51)
    output = tmp_path / f"50%d v{suffix}"
    assert "6 forward flows" in run(path, "--output", output)
    if suffix == ".gif":
        with Image.open(output) as image:
            assert (image.n_frames, image.info["duration"]) == (6, 40)
        return
    with av.open(f"file:{output}") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0


# --- two ways to compute the flow, and many clips --------------------------------------------------------------------


def test_two_shards_of_a_video_stand_one_below_the_other_with_their_difference(tmp_path):
    flows = moving([2.0, 2, 2])
    one = write_flows(tmp_path / "one" / "x.h5", flows)
    write_flows(tmp_path / "other" / "x.h5", flows + np.float32(0.5))
    single, both = tmp_path / "single.png", tmp_path / "both.png"
    run(one, "--output", single)
    run(one, "--against", tmp_path / "other", "--output", both)
    assert Image.open(both).height > 1.5 * Image.open(single).height
    with view.opened(view.choices(options(one, against=str(tmp_path / "other")))[0], options(one)) as shown:
        labels = [source.label for source in shown.sources]
    assert labels == ["dis, one", "dis, other"]
    assert flow_pictures._difference(flows[0], flows[0] + np.float32(0.5), 4.0)[0] == (
        "difference: 0.71 px on average"
    )


def options(*targets: Path, **values: object) -> view.ViewOptions:
    return view.ViewOptions(targets=targets, **values)  # type: ignore[arg-type]


def test_shards_of_different_videos_are_compared_by_name_alone(tmp_path):
    for folder, stems in (("one", "abc"), ("other", "bcd")):
        for stem in stems:
            make_shard(tmp_path / folder / "Class" / f"{stem}.h5", video=f"Class/{stem}")
    found = view.choices(options(tmp_path / "one", against=str(tmp_path / "other")))
    assert [choice.name for choice in found] == ["Class/b", "Class/c"]
    assert {choice.other.address.file.stem for choice in found if choice.other} == {"b", "c"}
    assert "2 of 2 clips" in run(tmp_path / "one", "--against", tmp_path / "other")
    message = run(tmp_path / "one" / "Class" / "a.h5", "--against", tmp_path / "other", status=1)
    assert "expected shards of the same videos" in message


def test_a_contact_sheet_of_a_dataset_is_spread_over_its_classes(tmp_path):
    folder = tmp_path / "mine" / "shards" / "dis"
    for label in "abc":
        for number in range(4):
            make_shard(folder / label / f"{number}.h5", video=f"{label}/{number}")
    found = view.choices(options(dataset="mine", data=tmp_path))
    assert len(found) == 12
    assert [choice.name for choice in view.spread(found, 7)] == [
        "a/0",
        "a/1",
        "a/2",
        "b/0",
        "b/2",
        "c/0",
        "c/2",
    ]
    assert [choice.name for choice in view.spread(found, 2)] == ["a/0", "b/0"]
    assert view.spread(found, 50) == found
    said = run("--dataset", "mine", "--data", tmp_path, "--clips", 6)
    assert "6 of 12 clips, 3 classes" in said
    assert (folder / "contact-sheet.png").exists()
    one = run("--dataset", "mine", "--data", tmp_path, "b/3")
    assert f"{folder}/b/3.flow.png: forward flow" in one
    wrong = run("--dataset", "mine", "--data", tmp_path, "b/7", status=1)
    assert "expected a shard of 'b/7'" in wrong


def test_a_damaged_shard_is_left_out_of_a_sheet_and_the_exit_status_says_so(tmp_path):
    for stem in "ab":
        make_shard(tmp_path / "set" / f"{stem}.h5", video=stem)
    (tmp_path / "set" / "c.h5").write_bytes(b"no shard")
    said = run(tmp_path / "set", "--output", tmp_path / "s.png", status=1)
    assert "left out" in said
    assert "c.h5" in said
    assert (tmp_path / "s.png").exists()
    (tmp_path / "set" / "a.h5").unlink()
    (tmp_path / "set" / "b.h5").write_bytes(b"no shard")
    assert "none of its 2 clips can be shown" in run(tmp_path / "set", status=1)


def test_names_of_files_are_data(tmp_path):
    for name in ("line\nbreak", "üñï 動 🎬", "a" * 200, "%d $(x) [b]"):
        path = make_shard(tmp_path / f"{name}.h5", video=name, width=64, height=48)
        assert "\n" not in run(path).strip()
        assert (tmp_path / f"{name}.flow.png").exists()


def test_what_cannot_be_shown_is_said(tmp_path):
    path = make_shard(tmp_path / "x.h5", flows=0)
    assert "holds 0 forward flows" in run(path, "--output", tmp_path / "v.png", status=1)
    path = make_shard(tmp_path / "y.h5")
    assert "no flow 4" in run(path, "--index", 4, "--output", tmp_path / "v.png", status=1)
    assert "ends in .png, .jpg" in run(path, "--output", tmp_path / "v.tiff", status=1)
    assert "has no backward" in run(path, "--direction", "backward", "--output", tmp_path / "v.png", status=1)
    run(path, "--index", 1, "--output", tmp_path / "v.mp4", status=2)
    run(status=2)
    assert "no such" in run(tmp_path / "none.h5", status=1)
    assert "expected one clip for an MP4" in run(path, path, "--output", tmp_path / "v.mp4", status=1)
    (tmp_path / "v.mp4").write_bytes(b"")
    assert "found a file of another kind" in run(tmp_path / "v.mp4", status=1)
    (tmp_path / "empty").mkdir()
    assert "expected shards" in run(tmp_path / "empty", status=1)
    frames = make_shard(tmp_path / "f.h5", directions=(), frames=True)
    assert "frames only" in run(frames, status=1)
