"""Networks by name. All take inputs [N,channels,H,W] and dropout keys, and return logits [N,classes].

Parameter names and shapes are torchvision's, so that its state dicts load as they are. Several heads (multi-task
training) are ranges of one last layer, see `train.checkpoint.Checkpoint.columns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from train.models.network import Network

__all__ = ["MODELS", "build"]

MODELS = ("cnn_m_2048", "vgg16", "vgg16_gap", "resnet18", "resnet34", "resnet50", "resnet101")
SMALLEST_VGG_CROP = 32


def build(
    name: str, channels: int, classes: int, dropout: float = 0.0, crop: int = 224, width: float = 1.0
) -> Network:
    """A freshly initialised network.

    Args:
        name: one of `MODELS`.
        channels: of the input, 3 or 2L.
        classes: outputs of the last layer, over all heads.
        dropout: before the last layers (cnn_m_2048, vgg16: on both hidden layers; vgg16_gap, ResNets: on the
            pooled features).
        crop: side of the input in pixels; only cnn_m_2048's first full layer depends on it, and VGG-16 halves it five
            times.
        width: filters per layer as a share of the published number; ResNets only.

    Raises:
        InputError: unknown name, or values that the network cannot have.
    """
    # Imported here, so that a command that needs only the names does not load torch.
    from train.models.cnn_m import CnnM2048
    from train.models.resnet import ResNet
    from train.models.vgg import Vgg16, Vgg16Gap

    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout: expected a share from 0 to below 1, found {dropout}")
    if name.startswith("resnet"):
        if not 0 < width <= 8:
            raise InputError(f"width: expected a number above 0 and up to 8, found {width}")
        return ResNet(int(name.removeprefix("resnet")), channels, classes, dropout, max(1, round(64 * width)))
    if width != 1:
        raise InputError(f"width {width}: only ResNets come in other widths than 1, not {name}")
    if name == "cnn_m_2048":
        return CnnM2048(channels, classes, dropout, crop)
    if crop < SMALLEST_VGG_CROP:
        raise InputError(
            f"{name}: a crop of {crop} pixels is too small, it needs at least {SMALLEST_VGG_CROP}"
        )
    return (Vgg16 if name == "vgg16" else Vgg16Gap)(channels, classes, dropout)
