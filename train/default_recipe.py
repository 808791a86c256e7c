"""The recipe of a run that names none: by how much there is to learn from, on what, and what it starts from.

The paper's networks take days on a CPU and overfit a small dataset, so small ones are learned by smaller networks in
minutes. Nothing here loads torch before weights are looked at, so that submitting jobs can ask too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.runs import Stream
from pipeline.text import many

FEW_CLIPS = 2000
"""Datasets of fewer videos are learned by recipe `small`."""
PAPER = {"temporal": "temporal-stack10", "spatial": "spatial-scratch-dropout9"}
PAPER_PRETRAINED = "spatial-lastlayer-dropout5"
PUBLISHED = "modern"
"""On a GPU with a large dataset and --init imagenet: of a network whose ImageNet weights torchvision publishes."""
SMALL = "small"
SMALL_PRETRAINED = {"spatial": "small-pretrained", "temporal": "small-pretrained-temporal"}
NETWORK_KEYS = ("model", "width", "crop", "short_side")
"""What a network must have in common with the run that its weights come from."""


class Chosen(NamedTuple):
    """A recipe's name, and why it was chosen; "" where that is obvious."""

    name: str
    reason: str = ""


def default_recipe(
    dataset: str, stream: Stream | None, init: str | None, *, clips: int, gpu: bool, images: bool = False
) -> Chosen:
    """The recipe of a run that names none and has not begun.

    Args:
        dataset: its name.
        stream: the stream to train; None means temporal.
        init: what it starts from, as given to --init.
        clips: number of videos of the dataset.
        gpu: whether it trains on a GPU.
        images: whether it learns from a folder of images.
    """
    if images:
        return Chosen("imagenet")
    if dataset == "demo":
        return Chosen("demo")
    if clips < FEW_CLIPS or not gpu:
        reason = f"{many(clips, 'clip')}, fewer than {FEW_CLIPS:,}" if clips < FEW_CLIPS else "on a CPU"
        return Chosen(SMALL_PRETRAINED[stream or "temporal"] if init else SMALL, reason)
    if init == "imagenet":
        return Chosen(PUBLISHED)
    if stream == "spatial" and init:
        return Chosen(PAPER_PRETRAINED)
    return Chosen(PAPER[stream or "temporal"])


def foreseen(dataset: str, stream: Stream, init: str | None, clips: int) -> str:
    """The default recipe of a run whose machine is not known yet, in words; arguments as of `default_recipe`."""
    with_gpu, without = (default_recipe(dataset, stream, init, clips=clips, gpu=gpu) for gpu in (True, False))
    if with_gpu.name != without.name:
        return f"recipe {with_gpu.name} on a node with a GPU, {without.name} on one without"
    return f"recipe {with_gpu.name}" + (f" ({with_gpu.reason})" if with_gpu.reason else "")


def network_of(init: str) -> dict[str, Any]:
    """The recipe keys that a network must have to start from a file of weights or the folder of a run.

    VGG-16 stands for its convolutions with average pooling, since few videos cannot train its hidden layers.

    Raises:
        InputError: no weights there, or those of no network here.
    """
    from train.convert import recognise
    from train.weights import read_weights

    path = Path(init)
    weights = read_weights(path)
    if weights.recipe:
        return {key: weights.recipe[key] for key in NETWORK_KEYS if key in weights.recipe}
    network, model = recognise(path, weights)
    if model == "cnn_m_2048":
        return {"model": model, "crop": 224, "short_side": 256}  # its first full layer is made for 224 pixels
    channels = weights.tensors[f"{network.first}.weight"].shape[1]
    length = {} if channels == 3 else {"length": channels // 2}  # flow, x and y of each field
    return {"model": "vgg16_gap" if model == "vgg16" else model, **length}
