"""What failed is said once for each reason, ten reasons at most; a file holds the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.failures import file_beside, limited, named, reason_lines, report_failures


def test_thousands_that_failed_for_one_reason_are_one_line_and_a_file_of_all(tmp_path: Path) -> None:
    failed = [(f"c/v{number}", "made with dis, asked farneback") for number in range(13_000)]
    first, last = report_failures(failed, tmp_path / "failed.txt")
    assert first.startswith(
        "failed: 13,000 videos (c/v0, c/v1, c/v2, c/v3, c/v4 and 12,995 more): made with dis"
    )
    assert last.endswith(str(tmp_path / "failed.txt"))
    written = (tmp_path / "failed.txt").read_text().splitlines()
    assert len(written) == 13_000
    assert written[-1] == "c/v12999: made with dis, asked farneback"


def test_the_path_of_its_own_video_does_not_make_two_reasons_of_one() -> None:
    lines = reason_lines([("a/x", "/films/a/x.avi: the file is empty"), ("y", "y.mp4: the file is empty")])
    assert lines == ["failed: 2 videos (a/x, y): the file is empty"]
    (line,) = reason_lines([("a/x", "/films/a/x.avi: the file is empty")])
    assert line == "failed: a/x: /films/a/x.avi: the file is empty"


def test_a_reason_that_begins_with_the_name_does_not_repeat_it() -> None:
    assert reason_lines([("a/x.mp4", "a/x.mp4: the file is empty")]) == ["failed: a/x.mp4: the file is empty"]


def test_ten_reasons_are_shown_and_few_failures_need_no_file(tmp_path: Path) -> None:
    failed = [(f"v{number}", f"reason {number}") for number in range(11)]
    assert report_failures(failed[:10], tmp_path / "few.txt") == reason_lines(failed[:10])
    assert not (tmp_path / "few.txt").exists()
    lines = report_failures(failed, tmp_path / "many.txt")
    assert len(lines) == 11
    assert "reason 10" not in "".join(lines)
    assert "v10: reason 10" in (tmp_path / "many.txt").read_text()


def test_names_that_a_line_leaves_out_are_all_in_a_file(tmp_path: Path) -> None:
    names = [f"c/v{number}" for number in range(7)]

    def lines(most: int) -> list[str]:
        return [f"missing: 7 videos: {named(names, most)} (--allow-missing)"]

    assert limited(lines, 7, tmp_path / "x.txt") == lines(7)
    assert limited(lines, 2, None) == lines(2)
    assert not (tmp_path / "x.txt").exists()
    shown, last = limited(lines, 2, tmp_path / "x.txt")
    assert shown == "missing: 7 videos: 'c/v0', 'c/v1' and 5 more (--allow-missing)"
    assert last == f"all of them, by name: {tmp_path / 'x.txt'}"
    written = (tmp_path / "x.txt").read_text().splitlines()
    assert [line.strip() for line in written[1:8]] == [repr(name) for name in names]


def test_where_the_file_cannot_be_written_it_goes_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("no folder")
    failed = [(f"v{number}", "reason") for number in range(11)]
    line = report_failures(failed, tmp_path / "file" / "failed.txt")[-1]
    written = Path(line.rpartition(": ")[2])
    assert written.parent == tmp_path
    assert len(written.read_text().splitlines()) == 11


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    failed = [(f"\x1b[2Jv{number}", f"odd \x1b]{number}") for number in range(12)]
    lines = report_failures(failed, tmp_path / "failed.txt")
    assert not re.search(r"\x1b", "".join(line.partition(": odd")[0] for line in lines))
    assert "\x1b" not in (tmp_path / "failed.txt").read_text()


def test_the_file_lies_beside_what_the_command_wrote(tmp_path: Path) -> None:
    assert file_beside(tmp_path / "out.jsonl") == tmp_path / "out.jsonl.failed.txt"
    assert file_beside(Path("out")).is_absolute()
