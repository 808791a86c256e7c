"""Checkpoints: everything needed to resume training, to score videos, and to initialise another network.

A file is a `torch.save` of plain values and tensors, loaded with weights_only=True; docs/reference/train.md lists its
keys. It is written under a temporary name, read back and checked, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import atomic
from pipeline.catalog import choose_dataset
from pipeline.errors import Damaged, InputError, OtherFormat, Unreadable, reading
from pipeline.options import DatasetOptions
from pipeline.paths import DatasetPaths, data_root
from pipeline.request import Request
from pipeline.runs import RunPaths, RunRecord, find_run
from pipeline.text import first_line, some, typed
from train.models import build
from train.models.network import Network, shapes_only
from train.recipe import KEYS, MOST_ITERATIONS, Recipe, coerce
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
        network = self.network()
        network.load_state_dict(self.weights)
        return network.eval()

    def network(self) -> Network:
        """The network with fresh weights."""
        return build(
            self.recipe["model"],
            self.volume.channels,
            sum(map(len, self.heads.values())),
            self.recipe["dropout"],
            self.volume.crop,
            self.recipe["width"],
        )

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
    return _digest(checkpoint, checkpoint.volume.as_dict())


def _digest(checkpoint: Checkpoint, volume: Mapping[str, Any]) -> str:
    """`weights_digest`, with the volume's values as they are stored: other versions have other keys."""
    about = {
        "model": checkpoint.recipe["model"],
        "volume": volume,
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
    write_archive(path, values)


def write_archive(path: Path, values: Mapping[str, Any]) -> None:
    """Write values and tensors atomically, by `torch.save`, and read them back.

    Raises:
        InputError: the file cannot be written; an earlier one of that name stays.
    """
    with atomic.writing(path, verify=check_archive) as temporary, atomic.disk_errors(path):
        try:
            torch.save(dict(values), temporary)
        except RuntimeError as error:
            # torch's writer loses errno: a short write is all that it reports of a full disk.
            raise InputError(
                f"{path}: could not be written ({first_line(error)}); is the disk full? Earlier checkpoints are "
                "intact: free some space and run the same command again"
            ) from error


class WatchedFile(io.FileIO):
    """A file that keeps the first error of the system: zipfile and torch take one for a file that is not whole."""

    error: OSError | None = None

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.error = self.error or error
            raise

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            self.error = self.error or error
            raise


@contextlib.contextmanager
def watched(path: Path) -> Iterator[BinaryIO]:
    """A file open for reading.

    Raises:
        Unreadable: the system did not let it be read, whatever the block made of that.
    """
    with reading(path), WatchedFile(path) as file:
        try:
            yield io.BufferedReader(file)
        except Exception:
            if file.error is not None:
                raise file.error from None
            raise


def check_archive(path: Path) -> None:
    """Verify the checksum of every part of a checkpoint file.

    Raises:
        Unreadable: the system did not let it be read.
        Damaged: it is not a zip archive, or a part is damaged.
    """
    try:
        with watched(path) as file, zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise Damaged(f"{path}: not a readable checkpoint ({first_line(error)})") from error
    if bad is not None:
        raise Damaged(f"{path}: damaged checkpoint: the checksum of {bad} does not match")


def load_checkpoint(path: str | Path, optimiser: bool = False) -> Checkpoint:
    """Read a checkpoint: a file, or that of a run folder to score with (`RunPaths.scoring_checkpoint`).

    Args:
        path: file or run folder.
        optimiser: keep the optimiser's state as well, to resume training.

    Raises:
        Unreadable: the system did not let it be read.
        OtherFormat: of a later version, or not a checkpoint of this program.
        InputError: nothing there, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return load_checkpoint(RunPaths(path).scoring_checkpoint(), optimiser)
    return from_archive(path, read_archive(path), optimiser)


def from_archive(path: Path, values: Mapping[str, Any], optimiser: bool = False) -> Checkpoint:
    """The checkpoint in the mapping that `read_archive` found in a file; every value is checked.

    Raises:
        OtherFormat: of a later version, or not a checkpoint of this program.
        Damaged: a value is missing, or is not one that this program writes.
    """
    if values.get("format") != FORMAT:
        raise OtherFormat(f"{path}: expected a checkpoint of `{typed('train')}`, found another file")
    if values.get("version") not in READABLE:
        raise OtherFormat(
            f"{path}: expected a checkpoint of version {' or '.join(map(str, READABLE))}, found version "
            f"{values.get('version')!r}; read it with the program that wrote it"
        )
    try:
        checkpoint = Checkpoint(
            weights=checked_tensors(values["weights"]),
            recipe=checked_recipe(values["recipe"]),
            run=RunRecord.from_dict(_mapping(values["run"], "run")),
            volume=VolumeSpec.from_dict(_mapping(values["volume"], "volume")),
            heads=_heads(values["heads"]),
            iteration=values["iteration"],
            requests={
                name: Request.from_dict(_mapping(request, name))
                for name, request in _mapping(values.get("requests", {}), "requests").items()
            },
            digest=values["digest"],
            optimiser=_optimiser(values["optimiser"]) if optimiser else {},
            progress=_progress(values["progress"]),
            path=path,
        )
        if type(checkpoint.iteration) is not int or not 0 <= checkpoint.iteration <= MOST_ITERATIONS:
            raise ValueError(f"iteration: expected a whole number from 0, found {checkpoint.iteration!r}")
        _check_weights_fit(checkpoint)
        if (digest := _digest(checkpoint, values["volume"])) != checkpoint.digest:
            raise ValueError(f"its digest is {checkpoint.digest!r}, that of its weights {digest}")
        return checkpoint
    except KeyError as error:
        raise Damaged(f"{path}: damaged checkpoint: it has no {first_line(error)}") from error
    except (InputError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: damaged checkpoint: {first_line(error)}") from error


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}: expected a mapping of names, found {type(value).__name__}")
    return dict(value)


def checked_tensors(values: Any) -> dict[str, Tensor]:
    """A state dict of ordinary tensors whose values are finite.

    Raises:
        ValueError: anything else; the message names the first such value.
    """
    tensors = _mapping(values, "weights")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"expected a state dict of tensors, found {type(tensor).__name__} under {name!r}"
            )
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A view may claim any number of values of a few bytes.
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name}: expected a tensor with all its values, found another kind")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    return tensors


def checked_recipe(values: Any) -> dict[str, Any]:
    """A recipe's plain values, each of its key's type; keys of other versions are left as they are.

    Raises:
        ValueError: not a mapping, or without what the network needs.
        InputError: a value of the wrong type or out of bounds.
    """
    recipe = _mapping(values, "recipe")
    if missing := [name for name in ("model", "dropout", "width") if name not in recipe]:
        raise ValueError(f"recipe: it has no {', '.join(missing)}")
    Recipe(**{name: coerce(name, value) for name, value in recipe.items() if name in KEYS})
    return recipe


def _heads(values: Any) -> dict[str, tuple[str, ...]]:
    heads = {name: tuple(classes) for name, classes in _mapping(values, "heads").items()}
    for name, classes in heads.items():
        if not classes or not all(isinstance(label, str) for label in classes):
            raise ValueError(
                f"heads: expected names of classes under {name!r}, found {some(map(str, classes))}"
            )
        if len(set(classes)) != len(classes):
            raise ValueError(f"heads: classes named twice under {name!r}")
    if not heads:
        raise ValueError("heads: expected at least one, found none")
    return heads


def _progress(values: Any) -> dict[str, Any]:
    progress = _mapping(values, "progress")
    for name, value in progress.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"progress: expected a number under {name!r}, found {value!r}")
    return progress


def _optimiser(values: Any) -> dict[str, Any]:
    optimiser = _mapping(values, "optimiser")
    state = optimiser["state"]
    if not isinstance(state, Mapping) or not isinstance(optimiser["param_groups"], list):
        raise ValueError("optimiser: expected `state` and `param_groups` of SGD")
    for index, buffers in state.items():
        if not isinstance(index, int):
            raise ValueError(f"optimiser: expected the number of a parameter, found {index!r}")
        given = {name: value for name, value in _mapping(buffers, "optimiser").items() if value is not None}
        try:
            checked_tensors(given)
        except ValueError as error:
            raise ValueError(f"optimiser: state of parameter {index}: {error}") from error
    return optimiser


def _check_weights_fit(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the weights are those of the network; no memory is allocated for it."""
    try:
        with shapes_only():
            own = checkpoint.network().state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"its network cannot be built ({first_line(error)})") from error
    for name, tensor in own.items():
        found = checkpoint.weights.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            shown = "nothing" if found is None else f"{list(found.shape)} of {found.dtype}"
            raise ValueError(f"{name}: expected {list(tensor.shape)} of {tensor.dtype}, found {shown}")
    if unknown := [name for name in checkpoint.weights if name not in own]:
        raise ValueError(f"weights that {checkpoint.recipe['model']} does not have: {some(unknown)}")


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


