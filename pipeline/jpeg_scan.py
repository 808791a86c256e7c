"""Whether the compressed data of a JPEG decodes to exactly the blocks that its header promises: ITU-T T.81, annex F.

Decoders conceal damage in a JPEG: a wrong code shifts all blocks behind it, and the picture comes out without an error.
Here the Huffman codes are read and counted, without making a picture, at a small part of a decoder's cost. Baseline and
extended sequential JPEGs of 8 bits are checked, which is what Motion JPEG and frames in folders are; of progressive,
lossless and arithmetic ones only whether they have an end.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pipeline.jpeg_kernel import Tables

Bytes = npt.NDArray[np.uint8]

# Markers, T.81 table B.1.
EOI, SOS, DQT, DHT, DRI = 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
SEQUENTIAL = (0xC0, 0xC1)
OTHER_FRAMES = (0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
NO_SEGMENT = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xD9)))
DECIDING = frozenset((DHT, DQT, DRI, SOS, *SEQUENTIAL))
"""Segments that say what a scan must hold."""
# The tables of T.81 annex K.3, which Motion JPEG leaves out, by class and id: codes of length 1..16, then symbols.
_DC_SYMBOLS = bytes(range(12))
_AC_LUMA = bytes.fromhex(
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a34353637"
    "38393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3"
    "a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
)
_AC_CHROMA = bytes.fromhex(
    "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536"
    "3738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999a"
    "a2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
)
STANDARD = {
    0x00: bytes.fromhex("00010501010101010100000000000000") + _DC_SYMBOLS,
    0x01: bytes.fromhex("00030101010101010101010000000000") + _DC_SYMBOLS,
    0x10: bytes.fromhex("0002010303020403050504040000017d") + _AC_LUMA,
    0x11: bytes.fromhex("00020102040403040705040400010277") + _AC_CHROMA,
}


END_OF_BLOCK = b"\0"
"""The symbol of AC codes."""
END = bytes((0xFF, EOI))
PROBLEMS = (
    "",
    "an invalid code",
    "more coefficients than a block has",
    "the data ends too early",
    "data is left over",
    "a coefficient beyond what 8-bit samples can have",
)


BAD_HEADER = "a header is damaged"
ZEROS = bytes(32)
"""A sector that was not written holds more."""
CODE_BYTES = 16 + 256
"""Bytes of a table of codes: numbers of codes of length 1..16, then symbols."""


class Component(NamedTuple):
    """A colour component: its id, blocks across and down in a unit of an interleaved scan, and number of quantiser."""

    name: int
    across: int
    down: int
    quantiser: int


class Header(NamedTuple):
    """A frame header (SOF)."""

    height: int
    width: int
    components: tuple[Component, ...]


class Plan(NamedTuple):
    """What a scan must hold: arguments of `pipeline.jpeg_kernel.read_scan`, which explains them.

    Attributes:
        no_zeros: whether no encoder writes many bytes of zeros: where zeros are not the end of a block, they are blocks
            whose coefficients are all the same.
    """

    units: int
    order: npt.NDArray[np.int32]
    tables: Tables
    steps: npt.NDArray[np.int32]
    harmless_sizes: npt.NDArray[np.int64]
    interval: int
    no_zeros: bool


def fault(data: bytes) -> str | None:
    """What is wrong with the compressed data of a JPEG file or Motion JPEG frame (one picture or two fields).

    Returns:
        One phrase, or None where nothing is wrong or the kind of JPEG is not checked.
    """
    array = np.frombuffer(data, np.uint8)
    start = data.find(b"\xff\xd8\xff")
    while start >= 0:
        end, problem = _picture(data, array, start)
        if problem or end < 0:
            return problem
        start = data.find(b"\xff\xd8\xff", end)
    return None


def _picture(data: bytes, array: Bytes, start: int) -> tuple[int, str | None]:
    """Check one picture; its end (-1 if it is of a kind that is not checked), and what is wrong."""
    from pipeline.jpeg_kernel import TOO_SHORT, read_scan

    head: list[bytes] = []
    position = start + 2
    scanned = False
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in NO_SEGMENT:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == EOI:
            break
        if marker in OTHER_FRAMES:
            return -1, None if data.find(END, position) >= 0 else PROBLEMS[TOO_SHORT]
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if marker in DECIDING:
            if end > len(data):
                return position, BAD_HEADER
            head.append(data[position:end])
        position = end
        if marker == SOS:
            try:
                plan = _plan(tuple(head))
            except ValueError:
                return position, BAD_HEADER
            if plan is None:
                return -1, None
            first = position
            position, problem = read_scan(array, first, *plan[:-1])
            scanned = True
            if problem:
                return position, PROBLEMS[problem]
            if plan.no_zeros and data.find(ZEROS, first, position) >= 0:
                return position, "zeros that no encoder writes"
    end = position + 2 if position >= 0 else len(data)
    return end, None if scanned else "the picture's data is missing"


@functools.lru_cache(maxsize=16)  # the frames of a video are usually alike
def _plan(head: tuple[bytes, ...]) -> Plan | None:
    """What the scan that the last of the segments begins must hold; None for one that is not understood.

    Raises:
        ValueError: its header contradicts that of the frame.
    """
    codes, quantisers = dict(STANDARD), dict[int, bytes]()
    header: Header | None = None
    interval = 0
    for segment in head:
        marker, body = segment[1], segment[4:]
        if marker == DHT:
            codes.update(_codes(body))
        elif marker == DQT:
            quantisers.update(_quantisers(body))
        elif marker == DRI:
            interval = int.from_bytes(body[:2])
        elif marker in SEQUENTIAL:
            header = _frame(body)
    return header and _plan_of(header, head[-1][4:], codes, quantisers, interval)


def _codes(body: bytes) -> dict[int, bytes]:
    """Class and id -> counts and symbols, of one DHT segment."""
    tables = {}
    while len(body) >= 17:
        symbols = sum(body[1:17])
        tables[body[0]] = body[1 : 17 + symbols]
        body = body[17 + symbols :]
    return tables


def _quantisers(body: bytes) -> dict[int, bytes]:
    """Id -> 64 steps of 8 or 16 bits in zigzag order, of one DQT segment."""
    tables = {}
    while body:
        size = 128 if body[0] >> 4 else 64
        tables[body[0] & 15] = body[1 : 1 + size]
        body = body[1 + size :]
    return tables


def _frame(body: bytes) -> Header | None:
    """Size and components of a frame header with 8 bits, or None."""
    if len(body) < 6 or body[0] != 8 or len(body) < 6 + 3 * body[5]:
        return None
    height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(body[5])]
    components = tuple(Component(part[0], part[1] >> 4, part[1] & 15, part[2]) for part in parts)
    if not height or not width or not all(c.across and c.down for c in components):
        return None
    return Header(height, width, components)


def _plan_of(
    header: Header, body: bytes, codes: dict[int, bytes], quantisers: dict[int, bytes], interval: int
) -> Plan | None:
    """What a scan must hold whose header (SOS) has that body; ValueError if it contradicts that of the frame."""
    from pipeline.jpeg_kernel import LARGEST, decoding_tables

    count = body[0] if body else 0
    names = {component.name: component for component in header.components}
    if (
        not 1 <= count <= len(header.components)
        or len(body) < 4 + 2 * count
        or not names.keys() >= set(body[1 : 1 + 2 * count : 2])
    ):
        raise ValueError("a scan of other components than the frame has")
    chosen = [(names.get(body[1 + 2 * i]), body[2 + 2 * i]) for i in range(count)]
    widest = max(component.across for component in header.components)
    highest = max(component.down for component in header.components)
    rows: list[tuple[int, int, int]] = []
    steps = []
    for number, (component, ids) in enumerate(chosen):
        if component is None or len(table := quantisers.get(component.quantiser, b"")) not in (64, 128):
            return None
        steps.append(np.frombuffer(table, np.uint8 if len(table) == 64 else ">u2").astype(np.int32))
        blocks = component.across * component.down if count > 1 else 1
        rows += [(number, ids >> 4, 0x10 | ids & 15)] * blocks
    across, down = 8 * widest, 8 * highest
    if count == 1:  # T.81 A.2.2: not interleaved, so a unit is one block whatever the sampling factors
        component = names[body[1]]
        across, down = across // component.across, down // component.down
    units = -(-header.width // across) * -(-header.height // down)
    used = sorted({code for row in rows for code in row[1:]})
    if any(number not in codes for number in used):
        return None
    order = np.array([(number, used.index(dc), used.index(ac)) for number, dc, ac in rows], np.int32)
    padded = b"".join(codes[number].ljust(CODE_BYTES, b"\0")[:CODE_BYTES] for number in used)
    # (2**size - 1) * step exceeds LARGEST + step from some size on, for the largest step first.
    harmless = [(LARGEST // max(1, int(each.max())) + 2).bit_length() - 1 for each in steps]
    of_table = [min(harmless[row[0]] for row in rows if number in row[1:]) for number in used]
    tables = decoding_tables(
        np.frombuffer(padded, np.uint8).reshape(-1, CODE_BYTES), np.array(used) >= 0x10, np.array(of_table)
    )
    no_zeros = any(
        codes[ac][16:17] != END_OF_BLOCK for _, _, ac in rows
    )  # the first symbol's code is all zeros
    return Plan(units, order, tables, np.stack(steps), np.array(harmless), interval, no_zeros)
