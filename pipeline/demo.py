"""The embedded dataset: rendered clips of three objects times three motions, nine classes that need both streams.

What each stream can know is kept apart by construction. The three objects differ in hue alone: frames are drawn as
luma and chroma, and luma, from which flow is computed, does not depend on the object. The three motions differ in
the path alone: its phase is random and its size the same for all, so that one frame gives no hint of it. Each
stream by itself can therefore tell three groups of three classes apart and no more, an accuracy of a third; the
two together can tell all nine.

To be an honest test all else varies: backgrounds, a decoy that stands still, position, size, speed and phase, camera
drift and shake, noise, colour cast. Objects belong to subjects, each with its own texture, tint, size and pace, and
the splits hold subjects out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from pipeline import atomic, catalog
from pipeline.catalog import Dataset, Split, Video
from pipeline.errors import InputError, command_errors
from pipeline.machine import in_processes, usable_cores
from pipeline.options import CONTEXT, DataOptions, from_options, option, options_of
from pipeline.paths import DatasetPaths, data_root

WIDTH, HEIGHT, FRAMES, FPS = 128, 96, 20, 15
SUBJECTS, SPLITS = 6, 3
CODEC = "libx264"

HUES = {"Ember": 110.0, "Leaf": 230.0, "Sky": 350.0}
"""The object's direction in the (Cb, Cr) plane, in degrees."""

# Displacement from the middle of the path for a phase in radians; its mean square, and so the speed's, is the same for
# all.
MOTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "Sway": lambda phase: (float(np.sin(phase)), 0.0),
    "Bob": lambda phase: (0.0, float(np.sin(phase))),
    "Orbit": lambda phase: (float(np.cos(phase) * np.sqrt(0.5)), float(np.sin(phase) * np.sqrt(0.5))),
}
CLASSES = tuple(f"{hue}{motion}" for hue in HUES for motion in MOTIONS)

Plane = npt.NDArray[np.floating]


