"""Our decoder of flow gives the pixels of libjpeg, whatever the coding, and nothing is touched that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from made_shards import smooth_flow

from pipeline import decoder
from pipeline.codec import codec, encode_png, stack_components
from pipeline.decoder import BadStream, StreamBlock, decode_fields, decode_frames

KERNELS = pytest.importorskip("pipeline.decoder_kernels", reason="numba is not installed")


def block_of(streams: list[bytes], first: int = 0) -> StreamBlock:
    start = np.cumsum([0] + [len(stream) for stream in streams]).astype(np.int64)
    crc32 = np.array([zlib.crc32(stream) for stream in streams], np.uint32)
    return StreamBlock(b"".join(streams[first:]), start, crc32, first)


def fields(count: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Flow whose blocks are of every kind: still, shifted as a whole, smooth, and noise beyond the table."""
    rng = np.random.default_rng(seed)
    flow = smooth_flow(count, height, width, seed)
    flow[:, :, : height // 3] = 0
    flow[:, :, : height // 3, : width // 4] = rng.normal(0, 8, (count, 2, 1, 1))
    rough = flow[:, :, height // 2 :, width // 2 :]
    rough += rng.normal(0, 12, rough.shape).astype(np.float32)
    return flow


def by_opencv(stream: bytes, height: int) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.stack([image[:height], image[-height:]])


@pytest.mark.parametrize("preset", ["default", "high-fidelity", "linear", "paper", "field", "lossless"])
@pytest.mark.parametrize("size", [(40, 57), (33, 16), (9, 70), (64, 64)])
def test_pixels_are_those_of_opencv(preset: str, size: tuple[int, int]) -> None:
    coding = codec(preset)
    levels = coding.quantiser.quantise(fields(4, *size)).levels
    streams = [coding.encode(field) for field in levels]
    out = np.zeros((5, 2, *size), np.uint8)
    targets = np.array([3, 0, 4])
    decode_fields(block_of(streams, first=1), targets, *size, out)
    for stream, target in zip(streams[1:], targets, strict=True):
        assert np.array_equal(out[target], by_opencv(stream, size[0]))
    assert not out[[1, 2]].any()


@pytest.mark.parametrize("quality", [1, 20, 75, 100])
@pytest.mark.parametrize("optimised", [0, 1])
def test_pixels_of_any_tables_and_any_picture_are_those_of_opencv(quality: int, optimised: int) -> None:
    """Noise and edges, whose codes are too long for the look-ups, and tables that are not made for the picture."""
    rng = np.random.default_rng(quality)
    picture = rng.integers(0, 256, (64, 72), dtype=np.uint8)
    picture[:16] = rng.integers(0, 2, (16, 72)) * 255
    picture[32:48] = 77
    _, stream = cv2.imencode(
        ".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimised]
    )
    data, out = stream.tobytes(), np.zeros((1, 2, 32, 72), np.uint8)
    block = block_of([data])
    assert decode_alone(block, 32, 72, out) == KERNELS.OK
    assert np.array_equal(out[0], by_opencv(data, 32))


def decode_alone(block: StreamBlock, height: int, width: int, out: npt.NDArray[np.uint8]) -> int:
    """The kernel's answer without the help of OpenCV."""
    data = np.frombuffer(block.data, np.uint8)
    room = KERNELS.scratch(len(data), width)
    return KERNELS.decode_streams(
        data, decoder._read_only(block.start), decoder._read_only(block.crc32), 0, 0, np.zeros(1, np.int64), height,
        width, 0, 0, 0, height, width, out, room,
    )  # fmt: skip


def test_a_region_is_that_part_of_the_whole_and_goes_to_the_upper_left() -> None:
    coding = codec()
    streams = [coding.encode(field) for field in coding.quantiser.quantise(fields(3, 50, 61)).levels]
    whole = np.zeros((3, 2, 50, 61), np.uint8)
    decode_fields(block_of(streams), np.arange(3), 50, 61, whole)
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = int(rng.integers(1, 51)), int(rng.integers(1, 62))
        top, left = int(rng.integers(0, 51 - height)), int(rng.integers(0, 62 - width))
        out = np.full((3, 2, height + 2, width + 3), 9, np.uint8)
        decode_fields(block_of(streams), np.arange(3), 50, 61, out, (top, left, height, width))
        assert np.array_equal(
            out[:, :, :height, :width], whole[:, :, top : top + height, left : left + width]
        )
        assert (out[:, :, height:] == 9).all()
        assert (out[:, :, :, width:] == 9).all()


def test_levels_below_the_lowest_are_read_as_the_lowest() -> None:
    picture = np.zeros((2, 16, 24), np.uint8)
    picture[:, :, 8:] = np.random.default_rng(0).integers(0, 20, (2, 16, 16))
    stream = codec("field").encode(picture)
    low, out = np.empty((1, 2, 16, 24), np.uint8), np.empty((1, 2, 16, 24), np.uint8)
    decode_fields(block_of([stream]), np.zeros(1, np.int64), 16, 24, low)
    decode_fields(block_of([stream]), np.zeros(1, np.int64), 16, 24, out, lowest=3)
    assert low.min() < 3
    assert np.array_equal(out, np.maximum(low, 3))


def other_kinds() -> dict[str, bytes]:
    picture = stack_components(codec().quantiser.quantise(fields(1, 24, 40)).levels[0])
    colour = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    return {
        "png": encode_png(picture),
        "progressive": cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
        "restart markers": cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
        "colour": cv2.imencode(".jpg", colour)[1].tobytes(),
    }


@pytest.mark.parametrize("kind", ["png", "progressive", "restart markers", "colour"])
def test_every_other_kind_of_stream_is_left_to_opencv(kind: str) -> None:
    stream = other_kinds()[kind]
    usual = codec().encode(codec().quantiser.quantise(fields(1, 24, 40)).levels[0])
    out = np.zeros((3, 2, 24, 40), np.uint8)
    assert decode_alone(block_of([stream]), 24, 40, out) == KERNELS.UNSUPPORTED
    decode_fields(block_of([usual, stream, usual]), np.arange(3), 24, 40, out)
    for found, expected in zip(out, (usual, stream, usual), strict=True):
        assert np.array_equal(found, by_opencv(expected, 24))


@pytest.mark.parametrize("with_numba", [True, False])
def test_a_stream_that_is_not_what_was_written_is_named(
    with_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_numba:
        monkeypatch.setattr(decoder, "_kernels", lambda: None)
    stream = codec().encode(codec().quantiser.quantise(fields(1, 24, 40)).levels[0])
    out = np.zeros((3, 2, 24, 40), np.uint8)
    decode_fields(block_of([stream] * 3), np.arange(3), 24, 40, out)
    assert np.array_equal(out[2], by_opencv(stream, 24))
    block = block_of([stream] * 3)
    block.crc32[1] ^= 1
    with pytest.raises(BadStream, match="fails its checksum") as caught:
        decode_fields(block, np.arange(3), 24, 40, out)
    assert caught.value.index == 1
    with pytest.raises(BadStream, match="neither a JPEG nor a PNG") as caught:
        decode_fields(block_of([stream, stream, b"something else"]), np.arange(3), 24, 40, out)
    assert caught.value.index == 2
    with pytest.raises(BadStream, match="holds no flow of 48x24"):
        decode_fields(block_of([stream]), np.arange(1), 24, 48, np.zeros((1, 2, 24, 48), np.uint8))


SAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def frame_kinds() -> dict[str, bytes]:
    picture = np.random.default_rng(0).integers(0, 256, (75, 61, 3), dtype=np.uint8)
    ways = {name: [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor] for name, factor in SAMPLING.items()}
    ways |= {"optimised": [cv2.IMWRITE_JPEG_OPTIMIZE, 1], "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]}
    ways |= {"restart markers": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]}
    kinds = {name: cv2.imencode(".jpg", picture, way)[1].tobytes() for name, way in ways.items()}
    comment = b"\xff\xfe\x01\x00" + bytes(254)
    gray = cv2.imencode(".jpg", picture[:, :, 0])[1].tobytes()
    usual = kinds["4:2:0"]
    return {
        **kinds,
        "a long comment": usual[:2] + comment + usual[2:],
        "gray": gray,
        "more behind": usual + b"x\xff\xd9",
    }


@pytest.mark.parametrize(
    "kind",
    [*SAMPLING, "optimised", "progressive", "restart markers", "a long comment", "gray", "more behind"],
)
def test_a_region_of_a_frame_is_that_part_of_what_opencv_decodes(kind: str) -> None:
    """Rows below the region are not decoded; that changes no pixel in it, down to its last row."""
    stream = frame_kinds()[kind]
    whole = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    block, targets = block_of([stream, stream]), np.array([2, 0])
    for bottom in range(1, 76):
        top, left = max(0, bottom - 9), bottom % 40
        out = np.full((3, 12, 30, 3), 9, np.uint8)
        decode_frames(block, targets, 75, 61, out, (top, left, bottom - top, 20))
        for target in targets:
            assert np.array_equal(out[target, : bottom - top, :20], whole[top:bottom, left : left + 20])
        assert (out[1] == 9).all()
        assert (out[:, bottom - top :] == 9).all()
        assert (out[:, :, 20:] == 9).all()


def test_a_usual_frame_that_is_read_in_part_gives_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """libjpeg writes to standard error about bytes that it does not expect."""
    out = np.zeros((1, 20, 20, 3), np.uint8)
    for kind in (*SAMPLING, "optimised"):
        decode_frames(block_of([frame_kinds()[kind]]), np.zeros(1, np.int64), 75, 61, out, (3, 4, 20, 20))
    assert capfd.readouterr() == ("", "")


def test_a_frame_that_is_not_what_was_written_is_named() -> None:
    stream = frame_kinds()["4:2:0"]
    out, one = np.zeros((3, 75, 61, 3), np.uint8), np.arange(3)
    block = block_of([stream] * 3)
    block.crc32[1] ^= 1
    with pytest.raises(BadStream, match="fails its checksum") as caught:
        decode_frames(block, one, 75, 61, out)
    assert caught.value.index == 1
    for wrong in (b"", b"something else", stream[:100]):
        with pytest.raises(BadStream) as caught:
            decode_frames(block_of([stream, stream, wrong]), one, 75, 61, out)
        assert caught.value.index == 2
    with pytest.raises(BadStream, match="another size than 75x61"):
        decode_frames(block_of([stream]), one[:1], 61, 75, np.zeros((1, 61, 75, 3), np.uint8))
    for region in ((-1, 0, 24, 40), (0, 1, 75, 61), (0, 0, 76, 61)):
        with pytest.raises(ValueError, match="region"):
            decode_frames(block_of([stream]), one[:1], 75, 61, out, region)


def test_what_the_kernels_take_on_trust_is_checked() -> None:
    stream = codec().encode(codec().quantiser.quantise(fields(1, 24, 40)).levels[0])
    block, one, out = block_of([stream]), np.zeros(1, np.int64), np.zeros((1, 2, 24, 40), np.uint8)
    for region in ((-1, 0, 24, 40), (0, 1, 24, 40), (0, 0, 25, 40), (0, 0, 0, 4), (3, 3, 22, 4)):
        with pytest.raises(ValueError, match="region"):
            decode_fields(block, one, 24, 40, out, region)
    for wrong in (out[..., ::2], out.astype(np.int16), out[0], np.zeros((1, 1, 24, 40), np.uint8)):
        with pytest.raises(ValueError):
            decode_fields(block, one, 24, 40, wrong, (0, 0, 8, 8))
    for targets in (one + 1, one - 1, one.astype(np.int32), np.zeros(2, np.int64)):
        with pytest.raises(ValueError):
            decode_fields(block, targets, 24, 40, out)


def test_no_bytes_make_the_kernels_leave_their_arrays(tmp_path: Path) -> None:
    """With numba's bounds checks, in a process of its own, since they are compiled in: cut, changed, random bytes."""
    script = Path(__file__).with_name("fuzz_decoder.py")
    path = os.pathsep.join([str(script.parents[2]), str(script.parent)])
    own = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "4"],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
