"""One way of showing progress, whatever the command: rate and time left, compiling left out, names escaped."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pipeline import progress
from pipeline.progress import Progress


class Clock:
    """Seconds that pass as a test wants: so many at each look, or when it says so."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress, "clock", clock)
    return clock


def test_a_log_gets_a_line_after_a_while_with_rate_and_time_left_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("verify", 4, "shard", plain=True) as shown:
        for _ in range(4):
            clock.now += 5
            shown.advance()
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "verify: 1/4 shards, 0.2 shards/s, 15.0 s left",
        "verify: 3/4 shards, 0.2 shards/s, 5.0 s left",
        "verify: 4/4 shards, 0.2 shards/s",
    ]


def test_preparing_and_compiling_count_neither_in_the_rate_nor_in_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("", 4, plain=True) as shown:
        clock.now += 30  # libraries
        shown.start()
        clock.now += 20  # kernels
        shown.leave_out(20)
        clock.now += 10
        shown.advance()
        assert shown.describe() == "1/4 videos, 0.1 videos/s, 30.0 s left"
        assert shown.seconds == 10


@pytest.fixture
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a command that begins."""
    monkeypatch.setattr(progress, "_noted", set())


@pytest.mark.usefixtures("nothing_noted")
def test_a_command_notes_once_that_it_compiles_whoever_does(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker's parent, another stage of the same command, and a solver outside of any progress."""
    for label in ("extract", "score"):
        with Progress(label, 1, plain=True) as shown:
            shown.note(progress.COMPILING)
    progress.note(progress.COMPILING)
    progress.note("tvl1: compiled in 2 s")
    assert capsys.readouterr().err.splitlines() == [progress.COMPILING, "tvl1: compiled in 2 s"]


@pytest.mark.usefixtures("nothing_noted")
def test_a_worker_hands_its_notes_to_its_parent(capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[str] = []
    with progress.notes_to(sent.append):
        progress.note(progress.COMPILING)
    progress.note("after")
    assert sent == [progress.COMPILING]
    assert capsys.readouterr().err == "after\n"


@pytest.mark.usefixtures("nothing_noted")
def test_numba_compiling_is_said_once_and_its_time_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import compiled

    @compiled.inlined
    def thrice(value):  # type: ignore[no-untyped-def]
        return 3 * value

    with Progress("score", 2, plain=True) as shown, shown.compiling():
        shown.start()
        before = progress.clock()
        thrice(1)
        thrice(1.5)
        passed = progress.clock() - before
        assert shown.seconds < passed / 2
        shown.advance()
    assert capsys.readouterr().err.splitlines()[0] == progress.COMPILING
    assert "compiling once" in progress.COMPILING


def test_things_of_different_weight_and_what_is_counted_in_them(clock: Clock) -> None:
    with Progress("", 2, weights={0: 900, 1: 100}, amount="pair", plain=True) as shown:
        clock.now += 10
        shown.report(0, 40, 0.5)
        assert shown.describe() == "0/2 videos, 40 pairs, 4.0 pairs/s, 12.2 s left"
        shown.finish(0, 80)
        assert shown.describe() == "1/2 videos, 80 pairs, 8.0 pairs/s, 1.1 s left"
        shown.finish(1, 0, failed=True)
        assert shown.describe() == "2/2 videos, 1 failure, 80 pairs, 8.0 pairs/s"


def test_what_was_done_before_is_no_part_of_the_rate(clock: Clock) -> None:
    with Progress("train", 100, "iteration", done=50, plain=True) as shown:
        clock.now += 10
        for _ in range(10):
            shown.advance()
        shown.set_detail("loss 0.5")
        assert shown.describe() == "train: 60/100 iterations, 1.0 iterations/s, 40.0 s left; loss 0.5"


def test_lines_grow_rarer_in_a_long_run(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("", 100_000, plain=True) as shown:
        for _ in range(100_000):
            clock.now += 1
            shown.advance()
    assert 50 < len(capsys.readouterr().err.splitlines()) < 600


def test_control_characters_in_names_are_escaped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("run\x1b[2J", 1, plain=True) as shown:
        shown.line("a\x1b]0;b\r")
        shown.advance()
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\r" not in err
    assert "a\\x1b]0;b\\r" in err


def test_a_terminal_gets_a_bar_that_leaves_one_line_behind(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("pack", 2, "shard", plain=False) as shown:
        for _ in range(2):
            clock.now += 5
            shown.advance()
        with shown.aside():
            print("beside")
    out, err = capsys.readouterr()
    assert out == "beside\n"
    assert "1/2 shards, 0.2 shards/s, 5.0 s left" in err
    assert err.splitlines()[-1].endswith("pack: 2/2 shards, 0.2 shards/s")
    assert "\x1b[?25l" in err, "a bar hides the cursor"
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h"), "and shows it again"


def test_before_the_first_thing_is_done_its_part_gives_the_time_left_and_no_rate_of_nothing(
    clock: Clock,
) -> None:
    with Progress("features", 1, plain=True) as shown:
        clock.now += 10
        shown.report(0, 25, 0.5)
        assert shown.describe() == "features: 0/1 video, 10.0 s left"
