"""How long commands take to start over very many shards, and how much memory they need.

    python benchmarks/scale.py --folder /tmp/scale [--videos 13320] [--layout loose] [--layout packed] [--step NAME ...]

Makes a dataset of one rendered clip of a few frames under many names (hard links) with a shard of it for each video,
as loose files or as a pack for each class, and runs the commands as a user would. The shards are copies of one that
`python -m extract_flow` made, with the video's name put in: what is measured is everything but decoding and flow.
For each command: wall time, CPU time and the largest resident memory of one process. Starts of training and scoring are
measured up to the line that says what there is to do, and stopped there. "no manifest" is the same start after the
manifest was deleted. What was made stays in the folder; run it again to measure again.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import h5py
import numpy as np

NAME = "many"
CLASSES = 100
GROUPS, TEST_GROUPS = 25, 7
LINKS = 50_000
"""Names of one file; ext4 allows 65,000."""
SIDE, FRAMES = 64, 4
PROBED = 20_000
"""Videos up to which importing reads their headers; beyond, it is run with --no-probe."""
AT_ONCE = 4096
HEAP_BLOCK = 1024
"""Bytes of the block of HDF5's that holds a shard's attributes."""
EXTRACTION = ("--method", "dis", "--short-side", str(SIDE))
RECIPE = ("--recipe", "demo", "--set", "batch=2", "--set", "length=2")


def video_ids(count: int) -> list[str]:
    """`count` names of equal length, class by class."""
    classes = [f"class{number % CLASSES:03d}" for number in range(count)]
    return [
        f"{label}/v_{label}_g{number // CLASSES % GROUPS:02d}_c{number // CLASSES // GROUPS:05d}"
        for number, label in enumerate(classes)
    ]


# --- what is measured on ------------------------------------------------------------------------------------------


def make_videos(folder: Path, ids: Sequence[str]) -> None:
    """The same clip under each name."""
    clip = folder / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 25, (SIDE, SIDE))
    random = np.random.default_rng(0)
    texture = cv2.GaussianBlur(random.integers(0, 255, (2 * SIDE, 2 * SIDE, 3), np.uint8), (0, 0), 2)
    for shift in range(FRAMES):
        writer.write(texture[shift : shift + SIDE, :SIDE])
    writer.release()
    for number, video in enumerate(ids):
        if number % LINKS == 0:
            source = folder / f"clip-{number}.avi"
            shutil.copy(clip, source)
        path = folder / "videos" / f"{video}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(source)


def template(folder: Path, video: str) -> Path:
    """A shard of the clip under one name, made by the command."""
    source = folder / "one" / f"{video}.avi"
    source.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "clip.avi", source)
    run(folder, "extract_flow", str(folder / "one"), "--output", str(folder / "shards"), *EXTRACTION)
    return folder / "shards" / f"{video}.h5"


def make_loose(folder: Path, shards: Path, ids: Sequence[str]) -> None:
    """A copy of the template for each video: the name is put in, and the checksum of HDF5's block that it is in."""
    one, other = (template(folder, video).read_bytes() for video in (ids[0], ids[1]))
    place = one.index(ids[0].encode())
    block = one.rindex(b"FHDB", 0, place)
    checksum = next(i for i in range(block, place) if one[i] != other[i])

    def named(videos: Sequence[str]) -> np.ndarray:
        """The shards of some videos, uint8[n,bytes]."""
        data = np.tile(np.frombuffer(one, np.uint8), (len(videos), 1))
        data[:, place : place + len(ids[0])] = (
            np.array(videos, np.bytes_).view(np.uint8).reshape(len(videos), -1)
        )
        data[:, checksum : checksum + 4] = 0
        data[:, checksum : checksum + 4] = lookup3(data[:, block : block + HEAP_BLOCK])[:, None].view(
            np.uint8
        )
        return data

    if [shard.tobytes() for shard in named(ids[:2])] != [one, other]:
        raise SystemExit("shards are not what this benchmark knows: mend make_loose")
    for label in {video.partition("/")[0] for video in ids}:
        (shards / label).mkdir(parents=True, exist_ok=True)
    for first in range(0, len(ids), AT_ONCE):
        videos = ids[first : first + AT_ONCE]
        for video, data in zip(videos, named(videos), strict=True):
            (shards / f"{video}.h5").write_bytes(data.tobytes())


def lookup3(blocks: np.ndarray) -> np.ndarray:
    """The checksums of HDF5's blocks of metadata (Jenkins 2006): uint8[n,bytes] -> uint32[n]."""

    def turned(value: np.ndarray, bits: int) -> np.ndarray:
        return value << np.uint32(bits) | value >> np.uint32(32 - bits)

    length = blocks.shape[1]
    padded = np.pad(blocks, ((0, 0), (0, -length % 12)))
    words = np.ascontiguousarray(padded.view("<u4").T)
    a = b = c = np.full(len(blocks), (0xDEADBEEF + length) & 0xFFFFFFFF, np.uint32)
    for at in range(0, len(words) - 3, 3):
        a, b, c = a + words[at], b + words[at + 1], c + words[at + 2]
        for bits in (4, 6, 8, 16, 19, 4):
            # "a -= c; a ^= turned(c); c += b", and then the same with b, c, a for a, b, c.
            a, b, c = b, c + b, (a - c) ^ turned(c, bits)
    a, b, c = a + words[-3], b + words[-2], c + words[-1]
    for bits in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, (c ^ b) - turned(b, bits), a
    return b


