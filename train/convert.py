"""python -m train convert: weights of another project as a state dict of a network here, and what was taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT, from_options, options_of
from pipeline.text import typed
from train.models import MODELS, build
from train.options import ConvertOptions

if TYPE_CHECKING:
    from train.models.network import Network
    from train.weights import Weights


@click.command(context_settings=CONTEXT)
@options_of(ConvertOptions)
@command_errors
def command(**values: Any) -> None:
    """Convert weights of MatConvNet (imagenet-vgg-m-2048.mat), mmaction2, tsn-pytorch or torchvision.

    Prints what was taken. --init reads all of these as they are too; a converted file loads faster and is smaller.
    """
    options = from_options(ConvertOptions, values)
    source = options.file
    ending = "-converted.pth" if source.suffix == ".pth" else ".pth"
    output = options.output or source.with_name(source.stem + ending)
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: would replace what is converted; name another file with --output")
    if output.exists() and not options.overwrite:
        raise InputError(
            f"{output}: already exists: replace it with --overwrite, or name another with --output"
        )
    for line in convert(source, output):
        click.echo(line)


def convert(source: Path, output: Path) -> list[str]:
    """Write the weights of a file as a state dict with the names of a network here; what was taken, line by line.

    Raises:
        InputError: not weights, or those of no network here.
    """

    from train.checkpoint import write_archive
    from train.weights import LAST, read_weights

    weights = read_weights(source)
    network, name = recognise(source, weights)
    tensors = {key.replace(LAST, network.last): value.float() for key, value in weights.tensors.items()}
    first = tensors[f"{network.first}.weight"]
    last = tensors.get(f"{network.last}.weight")
    lines = [
        f"{source}: {weights.layout}'s names, {name}: {len(tensors)} tensors, {first.shape[1]} input channels, "
        + ("no last layer" if last is None else f"{len(last)} outputs"),
        *weights.notes,
    ]
    write_archive(output, tensors)
    return [*lines, f"saved {output}: {typed('train')} --model {name} --init {output}"]


def recognise(source: Path, weights: Weights) -> tuple[Network, str]:
    """The network whose parameters these are, and its name; last layer and number of input channels may differ.

    Raises:
        InputError: none; the message names the first ten names and the networks there are.
    """
    from train.initialise import hidden_layers
    from train.models.network import shapes_only
    from train.weights import LAST

    for name in ("cnn_m_2048",) if weights.layout == "MatConvNet" else MODELS:
        with shapes_only():
            network = build(name, 3, 2)
        ends = (network.first, network.last)
        own = {
            key: tensor.shape
            for key, tensor in network.state_dict().items()
            if key.rpartition(".")[0] not in ends and not key.endswith("num_batches_tracked")
        }
        found = {
            key: tensor.shape
            for key, tensor in weights.tensors.items()
            if key.rpartition(".")[0] not in (*ends, LAST) and not key.endswith("num_batches_tracked")
        }
        hidden = set(hidden_layers(network))
        convolutions = {key: shape for key, shape in own.items() if key.rpartition(".")[0] not in hidden}
        if f"{network.first}.weight" in weights.tensors and (
            found in (own, convolutions)
            or weights.layout == "MatConvNet"  # whose reader has checked the layers
        ):
            return network, name
    raise InputError(
        f"{source}: expected the parameters of one of {', '.join(MODELS)}, found names such as "
        f"{', '.join(list(weights.tensors)[:10])}"
    )
