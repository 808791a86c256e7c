"""Imports point one way: the picture and the table of docs/architecture.md, held up by the source itself."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import PACKAGES, PROJECT, imports, modules

DIRECTIONS = {
    "pipeline": set(),
    "extract_flow": {"pipeline"},
    "train": {"pipeline"},
    "evaluate": {"pipeline", "extract_flow", "train"},
    "slurm": {"pipeline", "extract_flow", "train", "evaluate"},
    "two_stream": {"pipeline", "extract_flow", "train", "evaluate", "slurm"},
}
"""Package -> the packages that it imports."""


def package(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_seen() -> None:
    assert {package(module) for module in modules()} == set(PACKAGES)
    assert "pipeline.shard" in imports()["train.training_data"]
    assert "slurm.submit" in imports()["slurm.__main__"], "a name in a string, imported by importlib"
    assert "extract_flow.brox.cuda" in imports()["extract_flow.dispatch"], "an f-string, likewise"


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(reversed(error.args[1]))) from None


def test_packages_import_in_the_allowed_directions_only() -> None:
    found: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for module, targets in imports().items():
        found[package(module)] |= {package(target) for target in targets} - {package(module)}
    assert found == DIRECTIONS


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("slurm", {"extract_flow", "train", "evaluate"}),
        ("two_stream", {"extract_flow", "train", "evaluate", "slurm"}),
    ],
)
def test_of_the_stages_only_their_commands_are_known(name: str, others: set[str]) -> None:
    found = {
        target
        for module, targets in imports().items()
        if package(module) == name
        for target in targets
        if package(target) in others
    }
    assert found == {f"{stage}.__main__" for stage in others}


def test_the_architecture_page_lists_these_directions() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|(?: [^|]* \|)* imports ([^|]*) \|$", page, re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", words)) for name, words in rows}
    assert listed == DIRECTIONS
