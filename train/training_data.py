"""What a run learns from: datasets, splits, heads, shards that are there and groups that are held out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pipeline.catalog import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root
from pipeline.shard import Shard, ShardAddress, index_shards, open_shard
from train.augment import Box, centre_box, lighting_noise, random_box
from train.batches import Item, keep_opencv_to_one_thread, read_volumes, shard_positions
from train.recipe import Recipe
from train.sampler import generator
from train.volume import RawFrames, VolumeSpec, cut, mirror, volume

ADDED = Path(__file__).parent / "added_classes"
IMAGES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
LISTED = 40
PARALLEL_FROM = 512


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        heads: head name -> class names; heads are ranges of the last layer, in this order.
        train, validation: labelled videos; validation is empty unless asked for.
        left_out: videos of the lists that could not be used (only with --allow-missing).
        shards: dataset -> the shard set that was taken.
    """

    heads: dict[str, tuple[str, ...]]
    train: list[Item]
    validation: list[Item]
    left_out: int
    shards: dict[str, str]


def choose_shards(paths: DatasetPaths, wanted: str | None) -> str:
    """The shard set to read: the wanted one, the only one, or `tvl1`.

    Raises:
        InputError: none there, or several without a choice.
    """
    root = paths.shards("x").parent
    there = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    if wanted:
        if wanted not in there:
            raise InputError(f"{root}: no shard set {wanted!r} (there: {', '.join(there) or 'none'})")
        return wanted
    if len(there) == 1:
        return there[0]
    if "tvl1" in there:
        return "tvl1"
    if there:
        raise InputError(f"{root}: several shard sets ({', '.join(there)}): choose one with --shards NAME")
    raise InputError(
        f"{root}: no shards yet; make them first: python -m extract_flow --dataset {paths.dataset} --rgb"
    )


def open_shards(
    addresses: Mapping[str, ShardAddress], ids: Sequence[str], spec: VolumeSpec
) -> tuple[dict[str, Shard], dict[str, str]]:
    """Open every shard of a list and see whether it can give a volume.

    Returns:
        Usable shards by video, and what is wrong with each of the others.
    """
    if len(ids) >= PARALLEL_FROM:
        from joblib import Parallel, delayed

        jobs = min(8, len(os.sched_getaffinity(0)))
        checked = Parallel(n_jobs=jobs)(delayed(check_shard)(addresses.get(video), spec) for video in ids)
    else:
        checked = [check_shard(addresses.get(video), spec) for video in ids]
    pairs = list(zip(ids, checked, strict=True))
    return (
        {video: found for video, found in pairs if isinstance(found, Shard)},
        {video: found for video, found in pairs if isinstance(found, str)},
    )


def check_shard(address: ShardAddress | None, spec: VolumeSpec) -> Shard | str:
    """The shard, open, or what is wrong with it."""
    if address is None:
        return "no shard"
    try:
        shard = open_shard(address)
    except InputError as error:
        return str(error)
    if shard_positions(shard, spec):
        return shard
    if spec.stream == "spatial":
        return f"{address}: no RGB frames" if shard.frame_count else f"{address}: no frame at all"
    if lacking := [direction for direction in spec.directions if direction not in shard.directions]:
        return f"{address}: no {' and '.join(lacking)} flow"
    return f"{address}: no flow, the video has {shard.frame_count} frame(s)"


