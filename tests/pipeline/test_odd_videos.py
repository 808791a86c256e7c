"""Videos as cameras, cutters and downloads leave them: right frames, or an error that gives the reason."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from rendered_clips import clip, moving_texture, write_video

from pipeline import jpeg_scan, nal_units
from pipeline.import_dataset import probe
from pipeline.video import Selection, VideoError, VideoReader

SOURCE_SIZE = Selection(short_side=None)


def decoded(path: Path, selection: Selection = SOURCE_SIZE) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """The gray frames, why it failed if it did, and the notes."""
    frames = []
    with VideoReader(path, selection) as reader:
        try:
            while len((read := reader.read(5)).gray):
                frames.append(read.gray)
        except VideoError as error:
            return np.concatenate(frames), error.reason, ()
        return np.concatenate(frames), "", reader.notes


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def spoiled(path: Path, target: Path, packet: int, length: int = 40, seed: int = 0) -> Path:
    """A copy with random bytes in the middle of one packet."""
    data, place = bytearray(path.read_bytes()), packets_of(path)[packet]
    start = place.pos + place.size // 3
    data[start : start + length] = np.random.default_rng(seed).bytes(length)
    target.write_bytes(data)
    return target


# --- text and streams ---------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_does_not_decide_whether_frames_can_be_read(tmp_path: Path) -> None:
    """As AVI files of HMDB-51 and of old cameras have it: titles and comments in Latin-1 or noise."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": "TITLE-HERE", "comment": "COMMENT-HERE"})
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.metadata["title"] = "STREAM-HERE"
        for frame in moving_texture(6, 48, 32):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))
    data = path.read_bytes()
    written = [word for word in (b"TITLE-HERE", b"COMMENT-HERE", b"STREAM-HERE") if word in data]
    assert len(written) >= 2
    for word in written:
        data = data.replace(word, b"\xd3\xe9\xff" + word[3:])
    path.write_bytes(data)
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path)).close()
    assert len(decoded(path)[0]) == 6
    assert probe(path).frames == 6


def test_names_of_chapters_and_attachments_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.add_attachment("FONT-HERE.ttf", "application/x-truetype-font", b"not a font")
        container.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 100,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "CHAPTER-HERE"},
                }
            ]
        )
        for frame in moving_texture(6, 48, 32):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))
    data = path.read_bytes()
    for word in (b"FONT-HERE", b"CHAPTER-HERE"):
        assert word in data
        data = data.replace(word, b"\xd3\xe9\xff" + word[3:])
    path.write_bytes(data)
    assert len(decoded(path)[0]) == 6
    assert probe(path).frames == 6


def two_videos(path: Path, *, first_default: bool, second_default: bool) -> Path:
    """A file whose first video is one frame (a preview) and whose second is a film of 12 frames."""
    with av.open(str(path), "w") as container:
        streams = []
        for default in (first_default, second_default):
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            stream.disposition = Disposition.default if default else Disposition(0)
            streams.append(stream)
        for number, frame in enumerate(moving_texture(12, 48, 32)):
            for stream in streams if number == 0 else streams[1:]:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts = number
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("defaults", [(False, True), (True, True), (True, False), (False, False)])
def test_a_preview_before_the_film_is_not_the_video(
    tmp_path: Path, suffix: str, defaults: tuple[bool, bool]
) -> None:
    path = two_videos(tmp_path / f"a.{suffix}", first_default=defaults[0], second_default=defaults[1])
    frames, failure, notes = decoded(path)
    assert (len(frames), failure) == (12, "")
    assert len(notes) == 1
    assert "stream 0" in notes[0]
    assert probe(path).frames == 12


def test_a_picture_is_not_a_video(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), moving_texture(1, 32, 16)[0])
    (tmp_path / "x.png").rename(tmp_path / "x.mp4")
    with pytest.raises(VideoError, match=r"x\.mp4: is a picture"):
        VideoReader(tmp_path / "x.mp4")
    assert "is a picture" in probe(tmp_path / "x.mp4").fault


