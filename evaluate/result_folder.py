"""A folder of results, one or several files per video, that the same command continues.

A JSON file in it records the settings that the results were made with, beside its format, version and checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import atomic, checked_json
from pipeline.errors import InputError, OtherFormat, unreadable

VERSION = 1


def claim(folder: Path, name: str, attributes: Mapping[str, Any]) -> None:
    """Make a folder for results, or check that one was made with the same settings.

    Args:
        folder: for the results.
        name: of the JSON file in it that records the settings.
        attributes: the settings, as plain values.

    Raises:
        OtherFormat: it holds results of a later version.
        InputError: it holds results made with other settings, or other files, or cannot be read or written.
    """
    about = folder / name
    found = read_settings(about)
    if found is None:
        with atomic.disk_errors(folder):
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder}: expected a folder of results or a new folder, found other files")
            folder.mkdir(parents=True, exist_ok=True)
            record = checked_json.with_checksum({"format": _format(name), "version": VERSION, **attributes})
            with atomic.writing(about) as temporary:
                temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    elif found != dict(attributes):
        raise InputError(
            f"{folder}: holds results of another network, other videos or views; repeat those options to continue it, "
            "remove it, or name another with --output"
        )


def read_settings(about: Path) -> dict[str, Any] | None:
    """The settings that a folder's results were made with; None if there is no such file.

    Raises:
        Unreadable: the system did not let it be read.
        OtherFormat: it is of a later version.
        InputError: it is damaged.
    """
    try:
        text = about.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(about, error) from error
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, found {type(values).__name__}")
        if {checked_json.KEY, "format"} & values.keys():  # earlier versions wrote neither
            if fault := checked_json.fault(values, ()):
                raise ValueError(fault)
            _check_version(values, about)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{about}: damaged: {error}; remove the folder") from error
    return {key: value for key, value in values.items() if key not in ("format", "version", checked_json.KEY)}


def _check_version(values: Mapping[str, Any], about: Path) -> None:
    if values.get("format") != _format(about.name):
        raise ValueError(f"format: expected {_format(about.name)!r}, found {values.get('format')!r}")
    if values.get("version") != VERSION:
        raise OtherFormat(
            f"{about}: results of version {values.get('version')}, and this program writes version {VERSION}; they "
            "were left as they are: name another folder with --output"
        )


def _format(name: str) -> str:
    """For example "two-stream features" of features.json."""
    return f"two-stream {Path(name).stem}"
