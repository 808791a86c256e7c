"""The interface of the networks."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """Base of the networks: `penultimate` up to the last layer, and that layer by name.

    Attributes:
        first: state-dict name (without .weight) of the convolution that sees the input.
        last: the same of the layer whose outputs are the classes.
        last_block: beginnings of the names of the last block of convolutions and of the layers between it and `last`.
        without: beginnings of the names of layers that published weights have and this network lacks.
        added: beginnings of the names of layers that it has and published weights lack; they are always trained.
    """

    first: str
    last: str
    last_block: tuple[str, ...]
    without: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @abstractmethod
    def penultimate(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        """Input of the last layer: float[N,F] from inputs [N,C,H,W]; keys int64[N] seed the dropout."""

    def forward(self, inputs: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits [N,classes]."""
        logits: Tensor = self.last_layer(self.penultimate(inputs, keys))
        return logits

    @property
    def first_layer(self) -> nn.Conv2d:
        """The convolution that sees the input."""
        layer = self.get_submodule(self.first)
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def last_layer(self) -> nn.Linear:
        """The layer whose outputs are the classes."""
        layer = self.get_submodule(self.last)
        assert isinstance(layer, nn.Linear)
        return layer