def test_pixels_that_are_not_square_are_kept_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for frame in moving_texture(3, 48, 32):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))
    frames, _, notes = decoded(path)
    assert frames.shape == (3, 32, 48)
    assert [("4:3" in note, "64x32" in note) for note in notes] == [(True, True)]


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "mp4", {"bf": "0"}),
        ("libx264", "mkv", {"bf": "3"}),
        ("mpeg4", "avi", {}),
        ("mpeg4", "mp4", {"bf": "2"}),
        ("mpeg2video", "mkv", {"bf": "2"}),
        ("mjpeg", "avi", {}),
        ("libvpx-vp9", "webm", {"cpu-used": "8"}),
    ],
)
def test_damage_is_found_and_the_frames_before_it_are_sound(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    rng = np.random.default_rng(1)
    noisy = moving_texture(20, 160, 96).astype(int) + rng.integers(-12, 12, (20, 96, 160, 3))
    path = write_video(
        tmp_path / f"a.{suffix}",
        np.clip(noisy, 0, 255).astype(np.uint8),
        codec=codec,
        pixels=pixels,
        **options,
    )
    sound, failure, _ = decoded(path)
    assert (len(sound), failure) == (20, "")
    kept, failure, _ = decoded(spoiled(path, tmp_path / f"b.{suffix}", packet=12))
    assert failure
    assert 3 <= len(kept) <= 13
    assert np.array_equal(kept, sound[: len(kept)])


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.flv", "flv"), ("a.asf", "wmv2")])
def test_a_file_cut_behind_its_first_key_frame_fails_instead_of_giving_frames_on_nothing(
    tmp_path: Path, name: str, codec: str
) -> None:
    whole, rest = clip(tmp_path / name, frames=8, codec=codec, g="20"), tmp_path / f"cut-{name}"
    with av.open(str(whole)) as reader, av.open(str(rest), "w") as writer:
        stream = reader.streams.video[0]
        copied = writer.add_stream_from_template(stream)
        for packet in [packet for packet in reader.demux(stream) if packet.size][2:]:
            packet.stream = copied
            writer.mux(packet)
    with pytest.raises(VideoError, match="first frame is no keyframe"), VideoReader(rest):
        pass


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "avi"), ("libx264", "mp4"), ("libx264", "ts"), ("libx265", "mkv"), ("libx265", "ts")],
)
def test_a_sector_of_zeros_is_found_where_the_decoder_takes_it_for_a_picture(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), np.uint8)
    path = write_video(tmp_path / f"a.{suffix}", frames, codec=codec, bf="0", **options)
    assert decoded(path)[1] == ""
    data, place = bytearray(path.read_bytes()), packets_of(path)[6]
    start = place.pos + 400 if suffix == "ts" else place.pos + place.size // 3
    data[start : start + 100] = bytes(100)
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(data)
    kept, failure, _ = decoded(broken)
    assert "damaged" in failure
    assert len(kept) <= 6


@pytest.mark.parametrize(
    ("data", "broken"),
    [
        (b"\x65\x11\x00\x00\x03\x00\x12", False),  # as encoders write two zeros and a third
        (b"\x65\x11\x00\x00\x00\x00\x12", True),
        (b"\x65\x11\x00\x00\x02\x12", True),
        (b"\x65\x11\x00\x00\x03\x12", True),
        (b"\x65\x11\x80" + bytes(40), False),  # padding
    ],
)
def test_bytes_that_must_not_be_in_a_nal_unit_are_seen_behind_lengths_and_start_codes(
    data: bytes, broken: bool
) -> None:
    sound = b"\x41\x22\x33"
    by_length = b"".join(len(unit).to_bytes(4) + unit for unit in (sound, data, sound))
    by_start_code = b"\0\0\0\1" + sound + bytes(300) + b"\0\0\1" + data + b"\0\0\1" + sound
    assert nal_units.is_broken(by_length, 4) == broken
    assert nal_units.is_broken(by_start_code, 0) == broken


def test_readers_side_by_side_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=30, width=160, height=96, codec="libx264", bf="3")
    bad = spoiled(path, tmp_path / "b.mp4", packet=12)
    alone = decoded(bad)
    others = [VideoReader(path, SOURCE_SIZE) for _ in range(3)]
    for reader in others:
        reader.read(7)
    beside = decoded(bad)
    for reader in others:
        reader.close()
    assert alone[1] == beside[1] != ""
    assert np.array_equal(alone[0], beside[0])


