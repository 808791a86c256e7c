"""Processes that work for a command and end early."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import InputError
from pipeline.machine import in_processes


def killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
    return number


def test_a_process_that_is_killed_is_an_error_and_no_traceback() -> None:
    assert list(in_processes(abs, [-1, 2], 1)) == [1, 2]
    with pytest.raises(InputError, match="one of the processes that work for this command was ended"):
        list(in_processes(killed, range(3), 2))
