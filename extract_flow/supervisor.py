"""Worker processes under supervision: one that dies or hangs costs the task it was working on, and is replaced.

joblib and concurrent.futures give up the whole pool when one process is killed; here the parent talks to each worker
through its own pipe, knows which tasks each is working on, and starts another in its place. Workers are spawned, not
forked: no thread or device of the parent is copied, and they are direct children of the parent, so they die with it.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from pipeline import start
from pipeline.errors import InputError

SECONDS_TO_CLEAN_UP = 5.0
"""Seconds that a worker is given after SIGTERM before it is killed."""
MOST_FAILED_STARTS = 3
MOST_LOST_DEVICES = 3
"""Tasks in a row, each alone in its worker, that may cost a worker its device; then the device counts as broken."""
PR_SET_PDEATHSIG = 1


# --- what a worker sends, and what `supervise` yields ---------------------------------------------------------


class Preparing(NamedTuple):
    """Something that takes a worker long before it is ready, as text for the user."""

    what: str


class Ready(NamedTuple):
    """A worker can work.

    Attributes:
        device: what it computes on, for the user.
        workers: how many such workers make sense, given its device; None leaves it to the caller.
        ahead: how many tasks it works on at a time.
        gpus: how many GPUs all workers share.
        note: what else the user should know of how they work.
    """

    device: str
    workers: int | None
    ahead: int
    gpus: int = 1
    note: str = ""


class Refused(NamedTuple):
    """No worker can do this work at all, and why."""

    reason: str


class DeviceLost(NamedTuple):
    """A worker's device failed, and why: it can do nothing more, but a new worker perhaps can."""

    reason: str


class Busy(NamedTuple):
    """A task entered (or is still in) a stage that is watched for hanging, or left it."""

    task: int
    watched: bool


class Progress(NamedTuple):
    """A task's progress, whatever the worker reported."""

    task: int
    report: Any


class Finished(NamedTuple):
    """A task ended in a worker, with what it returned."""

    task: int
    result: Any


class Started(NamedTuple):
    """The first worker is ready, and how many there will be."""

    ready: Ready
    workers: int


class Lost(NamedTuple):
    """A task's worker died or hung, and why."""

    task: int
    reason: str


Message = Preparing | Ready | Refused | DeviceLost | Busy | Progress | Finished
Event = Preparing | Started | Progress | Finished | Lost


class Stopped(Exception):
    """A signal stopped the execution."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Link:
    """A worker's end of its pipe; usable from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> tuple[int, Any] | None:
        """The next (number, task), or None when there are no more."""
        try:
            message: tuple[int, Any] | None = self._connection.recv()
            return message
        except EOFError:
            return None

    def preparing(self, what: str) -> None:
        """Report something that takes long before this worker is ready."""
        self._send(Preparing(what))

    def ready(self, ready: Ready) -> None:
        """Report that this worker can work."""
        self._send(ready)

    def refuse(self, reason: str) -> None:
        """Report why no worker can do this work at all."""
        self._send(Refused(reason))

    def lose_device(self, reason: str) -> None:
        """Report that this worker's device failed; it is replaced, and what it was working on is tried again."""
        self._send(DeviceLost(reason))

    def busy(self, task: int, watched: bool) -> None:
        """Report that a task enters (or is still in) a stage that is watched for hanging, or leaves it."""
        self._send(Busy(task, watched))

    def progress(self, task: int, report: Any) -> None:
        """Report how far a task is."""
        self._send(Progress(task, report))

    def finish(self, task: int, result: Any) -> None:
        """Report a task's result."""
        self._send(Finished(task, result))

    def _send(self, message: Message) -> None:
        with self._lock:
            self._connection.send(message)


