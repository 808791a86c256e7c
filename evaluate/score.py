"""Scoring videos: every view through the network, averaged for each video.

Worker processes decode each video once and hand over bytes; volumes are built, cut and mirrored on the device.
Views of several videos share a batch, so that the device stays full whatever the length of a video. What has been
scored is saved every `SAVE_SECONDS`, so an interrupted run goes on where it stopped, and tasks that score disjoint
videos merge exactly.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from evaluate import score_file
from evaluate.score_file import Scores
from evaluate.views import CROPS, crop_views, positions
from pipeline import atomic, catalog
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.plan import share
from pipeline.shard import Shard, ShardAddress, index_shards, open_shard
from train.batches import keep_opencv_to_one_thread, read_volumes, shard_positions
from train.checkpoint import Checkpoint
from train.volume import RawFlow, RawFrames, VolumeSpec, volume

SAVE_SECONDS = 30.0

Forward = Callable[[list[Tensor]], Tensor]
"""Crops, each [N,C,crop,crop] on the device and perhaps a window on a larger tensor -> outputs [sum of N,D]."""
CHUNK_BYTES = 1 << 25
"""Of the volumes that are built at a time on a CPU, so that they stay in its cache; a GPU takes whole videos."""


@dataclass(frozen=True)
class Views:
    """Which views a video is judged by: `frames` positions equally spaced in time, `crops` (1, 5 or 10) of each."""

    frames: int = 25
    crops: int = 10

    def __post_init__(self) -> None:
        if self.frames < 1 or self.crops not in CROPS:
            raise InputError(
                f"views: expected at least 1 frame and 1, 5 or 10 crops, found {self.frames} x {self.crops}"
            )

    def __str__(self) -> str:
        return f"{self.frames}x{self.crops}"


class VideoViews(NamedTuple):
    """What the network says of all views of one video: outputs float32[views,D]."""

    video: int
    outputs: npt.NDArray[np.float32]


class VideoBytes(Dataset[tuple[int, RawFlow | RawFrames]]):
    """The bytes of all positions of each video, decoded once; item i is (i, bytes)."""

    def __init__(self, shards: Sequence[ShardAddress], spec: VolumeSpec, frames: int) -> None:
        keep_opencv_to_one_thread()
        self.shards, self.spec, self.frames = shards, spec, frames

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[int, RawFlow | RawFrames]:
        with open_shard(self.shards[index]) as shard:
            wanted = positions(available_positions(shard, self.spec), self.frames)
            return index, read_volumes(shard, self.spec, wanted)


def available_positions(shard: Shard, spec: VolumeSpec) -> int:
    """How many positions a shard offers to the network.

    Raises:
        InputError: none, since it lacks frames, a direction of flow, or any flow at all.
    """
    count = shard_positions(shard, spec)
    if not count:
        needed = "RGB frames" if spec.stream == "spatial" else f"{' and '.join(spec.directions)} flow"
        raise InputError(
            f"{shard!r} has no {needed}; the {spec.stream} stream needs it: extract it with "
            f"python -m extract_flow {'--rgb' if spec.stream == 'spatial' else '--direction ' + direction_option(spec)}"
        )
    return count


def direction_option(spec: VolumeSpec) -> str:
    """What `python -m extract_flow --direction` must be for a stream's flow."""
    return "both" if len(spec.directions) == 2 else spec.directions[0]


