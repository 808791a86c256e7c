"""How every command begins and ends: what signals do, and what names may do to a terminal. Standard library only."""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import system_error
from pipeline.text import printable_lines

INTERRUPTED = 128 + signal.SIGINT
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
ENDED_BY = {128 + number: number for number in (signal.SIGTERM, signal.SIGHUP)}


def run(main: Callable[..., object], program: str) -> NoReturn:
    """Run a click command as the whole of a process, and end it.

    Ctrl-C ends it silently with status 130; SIGTERM and SIGHUP with 143 and 129. All three raise an
    exception first, so that temporary files and worker processes are removed.
    """
    import click

    escape_output()
    interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if interruptible:
        signal.signal(signal.SIGINT, _interrupt)
    for number in ENDED_BY.values():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, exit_by_signal)
    sys.unraisablehook = raise_again
    status: Any = 1
    try:
        try:
            status = main(prog_name=program, standalone_mode=False)
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            status = INTERRUPTED
        except SystemExit as end:
            status = end.code
        except OSError as error:
            if ending_status() is not None:
                status = ending_status()
            elif error.errno is None:
                raise
            elif _flushed(0) == 0:  # else it was standard output's, which has been said
                print(f"error: {system_error(error)}", file=sys.stderr)
        except Exception:
            if (status := ending_status()) is None:
                raise
    finally:
        if interruptible:  # nothing is left to clean up
            signal.signal(signal.SIGINT, _exit_at_once)
        for number in ENDED_BY.values():
            if signal.getsignal(number) is exit_by_signal:
                signal.signal(number, _exit_at_once)
    sys.exit(_flushed(status))


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        _send_again(number)
        return
    _remember(number)
    # A second Ctrl-C waits for no cleaning up; what it leaves has an owner that is gone, and is swept by the next run.
    signal.signal(number, _exit_at_once)
    _silence_threads()
    raise KeyboardInterrupt


def _exit_at_once(
    number: int, frame: FrameType | None, exit_process: Callable[[int], NoReturn] = os._exit
) -> None:
    """A handler that needs no module's names, since Python clears those before it removes the handlers."""
    exit_process(128 + number)


def exit_by_signal(number: int, frame: FrameType | None) -> None:
    """A handler that ends the process with the status of a signal, cleaning up; only once, and not in an import."""
    if _importing(frame):
        _send_again(number)
        return
    _remember(number)
    signal.signal(number, signal.SIG_IGN)
    _silence_threads()
    sys.exit(128 + number)


_ended_by: list[int] = []


def _remember(number: int) -> None:
    _ended_by.append(number)


def ending_status() -> int | None:
    """The exit status of a process that a signal is ending; None where none is.

    What a handler raises in the middle of a library, such as numba's compiler, may leave it as another exception
    about what is missing there: that is no news.
    """
    return 128 + _ended_by[0] if _ended_by else None


def _silence_threads() -> None:
    """While the command is ending, libraries' threads may fail because their modules are being torn down; that is not
    reported."""
    threading.excepthook = lambda failed: None


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: what is raised there may be swallowed, and leave half a module to run on."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    def wait_and_send() -> None:
        time.sleep(0.01)
        os.kill(os.getpid(), number)

    _thread.start_new_thread(wait_and_send, ())  # not by threading, whose locks the interrupted code may hold


def raise_again(swallowed: sys.UnraisableHookArgs) -> None:
    """A signal that came while a destructor ran: Python drops what is raised there, so the signal is sent again."""
    if isinstance(swallowed.exc_value, KeyboardInterrupt):
        number, handler = signal.SIGINT, _interrupt
    elif isinstance(swallowed.exc_value, SystemExit) and swallowed.exc_value.code in ENDED_BY:
        number, handler = ENDED_BY[swallowed.exc_value.code], exit_by_signal
    else:
        if ending_status() is None:
            sys.__unraisablehook__(swallowed)
        return
    signal.signal(number, handler)
    _send_again(number)


def _flushed(status: Any) -> Any:
    """The exit status, once what was printed is written; 1 where it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # or Python would try again, and complain
        return status or 1
    return status


class EscapedOutput(io.TextIOWrapper):
    """Text output in which control characters are shown escaped, so that a name cannot steer the terminal."""

    def write(self, text: str) -> int:
        super().write(printable_lines(text))
        return len(text)


class Unescaped:
    """The same stream for a program that draws on the terminal and escapes the names in what it draws."""

    def __init__(self, stream: EscapedOutput) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escape_output() -> None:
    """Make standard output and error escape what is printed; undecodable bytes are shown as well."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            escaped = EscapedOutput(
                stream.buffer,
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering or stream.isatty(),
                write_through=stream.write_through,
            )
            _kept.append(stream)  # which would close the file below both
            setattr(sys, name, escaped)


_kept: list[Any] = []


def drawing_stream(stderr: bool) -> Any:
    """Standard output or error for a progress bar or a table with colours."""
    stream = sys.stderr if stderr else sys.stdout
    return Unescaped(stream) if isinstance(stream, EscapedOutput) else stream
