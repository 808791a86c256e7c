"""docs/architecture.md is the map: it names every module, no file that is not there, and functions where they are."""

from __future__ import annotations

import ast
import re

import pytest
from source_tree import PACKAGES, PROJECT, modules, tree

PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = re.findall(r"`((?:pipeline|extract_flow|train|evaluate|slurm|two_stream)/[\w./]*)`", PAGE)
TRIPS = re.findall(r"^\| `([\w/]+\.py)` \| ([^|]*) \|[^|]*\|$", PAGE, re.MULTILINE)


def defined(module: str) -> set[str]:
    """Functions and classes of a module, and `Class.method`."""
    found = set()
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_file_named_is_there() -> None:
    assert len(FILES) > 50
    assert [file for file in FILES if not (PROJECT / file).exists()] == []


def test_every_module_has_its_place() -> None:
    rooms = {PROJECT / package for package in PACKAGES}
    named = {PROJECT / file for file in FILES} - rooms
    left_out = [
        module
        for module, path in modules().items()
        if not path.name.startswith("__") and not {path, *path.parents} & named
    ]
    assert left_out == []


@pytest.mark.parametrize(("file", "functions"), TRIPS, ids=[file for file, _ in TRIPS])
def test_the_trips_pass_functions_that_are_there(file: str, functions: str) -> None:
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = set(re.findall(r"`([\w.]+)`", functions))
    assert names
    assert names <= defined(module)


def test_there_are_four_trips() -> None:
    headings = re.search(r"## Four trips(.*?)\n## ", PAGE, re.DOTALL)
    assert headings is not None
    assert len(re.findall(r"^### ", headings[1], re.MULTILINE)) == 4
    assert len(TRIPS) > 30
