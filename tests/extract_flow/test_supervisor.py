"""A worker that dies or hangs costs the task it was working on, and nothing else."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from extract_flow.supervisor import (
    Finished,
    Link,
    Lost,
    Preparing,
    Progress,
    Ready,
    Started,
    Stopped,
    how_it_died,
    supervise,
)
from pipeline.errors import InputError


def serve(link: Link, slot: int, first: Ready | None, ahead: int) -> None:
    """A worker whose tasks say what shall happen."""
    link.ready(Ready("test", None, ahead))
    threads = []
    while (message := link.receive()) is not None:
        threads.append(threading.Thread(target=work, args=(link, *message)))
        threads[-1].start()
        if ahead == 1:
            threads[-1].join()
    for thread in threads:
        thread.join()


def work(link: Link, number: int, task: str) -> None:
    """What the task says."""
    link.progress(number, "began")
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif task == "segfault":
        ctypes.string_at(0)
    elif task == "exit":
        os._exit(3)
    elif task == "hang":
        link.busy(number, True)
        time.sleep(3600)
    elif task == "slow":
        time.sleep(0.5)
    link.finish(number, task)


def serve_on_a_device(link: Link, slot: int, first: Ready | None, folder: str, ahead: int) -> None:
    """A worker of up to `ahead` tasks at a time, whose device fails as the tasks say: once, always or never."""
    link.ready(Ready("gpu", None, ahead))
    while (message := link.receive()) is not None:
        number, task = message
        once = Path(folder, f"{number}")
        if task == "always" or (task == "once" and not once.exists()):
            once.touch()
            link.lose_device("gpu: illegal address")
            time.sleep(60)  # a driver that hangs: the parent ends this process
        link.progress(number, "computed")
        link.finish(number, task)


def on_a_device(tasks: list[str], folder: Path, ahead: int = 3) -> dict[int, str]:
    events = supervise(tasks, serve_on_a_device, (str(folder), ahead), workers=1)
    ended: dict[int, str] = {}
    for event in events:
        if isinstance(event, Finished | Lost):
            assert event.task not in ended
            ended[event.task] = "finished" if isinstance(event, Finished) else event.reason
    return ended


def test_what_a_worker_had_when_its_device_failed_is_tried_again_alone(tmp_path: Path) -> None:
    ended = on_a_device(["", "once", "", "always", "", "always", "", "always", ""], tmp_path)
    assert sorted(ended) == list(range(9))
    assert {task for task, text in ended.items() if text == "finished"} == {0, 1, 2, 4, 6, 8}
    assert ended[3].startswith("gpu: illegal address (twice")


def test_a_device_on_which_nothing_can_be_computed_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^gpu: illegal address: 3 videos in a row"):
        on_a_device(["always"] * 50, tmp_path)
    assert len(list(tmp_path.iterdir())) <= 4


def prepare_and_serve(link: Link, slot: int, first: Ready | None, ahead: int) -> None:
    if first is None:
        link.preparing("compiling")
    serve(link, slot, first, ahead)


def test_what_the_first_worker_prepares_is_reported_before_it_is_ready() -> None:
    events = list(supervise(["", ""], prepare_and_serve, (1,), workers=2))
    assert events[0] == Preparing("compiling")
    assert isinstance(events[1], Started)
    assert sum(isinstance(event, Preparing) for event in events) == 1


def serve_together(link: Link, slot: int, first: Ready | None, folder: str) -> None:
    """One of two workers that take up to eight tasks at a time; none ends before the other worker has one."""
    link.ready(Ready("test", 2, 8))
    other = Path(folder, str(1 - slot))
    until = time.monotonic() + 30
    while (message := link.receive()) is not None:
        Path(folder, str(slot)).touch()
        while not other.exists() and time.monotonic() < until:
            time.sleep(0.01)
        link.finish(message[0], other.exists())


def test_the_first_ready_worker_leaves_the_others_their_part_of_few_tasks(tmp_path: Path) -> None:
    events = supervise([""] * 6, serve_together, (str(tmp_path),), workers=1)
    assert [event.result for event in events if isinstance(event, Finished)] == [True] * 6


def refuse(link: Link, slot: int, first: Ready | None) -> None:
    link.refuse("no such device")


def die_at_start(link: Link, slot: int, first: Ready | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outcome(
    tasks: list[str], workers: int = 2, ahead: int = 1, patience: float | None = None
) -> dict[int, str]:
    ended: dict[int, str] = {}
    for event in supervise(tasks, serve, (ahead,), workers=workers, patience=patience):
        if isinstance(event, Finished | Lost):
            assert event.task not in ended
            ended[event.task] = "finished" if isinstance(event, Finished) else event.reason
    return ended


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("kill", "was killed by SIGKILL"),
        ("segfault", "was killed by SIGSEGV"),
        ("exit", "ended with exit status 3"),
    ],
)
def test_a_worker_that_dies_costs_its_task_only_and_is_replaced(fate: str, reason: str) -> None:
    ended = outcome(["a", fate, "b", fate, "c", "d"])
    assert sorted(ended) == list(range(6))
    assert {task for task, text in ended.items() if text == "finished"} == {0, 2, 4, 5}
    assert reason in ended[1]
    assert reason in ended[3]


def test_of_several_in_work_only_the_culprit_is_lost() -> None:
    ended = outcome(["slow", "slow", "kill", "slow", "a"], workers=1, ahead=4)
    assert {task for task, text in ended.items() if text == "finished"} == {0, 1, 3, 4}
    assert "SIGKILL" in ended[2]


def test_a_task_that_hangs_is_given_up() -> None:
    ended = outcome(["a", "hang", "b"], patience=0.5)
    assert ended == {
        0: "finished",
        1: "its decoder made no progress for 0.5 s and was stopped",
        2: "finished",
    }


def test_those_in_work_beside_a_hanging_task_are_done() -> None:
    ended = outcome(["slow", "hang", "slow"], workers=1, ahead=3, patience=0.3)
    assert {task for task, text in ended.items() if text == "finished"} == {0, 2}
    assert "no progress for 0.3 s" in ended[1]


def several(link: Link, slot: int, first: Ready | None) -> None:
    """Workers that want to be three, and report what they were given."""
    link.ready(Ready("gpu", 3, 1))
    while (message := link.receive()) is not None:
        time.sleep(0.2)
        link.finish(message[0], (slot, first))


def test_the_first_worker_says_how_many_and_the_others_know_it() -> None:
    events = list(supervise(["a"] * 12, several, (), workers=1))
    reported = {event.result for event in events if isinstance(event, Finished)}
    assert [event.workers for event in events if isinstance(event, Started)] == [3]
    assert reported <= {(0, None), (1, Ready("gpu", 3, 1)), (2, Ready("gpu", 3, 1))}
    assert (0, None) in reported


def test_results_and_progress_are_told_and_workers_are_counted() -> None:
    events = list(supervise(["a", "b", "c"], serve, (1,), workers=8))
    assert [event for event in events if isinstance(event, Started)] == [Started(Ready("test", None, 1), 3)]
    assert {event for event in events if isinstance(event, Finished)} == {
        Finished(0, "a"),
        Finished(1, "b"),
        Finished(2, "c"),
    }
    assert {event.task for event in events if isinstance(event, Progress)} == {0, 1, 2}


def test_no_task_starts_no_worker() -> None:
    assert list(supervise([], die_at_start, (), workers=4)) == []


def test_a_refusal_is_the_users_to_know() -> None:
    with pytest.raises(InputError, match="no such device"):
        list(supervise(["a"], refuse, (), workers=2))


def test_workers_that_cannot_start_end_the_run() -> None:
    with pytest.raises(
        InputError, match=r"no worker can be started: 3 in a row ended, the last was killed by SIGKILL"
    ):
        list(supervise(["a", "b"], die_at_start, (), workers=2))


def test_usr1_finishes_what_is_in_work_and_hands_out_no_more() -> None:
    ended = []

    def run() -> None:
        for event in supervise(["slow"] * 20, serve, (1,), workers=1):
            if isinstance(event, Progress) and event.task == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if isinstance(event, Finished):
                ended.append(event.task)

    with pytest.raises(Stopped) as stopped:
        run()
    assert ended == [0, 1]
    assert stopped.value.number == signal.SIGUSR1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_int_and_term_stop_at_once_and_end_the_workers(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def run() -> None:
        for event in supervise(["hang"] * 4, serve, (1,), workers=2):
            if isinstance(event, Progress):
                os.kill(os.getpid(), number)

    with pytest.raises(Stopped):
        run()
    assert signal.getsignal(number) == before
    assert not living_children()


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys, signal\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_supervisor import serve\n"
        "from extract_flow.supervisor import Progress, supervise\n"
        "if __name__ == '__main__':\n"
        "    for event in supervise(['hang'] * 2, serve, (1,), workers=1):\n"
        "        if isinstance(event, Progress):\n"
        "            import multiprocessing\n"
        "            print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    worker = int(done.stdout)
    for _ in range(200):
        if not alive(worker):
            break
        time.sleep(0.05)
    assert not alive(worker)


def test_a_run_outside_the_main_thread_works() -> None:
    ended: list[dict[int, str]] = []
    thread = threading.Thread(target=lambda: ended.append(outcome(["a", "kill"])))
    thread.start()
    thread.join()
    assert ended[0][0] == "finished"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "was killed by SIGKILL (out of memory?)"),
        (1, "ended with exit status 1"),
        (-250, "was killed by signal 250"),
    ],
)
def test_deaths_in_words(code: int, text: str) -> None:
    assert how_it_died(code) == text


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def living_children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and alive(int(entry.name)):
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and "spawn_main" in command:
                found.append(int(entry.name))
    return found


class SignalledWhileDestroyed:
    """Python drops what a signal's handler raises here."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def be_ended_within_a_destructor(link: Link, slot: int, first: Ready | None) -> None:
    link.ready(Ready("test", None, 1))
    message = link.receive()
    assert message is not None
    SignalledWhileDestroyed()
    time.sleep(30)  # here the signal that is sent again ends the worker
    link.finish(message[0], "the signal was lost")


def test_the_signal_that_ends_a_worker_is_not_lost_in_a_destructor() -> None:
    *_, lost = (
        event
        for event in supervise([""], be_ended_within_a_destructor, (), workers=1)
        if isinstance(event, Finished | Lost)
    )
    assert isinstance(lost, Lost)
    assert "143" in lost.reason


def wait_and_leave_as_another(link: Link, slot: int, first: Ready | None) -> None:
    link.ready(Ready("test", None, 1))
    message = link.receive()
    assert message is not None
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        raise RuntimeError("nothing was compiled")


def test_what_a_library_raises_in_a_worker_because_a_signal_interrupted_it_is_not_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    events = supervise([""], wait_and_leave_as_another, (), workers=1)
    (lost,) = (event for event in events if isinstance(event, Finished | Lost))
    assert isinstance(lost, Lost)
    assert "143" in lost.reason
    assert capfd.readouterr().err == ""
