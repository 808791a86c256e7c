"""The flow methods by name: their parameters, and `load`, which makes one ready to run. Nothing slow to import is
loaded here.

A method is a module with three names:

- `Parameters`: a frozen dataclass of the method's options with their defaults, each field made by
  `pipeline.options.option`. It raises ValueError for values that the method refuses.
- `PRESETS`: name -> Parameters; "default" is always there.
- `create(parameters, device, threads) -> FlowMethod` (`extract_flow.flow_method`), which loads the solver's libraries.

The command line makes its options from `Parameters`, and a shard records them, so a new method needs only an entry in
`MODULES`.
"""

from __future__ import annotations

import dataclasses
import importlib
from numbers import Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod

MODULES = {
    "tvl1": "extract_flow.tvl1",
    "brox": "extract_flow.brox",
    "opencv-tvl1": "extract_flow.opencv.tvl1",
    "dis": "extract_flow.opencv.dis",
    "farneback": "extract_flow.opencv.farneback",
    "opencv-cuda-tvl1": "extract_flow.opencv.cuda_tvl1",
    "opencv-cuda-brox": "extract_flow.opencv.cuda_brox",
    "opencv-cuda-farneback": "extract_flow.opencv.cuda_farneback",
}


def module(name: str) -> ModuleType:
    """The module that implements a method (see the module docstring); InputError for an unknown name."""
    if name not in MODULES:
        raise InputError(f"unknown flow method {name!r}: choose one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])


def resolve(name: str, preset: str | None = None, /, **parameters: Any) -> Any:
    """The method's `Parameters`: the preset's values, overridden by the given ones.

    Raises:
        InputError: unknown method, preset or parameter, or a value that the method refuses.
    """
    method = module(name)
    if (preset or "default") not in method.PRESETS:
        raise InputError(f"{name} has no preset {preset!r}: choose one of {', '.join(method.PRESETS)}")
    fields = {field.name: field for field in dataclasses.fields(method.Parameters)}
    for key in parameters:
        if key not in fields:
            raise InputError(
                f"{name} has no parameter {key!r}: it takes {', '.join(sorted(fields)) or 'none'}"
            )
        if isinstance(fields[key].default, Real) and not isinstance(parameters[key], Real):
            raise InputError(f"{name}: {key} must be a number, found {parameters[key]!r}")
    try:
        return dataclasses.replace(method.PRESETS[preset or "default"], **parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error


def load(
    name: str, device: str = "auto", threads: int = 1, preset: str | None = None, **parameters: Any
) -> FlowMethod:
    """A flow method, ready to run.

    Args:
        name: a key of `MODULES`.
        device: "cpu", "cuda", "cuda:N", or "auto", which takes a usable GPU if the method has a GPU version.
        threads: CPU threads over pairs; results do not depend on it.
        preset: a named set of parameters of that method.
        **parameters: single parameters over the preset's.

    Raises:
        InputError: unknown names or values, or a device that cannot be used (the message says what to do).
    """
    return module(name).create(resolve(name, preset, **parameters), device, threads)
