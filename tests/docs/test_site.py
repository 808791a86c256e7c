"""The site's pages and the Python reference, without building it; `make docs` builds it and fails on a broken link."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NAVIGATION = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
REFERENCE = (PROJECT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
GENERATED = {"index.md", "changelog.md", "contributing.md"}
"""Pages that docs/hooks.py makes of files beside docs/."""


def test_every_page_of_the_navigation_is_there_once() -> None:
    pages = {str(path.relative_to(PROJECT / "docs")) for path in (PROJECT / "docs").rglob("*.md")}
    listed = re.findall(r"(\S+\.md)$", NAVIGATION, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) - GENERATED <= pages  # docs/hooks.py appends the others
    assert set(listed) >= GENERATED


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE))
def test_the_python_reference_names_what_is_there_and_documented(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


@pytest.mark.parametrize(
    ("name", "members"),
    re.findall(r"^::: (\S+)\n    options:\n      members: \[(.*)\]$", REFERENCE, re.MULTILINE),
)
def test_members_of_the_python_reference_are_there(name: str, members: str) -> None:
    module, _, attribute = name.rpartition(".")
    owner = getattr(importlib.import_module(module), attribute)
    assert [member for member in members.split(", ") if not getattr(owner, member).__doc__] == []
