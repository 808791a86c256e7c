"""Every promise of docs/reference/reliability.md names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "reference" / "reliability.md").read_text(encoding="utf-8")


def test_every_promise_names_its_tests() -> None:
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith(("| moment", "|---"))
    ]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::\w+`", row)] == []


def test_the_tests_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    lacking = []
    for file, name in named:
        body = ast.parse((PROJECT / file).read_text(encoding="utf-8")).body
        if name not in {node.name for node in body if isinstance(node, ast.FunctionDef)}:
            lacking.append(f"{file}::{name}")
    assert lacking == []
