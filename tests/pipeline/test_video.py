"""Rules of pipeline/video.py, against PyAV, OpenCV and frames whose content is known."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from hypothesis import given
from hypothesis import strategies as st
from rendered_clips import clip, moving_texture, write_video

from pipeline.pictures import frames_of, number_gaps
from pipeline.video import Frames, Selection, VideoError, VideoReader, turn_of_matrix

SOURCE_SIZE = Selection(short_side=None)


def read_all(path: Path, selection: Selection = SOURCE_SIZE, rgb: bool = True, chunk: int = 7) -> Frames:
    gray, colour = [], []
    with VideoReader(path, selection, rgb=rgb) as reader:
        while len((frames := reader.read(chunk)).gray):
            gray.append(frames.gray)
            if frames.rgb is not None:
                colour.append(frames.rgb)
    return Frames(np.concatenate(gray), np.concatenate(colour) if colour else None)


def reference_rgb(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_are_those_of_an_independent_decode(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", frames=20)
    frames = read_all(path)
    reference = reference_rgb(path).astype(int)
    assert frames.rgb is not None
    assert frames.rgb.shape == reference.shape
    assert np.abs(frames.rgb - reference).mean() < 3  # ours interpolates the colours of neighbouring pixels
    gray = np.stack([cv2.cvtColor(np.uint8(frame), cv2.COLOR_RGB2GRAY) for frame in reference]).astype(int)
    assert np.abs(frames.gray - gray).mean() < 2


def test_chunks_do_not_change_the_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", frames=11)
    one, many = read_all(path, chunk=1), read_all(path, chunk=100)
    assert np.array_equal(one.gray, many.gray)
    assert np.array_equal(one.rgb, many.rgb)


def test_rgb_in_the_same_pass_leaves_gray_as_it_is(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi")
    with_rgb, without = read_all(path, Selection(40)), read_all(path, Selection(40), rgb=False)
    assert without.rgb is None
    assert np.array_equal(with_rgb.gray, without.gray)


@pytest.mark.parametrize(("colour_range", "low", "high"), [(1, 16, 235), (2, 0, 255)])
def test_gray_is_luma_on_the_full_range_whatever_range_the_source_uses(
    tmp_path: Path, colour_range: int, low: int, high: int
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.codec_context.color_range = colour_range
        frame = av.VideoFrame(32, 16, "yuv420p")
        frame.color_range = colour_range
        luma = np.repeat(np.uint8([[low] * 8 + [high] * 24]), 16, axis=0)
        for plane, values in zip(frame.planes, (luma, np.full((8, 16), 128, np.uint8)), strict=False):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : plane.width] = values[: plane.height, : plane.width]
            plane.update(rows.tobytes())
        frame.planes[2].update(np.full(frame.planes[2].buffer_size, 128, np.uint8).tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    gray = read_all(path).gray[0]
    assert gray[:, :7].max() <= 1
    assert gray[:, 9:].min() >= 254


def test_the_short_side_becomes_what_was_asked_and_the_other_follows(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", width=64, height=48)
    assert read_all(path, Selection(short_side=30)).gray.shape[1:] == (30, 40)
    assert read_all(path, Selection(size=(17, 9))).gray.shape[1:] == (9, 17)
    assert read_all(path, SOURCE_SIZE).gray.shape[1:] == (48, 64)


@pytest.mark.parametrize("size", [(1, 1), (33, 48), (64, 47), (85, 64), (86, 64)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "bgr0"])
def test_rgb_frames_are_what_swscale_makes_in_one_step(
    tmp_path: Path, size: tuple[int, int], pixels: str
) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, moving_texture(2, 64, 48), codec="ffv1", pixels=pixels)
    exactly = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    with av.open(str(path)) as container:
        expected = [
            frame.reformat(*size, "rgb24", interpolation=exactly).to_ndarray()
            for frame in container.decode(video=0)
        ]
    assert np.array_equal(read_all(path, Selection(size=size)).rgb, np.stack(expected))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000))
def test_the_other_side_is_the_nearest_integer(width: int, height: int, short: int) -> None:
    new = Selection(short_side=short).target(width, height)
    assert min(new) == short
    assert abs(max(new) - max(width, height) * short / min(width, height)) <= 0.5 + 1e-6


def test_a_scaled_frame_is_close_to_an_area_average(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", width=128, height=96, frames=3)
    small = read_all(path, Selection(short_side=32)).gray.astype(int)
    full = read_all(path).gray
    reference = np.stack([cv2.resize(f, (43, 32), interpolation=cv2.INTER_AREA) for f in full]).astype(int)
    assert np.abs(small - reference).mean() < 3


def test_every_start_and_end_select_by_time(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", frames=50, rate=25)
    whole = read_all(path).gray
    assert np.array_equal(read_all(path, Selection(None, every=3)).gray, whole[::3])
    assert np.array_equal(read_all(path, Selection(None, start=0.4, end=1.2)).gray, whole[10:30])
    assert np.array_equal(read_all(path, Selection(None, start=1.0, every=10)).gray, whole[25::10])
    with VideoReader(path, Selection(None, every=5)) as reader:
        assert reader.fps == pytest.approx(5)


def test_nothing_in_the_selected_time_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no frame lies at or after 9 s"):
        VideoReader(clip(tmp_path / "a.mkv"), Selection(start=9))


@pytest.mark.parametrize(
    "values", [{"short_side": 0}, {"size": (0, 4)}, {"every": 0}, {"start": -1}, {"start": 2, "end": 2}]
)
def test_a_selection_that_makes_no_sense_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Selection(**values)


def test_frames_before_an_error_come_first_then_the_error_with_their_number(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", frames=40, codec="libx264", **{"movflags": "faststart"})
    path = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    path.write_bytes(data)
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    position = packets[20].pos
    damaged = bytearray(data)
    damaged[position : position + packets[20].size] = (
        b"\xff" * packets[20].size
    )  # NAL lengths beyond the packet
    path.write_bytes(damaged)
    reference = read_all(whole).gray
    seen = []

    def read() -> None:
        with VideoReader(path, SOURCE_SIZE) as reader:
            while len((frames := reader.read(6)).gray):
                seen.append(frames.gray)

    with pytest.raises(VideoError) as caught:
        read()
    good = np.concatenate(seen)
    assert 2 <= len(good) < 40
    assert caught.value.frames == len(good)
    assert f"after {len(good)} frames" in str(caught.value)
    assert np.array_equal(good[:10], reference[:10])


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"RIFF", b"this is text, not a video\n" * 50])
def test_a_file_that_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.avi"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"x\.avi: ") as caught:
        VideoReader(path)
    assert caught.value.frames == 0


def test_a_missing_file_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such file"):
        VideoReader(tmp_path / "none.avi")
    with pytest.raises(VideoError, match="numbered pictures"):
        VideoReader(tmp_path)


def test_sound_without_pictures_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="holds no video stream"):
        VideoReader(path)


@pytest.mark.parametrize(
    "name", ["-dash %03d.avi", "a'b\"c;d#e&f[g](h)!.avi", "é中 x.y.avi", "http:x.avi", "concat:a|b.avi"]
)
def test_names_are_files_whatever_they_look_like(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "plain.avi", frames=3)
    shutil.move(tmp_path / "plain.avi", tmp_path / name)
    assert len(read_all(tmp_path / name).gray) == 3
    monkeypatch.chdir(tmp_path)
    assert len(read_all(Path(name)).gray) == 3


def test_a_playlist_cannot_lead_to_other_hosts(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        read_all(path)


def test_one_frame_and_one_pixel(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", np.full((1, 1, 1, 3), 200, np.uint8), codec="ffv1", pixels="bgr0")
    frames = read_all(path, Selection(short_side=9))
    assert frames.gray.shape == (1, 9, 9)
    assert np.ptp(frames.gray) == 0
    assert read_all(path).gray.shape == (1, 1, 1)


def test_a_size_beyond_reason_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", np.zeros((1, 2, 600, 3), np.uint8), codec="ffv1", pixels="bgr0")
    with pytest.raises(VideoError, match=r"600x2 pixels would become 76800x256"):
        VideoReader(path)


def test_frames_whose_size_changes_get_the_size_of_the_first(tmp_path: Path) -> None:
    """Two MPEG streams of different sizes, one after the other, as broadcasts have them."""
    parts = [
        clip(tmp_path / "a.m2v", frames=6, width=64, height=48, codec="mpeg2video"),
        clip(tmp_path / "b.m2v", frames=6, width=96, height=80, codec="mpeg2video"),
    ]
    path = tmp_path / "c.m2v"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read_all(path)
    assert frames.gray.shape[1:] == (48, 64)
    assert len(frames.gray) >= 11


def display_matrix(degrees: int, mirror: bool = False) -> np.ndarray:
    """As in ISO 14496-12: a clockwise turn, of a frame mirrored before where asked."""
    angle = math.radians(degrees)
    a, b, c, d = (
        round(value) for value in (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
    )
    if mirror:
        a, b = -a, -b
    return np.int32([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_display_matrices_turn_frames_as_numpy_does(degrees: int, mirror: bool) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.rot90(np.fliplr(image) if mirror else image, -degrees // 90)
    turn = turn_of_matrix(display_matrix(degrees, mirror))
    assert np.array_equal(turn.apply(image), expected)
    assert turn.upright(4, 3) == expected.shape[::-1]


def test_a_folder_of_pictures_is_a_video_in_natural_order(tmp_path: Path) -> None:
    rgb = moving_texture(12, 24, 16)
    for i, frame in enumerate(rgb, 1):
        cv2.imwrite(str(tmp_path / f"img_{i}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "cover.jpg").write_bytes(b"no number in its name")
    frames = read_all(tmp_path)
    assert np.array_equal(frames.rgb, rgb)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb]).astype(int)
    assert np.abs(frames.gray - gray).max() <= 1
    with VideoReader(tmp_path, SOURCE_SIZE) as reader:
        assert (reader.fps, reader.notes, reader.header_frames) == (25, (), 12)


def test_a_bad_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    for i, frame in enumerate(moving_texture(5, 24, 16)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), frame)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with VideoReader(tmp_path, SOURCE_SIZE) as reader:
        assert len(reader.read(10).gray) == 3
        with pytest.raises(VideoError, match=r"3\.png is not a picture") as caught:
            reader.read(10)
    assert caught.value.frames == 3


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ([1, 2, 3], ()),
        ([5, 10, 15, 20], ()),
        ([1, 2, 4, 5], ("frame 3 is missing",)),
        ([1, 2, 6, 7, 8], ("frames 3 to 5 are missing",)),
        ([7], ()),
    ],
)
def test_gaps_are_what_the_usual_difference_leaves_out(numbers: list[int], gaps: tuple[str, ...]) -> None:
    assert number_gaps([Path(f"img_{n:05}.jpg") for n in numbers]) == gaps


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1))
def test_natural_order_is_the_order_of_numbers(numbers: list[int]) -> None:
    names = [picture.name for picture in frames_of([f"f{n}.png" for n in numbers], Path("folder"))]
    assert names == [f"f{n}.png" for n in sorted(numbers)]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "frames", "size", "header"),
    [
        ("odd/no_duration.webm", 74, (1280, 720), None),
        ("odd/header_says_451_has_69.avi", 69, (320, 240), 451),
        ("odd/one_pixel.mp4", 5, (1, 1), 5),
        ("odd/rotated_90.mov", 3, (320, 568), 3),
        ("odd/uncompressed_aborts_cv2.avi", 30, (176, 144), 30),
        ("hmdb51/TrumanShow_wave_f_nm_np1_fr_med_26.avi", 48, (432, 240), 49),
    ],
)
def test_real_files_have_the_frames_they_hold(
    test_data: Path, name: str, frames: int, size: tuple[int, int], header: int | None
) -> None:
    with VideoReader(test_data / "clips" / name, Selection(short_side=64)) as reader:
        count = sum(iter(lambda: len(reader.read(16).gray), 0))
        assert (count, reader.decoded, reader.header_frames) == (frames, frames, header)
        assert (reader.source_width, reader.source_height) == size


@pytest.mark.realdata
def test_a_truncated_file_gives_its_frames_and_then_the_error(test_data: Path) -> None:
    with VideoReader(test_data / "clips/odd/truncated_h264.mp4", Selection(short_side=64)) as reader:
        assert len(reader.read(100).gray) == 28
        with pytest.raises(VideoError, match="after 28 frames"):
            reader.read(100)


@pytest.mark.realdata
def test_a_turned_phone_video_is_upright_as_opencv_turns_it(test_data: Path) -> None:
    path = test_data / "clips/odd/rotated_90.mov"
    capture = cv2.VideoCapture(str(path))
    reference = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB).astype(int)
    frames = read_all(path)
    assert frames.rgb is not None
    assert np.abs(frames.rgb[0] - reference).mean() < 2
