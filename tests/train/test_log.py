"""The log of a run: whatever is in the file, its records are read and the curves are drawn."""

from __future__ import annotations

from pathlib import Path

from train.log import draw_curves, read_log

ITERATION = '{"iteration": 1, "loss": 0.5, "accuracy": 0.5, "learning_rate": 0.1}'
VALIDATION = '{"iteration": 1, "validation": {"a": {"loss": 0.5, "accuracy": 0.5, "top5": 1.0}}}'


NO_RECORDS = [
    "[]",
    "[" * 20_000,
    "9" * 5_000,
    '{"iteration": "x", "loss": 1, "accuracy": 1, "learning_rate": 1}',
    '{"iteration": 2, "loss": 1}',
    '{"iteration": 2, "loss": [1], "accuracy": 1, "learning_rate": 1}',
    '{"iteration": 2, "loss": 1, "accuracy": 1, "learning_rate": 1, "seconds": "x"}',
    '{"iteration": 2, "validation": [1]}',
    f'{{"iteration": 1{"0" * 400}, "loss": 1, "accuracy": 1, "learning_rate": 1}}',
    f'{{"iteration": 2, "loss": 1{"0" * 400}, "accuracy": 1, "learning_rate": 1}}',
    '{"iteration": 2, "loss": NaN, "accuracy": 1e999, "learning_rate": 1}',
    '{"iteration": 2, "validation": {"a": {"loss": 1}}}',
    '{"iteration": 2, "loss": 0.',
]


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join([ITERATION, *NO_RECORDS[:-1], VALIDATION, NO_RECORDS[-1]]))
    assert [sorted(record) for record in read_log(tmp_path)] == [
        ["accuracy", "iteration", "learning_rate", "loss"],
        ["iteration", "validation"],
    ]
    assert draw_curves(tmp_path).stat().st_size > 0
