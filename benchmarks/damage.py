"""How surely damage in videos is found: sound and damaged files of eight codecs, made here, through the video reader.

    python benchmarks/damage.py [--damaged 10] [--seed 0] [SOUND_FILE...]

Sound files are encoded in many ways (containers, B-frames, slices, fields, open groups of pictures), and cut at a key
frame or joined without encoding them again; none may be refused. Damaged files are copies with bytes overwritten, a
sector zeroed, or the end cut off inside a frame. One counts if its frames differ from the sound file's; those that do
not are "unchanged". It is found if the reader refuses it. Of the others, "valid" are those in which the decoder finds
nothing either where it is set to refuse every error and each of its messages counts: bits were changed into others that
mean something. "Missed" are the rest. The frames that `keep` would use are compared with the sound file's too. Files
given on the command line count as sound.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import click
import numpy as np
import numpy.typing as npt

from pipeline.damage import listen
from pipeline.video import Selection, VideoError, VideoReader

FRAMES, WIDTH, HEIGHT = 50, 176, 144
Bytes = npt.NDArray[np.uint8]


class Encoding(NamedTuple):
    """How a sound file is made: encoder, suffix of the container, pixel format, options of the encoder."""

    encoder: str
    suffix: str
    pixels: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()


def encodings() -> dict[str, list[Encoding]]:
    """Per codec, the ways its sound files are made."""

    def ways(encoder: str, *variants: tuple[str, dict[str, str]], pixels: str = "yuv420p") -> list[Encoding]:
        return [Encoding(encoder, suffix, pixels, tuple(options.items())) for suffix, options in variants]

    x264 = {"crf": "23", "g": "25"}
    x265 = {"crf": "26", "g": "25"}
    quiet = "log-level=none"
    return {
        "h264": ways(
            "libx264",
            ("mp4", x264),
            ("mkv", x264 | {"coder": "vlc"}),
            ("mp4", x264 | {"profile": "baseline"}),
            ("ts", x264 | {"x264-params": "open-gop=1:bframes=3"}),
            ("mp4", x264 | {"x264-params": "slices=4"}),
            ("mov", x264 | {"x264-params": "interlaced=1"}),
            ("avi", x264 | {"bf": "0"}),
            ("mp4", x264 | {"x264-params": "intra-refresh=1"}),
        ),
        "hevc": ways(
            "libx265",
            ("mp4", x265 | {"x265-params": quiet}),
            ("mkv", x265 | {"x265-params": quiet + ":open-gop=1:bframes=4"}),
            ("ts", x265 | {"x265-params": quiet + ":repeat-headers=1"}),
            ("mp4", x265 | {"x265-params": quiet + ":slices=2"}),
            ("mov", x265 | {"x265-params": quiet + ":bframes=0"}),
            ("mkv", x265 | {"x265-params": quiet + ":wpp=0:lossless=1"}),
        ),
        "mpeg4": ways(
            "mpeg4",
            ("avi", {"b": "400k"}),
            ("mp4", {"b": "400k", "bf": "2"}),
            ("avi", {"b": "400k", "bf": "2"}),
            ("avi", {"b": "400k", "flags": "+mv4+aic"}),
            ("mkv", {"b": "400k", "data_partitioning": "1", "ps": "300"}),
            ("mp4", {"b": "1M", "flags": "+qpel+ildct+ilme"}),
        ),
        "mpeg2video": ways(
            "mpeg2video",
            ("mpg", {"b": "600k"}),
            ("ts", {"b": "600k", "bf": "2"}),
            ("mkv", {"b": "600k", "bf": "2"}),
            ("mpg", {"b": "1M", "flags": "+ildct+ilme"}),
            ("m2v", {"b": "600k", "intra_vlc": "1"}),
            ("mov", {"b": "600k", "g": "1"}),
        ),
        "mjpeg": ways(
            "mjpeg",
            ("avi", {"q": "5"}),
            ("mov", {"qmin": "2", "qmax": "2"}),
            ("mkv", {"huffman": "default"}),
            ("avi", {"huffman": "optimal"}),
            ("mp4", {"qmin": "12", "qmax": "12"}),
            pixels="yuvj420p",
        )
        + ways("mjpeg", ("avi", {}), pixels="yuvj444p"),
        "vp8": ways(
            "libvpx",
            ("webm", {"b": "400k"}),
            ("mkv", {"b": "400k", "auto-alt-ref": "1", "lag-in-frames": "16"}),
            ("webm", {"b": "400k", "error-resilient": "1"}),
            ("webm", {"b": "400k", "token-parts": "3"}),
            ("webm", {"b": "2M", "deadline": "realtime"}),
            ("avi", {"b": "400k"}),
        ),
        "vp9": ways(
            "libvpx-vp9",
            ("webm", {"b": "400k", "cpu-used": "5"}),
            ("mkv", {"b": "400k", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
            ("mp4", {"b": "400k", "error-resilient": "1", "cpu-used": "5"}),
            ("webm", {"b": "400k", "deadline": "realtime", "cpu-used": "7"}),
            ("webm", {"b": "400k", "tile-rows": "1", "cpu-used": "5"}),
            ("mp4", {"lossless": "1", "cpu-used": "5"}),
        ),
        "av1": ways(
            "libsvtav1",
            *((suffix, {"preset": preset, "crf": crf}) for suffix, preset, crf in (
                ("mp4", "10", "35"), ("mkv", "12", "30"), ("webm", "10", "50"),
                ("mp4", "12", "20"), ("mkv", "10", "45"), ("mp4", "11", "40"),
            )),
        ),
    }  # fmt: skip


def scene(seed: int) -> Iterator[Bytes]:
    """RGB frames uint8[H,W,3] of a moving texture with objects of their own motion and some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    waves = rng.uniform(0.03, 0.35, (3, 4, 3))
    paths = rng.uniform(-3, 3, (4, 2))
    starts = rng.uniform(20, 120, (4, 2))
    colours = rng.uniform(0, 255, (4, 3))
    for t in range(FRAMES):
        image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for channel in range(3):
            for fx, fy, phase in waves[channel]:
                image[..., channel] += np.sin(fx * (columns - 1.3 * t) + fy * (rows + 0.4 * t) + 9 * phase)
        image = 128 + 28 * image
        for start, path, colour in zip(starts, paths, colours, strict=True):
            y, x = start + path * t
            inside = np.hypot(rows - y % HEIGHT, columns - x % WIDTH) < 14
            image[inside] = colour
        yield np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def encode(path: Path, way: Encoding, seed: int) -> None:
    """Write a sound file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(way.encoder, rate=Fraction(25), options=dict(way.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, way.pixels
        stream.thread_count = 1
        for image in scene(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def cut(source: Path, target: Path) -> bool:
    """Copy the packets from the second key frame on, as a lossless cutter does; False if there is none."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copied = writer.add_stream_from_template(stream)
        keys = 0
        for packet in reader.demux(stream):
            keys += packet.is_keyframe and packet.size > 0
            if keys >= 2 and packet.size:
                packet.stream = copied
                writer.mux(packet)
    return keys >= 2


