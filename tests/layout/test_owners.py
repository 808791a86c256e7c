"""Words that stand for a fact are put together, and taken apart, in the module that owns the fact."""

from __future__ import annotations

import ast
import functools
import re

import pytest
from source_tree import modules, tree


@functools.cache
def texts(module: str) -> frozenset[str]:
    """The string constants of a module's code, the parts of f-strings among them; no docstrings."""
    nodes = list(ast.walk(tree(module)))
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return frozenset(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    )


OWNERS = [
    (r"short side (\(.*)?", "pipeline.request"),  # how a shard of format 1 records its size
    (r"(?!predictions)(.*[^-])?-split", "pipeline.runs"),  # the name of a run
    (r"checkpoint-.*|recipe\.toml|log\.jsonl|curves\.png|best\.pt", "pipeline.runs"),
    (r"dataset\.json|outcomes|results", "pipeline.paths"),
]
"""What a string looks like in which the fact is written or read, and the module that may hold it."""


@pytest.mark.parametrize(("pattern", "owner"), OWNERS)
def test_a_fact_is_spelled_by_its_owner_alone(pattern: str, owner: str) -> None:
    found = {module for module in modules() if any(re.fullmatch(pattern, text) for text in texts(module))}
    assert found == {owner}