def make_packed(folder: Path, shards: Path, ids: Sequence[str]) -> None:
    """A pack for each class, of copies of the template within HDF5."""
    shards.mkdir(parents=True, exist_ok=True)
    by_class: dict[str, list[str]] = {}
    for video in ids:
        by_class.setdefault(video.partition("/")[0], []).append(video)
    with h5py.File(template(folder, ids[0])) as source:
        for label, videos in by_class.items():
            with h5py.File(shards / f"{label}.h5pack", "w", libver=("v110", "v110")) as pack:
                pack.attrs.create("format", b"two-stream pack", dtype=h5py.string_dtype("utf-8", 15))
                pack.attrs.create("version", 1, dtype=np.int64)
                group = pack.create_group(label)
                for video in videos:
                    source.copy("/", group, video.partition("/")[2])
                    attribute = h5py.h5a.open(group[video.partition("/")[2]].id, b"video")
                    attribute.write(np.array(video.encode()), mtype=attribute.get_type())


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of a command: seconds, seconds of CPU of all its processes, bytes of the largest one."""

    wall: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.wall:8.1f} s {self.cpu:8.1f} s {self.memory / 1e6:8.0f} MB"


def run(folder: Path, *words: str, until: str | None = None) -> Cost:
    """Run `python -m WORDS`, to its end or until a line of its output matches."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TWO_STREAM_DATA": str(folder), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines, wall = [], None
    for line in process.stdout:
        lines.append(line)
        if until is not None and wall is None and re.search(until, line):
            wall = time.monotonic() - begun
            process.send_signal(signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)
    wall = wall or time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (0 if until is None else -signal.SIGKILL):
        raise SystemExit(
            "".join(lines[-20:]) + f"python -m {' '.join(words)}: exit status {process.returncode}"
        )
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


STEPS = ("import", "plan", "status", "verify", "skip", "train", "score", "no-manifest")


def measured(folder: Path, layout: str, steps: Sequence[str]) -> Iterator[tuple[str, Cost]]:
    """Each command on one shard set, which is named after its layout."""
    there = ("--dataset", NAME, "--shards", layout)
    training = ("train", *there, *RECIPE, "--run", layout)
    if "plan" in steps:
        yield "plan", run(folder, "pipeline", "plan", "--dataset", NAME, "--tasks", "1000")
    if "verify" in steps:
        yield "verify", run(folder, "pipeline", "verify", *there)
    if "skip" in steps:
        yield "skip test", run(folder, "extract_flow", *there, *EXTRACTION)
        yield "skip test again", run(folder, "extract_flow", *there, *EXTRACTION)
    if "status" in steps:
        yield "status", run(folder, "pipeline", "status", *there)
    if "train" in steps:
        yield "start of training", run(folder, *training, until="to train on")
    if "score" in steps:
        if not any((folder / NAME / "runs" / layout).glob("checkpoint-*")):
            run(folder, *training, "--set", "iterations=1", "--set", "warmup=0")
        yield (
            "start of scoring",
            run(folder, "evaluate", "score", *there, "--run", layout, until="videos to score"),
        )
    if "no-manifest" in steps:
        for path in (folder / NAME / "shards" / layout).glob("*manifest*"):
            path.unlink()
        yield "start of training, no manifest", run(folder, *training, until="to train on")


def prepare(folder: Path, count: int, layout: str, steps: Sequence[str]) -> Iterator[tuple[str, Cost]]:
    """Make what is not there yet."""
    ids, made = video_ids(count), folder / "made"
    made.mkdir(parents=True, exist_ok=True)
    if not (made / "videos").exists():
        make_videos(made, ids)
        lists = made / "lists"
        lists.mkdir()
        test = [video for video in ids if int(re.findall(r"_g(\d\d)_", video)[0]) < TEST_GROUPS]
        for side, chosen in (("train", sorted(set(ids) - set(test))), ("test", test)):
            rows = (f"{video}.avi {int(video[5:8]) + 1}\n" for video in chosen)
            (lists / f"{side}list01.txt").write_text("".join(rows))
    if "import" in steps or not (folder / NAME / "dataset.json").exists():
        words: tuple[str, ...] = (
            "--videos",
            str(made / "videos"),
            "--lists",
            str(made / "lists"),
            "--name",
            NAME,
        )
        words += ("--group-pattern", r"(g\d\d)", *(() if count <= PROBED else ("--no-probe",)))
        yield "import", run(folder, "pipeline", "import", "folder", *words)
    shards = folder / NAME / "shards" / layout
    if not shards.exists():
        (make_loose if layout == "loose" else make_packed)(made, shards, ids)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where everything is made.")
@click.option("--videos", default=13_320, show_default=True)
@click.option("--layout", "layouts", multiple=True, type=click.Choice(["loose", "packed"]))
@click.option("--step", "steps", multiple=True, type=click.Choice(STEPS), help="Only these.")
def main(folder: Path, videos: int, layouts: tuple[str, ...], steps: tuple[str, ...]) -> None:
    """Make the dataset, run the commands, print what they took."""
    folder = folder.absolute()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {videos:,} videos"
    )
    for layout in layouts or ("loose", "packed"):
        for name, cost in prepare(folder, videos, layout, steps):
            print(f"{name:32} {cost}", flush=True)
        for name, cost in measured(folder, layout, steps or STEPS):
            print(f"{layout + ': ' + name:32} {cost}", flush=True)


if __name__ == "__main__":
    main()
