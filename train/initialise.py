"""Initial weights from elsewhere, fitted to a network; which layers are then trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.text import some
from train.models.network import Network
from train.weights import LAST, read_weights

SHOWN = 10
"""Names of each kind in the message about weights that do not fit."""


def initialise(network: Network, path: Path, classes: Sequence[str]) -> str:
    """Load weights of a file into a network; returns a description of what was done.

    A first layer for RGB becomes one for flow by its mean over the three channels, repeated for every input channel
    (Wang et al. 2015, cross-modality). The last layer is loaded if it is for the same classes (a run's checkpoint) or
    has the same size (a plain state dict); otherwise it keeps its random initial weights. So do all fully connected
    layers if the file has none of them.

    Raises:
        InputError: names or shapes that do not fit; the message has the first ten of each kind.
    """
    found = read_weights(path)
    weights = {name.replace(LAST, network.last): tensor for name, tensor in found.tensors.items()}
    own = network.state_dict()
    notes = [] if found.layout in ("torchvision", "this project") else [f"{found.layout}'s names"]
    first, last = f"{network.first}.weight", (f"{network.last}.weight", f"{network.last}.bias")
    if first in weights and weights[first].ndim == 4:
        there, wanted = weights[first].shape[1], own[first].shape[1]
        if there != wanted and there == 3:
            weights[first] = cross_modality(weights[first], wanted)
            notes.append(f"{first}: mean of its 3 colour filters repeated for {wanted} channels")
    fresh = (
        found.classes != tuple(classes)
        if found.classes is not None
        else any(name not in weights or weights[name].shape != own[name].shape for name in last)
    )
    if fresh:
        for name in last:
            weights[name] = own[name]
        notes.append(f"{network.last}: new, for {own[last[0]].shape[0]} classes")
    weights = {name: own[name] for name in own if name.startswith(network.added)} | weights
    hidden = hidden_layers(network)
    if hidden and not any(name.startswith(f"{layer}.") for layer in hidden for name in weights):
        weights |= {name: own[name] for name in own if name.rpartition(".")[0] in hidden}
        notes.append(f"{', '.join(hidden)}: new, since the file has the convolutions only")
    if unused := [name for name in weights if name not in own and name.startswith(network.without)]:
        weights = {name: tensor for name, tensor in weights.items() if name not in unused}
        notes.append(f"{some(unused, most=2, quoted=False)}: not in this network, left out")
    check_fit(path, network, own, weights)
    network.load_state_dict(weights, strict=False)
    return "; ".join(notes) or "every layer loaded"


def hidden_layers(network: Network) -> list[str]:
    """Names of the fully connected layers before the last one."""
    return [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name != network.last
    ]


def check_fit(path: Path, network: Network, own: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Raise InputError with the first names, of each kind, of weights that do not fit a network's own."""
    wrong = [
        f"{name}: expected {list(own[name].shape)}, found {list(weights[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    # State dicts from before torch 0.4.1 lack these counters, which nothing here reads.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if not (wrong or missing or unexpected):
        return

    def shown(lines: list[str]) -> list[str]:
        more = [f"  and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
        return [f"  {line}" for line in lines[:SHOWN]] + more

    raise InputError(
        f"{path}: these weights are not for {type(network).__name__}:",
        *shown([f"missing {name} {list(own[name].shape)}" for name in missing]),
        *shown([f"unexpected {name} {list(weights[name].shape)}" for name in unexpected]),
        *shown(wrong),
        "choose the --model (and --width, --length, --crop) that they were trained with",
    )


def cross_modality(filters: Tensor, channels: int) -> Tensor:
    """First-layer filters [O,3,h,w] for RGB -> [O,channels,h,w] for flow: their mean, repeated."""
    return filters.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)


def freeze(network: Network, trained: str, partial_bn: bool) -> list[nn.Module]:
    """Freeze the layers that the recipe does not train.

    Args:
        network: changed in place.
        trained: "all"; "last-block" for the last block of convolutions and what follows it; or "last" for the last
            layer alone, on features that stay fixed.
        partial_bn: freeze every batch normalisation but the first (TSN).

    Returns:
        The batch normalisations that must stay in evaluation mode.

    Raises:
        InputError: partial_bn for a network without batch normalisation.
    """
    above: tuple[str, ...] = ("",)  # beginnings of the names of what is trained
    if trained != "all":
        above = (f"{network.last}.", *(network.last_block if trained == "last-block" else ()))
    norms = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not f"{name}.".startswith(network.added)
    ]
    if partial_bn and not norms:
        raise InputError(f"partial_bn: {type(network).__name__} has no batch normalisation")
    frozen: list[nn.Module] = [
        layer
        for index, (name, layer) in enumerate(norms)
        if not f"{name}.".startswith(above) or (partial_bn and index > 0)
    ]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(above))
    for layer in frozen:
        layer.requires_grad_(False)
    return frozen