def explain(problems: Mapping[str, str], total: int, dataset: str, spec: VolumeSpec) -> str:
    """One message for all that is missing or broken."""
    lines = [f"{len(problems)} of {total} videos of {dataset} cannot be used:"]
    lines += [f"  {video}: {what}" for video, what in list(problems.items())[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"  and {len(problems) - LISTED} more")
    wanted = "--rgb" if spec.stream == "spatial" else f"--direction {spec.direction}"
    lines.append(
        f"make them with: python -m extract_flow --dataset {dataset} {wanted}\n"
        "or train on the rest with --allow-missing"
    )
    return "\n".join(lines)


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split off whole groups until about `share` of every class's videos are held out.

    A group is never split, and no class loses its last training group. The choice follows from the seed alone.

    Returns:
        Training items and validation items, each in the order given.
    """
    if not share:
        return list(items), []
    random = np.random.Generator(np.random.Philox(key=seed))
    groups: dict[str, dict[int, int]] = {}
    total: dict[int, int] = {}
    for item in items:
        counts = groups.setdefault(item.group, {})
        counts[item.label] = counts.get(item.label, 0) + 1
        total[item.label] = total.get(item.label, 0) + 1
    order = sorted(groups)
    order = [order[i] for i in random.permutation(len(order))]
    held: set[str] = set()
    out: dict[int, int] = dict.fromkeys(total, 0)
    for label in sorted(total):
        for group in order:
            # The next group is taken if that comes nearer to the share than stopping.
            if out[label] and out[label] >= share * total[label] - 0.5 * groups[group].get(label, 0):
                break
            if group in held or label not in groups[group]:
                continue
            if all(out[other] + count < total[other] for other, count in groups[group].items()):
                held.add(group)
                for other, count in groups[group].items():
                    out[other] += count
    if not held:
        raise InputError("validation: every class has a single group, so that none can be held out")
    return [item for item in items if item.group not in held], [item for item in items if item.group in held]


def added_classes(dataset: str, other: str) -> list[str]:
    """Classes of `other` that join the head of `dataset`: the shipped list train/added_classes/DATASET+OTHER.txt.

    Raises:
        InputError: no such list.
    """
    path = ADDED / f"{dataset}+{other}.txt"
    if not path.is_file():
        there = ", ".join(sorted(entry.stem for entry in ADDED.glob("*.txt"))) or "none"
        raise InputError(
            f"{path}: no list of the classes of {other} that join those of {dataset} (there: {there})"
        )
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def gather(
    name: str,
    split: int,
    spec: VolumeSpec,
    recipe: Recipe,
    data: str | os.PathLike[str] | None = None,
    shard_set: str | None = None,
    allow_missing: bool = False,
) -> TrainingData:
    """Everything a run on shards learns from, found and checked before the first iteration.

    Raises:
        InputError: unknown datasets or splits; missing or broken shards, all of them in one message.
    """
    root = data_root(data)
    heads: dict[str, tuple[str, ...]] = {}
    train: list[Item] = []
    validation: list[Item] = []
    problems: list[str] = []
    left_out = 0
    sets: dict[str, str] = {}

    def items(dataset: Dataset, ids: Sequence[str], labels: Mapping[str, int], head: int) -> list[Item]:
        nonlocal left_out
        paths = DatasetPaths(root, dataset.name)
        if dataset.name not in sets:
            sets[dataset.name] = choose_shards(paths, shard_set)
        usable, broken = open_shards(index_shards(paths.shards(sets[dataset.name])), ids, spec)
        if broken:
            left_out += len(broken)
            problems.append(explain(broken, len(ids), dataset.name, spec))
        groups = {video: f"{dataset.name}:{dataset.videos[video].group}" for video in usable}
        return [
            Item(shard, labels[dataset.videos[video].label], head, groups[video])
            for video, shard in usable.items()
        ]

    for head, dataset_name in enumerate((name, *recipe.also)):
        if dataset_name in heads:
            raise InputError(f"dataset {dataset_name} is named twice")
        dataset = load_dataset(dataset_name, data)
        chosen = dataset.split(split)
        start = sum(map(len, heads.values()))
        classes = list(dataset.classes)
        labels = {label: start + i for i, label in enumerate(classes)}
        here = items(dataset, chosen.train, labels, head)
        if head == 0 and recipe.add_classes:
            other = load_dataset(recipe.add_classes, data)
            joining = added_classes(name, other.name)
            if unknown := [label for label in joining if label not in other.classes]:
                raise InputError(f"dataset {other.name} has no class {', '.join(unknown)}")
            # Their videos are none of this dataset's, so all of the other's training list may be learnt from.
            extra = [video for video in other.split(split).train if other.videos[video].label in joining]
            classes += [f"{other.name}/{label}" for label in joining]
            here += items(
                other,
                extra,
                {label: start + len(dataset.classes) + i for i, label in enumerate(joining)},
                head,
            )
        heads[dataset_name] = tuple(classes)
        if recipe.held_out == "test":
            validation += items(dataset, chosen.test, labels, head)
        else:
            here, held = hold_out(here, recipe.held_out, recipe.seed) if here else (here, [])
            validation += held
        train += here
    if problems and not allow_missing:
        raise InputError("\n".join(problems))
    if not train:
        raise InputError(
            f"dataset {name}, split {split}: no video left to train on" + "".join(f"\n{p}" for p in problems)
        )
    return TrainingData(heads, train, validation, left_out, sets)


def gather_images(folder: Path, name: str) -> TrainingData:
    """A folder of images per class: FOLDER/train/<class>/* to learn from, FOLDER/val/<class>/* to validate on.

    Raises:
        InputError: not such a layout, or classes of val that train lacks.
    """
    train_folder = folder / "train"
    classes = (
        sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir())
        if train_folder.is_dir()
        else []
    )
    if not classes:
        raise InputError(
            f"{folder}: expected train/<class>/*.JPEG (the ILSVRC-2012 layout), found no class folder"
        )
    parts: dict[str, list[Item]] = {"train": [], "val": []}
    for part, found in parts.items():
        if not (folder / part).is_dir():
            continue
        entries = sorted(os.scandir(folder / part), key=lambda entry: entry.name)
        if unknown := [entry.name for entry in entries if entry.name not in classes]:
            raise InputError(
                f"{folder / part}: expected a folder per class of train, found {', '.join(unknown[:5])}"
                f"{' and more' if len(unknown) > 5 else ''}; sort its images into class folders first"
            )
        for entry in entries:
            label = classes.index(entry.name)
            files = sorted(
                file.name for file in os.scandir(entry.path) if Path(file.name).suffix.lower() in IMAGES
            )
            found += [Item(Path(entry.path, file), label, 0, file) for file in files]
    if not parts["train"]:
        raise InputError(f"{train_folder}: no images there ({', '.join(sorted(IMAGES))})")
    return TrainingData({name: tuple(classes)}, parts["train"], parts["val"], 0, {})


class VideoVolumes(TorchDataset[tuple[Tensor, int]]):
    """One split of a dataset as a `torch.utils.data.Dataset`, for code of your own: item i is (volume, label).

    Volumes are float32[C,crop,crop] on the CPU, the same as the trainer's. With `augment` each call gives a random
    position, crop and flip (and colour noise on frames) that follow from (seed, epoch, i): call `set_epoch` before
    every epoch. Otherwise it is the centre of the middle position.

    Attributes:
        classes: class names; labels are their indices.
        videos: identities, in the order of the items.
    """

    def __init__(
        self,
        dataset: str,
        split: int,
        part: str,
        spec: VolumeSpec,
        *,
        data: str | os.PathLike[str] | None = None,
        shards: str | None = None,
        augment: bool = False,
        lighting: float = 0.1,
        seed: int = 0,
        allow_missing: bool = False,
    ) -> None:
        """Find the shards of a split.

        Args:
            dataset: its name, as in `python -m pipeline datasets`.
            split: its number.
            part: "train" or "test".
            spec: what a volume is.
            data: the data root, see `pipeline.paths`.
            shards: the shard set; by default the only one, or tvl1.
            augment: random samples instead of fixed ones.
            lighting: standard deviation of the colour noise.
            seed: of the random samples.
            allow_missing: leave out videos whose shards are missing or broken instead of raising.

        Raises:
            InputError: unknown names, missing or broken shards (all of them in one message).
            ValueError: `part` is neither "train" nor "test".
        """
        keep_opencv_to_one_thread()
        if part not in ("train", "test"):
            raise ValueError(f"part: expected train or test, found {part!r}")
        catalogue = load_dataset(dataset, data)
        ids = getattr(catalogue.split(split), part)
        paths = DatasetPaths(data_root(data), dataset)
        folder = paths.shards(choose_shards(paths, shards))
        usable, broken = open_shards(index_shards(folder), ids, spec)
        if broken and not allow_missing:
            raise InputError(explain(broken, len(ids), dataset, spec))
        self.spec, self.augment, self.lighting, self.seed, self.epoch = spec, augment, lighting, seed, 0
        self.classes = catalogue.classes
        self.videos = tuple(usable)
        self._shards = list(usable.values())
        self._labels = [catalogue.label(video) for video in usable]

    def set_epoch(self, epoch: int) -> None:
        """Choose the random samples of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shard, spec = self._shards[index], self.spec
        available = shard_positions(shard, spec)
        random = generator(self.seed, self.epoch, index)
        position, flip, noise = available // 2, False, None
        box: Box = centre_box(shard.height, shard.width, spec)
        if self.augment:
            position, flip = int(random.integers(available)), bool(random.integers(2))
            box = random_box(random, shard.height, shard.width, spec)
            noise = torch.from_numpy(lighting_noise(random, self.lighting))
        with shard:
            raw = read_volumes(shard, spec, [position])
        volumes = volume(raw, spec, noise[None] if noise is not None and isinstance(raw, RawFrames) else None)
        inputs = cut(volumes, np.array([box]), spec.crop)
        return (mirror(inputs, spec) if flip else inputs)[0], self._labels[index]
