"""What a function prints in a fork, and how the fork ended: a file may crash whoever reads it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

SECONDS = 120


def forked(function: Callable[[], object]) -> tuple[int, str]:
    """Run a function in a fork; its exit status (minus a signal that ended it), and all that it printed."""
    receiver, sender = os.pipe()
    process = os.fork()
    if process == 0:
        status = 0
        try:
            os.close(receiver)
            os.dup2(sender, 1)
            os.dup2(sender, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  the fork's to its end
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            signal.alarm(SECONDS)
            function()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001  what an interpreter would print
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver, "rb") as printed:
        output = printed.read()
    _, code = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(code), output.decode(errors="replace")