def places(path: Path) -> list[tuple[int, int]]:
    """(position, size) in the file of the video's packets after the first."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size > 80 and p.pos][1:]


def damage(data: bytes, packets: Sequence[tuple[int, int]], number: int, rng: np.random.Generator) -> bytes:
    """A damaged copy: bytes overwritten in three places or one, a sector zeroed, or cut off inside a frame."""
    copy = bytearray(data)

    def overwrite(length: int, zero: bool = False) -> None:
        position, size = packets[rng.integers(len(packets))]
        start = position + 24 + int(rng.integers(max(1, size - 24 - length)))
        copy[start : start + length] = bytes(length) if zero else rng.bytes(length)

    kind = number % 5
    if kind in (0, 1):
        for _ in range(3):
            overwrite(40)
    elif kind == 2:
        overwrite(16)
    elif kind == 3:
        overwrite(512, zero=True)
    else:
        position, size = packets[-len(packets) // 3]
        return bytes(copy[: position + size // 2])
    return bytes(copy[: len(data)])


def plain_frames(path: Path) -> list[Bytes]:
    """Gray frames as a decoder gives them that nobody watches; those before the error if there is one."""
    frames = []
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    except av.error.FFmpegError:
        pass
    return frames


def ours(path: Path) -> tuple[list[Bytes], str, tuple[str, ...]]:
    """Frames of the video reader, why it refused the rest if it did, and its notes."""
    frames: list[Bytes] = []
    try:
        with VideoReader(path, Selection(short_side=None)) as reader:
            while len((read := reader.read(16)).gray):
                frames.extend(read.gray)
            return frames, "", reader.notes
    except VideoError as error:
        return frames, error.reason, ()


def is_valid(path: Path) -> bool:
    """Whether the decoder, set to refuse every error, decodes all frames without a message."""
    from av.logging import WARNING, Capture

    listen()
    strict = {"err_detect": "crccheck+bitstream+buffer+explode"}
    try:
        with Capture() as messages, av.open(str(path), options=strict) as container:
            container.streams.video[0].codec_context.thread_count = 1
            count = sum(1 for _ in container.decode(video=0))
    except av.error.FFmpegError:
        return False
    return count > 0 and not any(level <= WARNING for level, _, _ in messages)


def largest_difference(frames: Sequence[Bytes], sound: Sequence[Bytes]) -> tuple[int, float]:
    """The largest difference of gray levels, and the share of pixels that differ by more than 2."""
    differences = [np.abs(a.astype(int) - b) for a, b in zip(frames, sound, strict=False)]
    if not differences:
        return 0, 0.0
    return max(int(d.max()) for d in differences), float(np.mean([np.mean(d > 2) for d in differences]))


def is_wrong(frames: Sequence[Bytes], sound: Sequence[Bytes]) -> bool:
    """Whether a frame is none of the sound file's, or out of their order."""
    at = 0
    for frame in frames:
        while at < len(sound) and not np.array_equal(frame, sound[at]):
            at += 1
        if at == len(sound):
            return True
        at += 1
    return False


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--damaged", default=10, show_default=True, help="Damaged files of each codec.")
@click.option("--codec", "codecs", multiple=True, type=click.Choice(list(encodings())), help="Only these.")
@click.option("--seed", default=0, show_default=True)
@click.option("--show", is_flag=True, help="Name each file that is refused or missed, and why.")
def main(files: tuple[Path, ...], damaged: int, codecs: tuple[str, ...], seed: int, show: bool) -> None:
    """Print a table of sound files refused and damaged files found, by codec."""
    os.environ.setdefault("SVT_LOG", "1")
    print(
        f"{'':12}{'sound':>7}{'refused':>9}{'damaged':>9}{'found':>7}{'noted':>7}{'valid':>7}"
        f"{'missed':>8}{'unchanged':>11}{'kept wrong':>12}"
    )
    refused = [f"{path}: {reason}" for path in files if (reason := ours(path)[1])]
    if files:
        print(f"{'given':12}{len(files):7}{len(refused):9}")
    with tempfile.TemporaryDirectory() as scratch:
        for codec, ways in encodings().items():
            if not codecs or codec in codecs:
                refused += measure(Path(scratch), codec, ways, damaged, np.random.default_rng(seed), show)
    for line in refused:
        print(f"sound, but refused: {line}")


