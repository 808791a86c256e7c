"""Words for people, and what the machine gives a process."""

from __future__ import annotations

import os

import pytest

from pipeline import machine
from pipeline.text import first_line, many, printable, some, typed


def test_commands_in_messages_are_typed_as_the_process_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/two-stream", "train"])
    assert typed("extract_flow") == "two-stream extract-flow"
    monkeypatch.setattr("sys.argv", ["/somewhere/train/__main__.py"])
    assert typed("extract_flow") == "python -m extract_flow"


def test_a_few_of_many_names_and_how_many_more() -> None:
    assert some(["a", "b"]) == "'a', 'b'"
    assert some(map(str, range(7)), most=2, quoted=False) == "0, 1 and 5 more"


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "video", "1 video"),
        (2000, "video", "2,000 videos"),
        (2, "class", "2 classes"),
        (0, "flow", "0 flows"),
    ],
)
def test_counts_agree_with_their_nouns(count: int, noun: str, text: str) -> None:
    assert many(count, noun) == text
    assert many(2, "entry", "entries") == "2 entries"


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(KeyError("a")) == "a"
    assert first_line(ValueError()) == "ValueError"


def test_no_name_can_control_a_terminal() -> None:
    assert printable("ü 語") == "ü 語"
    assert printable("a\x1b[2J\n\u202eb\udcff") == r"a\x1b[2J\n\u202eb\udcff"


def test_usable_cores_are_at_most_what_slurm_gave_and_shared_by_local_processes(monkeypatch) -> None:
    bound = len(os.sched_getaffinity(0))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert machine.usable_cores() == bound
    for given, expected in (("1", 1), ("9999", bound), ("0", bound), ("no number", bound)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert machine.usable_cores() == expected
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert [machine.cores_per_process(n) for n in (0, 1, 3, 9)] == [8, 8, 2, 1]
