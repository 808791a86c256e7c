"""VGG-16 (Simonyan & Zisserman 2015, configuration D), with torchvision's parameter names; and a short one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.dropout import KeyedDropout
from train.models.network import Network

_BLOCK5 = ("features.24.", "features.26.", "features.28.")
# Output channels of the 3x3 convolutions; 0 stands for 2x2 pooling.
_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def convolutions(channels: int) -> nn.Sequential:
    """The 13 convolutions with ReLU, and the 5 poolings."""
    layers: list[nn.Module] = []
    width = channels
    for wider in _WIDTHS:
        if wider:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU(inplace=True)]
            width = wider
        else:
            layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


def initialise_layers(network: nn.Module) -> None:
    """Random initial weights, biases of zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Vgg16(Network):
    """138.4 M parameters with 3 channels and 1000 classes; any input is pooled to 7x7 before full6."""

    first, last, last_block = "features.0", "classifier.6", (*_BLOCK5, "classifier.")

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = convolutions(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            KeyedDropout(dropout, layer=6),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            KeyedDropout(dropout, layer=7),
            nn.Linear(4096, classes),
        )
        initialise_layers(self)

    def penultimate(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        full6, _, drop6, full7, _, drop7, _ = self.classifier
        x = self.avgpool(self.features(inputs)).flatten(1)
        x = drop6(F.relu(full6(x)), keys)
        dropped: Tensor = drop7(F.relu(full7(x)), keys)
        return dropped


class Vgg16Gap(Network):
    """VGG-16's convolutions, global average pooling and one linear layer (Zhou et al. 2016, VGGnet-GAP).

    14.7 M parameters; without the two hidden layers it can learn from few videos, and start from convolutions alone.
    The pooled features are normalised without weights of its own (Ioffe & Szegedy 2015): those of published VGG weights
    differ tenfold in size and have much in common, so that no learning rate would suit them all.
    """

    first, last, last_block = "features.0", "fc", _BLOCK5
    without, added = ("classifier.",), ("norm.",)

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = convolutions(channels)
        self.norm = nn.BatchNorm1d(512, affine=False)
        self.dropout = KeyedDropout(dropout)
        self.fc = nn.Linear(512, classes)
        initialise_layers(self)

    def penultimate(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        pooled = self.features(inputs).mean(dim=(2, 3))
        dropped: Tensor = self.dropout(self.norm(pooled), keys)
        return dropped
