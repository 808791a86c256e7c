"""Bytes that no encoder of H.264 or HEVC writes: ITU-T H.264 7.4.1 and H.265 7.4.2.

Within a NAL unit, three bytes 0x000000 to 0x000002 never occur, since they would be taken for the start of the next:
encoders put 0x03 before the third. A sector of zeros in the middle of a frame breaks that rule, where a decoder may
read the zeros as a picture.
"""

from __future__ import annotations

import re

ODD = re.compile(rb"\x00\x00(?:\x00+\x01?|\x02|\x03[^\x00-\x03])")
"""Forbidden bytes, or a start code with zeros before it."""


def length_bytes(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each NAL unit, 0 where start codes separate them: ISO 14496-15 5.3.3 and 8.3.3."""
    place = {"h264": 4, "hevc": 21}[codec]
    if not extradata or len(extradata) <= place or extradata.startswith((b"\0\0\1", b"\0\0\0\1")):
        return 0
    return (extradata[place] & 3) + 1


def is_broken(packet: bytes, prefix: int) -> bool:
    """Whether a packet holds bytes that are forbidden in a NAL unit.

    Args:
        packet: one frame or field.
        prefix: bytes of the length before each unit, 0 for start codes.
    """
    if not prefix:
        return _holds_odd(packet)
    start = 0
    while start + prefix < len(packet):
        end = start + prefix + int.from_bytes(packet[start : start + prefix])
        if _holds_odd(packet[start + prefix : end]):
            return True
        start = end
    return False


def _holds_odd(units: bytes) -> bool:
    # Zeros at the end are padding; those before a start code as well.
    return any(not found[0].endswith(b"\1") for found in ODD.finditer(units.rstrip(b"\0")))