def render(seed: int, hue: str, motion: str, subject: int, take: int) -> npt.NDArray[np.uint8]:
    """One clip as planar YUV 4:2:0 (BT.601, limited range): uint8[FRAMES, HEIGHT * 3 // 2, WIDTH].

    Every scene (subject and take) is filmed with each object and each motion, so that no background or place gives
    the class away, not even in training. Numbers are drawn for the subject, the scene and the movement in it; the hue
    draws none, so that clips that differ in their hue alone have the same luma.
    """
    person = np.random.default_rng([seed, 1, subject])
    tint, pace, girth = person.uniform(-12, 12), person.uniform(0.92, 1.08), person.uniform(0.92, 1.08)
    coat = noise_field(person, (64, 64), (2, 5))
    place = noise_field(person, (HEIGHT + 64, WIDTH + 64), (3, 12))

    scene = np.random.default_rng([seed, 2, subject, take])
    background = 0.5 * place + noise_field(scene, (HEIGHT + 64, WIDTH + 64), (2, 16))
    background = 118 + 22 * background / background.std()
    chroma = np.stack([noise_field(scene, (HEIGHT // 2, WIDTH // 2), (8, 16)) for _ in range(2)])
    chroma = 128 + 7 * chroma + scene.uniform(-6, 6, size=(2, 1, 1))
    angle = np.deg2rad(HUES[hue] + tint + scene.uniform(-8, 8))
    colour = 128 + scene.uniform(38, 48) * np.array([np.cos(angle), np.sin(angle)])
    shade = scene.uniform(-18, 18)
    decoy_at, decoy_radius = scene.uniform([0, 0], [WIDTH, HEIGHT]), scene.uniform(9, 15)
    decoy_coat = noise_field(scene, (64, 64), (2, 5))
    radius, reach = girth * scene.uniform(13, 17), scene.uniform(7, 9)
    margin = radius + reach
    middle = scene.uniform([margin, margin], [WIDTH - margin, HEIGHT - margin])

    movement = np.random.default_rng([seed, 3, list(MOTIONS).index(motion), subject, take])
    start, turn = movement.uniform(0, 2 * np.pi), movement.choice([-1, 1])
    period = movement.uniform(10.5, 13.5) / pace
    drift, shake = movement.uniform(-0.5, 0.5, size=2), movement.normal(0, 0.15, size=(FRAMES, 2))

    clip = np.empty((FRAMES, HEIGHT * 3 // 2, WIDTH), np.uint8)
    for index in range(FRAMES):
        camera = drift * (index - FRAMES / 2) + shake[index]
        path = np.array(MOTIONS[motion](start + turn * 2 * np.pi * index / period))
        luma = shifted(background, camera - 32, (HEIGHT, WIDTH))
        tones = np.stack([shifted(plane, camera / 2, plane.shape) for plane in chroma])
        luma, _ = paste(luma, tones, decoy_at + camera, decoy_radius, 118 - shade + 24 * decoy_coat, None)
        luma, tones = paste(luma, tones, middle + reach * path, radius, 118 + shade + 24 * coat, colour)
        luma = luma + movement.normal(0, 2.5, size=luma.shape)
        clip[index, :HEIGHT] = np.clip(np.rint(luma), 16, 235)
        clip[index, HEIGHT:] = np.clip(np.rint(tones), 16, 240).reshape(HEIGHT // 2, WIDTH)
    return clip


def noise_field(draw: np.random.Generator, shape: tuple[int, int], scales: tuple[float, float]) -> Plane:
    """Smooth noise of two scales (pixels), mean 0 and deviation 1: float32[shape]."""
    import cv2

    field = np.zeros(shape, np.float32)
    for sigma in scales:
        layer = cv2.GaussianBlur(draw.standard_normal(shape).astype(np.float32), (0, 0), sigma)
        field += layer / layer.std()
    return (field - field.mean()) / field.std()


def shifted(plane: Plane, offset: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Plane:
    """A window of the given shape on a plane that is moved by (x, y) = `offset` pixels, between pixels too."""
    import cv2

    matrix = np.array([[1, 0, offset[0]], [0, 1, offset[1]]])
    size = (shape[1], shape[0])
    window = cv2.warpAffine(
        plane.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(window, np.float32)


def paste(
    luma: Plane,
    tones: Plane,
    centre: npt.NDArray[np.float64],
    radius: float,
    coat: Plane,
    colour: npt.NDArray[np.float64] | None,
) -> tuple[Plane, Plane]:
    """Luma and chroma with a soft-edged disc put over them; `colour` (Cb, Cr) of None leaves the chroma as it is."""

    def disc(shape: tuple[int, int], scale: float) -> Plane:
        y, x = np.mgrid[: shape[0], : shape[1]] * scale + (scale - 1) / 2
        return np.clip((radius + 0.5 - np.hypot(x - centre[0], y - centre[1])) / scale, 0, 1)

    cover = disc((HEIGHT, WIDTH), 1)
    texture = shifted(coat, centre - np.array(coat.shape[::-1]) / 2, (HEIGHT, WIDTH))
    luma = luma * (1 - cover) + texture * cover
    if colour is not None:
        cover = disc((HEIGHT // 2, WIDTH // 2), 2)
        tones = tones * (1 - cover) + colour[:, None, None] * cover
    return luma, tones


def encode(clip: npt.NDArray[np.uint8], path: Path) -> None:
    """Write a clip as H.264 in MP4 at a constant quantiser.

    A constant quantiser keeps what the chroma costs from changing how the luma is coded.
    """
    import av

    with atomic.writing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = container.add_stream(CODEC, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        stream.options = {"qp": "20", "preset": "veryfast"}
        for planes in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Clip:
    """The identity of one rendered clip."""

    hue: str
    motion: str
    subject: int
    take: int

    @property
    def label(self) -> str:
        return f"{self.hue}{self.motion}"

    @property
    def id(self) -> str:
        return f"{self.label}/v_{self.label}_g{self.subject:02d}_c{self.take:02d}"


def clips(videos_per_class: int) -> list[Clip]:
    """Every clip of the dataset; takes cycle through the subjects, each of whom must have one."""
    return [
        Clip(hue, motion, subject=index % SUBJECTS + 1, take=index // SUBJECTS + 1)
        for hue in HUES
        for motion in MOTIONS
        for index in range(videos_per_class)
    ]


def describe(videos: Path, seed: int, videos_per_class: int) -> Dataset:
    """The demo as the catalogue records it: split k holds out the subjects 2k-1 and 2k."""
    every = clips(videos_per_class)
    held_out = {number: {2 * number - 1, 2 * number} for number in range(1, SPLITS + 1)}
    return Dataset(
        name="demo",
        classes=CLASSES,
        videos={
            clip.id: Video(
                clip.id, videos / f"{clip.id}.mp4", clip.label, f"g{clip.subject:02d}", FRAMES, WIDTH, HEIGHT
            )
            for clip in sorted(every, key=lambda clip: clip.id)
        },
        splits={
            number: Split(
                number,
                train=tuple(clip.id for clip in every if clip.subject not in subjects),
                test=tuple(clip.id for clip in every if clip.subject in subjects),
            )
            for number, subjects in held_out.items()
        },
        short_side=None,
        origin={"kind": "demo", "seed": seed, "videos_per_class": videos_per_class},
    )


def render_demo(
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    videos_per_class: int = 24,
    jobs: int = -1,
    overwrite: bool = False,
) -> tuple[Dataset, int]:
    """Render and record the dataset `demo`; the dataset, and how many clips had to be rendered.

    With the pinned versions the same seed gives the same bytes. An existing clip is kept, so an interrupted
    rendering resumes where it stopped.

    Raises:
        InputError: too few videos per class; another demo exists and `overwrite` is not set; disk full.
    """

    if videos_per_class < SUBJECTS:
        raise InputError(
            f"{videos_per_class} videos per class: expected at least {SUBJECTS}, one of each subject"
        )
    paths = DatasetPaths(data_root(data), "demo")
    dataset = describe(paths.videos, seed, videos_per_class)
    same = paths.record.exists() and dict(catalog.load_dataset("demo", data).origin) == dict(dataset.origin)
    if paths.record.exists() and not same and not overwrite:
        raise InputError(
            f"{paths.record}: another demo (other --seed or --videos-per-class) was rendered here; "
            "use another --data folder, or --overwrite and then make its shards again"
        )

    def make(clip: Clip) -> bool:
        path = paths.videos / f"{clip.id}.mp4"
        if same and path.exists() and not overwrite:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(render(seed, clip.hue, clip.motion, clip.subject, clip.take), path)
        return True

    with atomic.disk_errors(paths.videos):
        # The record comes first, so that clips left behind by an interruption are known to belong to this demo.
        catalog.save(dataset, paths.videos, data)
        atomic.sweep(paths.videos)
        rendered = sum(in_processes(make, clips(videos_per_class), jobs))
    return dataset, rendered


@dataclass(frozen=True, kw_only=True)
class DemoOptions(DataOptions):
    """Which demo to render, and where."""

    seed: int = option(0, "Seed of the rendering; another gives other clips.", minimum=0)
    videos_per_class: int = option(24, "Clips of each of the nine classes.", minimum=SUBJECTS)
    jobs: int | None = option(None, "Processes.", minimum=1, shown_default="one per core")
    overwrite: bool = option(False, "Replace existing clips.")


@click.command(context_settings=CONTEXT)
@options_of(DemoOptions)
@command_errors
def command(**values: Any) -> None:
    """Render the embedded dataset `demo`: three objects times three motions, as real video files."""
    options = from_options(DemoOptions, values)
    dataset, rendered = render_demo(
        options.data,
        options.seed,
        options.videos_per_class,
        options.jobs or usable_cores(),
        options.overwrite,
    )
    folder = DatasetPaths(data_root(options.data), "demo").videos
    click.echo(
        f"demo: {len(dataset.videos)} videos of {len(dataset.classes)} classes in {folder} "
        f"({rendered} rendered, {len(dataset.videos) - rendered} there already), {len(dataset.splits)} splits"
    )
