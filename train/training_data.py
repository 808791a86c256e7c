"""What a run learns from: datasets, splits, heads, the shards that exist, and groups that are held out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.catalog import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.failures import report_failures
from pipeline.groups import training_folds
from pipeline.machine import making_what_stays
from pipeline.manifest import ShardSet, read_shard_set
from pipeline.outcome import read_outcomes
from pipeline.paths import DatasetPaths, data_root
from pipeline.request import Request
from pipeline.shard import Shard
from pipeline.shard_sets import choose_shard_set
from pipeline.text import many, typed
from train.batches import Item, shard_positions
from train.recipe import Recipe
from train.volume_spec import VolumeSpec

ADDED = Path(__file__).parent / "added_classes"
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
NO_SHARD = "no shard"


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        heads: head name -> class names; heads are ranges of the last layer, in this order.
        train, validation: labelled videos or images; validation is empty unless the recipe asks for it.
        left_out: number of videos of the lists that could not be used (only with --allow-missing).
        shard_sets: dataset -> the shard set that is read.
        requests: dataset -> how its shards were made (`common_request`).
    """

    heads: dict[str, tuple[str, ...]]
    train: list[Item]
    validation: list[Item]
    left_out: int = 0
    shard_sets: dict[str, str] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)


def usable_shards(
    shards: ShardSet, ids: Sequence[str], spec: VolumeSpec
) -> tuple[dict[str, Shard], dict[str, str]]:
    """The shards of a list of videos; those that the set's manifest does not know are opened.

    Returns:
        Shards that offer at least one volume, by video id; and what is wrong with each of the others.
    """
    offered: dict[tuple[Any, ...], int] = {}  # keyed by what shards that were made alike share

    def positions(video: str) -> int:
        facts = shards.facts[video]
        alike = (facts.frame_count, facts.forward, facts.backward, id(facts.request))
        if alike not in offered:
            offered[alike] = shard_positions(shards.shard(video), spec)
        return offered[alike]

    broken = shards.learn(ids)
    broken |= shards.learn(
        (video for video in ids if video in shards.facts and not positions(video)), again=True
    )
    usable: dict[str, Shard] = {}
    for video in ids:
        if video not in shards:
            broken[video] = NO_SHARD
        elif video in shards.facts and positions(video):
            usable[video] = shards.shard(video)
        elif video not in broken:
            broken[video] = lack(shards.shard(video), spec)
    return usable, {video: broken[video] for video in ids if video in broken}


def lack(shard: Shard, spec: VolumeSpec) -> str:
    """What a shard that offers no volume lacks."""
    if spec.stream == "spatial":
        return (
            f"{shard.address}: no RGB frames" if shard.frame_count else f"{shard.address}: no frames at all"
        )
    if lacking := [direction for direction in spec.directions if direction not in shard.directions]:
        return f"{shard.address}: no {' and '.join(lacking)} flow"
    return f"{shard.address}: no flow, the video has {many(shard.frame_count, 'frame')}"


class Unusable(NamedTuple):
    """Videos of a list that cannot be used, and why; how many are listed, and whose shards they were to be."""

    reasons: Mapping[str, str]
    listed: int
    paths: DatasetPaths
    shard_set: str


def explain(unusable: Unusable, spec: VolumeSpec) -> list[str]:
    """The lines of one message for all videos of a list that cannot be used; a file holds what it does not name."""
    dataset, shard_set = unusable.paths.dataset, unusable.shard_set
    ended = read_outcomes(unusable.paths.outcomes("extract_flow"), shard_set)
    failed = {video: outcome.reason for video, outcome in ended.items() if outcome.status == "failed"}
    reasons = [
        (video, f"{failed[video]} (no shard)" if reason == NO_SHARD and video in failed else reason)
        for video, reason in unusable.reasons.items()
    ]
    shards = unusable.paths.shards(shard_set)
    wanted = "--rgb" if spec.stream == "spatial" else f"--direction {spec.direction}"
    lines = [f"{len(reasons):,} of {many(unusable.listed, 'video')} of {dataset} cannot be used:"]
    lines += [
        f"  {line}"
        for line in report_failures(reasons, shards.with_name(f"{shards.name}.unusable.txt"), word="")
    ]
    again = f"{typed('extract_flow')} --dataset {dataset} {wanted} --shards {shard_set}"
    lines += [
        f"mend them and run {again} (--on-corrupt keep takes the frames before the damage)"
        if unusable.reasons.keys() <= failed.keys()
        else f"make them with the options of the others: {again}",
        "or train on the rest with --allow-missing",
    ]
    return lines


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Hold out whole groups until about `share` of every class's videos are held out.

    A group is never split, and no class loses its last training group. The choice depends on the seed alone.

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
            # The next group is held out if that comes nearer to the share than stopping here.
            if out[label] and out[label] >= share * total[label] - 0.5 * groups[group].get(label, 0):
                break
            if group in held or label not in groups[group]:
                continue
            if all(out[other] + count < total[other] for other, count in groups[group].items()):
                held.add(group)
                for other, count in groups[group].items():
                    out[other] += count
    if not held:
        raise InputError(
            "validation: every class has a single group, so none can be held out; use --validation test or 0"
        )
    return [item for item in items if item.group not in held], [item for item in items if item.group in held]