# --- the parent ---------------------------------------------------------------------------------------------


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
            the first worker's `Ready`, None in that worker itself.
        arguments: for every worker.
        workers: processes, unless the first one's `Ready` says how many.
        patience: seconds after which a task in a watched stage counts as hung; None: never.

    Raises:
        InputError: a worker refused to work (with its reason), none can be started, or all lose their device.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came. After SIGUSR1 the tasks in progress are finished first. Only where
            this runs in the main thread.
    """
    team = Team(tasks, serve, arguments, workers, patience)
    with _Signals() as signals:
        try:
            while team.in_progress or (team.open_tasks and not signals.stopping):
                if not signals.stopping:
                    team.start_workers()
                    team.hand_out()
                woken = wait([*team.handles(), signals.descriptor], team.seconds_until_overdue())
                signals.drain()
                if signals.stop_now:
                    raise Stopped(signals.number)
                for worker in list(team.workers):
                    yield from team.attend(worker, dead=worker.process.sentinel in woken)
            if team.open_tasks:
                raise Stopped(signals.number)
        finally:
            team.end()


@dataclass
class _Worker:
    """A worker process as its parent sees it.

    Attributes:
        slot: its number, reused when it is replaced.
        process, connection: the process, and the parent's end of its pipe.
        ready: what it reported once it could work.
        tasks: numbers of the tasks that it is working on, in the order they were handed out.
        busy_since: when a task in a watched stage last gave a sign of life, on the monotonic clock.
        hung: the task for which it was killed.
        lost_device: why its device failed, and it was killed; "" otherwise.
        solitary: it works on a suspect, and gets no other task meanwhile.
    """

    slot: int
    process: Any
    connection: Connection
    ready: Ready | None = None
    tasks: dict[int, None] = field(default_factory=dict)
    busy_since: dict[int, float] = field(default_factory=dict)
    hung: int | None = None
    lost_device: str = ""
    solitary: bool = False


class Team:
    """The workers of one `supervise` and the tasks they share.

    Attributes:
        workers: those alive.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        serve: Callable[..., None],
        arguments: tuple[Any, ...],
        workers: int,
        patience: float | None,
    ) -> None:
        """Prepare; no process is started yet. Arguments as those of `supervise`."""
        self.workers: list[_Worker] = []
        self._tasks, self._serve, self._arguments = tasks, serve, arguments
        self._usual_workers, self._patience = workers, patience
        self._context = multiprocessing.get_context("spawn")
        self._waiting = deque(range(len(tasks)))
        self._suspects: deque[int] = deque()
        """Tasks that were in progress together when their worker died: retried one at a time to find the culprit."""
        self._wanted = 1  # until the first worker has reported what it runs on
        self._failed_starts = 0
        self._devices_lost = 0
        self._first: Ready | None = None

    @property
    def open_tasks(self) -> int:
        """Tasks that no worker has."""
        return len(self._waiting) + len(self._suspects)

    @property
    def in_progress(self) -> int:
        """Workers that have tasks."""
        return sum(bool(worker.tasks) for worker in self.workers)

    def start_workers(self) -> None:
        """Start as many workers as are wanted and have something to do."""
        free_slots = sorted(set(range(self._wanted)) - {worker.slot for worker in self.workers})
        needed = min(self._wanted, self.open_tasks + self.in_progress)
        for slot in free_slots[: max(0, needed - len(self.workers))]:
            self._start(slot)

    def _start(self, slot: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_worker_main,
            args=(os.getpid(), theirs, self._serve, slot, self._first, *self._arguments),
            name=f"worker {slot}",
            daemon=True,
        )
        with _blocked_signals():
            process.start()
        theirs.close()
        self.workers.append(_Worker(slot, process, ours))

    def hand_out(self) -> None:
        """Give every ready worker the tasks it has room for; suspects come first, each alone in its worker.

        The first ready worker must not take more than its part of few tasks, or others would have nothing to do.
        """
        part = -(-len(self._tasks) // self._wanted)
        for worker in self.workers:
            if worker.ready is None or worker.lost_device:
                continue
            if self._suspects:
                if not worker.tasks:
                    worker.solitary = True
                    self._give(worker, self._suspects.popleft())
                continue
            worker.solitary = worker.solitary and bool(worker.tasks)
            while self._waiting and not worker.solitary and len(worker.tasks) < min(part, worker.ready.ahead):
                self._give(worker, self._waiting.popleft())

    def _give(self, worker: _Worker, number: int) -> None:
        worker.tasks[number] = None
        with contextlib.suppress(OSError):  # it has just died, as its sentinel will show
            worker.connection.send((number, self._tasks[number]))

    def handles(self) -> list[Any]:
        """What becomes readable when a worker sends a message or dies."""
        return [worker.connection for worker in self.workers] + [
            worker.process.sentinel for worker in self.workers
        ]

    def seconds_until_overdue(self) -> float | None:
        """Seconds until the first watched task counts as hung; None if no task is watched."""
        since = [since for worker in self.workers for since in worker.busy_since.values()]
        if self._patience is None or not since:
            return None
        return max(0.0, min(since) + self._patience - time.monotonic()) + 0.01

    def attend(self, worker: _Worker, dead: bool) -> Iterator[Event]:
        """Handle a worker's messages and its death; kill it if one of its tasks hangs.

        Raises:
            InputError: it refused to work, no worker can be started, or the device is broken.
        """
        for message in _messages(worker):
            if (event := self.on_message(worker, message)) is not None:
                yield event
        if not dead:
            self._kill_if_hung(worker)
        elif (lost := self.on_death(worker)) is not None:
            yield lost

    def on_message(self, worker: _Worker, message: Message) -> Event | None:
        """Handle one message; the event for the caller, if it is one. InputError if the worker refused."""
        match message:
            case Ready():
                worker.ready = message
                self._failed_starts = 0
                if self._first is None:
                    self._first = message
                    self._wanted = message.workers or self._usual_workers
                    return Started(message, min(self._wanted, len(self._tasks)))
            case Refused(reason):
                raise InputError(reason)
            case DeviceLost(reason):
                worker.lost_device = reason
                worker.process.kill()  # it has written what it could, and its driver may hang at the exit
            case Busy(task, watched):
                worker.busy_since.pop(task, None)
                if watched:
                    worker.busy_since[task] = time.monotonic()
            case Preparing():
                return message
            case Progress():
                self._devices_lost = 0
                return message
            case Finished(task, _):
                worker.tasks.pop(task, None)
                worker.busy_since.pop(task, None)
                return message
        return None

    def on_death(self, worker: _Worker) -> Lost | None:
        """Remove a dead worker; the task it died of, if that is known. Its other tasks will be handed out again.

        Raises:
            InputError: several workers in a row died before they were ready, or lost their device.
        """
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)
        reason = how_it_died(worker.process.exitcode)
        if worker.ready is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise InputError(
                    f"no worker can be started: {self._failed_starts} in a row ended, the last {reason}"
                )
        if worker.lost_device:
            return self._after_lost_device(worker)
        if worker.hung is not None:
            worker.tasks.pop(worker.hung, None)
            self._waiting.extendleft(reversed(worker.tasks))
            return Lost(worker.hung, f"its decoder made no progress for {self._patience:g} s and was stopped")
        if len(worker.tasks) == 1:
            return Lost(next(iter(worker.tasks)), f"the worker {reason}")
        self._suspects.extend(worker.tasks)
        return None

    def _after_lost_device(self, worker: _Worker) -> Lost | None:
        """Its tasks are tried once more in new workers, each alone; the one that fails there too.

        An error is seen by the next call of the driver, which may belong to another task than the one that caused it.
        """
        if not worker.solitary or not worker.tasks:
            self._suspects.extend(worker.tasks)
            return None
        self._devices_lost += 1
        if self._devices_lost >= MOST_LOST_DEVICES:
            raise InputError(
                f"{worker.lost_device}: {self._devices_lost} videos in a row ended so, each alone in a new process, "
                "and none was computed in between; look at `nvidia-smi` and the kernel's log (Xid), then start again: "
                "finished videos are kept"
            )
        return Lost(
            next(iter(worker.tasks)), f"{worker.lost_device} (twice, the second time alone in a new process)"
        )

    def _kill_if_hung(self, worker: _Worker) -> None:
        if self._patience is None or worker.hung is not None:
            return
        for task, since in worker.busy_since.items():
            if time.monotonic() - since > self._patience:
                worker.hung = task
                worker.busy_since.clear()
                worker.process.kill()
                return

    def end(self) -> None:
        """End the workers: idle ones by closing their pipes, busy ones by SIGTERM, and what is left by SIGKILL."""
        for worker in self.workers:
            if worker.tasks or worker.ready is None:
                worker.process.terminate()
            worker.connection.close()
        deadline = time.monotonic() + SECONDS_TO_CLEAN_UP
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _messages(worker: _Worker) -> Iterator[Message]:
    """What a worker has sent, also before it died."""
    with contextlib.suppress(EOFError, OSError):
        while worker.connection.poll():
            yield worker.connection.recv()


def how_it_died(exit_code: int | None) -> str:
    """How a process ended, from its exit code: "was killed by SIGKILL (out of memory?)"."""
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


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Keep the stop signals from a process that is being started until it has its own handlers."""
    resource_tracker.ensure_running()  # its start, with the first process, would end with SIGINT unblocked
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
        stop_now: tasks in progress are not to be finished either.
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


# --- the child ---------------------------------------------------------------------------------------------


def _worker_main(
    parent: int, connection: Connection, serve: Callable[..., None], slot: int, *arguments: Any
) -> None:
    """What runs in a worker process."""
    _die_with(parent)
    # The terminal sends Ctrl-C to all; the parent decides, and ends its workers by SIGTERM, which lets them clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.unraisablehook = start.raise_again
    signal.signal(signal.SIGTERM, start.exit_by_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    # If the parent is gone, nobody is left to report to.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            serve(Link(connection), slot, *arguments)
        except Exception:
            if start.ending_status() is None:
                raise
            sys.exit(start.ending_status())


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    with contextlib.suppress(
        AttributeError, OSError
    ):  # Linux only; elsewhere the closed pipe ends the worker
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
