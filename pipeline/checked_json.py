"""JSON objects with a checksum of their values beside them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any

KEY = "crc32"
LAST_KEY = f', "{KEY}": '.encode()
_sorted = json.JSONEncoder(sort_keys=True).encode


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and under "crc32" the CRC-32 of them as JSON with sorted keys."""
    return {**values, KEY: _crc32(values)}


def encoded(values: Mapping[str, Any]) -> str:
    """`with_checksum` as JSON with sorted keys, the checksum last, so that `is_intact` needs no more than the text."""
    text = _sorted(values)
    return f"{text[:-1]}{LAST_KEY.decode()}{zlib.crc32(text.encode())}}}"


def is_intact(text: bytes) -> bool:
    """Whether JSON from `encoded` is as it was written; False for any other JSON, whose values `fault` checks."""
    start = text.rfind(LAST_KEY)
    number = text[start + len(LAST_KEY) : -1]
    if start < 0 or len(number) > 10 or not number.isdigit() or not text.endswith(b"}"):
        return False
    return int(number) == zlib.crc32(b"}", zlib.crc32(memoryview(text)[:start]))


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
