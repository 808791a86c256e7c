"""JSON objects with a checksum of their values beside them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any

KEY = "crc32"
_sorted = json.JSONEncoder(sort_keys=True).encode


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and under "crc32" the CRC-32 of them as JSON with sorted keys."""
    return {**values, KEY: _crc32(values)}


def fault(values: Mapping[str, Any], known: Collection[str]) -> str | None:
    """What is wrong with values that were read, by their checksum; None where they have none, as in earlier versions.

    Args:
        values: what was read.
        known: the keys there can be beside the checksum's: any other may be the checksum's own key, damaged.
    """
    if KEY not in values:
        unknown = sorted(values.keys() - set(known))
        return f"unknown key {unknown[0]!r}" if unknown else None
    plain = dict(values)
    return None if plain.pop(KEY) == _crc32(plain) else "the checksum of its values does not match"


def _crc32(values: Mapping[str, Any]) -> int:
    return zlib.crc32(_sorted(values).encode())
