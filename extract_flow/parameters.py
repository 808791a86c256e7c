"""Checks of values that the methods' `Parameters` share."""

from __future__ import annotations

import math
from typing import Any


def check_positive(parameters: Any, *names: str, zero: bool = False) -> None:
    """ValueError for one of the named fields that is not finite or not above zero (`zero`: below it)."""
    for name in names:
        value = getattr(parameters, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError(f"{name}: expected {'0 or more' if zero else 'more than 0'}, found {value}")


def check_choice(parameters: Any, name: str, *choices: Any) -> None:
    """ValueError if the named field is not one of the choices."""
    if getattr(parameters, name) not in choices:
        raise ValueError(
            f"{name}: expected one of {', '.join(map(str, choices))}, found {getattr(parameters, name)!r}"
        )
