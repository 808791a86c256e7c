"""Unrelated files that hide a package of this project: a train.py in the folder where python -m is run, for example."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


def hiding(packages: Iterable[str]) -> dict[str, Path]:
    """Those of our packages that Python would not find beside this one, and the file that it would import instead."""
    found = {}
    for name in packages:
        spec = find_spec(name)
        if spec is not None and spec.origin and Path(spec.origin).resolve().parent != HOME / name:
            found[name] = Path(spec.origin)
    return found


def refuse(*packages: str) -> None:
    """End the process with a message where one of our packages, which it is about to import, is hidden."""
    for name, path in hiding(packages).items():
        sys.exit(
            f"error: {path} hides the package '{name}' of two-stream, since Python looks there first\n"
            "Use the command two-stream, which does not look in the current folder (python -P -m does not either), "
            "or run it in another folder."
        )
