"""Checkpoints: everything needed to go on training, to score videos, and to start another network from.

One file is a `torch.save` of plain values and tensors, loaded with weights_only=True; docs/reference/train.md lists
its keys. It is written under a temporary name, read back and checked, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
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
from pipeline.errors import InputError
from pipeline.text import first_line
from train.models import build
from train.models.network import Network
from train.volume_spec import VolumeSpec

FORMAT = "two-stream checkpoint"
VERSION = 1
NAME = re.compile(r"checkpoint-(\d{8})\.pt")
BEST = "best.pt"


@dataclass
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        weights: the network's state dict.
        recipe: the resolved recipe, plain values.
        run: dataset, split, shard set, seed and the like, plain values.
        volume: what the network's input is made of.
        heads: head (dataset) name -> its class names; heads are ranges of the last layer, in this order.
        iteration: iterations done.
        digest: SHA-256 over weights, volume, model and heads; what scores are tied to.
        optimiser: its state dict; empty in a file that was only made for scoring.
        progress: what the log and the choice of the best need to go on.
        path: the file it was read from.
    """

    weights: dict[str, Tensor]
    recipe: dict[str, Any]
    run: dict[str, Any]
    volume: VolumeSpec
    heads: dict[str, tuple[str, ...]]
    iteration: int
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
        """Which outputs of the last layer are the given classes of a head.

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
    """SHA-256 (hex) over what decides scores: weights, model, volume and heads."""
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
        InputError: the disk is full; what was there before stays.
    """
    checkpoint.digest = weights_digest(checkpoint)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "weights": checkpoint.weights,
        "recipe": checkpoint.recipe,
        "run": checkpoint.run,
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
            # torch's writer loses errno; a short write is all it tells of a full disk.
            raise InputError(
                f"{path}: the checkpoint could not be written ({first_line(error)}); is the disk full? "
                "Earlier checkpoints are intact: free some space and run the same command again to resume"
            ) from error


def check_archive(path: Path) -> None:
    """Check the sums of every part of a checkpoint file.

    Raises:
        InputError: it is no such archive, or a part is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    if bad is not None:
        raise InputError(f"{path}: damaged checkpoint: the check sum of {bad} does not match")


def load_checkpoint(path: str | Path, optimiser: bool = False) -> Checkpoint:
    """Read a checkpoint: a file, or a run folder, of which the best (else the newest valid) one is taken.

    Args:
        path: file or run folder.
        optimiser: keep the optimiser's state as well, to go on training.

    Raises:
        InputError: nothing there, damaged, or not a checkpoint of this program.
    """
    path = Path(path)
    if path.is_dir():
        return load_checkpoint(find_checkpoint(path), optimiser)
    values = read_archive(path)
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint of `python -m train`, found another file")
    if values.get("version") != VERSION:
        raise InputError(f"{path}: checkpoint version {values.get('version')}, this program reads {VERSION}")
    try:
        return Checkpoint(
            weights=values["weights"],
            recipe=values["recipe"],
            run=values["run"],
            volume=VolumeSpec.from_dict(values["volume"]),
            heads={name: tuple(classes) for name, classes in values["heads"].items()},
            iteration=values["iteration"],
            digest=values["digest"],
            optimiser=values["optimiser"] if optimiser else {},
            progress=values["progress"],
            path=path,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: incomplete checkpoint ({type(error).__name__}: {error})") from error


def read_archive(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, as a mapping, on the CPU; nothing in the file is executed.

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


def checkpoints(run: Path) -> list[Path]:
    """Numbered checkpoints of a run folder, newest first."""
    if not run.is_dir():
        return []
    return sorted((path for path in run.iterdir() if NAME.fullmatch(path.name)), reverse=True)


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run to score with: the best by validation if there is one, else the newest.

    Raises:
        InputError: the folder holds none.
    """
    if (run / BEST).is_file():
        return run / BEST
    found = checkpoints(run)
    if not found:
        raise InputError(f"{run}: no checkpoint there yet; train first: python -m train --run {run.name} ...")
    return found[0]