def test_a_transport_stream_that_lost_packets_fails_and_a_joined_one_does_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noisy = moving_texture(20, 160, 96).astype(int) + rng.integers(-12, 12, (20, 96, 160, 3))
    path = write_video(tmp_path / "a.ts", np.clip(noisy, 0, 255).astype(np.uint8), codec="libx264", bf="0")
    data = path.read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(data + data)
    frames, failure, _ = decoded(joined)
    assert (len(frames), failure) == (40, "")
    middle = len(data) // 2 // 188 * 188
    lost = tmp_path / "lost.ts"
    lost.write_bytes(data[:middle] + data[middle + 4 * 188 :])
    kept, failure, _ = decoded(lost)
    assert failure
    assert np.array_equal(kept, decoded(path)[0][: len(kept)])


def test_a_message_about_one_file_is_not_lost_because_another_gave_the_same(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.avi", frames=10, width=96, height=64)
    bad = spoiled(whole, tmp_path / "b.avi", packet=5)
    assert [bool(decoded(bad)[1]) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
        [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
        [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111],
        [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x211111],
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (1, 1), (8, 17)])
def test_a_sound_jpeg_has_no_fault(options: list[int], size: tuple[int, int]) -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8), (3, 3), 1)
    for picture in (image, image[..., 0]):
        for quality in (5, 90, 100):
            data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1].tobytes()
            assert jpeg_scan.fault(data) is None
            assert jpeg_scan.fault(data + bytes(100)) is None