ARCHIVE = b"PK\x03\x04"
"""How a zip archive begins; torch takes what begins otherwise for a pickle."""


def read_archive(path: Path) -> dict[str, Any]:
    """The mapping that `torch.save` wrote, its tensors on the CPU; nothing in the file is executed.

    Raises:
        Unreadable: the system did not let it be read.
        InputError: missing, damaged, or with anything but tensors and plain values in it.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: expected a checkpoint, a file of weights or a run's folder, found no such file"
        )
    with watched(path) as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    if is_archive:
        check_archive(path)
    try:
        with warnings.catch_warnings(), watched(path) as file:
            warnings.simplefilter("ignore")
            values = torch.load(file, map_location="cpu", weights_only=True)
    except Unreadable:
        raise
    except Exception as error:  # a damaged pickle can raise any
        raise Damaged(
            f"{path}: expected a file of weights written by torch.save, found {_found(error)}"
        ) from error
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: expected a mapping of names to weights, found {type(values).__name__}")
    return dict(values)


def _found(error: Exception) -> str:
    """What is wrong with a file that torch refused, without torch's advice to load it in an unsafe way."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        which = f" ({named[1]})" if named else ""
        return f"something other than tensors and plain values{which}, which may run code and is not loaded"
    return "a file of another kind, or a damaged one" if isinstance(error, LookupError) else first_line(error)


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
        newest: iteration of the one that was just written and verified. The run could not resume
            from later ones: they do not count, so that they do not displace good ones.
    """
    counted = [path for path in run.checkpoints() if path <= run.checkpoint(newest)]
    for old in counted[max(keep, 1) :]:
        old.unlink(missing_ok=True)
