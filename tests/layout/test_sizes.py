"""Modules and functions stay small enough to be read at once; kernels are long where their algorithm is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from source_tree import modules, tree

MODULE_LINES = 600
FUNCTION_LINES = 60
"""Without decorators and docstring."""
DEPTH = 4

KERNEL_MODULES = (
    "extract_flow.brox.cpu",
    "extract_flow.tvl1.cpu",
    "pipeline.codec_kernels",
    "pipeline.decoder_kernels",
    "pipeline.jpeg_kernel",
)
"""Modules of compiled loops, by the beginning of their names."""

BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Every function outside kernels, with its place."""
    for module in modules():
        if not module.startswith(KERNEL_MODULES):
            for node in ast.walk(tree(module)):
                if isinstance(node, Function):
                    yield f"{module}:{node.lineno} {node.name}", node


def lines(function: Function) -> int:
    assert function.end_lineno is not None
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def depth(node: ast.AST) -> int:
    """How many blocks lie within each other; `elif` is no deeper than its `if`."""
    deepest = 0
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                chained = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
                deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not chained))
    return deepest


def test_modules_are_short() -> None:
    long = {
        module: count
        for module, path in modules().items()
        if not module.startswith(KERNEL_MODULES)
        and (count := len(path.read_text(encoding="utf-8").splitlines())) > MODULE_LINES
    }
    assert not long


def test_functions_are_short() -> None:
    long = {place: count for place, node in functions() if (count := lines(node)) > FUNCTION_LINES}
    assert not long


def test_functions_are_flat() -> None:
    nested = {place: count for place, node in functions() if (count := depth(node)) > DEPTH}
    assert not nested


def test_the_measures_count_what_they_should() -> None:
    (function,) = ast.parse(
        "def f(x):\n"
        '    """Two\n    lines."""\n'
        "    if x:\n        pass\n    elif x > 1:\n        for _ in x:\n            pass\n"
    ).body
    assert isinstance(function, ast.FunctionDef)
    assert lines(function) == 6
    assert depth(function) == 2
