"""The demo: rendered the same everywhere, and each stream can know its own factor only."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from pipeline import catalog, demo
from pipeline.catalog import Dataset
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """The smallest demo, one take of each subject, and its data root."""
    data = tmp_path_factory.mktemp("demo")
    demo.render_demo(data, seed=3, videos_per_class=6, jobs=1)
    return catalog.load_dataset("demo", data), data


def decode(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Luma uint8[T,H,W] and chroma uint8[T,2,H/2,W/2] of a file."""
    import av

    with av.open(str(path)) as container:
        planes = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
    height = planes.shape[1] * 2 // 3
    return planes[:, :height], planes[:, height:].reshape(len(planes), 2, height // 2, -1)


def test_the_demo_is_nine_classes_of_real_video(rendered: tuple[Dataset, Path]) -> None:
    dataset, _ = rendered
    assert len(dataset.classes) == 9
    assert set(Counter(video.label for video in dataset.videos.values()).values()) == {6}
    for video in list(dataset.videos.values())[::9]:
        luma, chroma = decode(video.path)
        assert luma.shape == (video.frames, video.height, video.width) == (20, 96, 128)
        assert luma.std() > 10
        assert chroma.std() > 5


def test_every_split_holds_out_two_subjects_and_all_are_held_out_once(rendered: tuple[Dataset, Path]) -> None:
    dataset, _ = rendered
    out: list[str] = []
    for number, split in dataset.splits.items():
        assert catalog.shared_groups(dataset, number) == []
        assert sorted(split.train + split.test) == sorted(dataset.videos)
        assert set(Counter(dataset.videos[video].label for video in split.test).values()) == {2}
        out += split.test
    assert sorted(out) == sorted(dataset.videos)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    rendered: tuple[Dataset, Path], tmp_path: Path
) -> None:
    dataset, _ = rendered
    clip = demo.clips(6)[17]
    again = tmp_path / "again.mp4"
    demo.encode(demo.render(3, clip.hue, clip.motion, clip.subject, clip.take), again)
    assert again.read_bytes() == dataset.videos[clip.id].path.read_bytes()
    assert np.any(
        demo.render(3, clip.hue, clip.motion, clip.subject, clip.take)
        != demo.render(4, clip.hue, clip.motion, clip.subject, clip.take)
    )


def test_decoded_luma_does_not_depend_on_the_object(rendered: tuple[Dataset, Path]) -> None:
    # Flow is computed from luma, so the temporal stream cannot know more than the motion, in what is stored too.
    videos = rendered[0].videos
    for motion in demo.MOTIONS:
        ember, leaf, sky = (
            decode(videos[f"{hue}{motion}/v_{hue}{motion}_g02_c01"].path) for hue in demo.HUES
        )
        np.testing.assert_array_equal(ember[0], leaf[0])
        np.testing.assert_array_equal(ember[0], sky[0])
        assert np.any(ember[1] != leaf[1])
        assert np.any(ember[1] != sky[1])


def test_all_motions_are_equally_large_and_equally_fast() -> None:
    phases = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    for move in demo.MOTIONS.values():
        path = np.array([move(phase) for phase in phases])
        speed = np.gradient(path, phases, axis=0)[1:-1]
        np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose((path**2).sum(axis=1).mean(), 0.5, rtol=1e-6)
        np.testing.assert_allclose((speed**2).sum(axis=1).mean(), 0.5, rtol=1e-2)


def colour_of(chroma: npt.NDArray[np.uint8]) -> str:
    """The object whose hue is nearest to that of the most saturated pixels."""
    vectors = np.median(chroma[0].reshape(2, -1), axis=1)
    field = chroma[0].astype(float) - vectors[:, None, None]
    strong = np.argsort(np.hypot(*field).ravel())[-40:]
    mean = field.reshape(2, -1)[:, strong].mean(axis=1)
    angle = np.rad2deg(np.arctan2(mean[1], mean[0]))
    return min(demo.HUES, key=lambda hue: abs((angle - demo.HUES[hue] + 180) % 360 - 180))


def motion_of(luma: npt.NDArray[np.uint8]) -> str:
    """The motion whose share of sideways movement is nearest, by optical flow where it differs from the camera's."""
    import cv2

    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flows = np.stack([solver.calc(a, b, None) for a, b in itertools.pairwise(luma)])
    flows -= np.median(flows, axis=(1, 2), keepdims=True)
    x, y = (np.sort(flows[..., axis].ravel() ** 2)[-3000:].mean() for axis in (0, 1))
    wanted = {"Sway": 1.0, "Bob": 0.0, "Orbit": 0.5}
    return min(wanted, key=lambda motion: abs(wanted[motion] - x / (x + y)))


def test_colour_tells_the_object_and_flow_the_motion(rendered: tuple[Dataset, Path]) -> None:
    dataset, _ = rendered
    right = Counter[str]()
    for video in dataset.videos.values():
        luma, chroma = decode(video.path)
        right["object"] += video.label.startswith(colour_of(chroma))
        right["motion"] += video.label.endswith(motion_of(luma))
    assert right["object"] >= 0.95 * len(dataset.videos)
    assert right["motion"] >= 0.95 * len(dataset.videos)


def test_a_second_run_keeps_what_is_there_and_makes_what_is_lost(
    rendered: tuple[Dataset, Path], tmp_path: Path
) -> None:
    shutil.copytree(rendered[1], tmp_path, dirs_exist_ok=True)
    lost, *kept = (video.path for video in catalog.load_dataset("demo", tmp_path).videos.values())
    before, times = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    assert demo.render_demo(tmp_path, seed=3, videos_per_class=6, jobs=1)[1] == 1
    assert lost.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_another_demo_does_not_silently_replace_this_one(rendered: tuple[Dataset, Path]) -> None:
    dataset, data = rendered
    told = CliRunner().invoke(
        demo.command, ["--data", str(data), "--seed", "4", "--videos-per-class", "6", "--jobs", "1"]
    )
    assert told.exit_code == 1
    assert "--overwrite" in told.output
    assert catalog.load_dataset("demo", data).origin == dataset.origin


def test_fewer_videos_than_subjects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 6"):
        demo.render_demo(tmp_path, videos_per_class=5)
    assert (
        CliRunner().invoke(demo.command, ["--videos-per-class", "5", "--data", str(tmp_path)]).exit_code == 2
    )
