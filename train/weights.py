"""Weights from elsewhere: a run's checkpoint, a state dict in one of the field's layouts, MatConvNet's network.

Layouts are recognised by their names and mapped to torchvision's, which the networks here have:

| layout | example | here |
|---|---|---|
| mmaction2 | `backbone.layer1.0.conv1.bn.weight`, `cls_head.fc_cls.bias` | `layer1.0.bn1.weight`, `fc.bias` |
| tsn-pytorch | `module.base_model.conv1.weight`, `module.new_fc.bias` | `conv1.weight`, `fc.bias` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.runs import RunPaths
from train.checkpoint import FORMAT, checked_tensors, from_archive, read_archive
from train.matconvnet import read_matconvnet

WRAPPERS = ("state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.")
LAST = "<last>"
"""Stands for the layer whose outputs are the classes, until the network gives its name."""


@dataclass(frozen=True)
class Weights:
    """A file's weights.

    Attributes:
        tensors: by the names of the networks here, but for the last layer's of other layouts, which is `LAST`.
        classes: what the last layer's outputs are, if the file knows it.
        layout: whose names the file has.
        notes: what was taken, where the names do not make it obvious.
        recipe: of the run whose checkpoint it is; empty for other files.
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    layout: str
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """The weights of a file or run folder.

    Raises:
        InputError: unreadable, or not weights.
    """
    if path.suffix == ".mat":
        tensors, notes = read_matconvnet(path)
        return Weights(tensors, None, "MatConvNet", notes)
    if path.is_dir():
        path = RunPaths(path).scoring_checkpoint()
    values = read_archive(path)
    if values.get("format") == FORMAT:
        checkpoint = from_archive(path, values)
        classes = tuple(name for head in checkpoint.heads.values() for name in head)
        return Weights(checkpoint.weights, classes, "this project", recipe=checkpoint.recipe)
    for key in WRAPPERS:
        if isinstance(values.get(key), Mapping):
            values = values[key]
    tensors = _tensors(path, values)
    for layout, (recognises, mapped) in LAYOUTS.items():
        if any(recognises(name) for name in tensors):
            return Weights({mapped(name): tensor for name, tensor in tensors.items()}, None, layout)
    return Weights(tensors, None, "torchvision")


def _tensors(path: Path, values: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a state dict by their names without wrappers' prefixes; InputError for anything else in it."""
    try:
        tensors = checked_tensors(values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return {without_prefixes(name): tensor for name, tensor in tensors.items()}


def without_prefixes(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def from_mmaction2(name: str) -> str:
    """mmaction2's name of a ResNet's parameter as torchvision's; its blocks keep a layer's norm beside its filters."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^cls_head\.fc_cls\.", f"{LAST}.", name)
    name = re.sub(r"(^|\.)downsample\.conv\.", r"\1downsample.0.", name)
    name = re.sub(r"(^|\.)downsample\.bn\.", r"\1downsample.1.", name)
    name = re.sub(r"(^|\.)conv(\d)\.conv\.", r"\1conv\2.", name)
    return re.sub(r"(^|\.)conv(\d)\.bn\.", r"\1bn\2.", name)


def from_tsn_pytorch(name: str) -> str:
    """tsn-pytorch's name as torchvision's: the network within `base_model`, its classifier beside it."""
    return re.sub(r"^new_fc\.", f"{LAST}.", name.removeprefix("base_model."))


LAYOUTS: Mapping[str, tuple[Callable[[str], bool], Callable[[str], str]]] = {
    "mmaction2": (lambda name: name.startswith("backbone."), from_mmaction2),
    "tsn-pytorch": (lambda name: name.startswith("base_model."), from_tsn_pytorch),
}
"""Layout -> whether a name is of it, and the name here."""