def score_views(
    forward: Forward,
    spec: VolumeSpec,
    shards: Sequence[ShardAddress],
    views: Views,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
) -> Iterator[VideoViews]:
    """The network's outputs for all views of every shard, in the order of the shards.

    Args:
        forward: what to do with the crops; see `Forward`.
        spec: of the network's input.
        shards: one for each video.
        views: which views.
        device: where volumes are built and the network runs.
        batch: views in one call of `forward`, rounded down to whole positions; batches cross the borders of videos.
        workers: processes that decode; 0 decodes here.

    Raises:
        InputError: a damaged shard, or one without what the stream needs.
    """
    loader = DataLoader(
        VideoBytes(shards, spec, views.frames),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        prefetch_factor=2 if workers else None,
    )
    at_once = max(1, batch // views.crops)
    waiting: list[tuple[int, Tensor]] = []  # (video, volumes of some of its positions)
    unfinished: dict[int, list[npt.NDArray[np.float32]]] = {}
    left: dict[int, int] = {}

    def run(volumes: list[tuple[int, Tensor]]) -> Iterator[VideoViews]:
        crops = [crop for _, part in volumes for crop in crop_views(part, spec, views.crops)]
        outputs = forward(crops).float().cpu().numpy()
        start = 0
        for index, part in volumes:
            stop = start + len(part) * views.crops
            # Crop after crop for all positions of the part; kept position after position.
            by_crop = outputs[start:stop].reshape(views.crops, len(part), -1)
            unfinished[index].append(by_crop.swapaxes(0, 1).reshape(stop - start, -1))
            start = stop
            left[index] -= len(part)
            if not left[index]:
                del left[index]
                yield VideoViews(index, np.concatenate(unfinished.pop(index)))

    with torch.inference_mode():
        for index, raw in loader:
            count = len(raw.size)
            unfinished[index], left[index] = [], count
            for chunk in _chunks(raw, device):
                waiting.append((index, volume(chunk.to(device), spec)))
                while sum(len(part) for _, part in waiting) >= at_once:
                    now, waiting = _first_positions(waiting, at_once)
                    yield from run(now)
        if waiting:
            yield from run(waiting)


def _chunks(raw: RawFlow | RawFrames, device: torch.device | str) -> Iterator[RawFlow | RawFrames]:
    """A video's positions as one piece for a GPU, and a few at a time for a CPU."""
    count, values = len(raw.size), (raw.levels if isinstance(raw, RawFlow) else raw.pixels)
    step = count
    if torch.device(device).type == "cpu":
        step = max(1, CHUNK_BYTES // (4 * values[0].numel()))
    for start in range(0, count, step):
        yield type(raw)(*(tensor[start : start + step] for tensor in raw))


def video_scores(outputs: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits and softmax of one video, float32[C] each: the means over its views of float32[views,C] logits."""
    logits = outputs.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    return logits.mean(axis=0).astype(np.float32), softmax.mean(axis=0).astype(np.float32)


@dataclass(frozen=True)
class Work:
    """One run's scores on one part of a split: what is wanted, and where it goes."""

    paths: DatasetPaths
    dataset: catalog.Dataset
    checkpoint: Checkpoint
    run: str
    split: int
    part: str
    shard_set: str
    views: Views

    @property
    def videos(self) -> tuple[str, ...]:
        """The videos of the list."""
        split = self.dataset.split(self.split)
        return split.test if self.part == "test" else split.train

    @property
    def file(self) -> Path:
        """The score file."""
        return self.paths.scores(self.run, f"{self.part}-{self.views}")

    @property
    def parts(self) -> Path:
        """The folder of what is not yet merged."""
        return self.paths.score_parts(self.run, f"{self.part}-{self.views}")

    def empty(self) -> Scores:
        """Scores of no video, with everything else said."""
        classes = len(self.dataset.classes)
        return Scores(
            dataset=self.dataset.name,
            split=self.split,
            part=self.part,
            stream=self.checkpoint.volume.stream,
            run=self.run,
            checkpoint=self.checkpoint.digest,
            shards=self.shard_set,
            settings={**asdict(self.views), "crop": self.checkpoint.volume.crop},
            classes=tuple(self.dataset.classes),
            videos=(),
            groups=(),
            labels=np.zeros(0, np.int32),
            logits=np.zeros((0, classes), np.float32),
            softmax=np.zeros((0, classes), np.float32),
            views=np.zeros(0, np.int32),
        )


class Standing(NamedTuple):
    """What is there already, and what is still to do: videos with their shards, and videos without a shard."""

    scored: Scores | None
    todo: dict[str, ShardAddress]
    missing: tuple[str, ...]


def standing(work: Work) -> Standing:
    """Look what has been scored by this checkpoint with these views; what another checkpoint scored is left out.

    Raises:
        InputError: the list names no video.
    """
    if not work.videos:
        raise InputError(f"{work.dataset.name} split {work.split}: its {work.part} list is empty")
    scored = _collect(work)
    done = set(scored.videos) if scored else set()
    shards, missing = shards_of(work)
    todo = {video: shard for video, shard in shards.items() if video not in done}
    return Standing(scored, todo, tuple(video for video in missing if video not in done))


def shards_of(work: Work) -> tuple[dict[str, ShardAddress], tuple[str, ...]]:
    """The list's videos with their shards, and those that have none."""
    there = index_shards(work.paths.shards(work.shard_set))
    return (
        {video: there[video] for video in work.videos if video in there},
        tuple(video for video in work.videos if video not in there),
    )


def check_missing(work: Work, missing: Sequence[str], allowed: bool) -> None:
    """Refuse to go on without some of the list's videos, unless the user allowed it.

    Raises:
        InputError: names them and says what to do; also if every single one is missing.
    """
    if missing and (not allowed or len(missing) == len(work.videos)):
        raise InputError(
            f"{work.paths.shards(work.shard_set)}: {len(missing)} of the {len(work.videos)} videos of the {work.part} "
            f"list of split {work.split} have no shard ({catalog.some(missing)}): extract them with "
            f"python -m extract_flow --dataset {work.dataset.name}, or score the others with --allow-missing"
        )


def score(
    work: Work,
    device: str = "cpu",
    batch: int = 256,
    workers: int = 0,
    task: int = 0,
    tasks: int = 1,
    half: bool = False,
    progress: Callable[[str], None] = lambda video: None,
) -> Scores | None:
    """Score what is still to do of one task's share, and merge once every video of the list has its scores.

    Args:
        work: what to score.
        device: "cpu", "cuda" or "cuda:N".
        batch: views in one call of the network.
        workers: processes that decode.
        task, tasks: this process scores share `task` (from 0) of `tasks`, balanced by frames.
        half: bf16 autocast on a GPU (faster; scores differ in the third digit).
        progress: called with each video as it is done.

    Returns:
        The merged scores, or None while other tasks still have videos to score.

    Raises:
        InputError: a shard is damaged or lacks what the stream needs, or the disk is full.
    """
    atomic.sweep(work.parts)
    todo = standing(work).todo
    mine = {video.id for video in share(videos_of(work), task, tasks)}
    names = [video for video in todo if video in mine]
    if names:
        _score_share(work, names, todo, device, batch, workers, half, progress)
    now = standing(work)
    if now.todo or now.scored is None:
        return None
    if not work.file.is_file() or work.parts.is_dir():
        score_file.write_scores(work.file, now.scored)
        _remove_parts(work.parts)
    return now.scored


def videos_of(work: Work) -> list[catalog.Video]:
    """The list's videos, as the catalogue knows them."""
    return [work.dataset.videos[video] for video in work.videos]


def discard(work: Work) -> None:
    """Forget what was scored, so that everything is scored again."""
    work.file.unlink(missing_ok=True)
    _remove_parts(work.parts)


def network_forward(
    checkpoint: Checkpoint, columns: npt.NDArray[np.int64], device: str, half: bool
) -> Forward:
    """The network of a checkpoint as a function from inputs to the logits of the given outputs."""
    network = load_network(checkpoint).to(device)
    selected = torch.as_tensor(columns, device=device)
    precision = torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half)

    def forward(crops: list[Tensor]) -> Tensor:
        with precision:
            logits: Tensor = network(torch.cat(crops))
        return logits[:, selected].float()

    return forward


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's network in evaluation mode.

    Raises:
        InputError: its weights do not fit the recipe, stream or number of classes that the file names.
    """
    try:
        return checkpoint.model()
    except RuntimeError as error:
        raise InputError(f"{checkpoint.path}: weights and recipe do not fit together: {error}") from error


def check_checkpoint(
    checkpoint: Checkpoint, dataset: catalog.Dataset, stream: str | None, length: int | None
) -> None:
    """Refuse a checkpoint that was trained for something else; the message names both values.

    Raises:
        InputError: other stream, other L, no head for the dataset, or classes that the head lacks.
    """
    found = checkpoint.volume
    if stream is not None and found.stream != stream:
        raise InputError(
            f"{checkpoint.path}: asked for the {stream} stream, but it was trained on the {found.stream} one"
        )
    if length is not None and found.stream == "temporal" and found.length != length:
        raise InputError(
            f"{checkpoint.path}: asked for L = {length}, but it was trained with L = {found.length}"
        )
    checkpoint.columns(dataset.name, dataset.classes)
    outputs = sum(map(len, checkpoint.heads.values()))
    network = load_network(checkpoint)
    last = getattr(network, "last_layer")  # noqa: B009 - nn.Module hides the property's type
    if last.out_features != outputs:
        raise InputError(
            f"{checkpoint.path}: names {outputs} classes, but its last layer has {last.out_features}"
        )


def _score_share(
    work: Work,
    names: Sequence[str],
    shards: Mapping[str, ShardAddress],
    device: str,
    batch: int,
    workers: int,
    half: bool,
    progress: Callable[[str], None],
) -> None:
    columns = work.checkpoint.columns(work.dataset.name, work.dataset.classes)
    forward = network_forward(work.checkpoint, columns, device, half)
    fresh: list[tuple[str, npt.NDArray[np.float32]]] = []
    saved = time.monotonic()

    def save() -> None:
        if fresh:
            part = atomic.temporary_path(work.parts / "part").name.replace(".tmp-", "part-")
            score_file.write_scores(work.parts / f"{part}.h5", _scores_of(work, fresh))
            fresh.clear()

    try:
        for index, outputs in score_views(
            forward,
            work.checkpoint.volume,
            [shards[name] for name in names],
            work.views,
            device,
            batch,
            workers,
        ):
            fresh.append((names[index], outputs))
            progress(names[index])
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()


def _scores_of(work: Work, scored: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> Scores:
    averaged = [video_scores(outputs) for _, outputs in scored]
    videos = tuple(video for video, _ in scored)
    empty = asdict(work.empty())
    return Scores(
        **{
            **empty,
            "videos": videos,
            "groups": tuple(work.dataset.videos[video].group for video in videos),
            "labels": np.array([work.dataset.label(video) for video in videos], np.int32),
            "logits": np.stack([logits for logits, _ in averaged]),
            "softmax": np.stack([softmax for _, softmax in averaged]),
            "views": np.array([len(outputs) for _, outputs in scored], np.int32),
        }
    )


def _collect(work: Work) -> Scores | None:
    """Everything scored so far by this checkpoint with these views, of videos still on the list.

    A file that cannot be read, or that another checkpoint made, counts as not there: its videos are scored again, and
    merging replaces it.
    """
    wanted, found = work.empty(), []
    for path in [work.file, *(sorted(work.parts.glob("part-*.h5")) if work.parts.is_dir() else [])]:
        with contextlib.suppress(InputError):
            scores = score_file.read_scores(path)
            if wanted.same_measurement(scores):
                found.append(scores)
    if not found:
        return None
    merged, listed = score_file.joined(found), set(work.videos)
    return merged.take(
        np.array([row for row, video in enumerate(merged.videos) if video in listed], np.int64)
    )


def _first_positions(
    waiting: list[tuple[int, Tensor]], count: int
) -> tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]]:
    """The first `count` positions of what waits, and the rest."""
    now: list[tuple[int, Tensor]] = []
    for place, (index, part) in enumerate(waiting):
        if len(part) > count:
            return [*now, (index, part[:count])], [(index, part[count:]), *waiting[place + 1 :]]
        now.append((index, part))
        count -= len(part)
        if not count:
            return now, waiting[place + 1 :]
    return now, []


def _remove_parts(folder: Path) -> None:
    # Another task may be removing the same folder, or still be writing videos that it scored twice.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
