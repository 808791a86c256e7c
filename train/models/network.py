"""The interface of the networks."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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


class _WithoutValues(TorchFunctionMode):
    """Random initial values are left out: on tensors without memory, torch loads its compiler to draw none."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__name__", "") in (
            "normal_",
            "uniform_",
            "kaiming_normal_",
            "kaiming_uniform_",
        ):
            return arguments[0] if arguments else (named or {})["tensor"]
        return function(*arguments, **(named or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are built within have shapes and types, and neither values nor memory."""
    with torch.device("meta"), _WithoutValues():
        yield
