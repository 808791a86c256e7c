"""Worker processes under supervision: one that dies or hangs costs the video it was working on, and is replaced.

joblib and concurrent.futures give up the whole pool when one process is killed; here the parent speaks with each worker
through its own pipe, knows what each has in work, and starts another in its place. Workers are spawned, not forked: no
thread or device of the parent is copied, and the parent is theirs directly, so that they die with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from pipeline.errors import InputError

PATIENCE_AT_END = 5.0
"""Seconds a worker is given to clean up before it is killed."""
MOST_FAILED_STARTS = 3
PR_SET_PDEATHSIG = 1


class Ready(NamedTuple):
    """What a worker says of itself once it can work.

    Attributes:
        device: what it computes on, for the user.
        workers: how many such workers make sense, given its device; None leaves it to the caller.
        ahead: tasks it wants in work at a time.
    """

    device: str
    workers: int | None
    ahead: int


class Started(NamedTuple):
    """The first worker is ready, and how many there will be."""

    ready: Ready
    workers: int


class Progress(NamedTuple):
    """A task's progress, whatever the worker reported."""

    task: int
    report: Any


class Finished(NamedTuple):
    """A task ended in a worker, with what it returned."""

    task: int
    result: Any


class Lost(NamedTuple):
    """A task's worker died or hung: why, in words."""

    task: int
    reason: str


Event = Started | Progress | Finished | Lost


class Stopped(Exception):
    """The run was told to stop by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Link:
    """A worker's end of its pipe; usable from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> tuple[int, Any] | None:
        """The next (number, task), or None when there is no more."""
        try:
            message: tuple[int, Any] | None = self._connection.recv()
            return message
        except EOFError:
            return None

    def ready(self, ready: Ready) -> None:
        self._send("ready", ready)

    def refuse(self, reason: str) -> None:
        """Say why no worker can do this work at all."""
        self._send("refused", reason)

    def busy(self, task: int, watched: bool) -> None:
        """A task enters (or is still in) a stage whose hanging is watched, or leaves it."""
        self._send("busy", (task, watched))

    def progress(self, task: int, report: Any) -> None:
        self._send("progress", (task, report))

    def finish(self, task: int, result: Any) -> None:
        self._send("finished", (task, result))

    def _send(self, kind: str, content: Any) -> None:
        with self._lock:
            self._connection.send((kind, content))


@dataclass
class _Worker:
    slot: int
    process: Any
    connection: Connection
    ready: Ready | None = None
    tasks: dict[int, None] = field(default_factory=dict)
    busy_since: dict[int, float] = field(default_factory=dict)
    hung: int | None = None
    solitary: bool = False


