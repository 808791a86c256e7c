"""The trainer's input volumes as a torch Dataset, for code outside of this project."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pipeline.catalog import load_dataset
from pipeline.errors import InputError
from pipeline.manifest import read_shard_set
from pipeline.paths import DatasetPaths, data_root
from pipeline.shard_sets import choose_shard_set
from train.batches import Box, keep_opencv_to_one_thread, read_volumes, shard_positions
from train.sampler import centre_box, generator, lighting_noise, random_box
from train.training_data import Unusable, common_request, explain, usable_shards
from train.volume import RawFrames, cut, mirror, volume
from train.volume_spec import VolumeSpec


class VideoVolumes(TorchDataset[tuple[Tensor, int]]):
    """One list of a split as a `torch.utils.data.Dataset`, for your own code: item i is (volume, label).

    Volumes are float32[C,crop,crop] on the CPU, as the trainer's. With `augment` an item is a random position, crop
    and flip (and colour noise on frames) that follow from (seed, epoch, i): call `set_epoch` before every epoch.
    Otherwise it is the centre crop of the middle position.

    Attributes:
        classes: class names; labels are their indices.
        videos: video ids, in the order of the items.
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
            spec: what a volume holds.
            data: the data root, see `pipeline.paths`.
            shards: the shard set; by default `pipeline.shard_sets.choose_shard_set`'s choice.
            augment: give random samples instead of fixed ones.
            lighting: standard deviation of the colour noise.
            seed: seed of the random samples.
            allow_missing: leave out videos whose shards are missing or broken instead of raising.

        Raises:
            InputError: unknown names; missing or broken shards, all of them in one message; shards that were made in
                different ways.
            ValueError: `part` is neither "train" nor "test".
        """
        keep_opencv_to_one_thread()
        if part not in ("train", "test"):
            raise ValueError(f"part: expected train or test, found {part!r}")
        catalogue = load_dataset(dataset, data)
        ids = getattr(catalogue.split(split), part)
        paths = DatasetPaths(data_root(data), dataset)
        folder = paths.shards(choose_shard_set(paths, shards))
        found = read_shard_set(folder)
        usable, broken = usable_shards(found, ids, spec)
        if broken and not allow_missing:
            raise InputError(*explain(Unusable(broken, len(ids), paths, folder.name), spec))
        if usable:
            made = {video: found.facts[video].request for video in usable}
            common_request(made, spec, f"{dataset}, {folder}")
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
