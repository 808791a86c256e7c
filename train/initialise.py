"""Initial weights from elsewhere: a run's checkpoint or a torchvision-style state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.runs import RunPaths
from train.checkpoint import FORMAT, read_archive
from train.models.network import Network

WRAPPERS = ("state_dict", "model_state", "model")
PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Weights of a file or run folder, and the class names of its last layer if the file knows them.

    Raises:
        InputError: unreadable, or not a state dict.
    """
    if path.is_dir():
        path = RunPaths(path).scoring_checkpoint()
    values = read_archive(path)
    classes = None
    if values.get("format") == FORMAT:
        classes = tuple(name for head in values["heads"].values() for name in head)
        values = values["weights"]
    for key in WRAPPERS:
        if isinstance(values.get(key), Mapping):
            values = values[key]
    weights = {}
    for name, tensor in values.items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{path}: expected a state dict of tensors, found {type(tensor).__name__} under {name!r}"
            )
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        weights[name] = tensor
    return weights, classes


def initialise(network: Network, path: Path, classes: Sequence[str]) -> str:
    """Load weights of a file into a network; returns a description of what was done.

    A first layer for RGB becomes one for flow by its mean over the three channels, repeated for every input channel
    (Wang et al. 2015, cross-modality). The last layer is loaded if it is for the same classes (a run's checkpoint) or
    has the same size (a plain state dict); otherwise it keeps its random initial weights.

    Raises:
        InputError: names or shapes that do not fit, all of them in one message.
    """
    weights, known = read_weights(path)
    own = network.state_dict()
    notes = []
    first, last = f"{network.first}.weight", (f"{network.last}.weight", f"{network.last}.bias")
    if first in weights and weights[first].ndim == 4:
        there, wanted = weights[first].shape[1], own[first].shape[1]
        if there != wanted and there == 3:
            weights[first] = cross_modality(weights[first], wanted)
            notes.append(f"{first}: mean of its 3 colour filters repeated for {wanted} channels")
    fresh = (
        known != tuple(classes)
        if known is not None
        else any(name not in weights or weights[name].shape != own[name].shape for name in last)
    )
    if fresh:
        for name in last:
            weights[name] = own[name]
        notes.append(f"{network.last}: new, for {own[last[0]].shape[0]} classes")
    wrong = [
        f"{name}: expected {list(own[name].shape)}, found {list(weights[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    # State dicts from before torch 0.4.1 lack these counters, which nothing here reads.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if wrong or missing or unexpected:
        raise InputError(
            f"{path}: these weights are not for {type(network).__name__}:\n"
            + "".join(f"  missing {name} {list(own[name].shape)}\n" for name in missing)
            + "".join(f"  unexpected {name} {list(weights[name].shape)}\n" for name in unexpected)
            + "".join(f"  {line}\n" for line in sorted(wrong))
            + "choose the --model that they were trained with"
        )
    network.load_state_dict(weights, strict=False)
    return "; ".join(notes) or "every layer taken over"


def cross_modality(filters: Tensor, channels: int) -> Tensor:
    """First-layer filters [O,3,h,w] for RGB -> [O,channels,h,w] for flow: their mean, repeated."""
    return filters.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)


def freeze(network: Network, trained: str, partial_bn: bool) -> list[nn.Module]:
    """Freeze the layers that the recipe does not train.

    Args:
        network: changed in place.
        trained: "all", or "last" for the last layer alone, on features that stay fixed.
        partial_bn: freeze every batch normalisation but the first (TSN).

    Returns:
        The batch normalisations that must stay in evaluation mode.

    Raises:
        InputError: partial_bn for a network without batch normalisation.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    frozen = norms if trained == "last" else norms[1:] if partial_bn else []
    if partial_bn and not norms:
        raise InputError(f"partial_bn: {type(network).__name__} has no batch normalisation")
    if trained == "last":
        network.requires_grad_(False)
        network.last_layer.requires_grad_(True)
    for layer in frozen:
        layer.requires_grad_(False)
    return list(frozen)