def supervise(
    tasks: Sequence[Any],
    serve: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    workers: int,
    patience: float | None = None,
) -> Generator[Event, None, None]:
    """Run tasks in worker processes and yield what happens; every task ends in one `Finished` or `Lost`.

    Args:
        tasks: anything that can be pickled, in order.
        serve: called in each worker as `serve(link, slot, first, *arguments)`; a function of a module. `first` is
            what the first worker said of itself, None in that one.
        arguments: for every worker.
        workers: processes, unless the first one's `Ready` says how many.
        patience: seconds after which a task in a watched stage counts as hung; None for ever.

    Raises:
        InputError: a worker refused to work (with its reason), or none can be started.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came. After SIGUSR1 the tasks in work are finished first. Only where this
            runs in the main thread.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(range(len(tasks)))
    alone: deque[int] = deque()  # in work together when a worker died: tried again, one at a time
    team: list[_Worker] = []
    wanted = 1  # until the first worker has said what it runs on
    failed_starts = 0
    first: Ready | None = None

    def start(slot: int) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker_main,
            args=(os.getpid(), theirs, serve, slot, first, *arguments),
            name=f"worker {slot}",
            daemon=True,
        )
        with _blocked_signals():
            process.start()
        theirs.close()
        team.append(_Worker(slot, process, ours))

    def hand_out(worker: _Worker) -> None:
        if worker.ready is None or signals.stopping:
            return
        if alone:
            if not worker.tasks:
                worker.solitary = True
                give(worker, alone.popleft())
            return
        worker.solitary = worker.solitary and bool(worker.tasks)
        while waiting and not worker.solitary and len(worker.tasks) < worker.ready.ahead:
            give(worker, waiting.popleft())

    def give(worker: _Worker, number: int) -> None:
        worker.tasks[number] = None
        with contextlib.suppress(OSError):  # it has just died; its sentinel tells
            worker.connection.send((number, tasks[number]))

    with _Signals() as signals:
        try:
            while True:
                free_slots = iter(sorted(set(range(wanted)) - {worker.slot for worker in team}))
                open_tasks = 0 if signals.stopping else len(waiting) + len(alone)
                needed = min(wanted, open_tasks + sum(bool(worker.tasks) for worker in team))
                while len(team) < needed:
                    start(next(free_slots))
                for worker in team:
                    hand_out(worker)
                if not open_tasks and not any(worker.tasks for worker in team):
                    break
                watched = [worker.connection for worker in team] + [
                    worker.process.sentinel for worker in team
                ]
                events = wait([*watched, signals.descriptor], _next_look(team, patience))
                signals.drain()
                if signals.stop_now:
                    raise Stopped(signals.number)
                for worker in list(team):
                    dead = worker.process.sentinel in events
                    for kind, content in _messages(worker):
                        if kind == "ready":
                            worker.ready = content
                            failed_starts = 0
                            if first is None:
                                first = content
                                wanted = content.workers or workers
                                yield Started(content, min(wanted, len(tasks)))
                        elif kind == "refused":
                            raise InputError(content)
                        elif kind == "busy":
                            task, is_busy = content
                            worker.busy_since.pop(task, None)
                            if is_busy:
                                worker.busy_since[task] = time.monotonic()
                        elif kind == "progress":
                            yield Progress(*content)
                        elif kind == "finished":
                            task, result = content
                            worker.tasks.pop(task, None)
                            worker.busy_since.pop(task, None)
                            yield Finished(task, result)
                    if not dead:
                        _kill_if_hung(worker, patience)
                        continue
                    worker.process.join()
                    worker.connection.close()
                    team.remove(worker)
                    reason = how_it_died(worker.process.exitcode)
                    if worker.ready is None:
                        failed_starts += 1
                        if failed_starts >= MOST_FAILED_STARTS:
                            raise InputError(
                                f"no worker can be started: {failed_starts} in a row ended, the last {reason}"
                            )
                    if worker.hung is not None:
                        worker.tasks.pop(worker.hung, None)
                        waiting.extendleft(reversed(worker.tasks))
                        yield Lost(
                            worker.hung, f"its decoder made no progress for {patience:g} s and was stopped"
                        )
                    elif len(worker.tasks) == 1:
                        yield Lost(next(iter(worker.tasks)), f"the worker {reason}")
                    else:
                        alone.extend(worker.tasks)
            if waiting or alone:
                raise Stopped(signals.number)
        finally:
            _end(team)


def _worker_main(
    parent: int, connection: Connection, serve: Callable[..., None], slot: int, *arguments: Any
) -> None:
    """What runs in a worker process."""
    _die_with(parent)
    # The terminal sends Ctrl-C to all; the parent decides, and ends its workers by SIGTERM, which lets them clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    # Nobody is left to tell if the parent is gone.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(Link(connection), slot, *arguments)


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    with contextlib.suppress(
        AttributeError, OSError
    ):  # Linux only; elsewhere the closed pipe ends the worker
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


def how_it_died(exit_code: int | None) -> str:
    """Words for the exit code of a process: "was killed by SIGKILL (out of memory?)"."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hints: dict[int, str] = {
        signal.SIGKILL: " (out of memory?)",
        signal.SIGSEGV: " (a fault in a library, perhaps a damaged video)",
        signal.SIGBUS: " (a file shrank while it was read, or a full disk)",
        signal.SIGABRT: " (a library gave up, perhaps on a damaged video)",
    }
    return f"was killed by {name}{hints.get(-exit_code, '')}"


def _messages(worker: _Worker) -> Iterator[tuple[str, Any]]:
    """What a worker has sent, also before it died."""
    with contextlib.suppress(EOFError, OSError):
        while worker.connection.poll():
            yield worker.connection.recv()


def _next_look(team: list[_Worker], patience: float | None) -> float | None:
    """Seconds until the first watched task is overdue."""
    since = [since for worker in team for since in worker.busy_since.values()]
    if patience is None or not since:
        return None
    return max(0.0, min(since) + patience - time.monotonic()) + 0.01


def _kill_if_hung(worker: _Worker, patience: float | None) -> None:
    if patience is None or worker.hung is not None:
        return
    for task, since in worker.busy_since.items():
        if time.monotonic() - since > patience:
            worker.hung = task
            worker.busy_since.clear()
            worker.process.kill()
            return


def _end(team: list[_Worker]) -> None:
    """End the workers: those at rest by closing their pipes, those at work by SIGTERM, and what is left by SIGKILL."""
    for worker in team:
        if worker.tasks or worker.ready is None:
            worker.process.terminate()
        worker.connection.close()
    deadline = time.monotonic() + PATIENCE_AT_END
    for worker in team:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Keep the stop signals from a process that is being started until it has its own handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Signals:
    """Stop signals as something that can be waited for, in the main thread; elsewhere nothing is caught.

    Attributes:
        descriptor: becomes readable when a signal comes.
        number: of the signal that came first, or 0.
        stopping: no further task is to be handed out.
        stop_now: nor are those in work to be finished.
    """

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.number = 0
        self.stop_now = False
        self.descriptor, self._write = os.pipe()
        self._before: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        return self.number != 0

    def __enter__(self) -> _Signals:
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write, False)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in self.CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._write)

    def _came(self, number: int, _: object) -> None:
        self.stop_now = self.stop_now or number != signal.SIGUSR1
        self.number = self.number or number
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"!")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