def added_classes(dataset: str, other: str) -> list[str]:
    """Classes of `other` that join the head of `dataset`: the shipped list train/added_classes/DATASET+OTHER.txt.

    Raises:
        InputError: there is no such list.
    """
    path = ADDED / f"{dataset}+{other}.txt"
    if not path.is_file():
        there = ", ".join(sorted(entry.stem for entry in ADDED.glob("*.txt"))) or "none"
        raise InputError(
            f"{path}: no list of the classes of {other} that join those of {dataset} (there: {there})"
        )
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def common_request(made: Mapping[str, Request], spec: VolumeSpec, where: str) -> Request:
    """How the shards of a set were made, as far as the network's input depends on it.

    Args:
        made: video id -> how its shard was made; not empty.
        spec: the network's input, which decides what has to agree: flow for the temporal stream, frames for the
            spatial one, and for both the size and the part of the video.
        where: what messages call the set.

    Returns:
        The request with the directions and frames that the input is made of, and source_bytes 0. What the input does
        not depend on is as in most of the shards.

    Raises:
        InputError: shards that were made in different ways; the message groups them by what differs.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    facts_as_text: dict[int, str] = {}  # shards made alike share a request
    for video, request in made.items():
        if id(request) not in facts_as_text:
            facts_as_text[id(request)] = json.dumps(relevant_facts(request, spec), sort_keys=True)
        groups[facts_as_text[id(request)]].append(video)
    usual, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    if others:
        facts, lines = json.loads(usual[0]), []
        for text, videos in others:
            found = json.loads(text)
            differing = ", ".join(
                f"{name} {found.get(name)} instead of {facts.get(name)}"
                for name in sorted({**facts, **found})
                if facts.get(name) != found.get(name)
            )
            lines.append(f"  {many(len(videos), 'video')} (for example {videos[0]}): {differing}")
        raise InputError(
            f"{where}: expected shards that were all made in the same way, found {many(len(usual[1]), 'video')} made "
            "in one way and",
            *lines,
            f"make those again with the options of the others: {typed('extract_flow')} --overwrite, or choose another "
            "set with --shards",
        )
    return dataclasses.replace(
        made[usual[1][0]], source_bytes=0, directions=spec.directions, frames=spec.stream == "spatial"
    )


def relevant_facts(request: Request, spec: VolumeSpec) -> dict[str, Any]:
    """The part of a request that the network's input depends on, as plain values; parameters of the method by their
    names.
    """
    facts = request.as_dict()
    parameters = facts.pop("parameters")
    for name in ("source_bytes", "directions", "frames"):
        del facts[name]
    if spec.stream == "temporal":
        del facts["frames_quality"]
        return {**facts, **parameters}
    for name in ("method", "step", "quantiser", "image", "quality"):
        del facts[name]
    return facts


class ShardFinder:
    """Opens the shards of several datasets for one network, and collects what is wrong with them.

    Attributes:
        shard_sets: dataset -> the shard set that is read.
        problems: for each list of videos of which some cannot be used.
        left_out: number of videos that cannot be used.
    """

    def __init__(self, root: Path, spec: VolumeSpec, shard_set: str | None) -> None:
        self._root, self._spec, self._wanted = root, spec, shard_set
        self.shard_sets: dict[str, str] = {}
        self.problems: list[Unusable] = []
        self.left_out = 0
        self._shards: dict[str, ShardSet] = {}
        self._made: dict[str, dict[str, Request]] = defaultdict(dict)

    def items(self, dataset: Dataset, ids: Sequence[str], labels: Mapping[str, int], head: int) -> list[Item]:
        """The usable videos of a list, each with its column of the last layer (`labels`, by class) and its head."""
        name = dataset.name
        paths = DatasetPaths(self._root, name)
        if name not in self.shard_sets:
            self.shard_sets[name] = choose_shard_set(paths, self._wanted)
        if name not in self._shards:
            self._shards[name] = read_shard_set(paths.shards(self.shard_sets[name]))
        shards = self._shards[name]
        usable, broken = usable_shards(shards, ids, self._spec)
        if broken:
            self.left_out += len(broken)
            self.problems.append(Unusable(broken, len(ids), paths, self.shard_sets[name]))
        self._made[name] |= {video: shards.facts[video].request for video in usable}
        return [
            Item(shard, labels[dataset.videos[video].label], head, f"{name}:{dataset.videos[video].group}")
            for video, shard in usable.items()
        ]

    def requests(self) -> dict[str, Request]:
        """Dataset -> how its shards were made; InputError if they were made in different ways."""
        return {
            name: common_request(made, self._spec, f"{name}, shard set {self.shard_sets[name]}")
            for name, made in self._made.items()
            if made
        }


@making_what_stays()
def gather(
    name: str,
    split: int,
    spec: VolumeSpec,
    recipe: Recipe,
    data: str | os.PathLike[str] | None = None,
    shard_set: str | None = None,
    allow_missing: bool = False,
    fold: tuple[int, int] | None = None,
) -> TrainingData:
    """Everything a run on shards learns from, found and checked before the first iteration.

    `fold` (k, n) leaves fold k of n out of the training list of dataset `name` (`pipeline.groups.training_folds`).

    Raises:
        InputError: unknown datasets or splits; missing or broken shards, all of them in one message; shards of a set
            that were made in different ways.
    """
    found = ShardFinder(data_root(data), spec, shard_set)
    heads: dict[str, tuple[str, ...]] = {}
    train: list[Item] = []
    validation: list[Item] = []
    for head, dataset_name in enumerate((name, *recipe.also)):
        if dataset_name in heads:
            raise InputError(f"dataset {dataset_name} is named twice")
        dataset = load_dataset(dataset_name, data)
        chosen = dataset.split(split)
        start = sum(map(len, heads.values()))
        labels = {label: start + i for i, label in enumerate(dataset.classes)}
        listed = chosen.train
        if head == 0 and fold is not None:
            left_out = set(training_folds(dataset.videos, listed, fold[1])[fold[0] - 1])
            listed = tuple(video for video in listed if video not in left_out)
        here = found.items(dataset, listed, labels, head)
        heads[dataset_name] = dataset.classes
        if head == 0 and recipe.add_classes:
            other = load_dataset(recipe.add_classes, data)
            joining = joining_classes(name, other)
            # None of its videos is in this dataset, so all of the other's training list may be learned from.
            extra = [video for video in other.split(split).train if other.videos[video].label in joining]
            columns = {label: len(dataset.classes) + i for i, label in enumerate(joining)}
            here += found.items(other, extra, columns, head)
            heads[dataset_name] += tuple(f"{other.name}/{label}" for label in joining)
        if recipe.held_out == "test":
            validation += found.items(dataset, chosen.test, labels, head)
        elif here:
            here, held = hold_out(here, recipe.held_out, recipe.seed)
            validation += held
        train += here
    nothing = [] if train else [f"dataset {name}, split {split}: no video left to train on"]
    if nothing or (found.problems and not allow_missing):
        lines = [line for problem in found.problems for line in explain(problem, spec)]
        raise InputError(*(nothing if allow_missing or not lines else []), *lines)
    return TrainingData(heads, train, validation, found.left_out, found.shard_sets, found.requests())


def joining_classes(name: str, other: Dataset) -> list[str]:
    """`added_classes`, all of which the other dataset has.

    Raises:
        InputError: no such list, or a class that the other dataset lacks.
    """
    joining = added_classes(name, other.name)
    if unknown := [label for label in joining if label not in other.classes]:
        raise InputError(f"dataset {other.name} has no class {', '.join(unknown)}")
    return joining


def gather_images(folder: Path, name: str) -> TrainingData:
    """A folder of images per class: FOLDER/train/<class>/* to train on, FOLDER/val/<class>/* to validate on.

    Raises:
        InputError: another layout, or classes of val that train lacks.
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
                file.name
                for file in os.scandir(entry.path)
                if Path(file.name).suffix.lower() in IMAGE_SUFFIXES
            )
            found += [Item(Path(entry.path, file), label, 0, file) for file in files]
    if not parts["train"]:
        raise InputError(f"{train_folder}: no images there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return TrainingData({name: tuple(classes)}, parts["train"], parts["val"])
