"""The product's modules, and which of them each one imports: in any way, at any time."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "extract_flow", "train", "evaluate", "slurm", "two_stream")


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; a package stands for its `__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """The modules that each module imports, those within functions and those named in strings for importlib too."""
    return {module: frozenset(_imported(module)) - {module} for module in modules()}


def _imported(module: str) -> Iterator[str]:
    known = modules()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = _source(module, node)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in known)
            if source in known and any(name not in known for name in inner):
                yield source
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value  # a plain package name, such as "train", is a word more often than an import
            if "." in text and text in known:
                yield text
        elif isinstance(node, ast.JoinedStr):
            pattern = _pattern(node)
            yield from (name for name in known if re.fullmatch(pattern, name))


def _pattern(text: ast.JoinedStr) -> str:
    """What an f-string such as f"extract_flow.{name}.cuda" may name; nothing unless it begins with a package."""
    pieces = [
        re.escape(piece.value) if isinstance(piece, ast.Constant) and isinstance(piece.value, str) else r"\w+"
        for piece in text.values
    ]
    return (
        "".join(pieces)
        if pieces and pieces[0].startswith(tuple(rf"{name}\." for name in PACKAGES))
        else "(?!)"
    )


def _source(module: str, node: ast.ImportFrom) -> str:
    """The module that `from ... import` names, dots at its beginning resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    inside = modules()[module].name == "__init__.py"
    base = parts[: len(parts) - node.level + inside]
    return ".".join([*base, *([node.module] if node.module else [])])
