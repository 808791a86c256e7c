"""CNN-M-2048 (Chatfield et al. 2014), as in Simonyan & Zisserman 2014, figure 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError
from train.models.dropout import KeyedDropout
from train.models.network import Network


class CnnM2048(Network):
    """Five convolutions, two full layers, a classifier; 90.7 M parameters with 20 channels and 101 classes.

    Padding and rounding are those of Caffe's CNN-M: none at conv1, one pixel elsewhere, pooling rounds up, so that
    full6 sees 512x6x6 of a 224x224 input. Response normalisation is Krizhevsky's (k=2, n=5, alpha=1e-4, beta=.75;
    torch divides alpha by n) after the ReLU; the paper's temporal net omits the second one.
    """

    first, last, last_block = "conv1", "full8", ("conv5.", "full6.", "full7.")

    def __init__(self, channels: int, classes: int, dropout: float, crop: int) -> None:
        super().__init__()
        side = feature_side(crop)
        if side < 1:
            raise InputError(f"cnn_m_2048: a crop of {crop} pixels is too small, it needs at least 43")
        self.conv1 = nn.Conv2d(channels, 96, 7, stride=2)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2, padding=1)
        self.conv3 = nn.Conv2d(256, 512, 3, padding=1)
        self.conv4 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5 = nn.Conv2d(512, 512, 3, padding=1)
        self.full6 = nn.Linear(512 * side * side, 4096)
        self.full7 = nn.Linear(4096, 2048)
        self.full8 = nn.Linear(2048, classes)
        self.norm1 = nn.LocalResponseNorm(5, 5e-4, 0.75, 2)
        # Colour has 3 channels, flow an even number.
        self.norm2 = nn.LocalResponseNorm(5, 5e-4, 0.75, 2) if channels == 3 else nn.Identity()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.drop6 = KeyedDropout(dropout, layer=6)
        self.drop7 = KeyedDropout(dropout, layer=7)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # He et al. 2015, so that activations keep the size of the inputs, which is about one.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.full8.weight, std=0.01)
        # Dropout scales up what it keeps; without this the first losses at dropout 0.9 are five times ln(classes).
        for layer in (self.full7, self.full8):
            layer.weight.data.mul_((1 - dropout) ** 0.5)

    def penultimate(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        x = self.pool(self.norm1(F.relu(self.conv1(inputs))))
        x = self.pool(self.norm2(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = self.pool(F.relu(self.conv5(x)))
        x = self.drop6(F.relu(self.full6(x.flatten(1))), keys)
        dropped: Tensor = self.drop7(F.relu(self.full7(x)), keys)
        return dropped


def feature_side(crop: int) -> int:
    """Side of what full6 sees, for a square input of `crop` pixels: 6 for 224."""

    def pooled(side: int) -> int:
        return -(-(side - 3) // 2) + 1

    return pooled(pooled((pooled((crop - 7) // 2 + 1) + 2 - 5) // 2 + 1))
