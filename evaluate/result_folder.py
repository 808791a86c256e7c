"""A folder of results, one or several files per video, that the same command continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import atomic
from pipeline.errors import InputError


def claim(folder: Path, name: str, attributes: Mapping[str, Any]) -> None:
    """Make a folder for results, or check that one was made with the same settings.

    Args:
        folder: for the results.
        name: of the JSON file in it that records the settings.
        attributes: the settings, as plain values.

    Raises:
        InputError: it holds results made with other settings, or other files, or cannot be written.
    """
    about = folder / name
    with atomic.disk_errors(folder):
        if about.exists():
            try:
                found = json.loads(about.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{about}: damaged: {error}; remove the folder") from error
            if found != dict(attributes):
                raise InputError(
                    f"{folder}: holds results of another network, other videos or views; repeat those options to "
                    "continue it, remove it, or name another with --output"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: expected a folder of results, or none, found other files")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.writing(about) as temporary:
            temporary.write_text(json.dumps(dict(attributes), indent=1), encoding="utf-8")
