"""Pictures of flow: the Middlebury colours and the paper's figure 2."""

from __future__ import annotations

import av
import numpy as np
import pytest
from click.testing import CliRunner
from made_shards import HEIGHT, WIDTH, make_shard
from PIL import Image

from pipeline import view


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
    assert np.abs(view.flow_colours(flow, 1.0).astype(int) - expected).max() <= 1


def test_still_pixels_are_white_and_rightward_motion_is_red():
    flow = np.zeros((2, 1, 2), np.float32)
    flow[0, 0, 1] = 3
    colours = view.flow_colours(flow, 3.0)
    assert (colours[0, 0] == 255).all()
    assert colours[0, 1, 0] == 255
    assert colours[0, 1, 1:].max() < 30


def test_components_are_gray_with_positive_bright():
    gray = view.component_gray(np.array([[-2, -1, 0, 1, 2]], np.float32), 1.0)[0, :, 0]
    assert list(gray) == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("frames", "panels"), [(True, 4), (False, 3)])
def test_a_png_shows_frame_flow_x_and_y_side_by_side(tmp_path, frames, panels):
    path = make_shard(tmp_path / "x.h5", frames=frames)
    run(path, "--output", tmp_path / "v.png", "--index", 2)
    image = Image.open(tmp_path / "v.png")
    assert image.size == (panels * WIDTH + (panels - 1) * 4, HEIGHT)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.png", "x.h5"]


def test_without_options_the_liveliest_flow_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_shard(tmp_path / "x.h5", video="Class/a.b")
    with view.open_shard(path) as shard:
        expected = int(np.argmax(np.linalg.norm(shard.mean(), axis=1)))
    assert f"a.b.png: forward flow {expected}" in run(path)
    assert (tmp_path / "a.b.png").exists()


def test_an_mp4_shows_every_flow(tmp_path):
    path = make_shard(tmp_path / "x.h5", frames=True, flows=6, height=35, width=51)
    run(path, "--output", tmp_path / "50%d v.mp4")
    with av.open(f"file:{tmp_path / '50%d v.mp4'}") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape == (36, 4 * 51 + 3 * 4, 3)


def test_what_cannot_be_shown_is_told(tmp_path):
    path = make_shard(tmp_path / "x.h5", flows=0)
    assert "holds 0 forward flows" in run(path, "--output", tmp_path / "v.png", status=1)
    path = make_shard(tmp_path / "y.h5")
    assert "no flow 4" in run(path, "--index", 4, "--output", tmp_path / "v.png", status=1)
    assert ".png or .mp4" in run(path, "--output", tmp_path / "v.gif", status=1)
    assert "has no backward" in run(path, "--direction", "backward", "--output", tmp_path / "v.png", status=1)
    run(path, "--index", 1, "--output", tmp_path / "v.mp4", status=2)
    assert "no such" in run(tmp_path / "none.h5", status=1)