def measure(
    folder: Path, codec: str, ways: Sequence[Encoding], damaged: int, rng: np.random.Generator, show: bool
) -> list[str]:
    """Print one codec's row; the sound files that were refused."""
    sound = []
    for number, way in enumerate(ways):
        path = folder / f"{codec}-{number}.{way.suffix}"
        encode(path, way, number)
        sound.append(path)
    made = list(sound)
    for path in made:
        shorter = path.with_stem(path.stem + "-cut")
        if codec != "av1" and cut(path, shorter):  # PyAV cannot copy what libdav1d decodes
            sound.append(shorter)
        if path.suffix == ".ts":
            joined = path.with_stem(path.stem + "-joined")
            joined.write_bytes(path.read_bytes() + shorter.read_bytes())
            if len(plain_frames(joined)) >= FRAMES + len(
                plain_frames(shorter)
            ):  # FFmpeg loses some HEVC here
                sound.append(joined)
    refused = [f"{path.name}: {reason}" for path in sound if (reason := ours(path)[1])]
    found = noted = valid = wrong = total = number = 0
    while total < damaged:
        source = made[number % len(made)]
        path = folder / f"{codec}-damaged-{number}{source.suffix}"
        path.write_bytes(damage(source.read_bytes(), places(source), number, rng))
        number += 1
        reference, frames = plain_frames(source), plain_frames(path)
        if len(frames) == len(reference) and not is_wrong(frames, reference):
            continue  # the damage is of nothing that shows
        total += 1
        kept, reason, notes = ours(path)
        found += bool(reason)
        noted += bool(notes and not reason)
        wrong += bool(reason) and is_wrong(kept, reference)
        unseen = not (reason or notes)
        valid += unseen and is_valid(path)
        if show and (unseen or (reason and is_wrong(kept, reference))):
            most, share = largest_difference(frames, reference)
            what = reason or ("valid" if is_valid(path) else "missed")
            print(
                f"  {path.name}, kind {(number - 1) % 5}: {what}, {len(kept)} frames kept; differs by up to {most} "
                f"levels, {share:.2%} of pixels by more than 2"
            )
    missed = total - found - noted - valid
    row = (
        f"{codec:12}{len(sound):7}{len(refused):9}{total:9}{found:7}{noted:7}{valid:7}{missed:8}"
        f"{number - total:11}{wrong:12}"
    )
    print(row, flush=True)
    return refused


if __name__ == "__main__":
    main()
