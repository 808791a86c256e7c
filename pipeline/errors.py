"""Errors that a user can fix, and how every command prints them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(Exception):
    """A mistake or fault outside the program: the message names the file, what was expected, found, and what to do."""


class Unreadable(InputError):
    """The system did not let a file be read now, which says nothing about what is in it."""


class Damaged(InputError):
    """The bytes of a file were read, and are not what was written."""


def command_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a click command: an `InputError` is printed as `error: ...` on stderr and ends with exit status 1.

    Programming errors keep their traceback: the user cannot fix them.
    """

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return wrapped
