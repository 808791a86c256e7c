"""ResNets (He et al. 2016), with torchvision's parameter names and its stride in the 3x3 convolution ("v1.5")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.dropout import KeyedDropout
from train.models.network import Network

# depth -> (blocks per stage, whether blocks have a bottleneck)
_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


def _shortcut(width: int, wider: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution where a block changes size; None where its input can be added as it is."""
    if stride == 1 and width == wider:
        return None
    return nn.Sequential(nn.Conv2d(width, wider, 1, stride=stride, bias=False), nn.BatchNorm2d(wider))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = _shortcut(width, inner, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        wider = inner * self.expansion
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, wider, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wider)
        self.downsample = _shortcut(width, wider, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(Network):
    """ResNet; 11.7 M (18), 21.8 M (34), 25.6 M (50), 44.5 M (101) parameters at 3 channels and 1000 classes.

    `base` is the number of filters of the first layer, on which all others depend; 64 as published.
    """

    first, last, last_block = "conv1", "fc", ("layer4.",)

    def __init__(self, depth: int, channels: int, classes: int, dropout: float, base: int = 64) -> None:
        super().__init__()
        counts, bottleneck = _STAGES[depth]
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(channels, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = base
        for stage, count in enumerate(counts):
            inner = base << stage
            blocks: list[nn.Module] = []
            for i in range(count):
                blocks.append(block(width, inner, stride=2 if stage and not i else 1))
                width = inner * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dropout = KeyedDropout(dropout)
        self.fc = nn.Linear(width, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def penultimate(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(inputs))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        dropped: Tensor = self.dropout(x.mean(dim=(2, 3)), keys)
        return dropped
