"""Checkpoints: everything needed to resume training, to score videos, and to initialise another network.

A file is a `torch.save` of plain values and tensors, loaded with weights_only=True; docs/reference/train.md lists its
keys. It is written under a temporary name, read back and checked, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import atomic
from pipeline.catalog import choose_dataset
from pipeline.errors import InputError
from pipeline.options import DatasetOptions
from pipeline.paths import DatasetPaths, data_root
from pipeline.request import Request
from pipeline.runs import RunPaths, RunRecord, find_run
from pipeline.text import first_line
from train.models import build
from train.models.network import Network
from train.volume_spec import VolumeSpec

FORMAT = "two-stream checkpoint"
VERSION = 2
READABLE = (1, 2)
"""Version 1 does not record how the shards were made; its `run` is migrated by `RunRecord.from_dict`."""


@dataclass
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        weights: the network's state dict.
        recipe: the resolved recipe as plain values.
        run: the run's dataset, split, shard sets and so on.
        volume: what the network's input is made of.
        heads: head (dataset) name -> its class names; heads are ranges of the last layer, in this order.
        iteration: number of iterations done.
        requests: dataset -> how its shards were made, so that a new video can be given the same flow and frames; empty
            for a run on images and in checkpoints of version 1.
        digest: SHA-256 over weights, volume, model and heads; identifies the network that scores were computed with.
        optimiser: the optimiser's state dict; empty in a file that was only made for scoring.
        progress: accuracy and iteration of the best validation so far.
        path: the file it was read from.
    """

    weights: dict[str, Tensor]
    recipe: dict[str, Any]
    run: RunRecord
    volume: VolumeSpec
    heads: dict[str, tuple[str, ...]]
    iteration: int
    requests: dict[str, Request] = field(default_factory=dict)
    digest: str = ""
    optimiser: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def model(self) -> Network:
        """The network with its weights, in evaluation mode, on the CPU."""
        network = build(
            self.recipe["model"],
            self.volume.channels,
            sum(map(len, self.heads.values())),
            self.recipe["dropout"],
            self.volume.crop,
            self.recipe["width"],
        )
        network.load_state_dict(self.weights)
        return network.eval()

    def columns(self, head: str, classes: Sequence[str]) -> npt.NDArray[np.int64]:
        """Outputs of the last layer for the given classes of a head: int64[classes].

        Raises:
            InputError: no such head, or classes it was not trained for (the message lists both).
        """
        if head not in self.heads:
            raise InputError(f"{self.path}: trained for {', '.join(self.heads)}, not for {head}")
        if missing := [name for name in classes if name not in self.heads[head]]:
            raise InputError(
                f"{self.path}: its head {head} has {len(self.heads[head])} classes and lacks "
                f"{len(missing)} of the {len(classes)} asked for: {', '.join(missing[:10])}"
            )
        start = 0
        for name, names in self.heads.items():
            if name == head:
                break
            start += len(names)
        return np.array([start + self.heads[head].index(name) for name in classes], np.int64)


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 (hex) over what determines scores: weights, model, volume and heads."""
    about = {
        "model": checkpoint.recipe["model"],
        "volume": checkpoint.volume.as_dict(),
        "heads": {name: list(classes) for name, classes in checkpoint.heads.items()},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(checkpoint.weights.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)};".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, with its digest.

    Raises:
        InputError: the file cannot be written, for example on a full disk; an earlier file of that name stays.
    """
    checkpoint.digest = weights_digest(checkpoint)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "weights": checkpoint.weights,
        "recipe": checkpoint.recipe,
        "run": checkpoint.run.as_dict(),
        "requests": {name: request.as_dict() for name, request in checkpoint.requests.items()},
        "volume": checkpoint.volume.as_dict(),
        "heads": {name: list(classes) for name, classes in checkpoint.heads.items()},
        "iteration": checkpoint.iteration,
        "digest": checkpoint.digest,
        "optimiser": checkpoint.optimiser,
        "progress": checkpoint.progress,
    }
    with atomic.writing(path, verify=check_archive) as temporary, atomic.disk_errors(path):
        try:
            torch.save(values, temporary)
        except RuntimeError as error:
            # torch's writer loses errno: a short write is all that it reports of a full disk.
            raise InputError(
                f"{path}: the checkpoint could not be written ({first_line(error)}); is the disk full? "
                "Earlier checkpoints are intact: free some space and run the same command again to resume"
            ) from error


