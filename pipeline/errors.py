"""Errors that a user can fix, and how every command prints them."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from pipeline.text import printable, shortened, system_reason

LONGEST_LINE = 2000
"""Most characters in a line of a message, which may quote a file."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(Exception):
    """A mistake or fault outside the program: the message names the file, what was expected, found, and what to do.

    Further lines are further arguments: what would break a line or steer a terminal is part of a name, and escaped.
    """

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The lines of the message."""
        return [printable(str(line)) for line in self.args]


class Unreadable(InputError):
    """The system did not let a file be read now, which says nothing about what is in it."""


def unreadable(path: object, error: OSError) -> Unreadable:
    """The `Unreadable` for an operating-system error."""
    return Unreadable(f"{path}: could not be read: {system_reason(error)}; it was left as it is")


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Errors of the system while a file is read, most of which do not name it, become `Unreadable`."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


class DiskFull(InputError):
    """The disk is full or the quota used up, so that nothing else can be written either."""


class DeviceFailed(InputError):
    """The GPU failed or ran out of memory, so that nothing else can be computed on it either."""


class OtherFormat(InputError):
    """An intact file of another version or of another program: it cannot be used, and nothing replaces or removes
    it.
    """


class Damaged(InputError):
    """The bytes of a file were read, and are not what was written."""


def command_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a click command: an `InputError` is printed as `error: ...` on stderr and ends with exit status 1.

    So is every other operating-system error, with its path and reason. Ctrl-C ends it silently with status 130.
    Programming errors keep their traceback: the user cannot fix them.
    """

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            lines = (shortened(line, LONGEST_LINE) for line in error.lines)
            print("error: " + "\n".join(lines), file=sys.stderr)
            sys.exit(1)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno is None:
                raise
            print(f"error: {system_error(error)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    return wrapped


def system_error(error: OSError) -> str:
    """Path and reason of an operating-system error."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file or the output"
    return f"{printable(place)}: {error.strerror}"
