"""The flow methods by name and their parameters; nothing here or in what it loads computes.

A method is a module with three names:

- `Parameters`: a frozen dataclass of the method's options with their defaults. Each field is made by
  `pipeline.options.option`: a line for `--help`, and the values it may take.
- `PRESETS`: name -> Parameters; "default" is always there.
- `create(parameters, device, threads) -> extract_flow.methods.FlowMethod`, which loads the solver's libraries.

The command line makes its options from `Parameters`, and a shard records them, so a new method needs only an entry in
`MODULES`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from types import ModuleType
from typing import Any

from pipeline.errors import InputError

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


def option(default: Any, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    """A field of a method's `Parameters`: its default, a line for `--help`, and the values it may take."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check_positive(parameters: Any, *names: str, zero: bool = False) -> None:
    """ValueError for one of the named fields that is not finite or not above zero (`zero`: below it)."""
    for name in names:
        value = getattr(parameters, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError(f"{name}: expected {'0 or more' if zero else 'more than 0'}, found {value}")


def module(name: str) -> ModuleType:
    """The module that implements a method (see the module docstring); InputError for an unknown name."""
    if name not in MODULES:
        raise InputError(f"unknown flow method {name!r}: choose one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])


def resolve(name: str, preset: str | None = None, **parameters: Any) -> Any:
    """The method's `Parameters`: the preset's values, overridden by the given ones.

    Raises:
        InputError: unknown method, preset or parameter, or a value that the method refuses.
    """
    method = module(name)
    if (preset or "default") not in method.PRESETS:
        raise InputError(f"{name} has no preset {preset!r}: choose one of {', '.join(method.PRESETS)}")
    fields = {field.name: field for field in dataclasses.fields(method.Parameters)}
    for key, value in parameters.items():
        if key not in fields:
            raise InputError(
                f"{name} has no parameter {key!r}: it takes {', '.join(sorted(fields)) or 'none'}"
            )
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            raise InputError(
                f"{name}: {key}: expected one of {', '.join(map(str, choices))}, found {value!r}"
            )
    try:
        return dataclasses.replace(method.PRESETS[preset or "default"], **parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error