def test_a_cut_or_shifted_jpeg_has_a_fault() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (97, 131, 3), np.uint8), (3, 3), 1)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    assert jpeg_scan.fault(data[: len(data) * 2 // 3]) == "the data ends too early"
    progressive = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert jpeg_scan.fault(progressive) is None
    assert jpeg_scan.fault(progressive[: len(progressive) * 2 // 3]) == "the data ends too early"
    middle = len(data) * 2 // 3
    assert jpeg_scan.fault(data[:middle] + data[middle + 40 :])
    assert jpeg_scan.fault(data[:middle] + data[middle - 60 :])


@pytest.mark.parametrize(
    ("behind", "change"), [(2, b"\x85"), (4, b"\x07"), (4, b"\x00"), (5, b"\x09"), (9, b"\x77")]
)
def test_a_damaged_header_of_a_scan_is_a_fault(behind: int, change: bytes) -> None:
    data = cv2.imencode(".jpg", moving_texture(1, 64, 48)[0])[1].tobytes()
    place = data.index(b"\xff\xda") + behind
    assert jpeg_scan.fault(data[:place] + change + data[place + 1 :]) == "a header is damaged"


def test_a_sector_of_zeros_in_a_jpeg_is_a_fault_though_its_codes_are_valid() -> None:
    data = cv2.imencode(".jpg", moving_texture(1, 320, 240)[0], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    faults = set()
    for place in range(1000, len(data) - 1000, 1000):
        faults.add(jpeg_scan.fault(data[:place] + bytes(512) + data[place + 512 :]))
    assert None not in faults
    assert "zeros that no encoder writes" in faults


@pytest.mark.parametrize("optimised", [0, 1])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_colour_has_no_fault(optimised: int, level: int) -> None:
    picture = np.full((480, 640, 3), level, np.uint8)
    picture[:40, :40] = moving_texture(1, 40, 40)[0]
    for image in (picture, picture[..., 0], picture[100:]):
        for quality in (5, 75, 100):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimised]
            assert jpeg_scan.fault(cv2.imencode(".jpg", image, options)[1].tobytes()) is None


def test_data_that_is_left_over_before_a_restart_marker_is_a_fault() -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    data = cv2.imencode(".jpg", moving_texture(1, 64, 48)[0], options)[1].tobytes()
    marker = data.index(b"\xff\xd0")
    assert jpeg_scan.fault(data) is None
    assert jpeg_scan.fault(data[:marker] + b"\x5a\x1c\x33" + data[marker:]) == "data is left over"


def test_a_cut_picture_among_frames_fails_and_is_named(tmp_path: Path) -> None:
    for number, frame in enumerate(moving_texture(4, 48, 32), 1):
        cv2.imwrite(str(tmp_path / f"img_{number}.jpg"), frame)
    path = tmp_path / "img_3.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    frames, failure, _ = decoded(tmp_path)
    assert len(frames) == 2
    assert failure.startswith("img_3.jpg is damaged")


# --- headers and times --------------------------------------------------------------------------------------


STEADY = [4 * n for n in range(20)]


@pytest.mark.parametrize(
    "stamps",
    [
        [720_000 + stamp for stamp in STEADY],
        [500, *STEADY[1:]],
        [*STEADY[:5], *(stamp - 40 for stamp in STEADY[5:10]), *STEADY[10:]],
        [stamp - 40 for stamp in STEADY],
    ],
    ids=["starts at 7200 s", "first stamp late", "steps back", "negative"],
)
def test_stamps_decide_nothing_unless_seconds_are_asked_for(stamps: list[int]) -> None:
    """The clock alone, since containers rewrite such stamps when they are written."""
    from pipeline.video import _Clock

    clock = _Clock(25)
    times = [clock.time(stamp / 100) for stamp in stamps]
    assert times == pytest.approx([stamp / 100 for stamp in STEADY], abs=0.041)
    assert all(after > before for before, after in pairwise(times))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {}),
        ("a.wmv", {"codec": "wmv2"}),
        ("a.mxf", {"codec": "mpeg2video"}),
    ],
)
def test_a_torn_download_is_noted_with_both_figures(tmp_path: Path, name: str, options: Any) -> None:
    path = clip(tmp_path / name, frames=60, width=160, height=120, **options)
    assert decoded(path)[2] == ()
    whole = path.read_bytes()
    torn = tmp_path / f"torn{path.suffix}"
    torn.write_bytes(whole[: packets_of(path)[25].pos])
    frames, failure, notes = decoded(torn)
    assert failure == ""
    assert 1 < len(frames) <= 25
    assert len(notes) == 1
    assert re.fullmatch(rf"its header says 2\.40 s, it holds [01]\.\d\d s \({len(frames)} frames\)", notes[0])


@pytest.mark.parametrize("packet", [188, 192, 204])
def test_a_transport_stream_cut_inside_a_packet_is_noted_whatever_the_size_of_its_packets(
    tmp_path: Path, packet: int
) -> None:
    plain = clip(tmp_path / "plain.ts", frames=12, codec="mpeg2video").read_bytes()
    rows = np.frombuffer(plain, np.uint8).reshape(-1, 188)
    before = packet == 192
    padding = np.zeros((len(rows), packet - 188), np.uint8)
    data = np.hstack([padding, rows] if before else [rows, padding]).tobytes()
    path = tmp_path / "a.ts"
    path.write_bytes(data)
    assert decoded(path)[1:] == ("", ())
    others = [size for size in (188, 192, 204) if size != packet]
    cut = next(n for n in range(len(data) - packet, 0, -1) if n % packet and n % others[0] == 0)
    path.write_bytes(data[:cut])
    _, failure, notes = decoded(path)
    assert failure or "ends inside a packet" in notes[0]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.gif", "gif", "rgb8"), ("a.y4m", "wrapped_avframe", "yuv420p"), ("a.avi", "huffyuv", "yuv422p")],
)
def test_files_that_end_inside_a_frame_fail_or_are_noted_and_give_no_wrong_frame(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    path = write_video(tmp_path / name, moving_texture(12, 48, 32), codec=codec, pixels=pixels)
    data, (sound, failure, notes) = path.read_bytes(), decoded(path)
    assert (len(sound), failure, notes) == (12, "", ())
    for share in (0.55, 0.7, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        frames, failure, notes = decoded(path)
        assert failure or notes
        assert np.array_equal(frames, sound[: len(frames)])


def test_a_header_two_frames_high_is_no_news(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", frames=40)
    data = path.read_bytes()
    place = data.index(b"avih") + 8 + 16
    assert int.from_bytes(data[place : place + 4], "little") == 40
    header = data.index(b"strh") + 8 + 32
    for start in (place, header):
        data = data[:start] + (42).to_bytes(4, "little") + data[start + 4 :]
    path.write_bytes(data)
    with VideoReader(path, SOURCE_SIZE) as reader:
        assert reader.header_frames == 42
    assert decoded(path)[2] == ()