def check_archive(path: Path) -> None:
    """Verify the checksum of every part of a checkpoint file.

    Raises:
        InputError: it is not a zip archive, or a part is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    if bad is not None:
        raise InputError(f"{path}: damaged checkpoint: the checksum of {bad} does not match")


def load_checkpoint(path: str | Path, optimiser: bool = False) -> Checkpoint:
    """Read a checkpoint: a file, or that of a run folder to score with (`RunPaths.scoring_checkpoint`).

    Args:
        path: file or run folder.
        optimiser: keep the optimiser's state as well, to resume training.

    Raises:
        InputError: nothing there, damaged, or not a checkpoint of this program.
    """
    path = Path(path)
    if path.is_dir():
        return load_checkpoint(RunPaths(path).scoring_checkpoint(), optimiser)
    values = read_archive(path)
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint of `python -m train`, found another file")
    if values.get("version") not in READABLE:
        raise InputError(
            f"{path}: expected a checkpoint of version {' or '.join(map(str, READABLE))}, found version "
            f"{values.get('version')}; read it with the program that wrote it"
        )
    try:
        return Checkpoint(
            weights=values["weights"],
            recipe=values["recipe"],
            run=RunRecord.from_dict(values["run"]),
            volume=VolumeSpec.from_dict(values["volume"]),
            heads={name: tuple(classes) for name, classes in values["heads"].items()},
            iteration=values["iteration"],
            requests={
                name: Request.from_dict(request) for name, request in values.get("requests", {}).items()
            },
            digest=values["digest"],
            optimiser=values["optimiser"] if optimiser else {},
            progress=values["progress"],
            path=path,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged checkpoint ({type(error).__name__}: {error})") from error


def find_checkpoint(run: str, options: DatasetOptions) -> Path:
    """The checkpoint or run folder that --run names: a path, else a run of the dataset by its name.

    Raises:
        InputError: neither; the message lists the dataset's runs.
    """
    if is_path(run):
        return Path(run)
    root = data_root(options.data)
    return find_run(DatasetPaths(root, choose_dataset(options.dataset, root)), run).folder


def is_path(run: str) -> bool:
    """Whether --run is taken as a path: there is such a file or folder, or it has a slash."""
    return "/" in run or Path(run).exists()


def read_archive(path: Path) -> dict[str, Any]:
    """The mapping that `torch.save` wrote, its tensors on the CPU; nothing in the file is executed.

    Raises:
        InputError: missing, damaged, or with anything but tensors and plain values in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{path}: expected a file of weights written by torch.save, found {first_line(error)}"
        ) from error
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: expected a mapping of names to weights, found {type(values).__name__}")
    return dict(values)


def link_best(run: RunPaths, iteration: int) -> None:
    """Make best.pt the checkpoint of an iteration: a hard link where the file system has them, else a copy."""
    with atomic.writing(run.best) as temporary:
        try:
            temporary.hardlink_to(run.checkpoint(iteration))
        except OSError:
            shutil.copyfile(run.checkpoint(iteration), temporary)


def remove_old_checkpoints(run: RunPaths, keep: int, newest: int) -> None:
    """Remove all but the newest `keep` numbered checkpoints, and at least one; best.pt stays.

    Args:
        run: the run.
        keep: how many.
        newest: iteration of the one that was just written and verified. Later ones are what the run could not resume
            from: they do not count, so that they do not displace the good ones.
    """
    counted = [path for path in run.checkpoints() if path <= run.checkpoint(newest)]
    for old in counted[max(keep, 1) :]:
        old.unlink(missing_ok=True)
