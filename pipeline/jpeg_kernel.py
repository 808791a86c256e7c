"""Reading the Huffman codes of a JPEG scan, compiled by numba; imported when first used."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.compiled import inlined, kernel

INVALID, TOO_MANY, TOO_SHORT, LEFT_OVER, TOO_LARGE = 1, 2, 3, 4, 5
LARGEST = 1280
"""No coefficient of 8-bit samples exceeds 1024 (T.81 A.3.3); a quarter more is allowed for encoders' rounding."""
QUICK = 10
"""Bits of the table that most codes are found in, small enough for a processor's nearest cache."""
WIDE = 12
"""Bits of the table that holds several AC codes in one entry, with their amplitudes."""
FILL = 16
"""Bytes 0x00 or 0xFF that may stand between the last block and the next marker: some cameras align to words."""
END_OF_BLOCK = 100
"""How far an end of block advances: further than any run of zeros can lead from within a block."""
LAST = 1024
"""How far an end of block advances in `Tables.several`: further than all codes before it."""


class Tables(NamedTuple):
    """Huffman codes as `read_scan` looks them up.

    An entry is what is known of a code: in its lowest 5 bits the length of code and amplitude together, then in 4 bits
    the length of the amplitude, then how many coefficients it advances. No entry is 0.

    Attributes:
        quick: uint16[tables,2**QUICK], the next bits -> entry; 0 if the code is longer, or invalid.
        ends: int64[tables,17], the first number that is no code of at most that length.
        shifts: int64[tables,17], what to add to a code of that length for the place of its entry in `entries`.
        entries: uint16[tables,256], in the order of the codes; 0 for symbols that mean nothing.
        several: uint16[tables,2**WIDE], of AC codes, the next bits -> in the lowest 5 bits the length of all the codes
            that lie within them with their amplitudes, then how many coefficients they advance; 0 if there is none.
            Codes whose amplitudes must be looked at are left out, and nothing follows an end of block.
    """

    quick: npt.NDArray[np.uint16]
    ends: npt.NDArray[np.int64]
    shifts: npt.NDArray[np.int64]
    entries: npt.NDArray[np.uint16]
    several: npt.NDArray[np.uint16]


@inlined(fastmath=False)
def entry_of(length: Any, symbol: Any, ac: Any) -> Any:
    """The entry of a code of that length, of AC coefficients or else of DC ones; 0 if the symbol means nothing."""
    size = symbol & 15
    if not ac:
        return (length + symbol) | symbol << 5 | 1 << 9 if symbol <= 11 else 0
    if symbol == 0:
        return length | END_OF_BLOCK << 9
    if size == 0 and symbol != 0xF0:
        return 0
    return (length + size) | size << 5 | ((symbol >> 4) + 1) << 9


@inlined(fastmath=False)
def codes_within(bits: Any, quick: Any, harmless: Any) -> Any:
    """The entry of `Tables.several` of WIDE bits."""
    length: Any = np.int64(0)
    advance: Any = np.int64(0)
    while advance < LAST:
        # Behind the bits that are known come zeros: a code that needs them ends beyond.
        entry: Any = np.int64(quick[(bits << length & ((1 << WIDE) - 1)) >> (WIDE - QUICK)])
        if entry == 0 or length + (entry & 31) > WIDE or entry >> 5 & 15 > harmless:
            break
        length += entry & 31
        advance += LAST if entry >> 9 == END_OF_BLOCK else entry >> 9
    return length | advance << 5


@kernel(fastmath=False)
def decoding_tables(
    codes: npt.NDArray[np.uint8], ac: npt.NDArray[np.bool_], harmless_sizes: npt.NDArray[np.int64]
) -> Tables:
    """The tables of Huffman codes.

    Args:
        codes: uint8[tables,272], the number of codes of length 1..16, then their symbols (T.81 annex C).
        ac: bool[tables], whether they are of AC coefficients; else of DC ones.
        harmless_sizes: int64[tables], amplitudes of that many bits need not be looked at.
    """
    count = codes.shape[0]
    quick, entries = np.zeros((count, 1 << QUICK), np.uint16), np.zeros((count, 256), np.uint16)
    ends, shifts = np.zeros((count, 17), np.int64), np.zeros((count, 17), np.int64)
    for table in range(count):
        code, place = 0, 0
        for length in range(1, 17):
            shifts[table, length] = place - code
            for _ in range(codes[table, length - 1]):
                if place >= 256 or code >= 1 << length:  # more codes than there can be
                    break
                entry = entry_of(length, np.int64(codes[table, 16 + place]), ac[table])
                entries[table, place] = entry
                if length <= QUICK:
                    first = code << (QUICK - length)
                    quick[table, first : first + (1 << (QUICK - length))] = entry
                code += 1
                place += 1
            ends[table, length] = code
            code <<= 1
    several = np.zeros((count, 1 << WIDE), np.uint16)
    for table in range(count):
        for bits in range(1 << WIDE if ac[table] else 0):
            several[table, bits] = codes_within(bits, quick[table], harmless_sizes[table])
    return Tables(quick, ends, shifts, entries, several)


@inlined(fastmath=False)
def four_bytes(data: npt.NDArray[np.uint8], position: Any, bits: Any, ahead: Any) -> tuple[Any, Any, Any]:
    """Append four bytes of compressed data, or zeros behind a marker: (position, bits, bits that are such zeros)."""
    if position + 4 <= data.size:
        word: Any = (
            np.int64(data[position]) << 24
            | np.int64(data[position + 1]) << 16
            | np.int64(data[position + 2]) << 8
            | np.int64(data[position + 3])
        )
        opposite: Any = ~word & 0xFFFFFFFF
        if (opposite - 0x01010101) & word & 0x80808080 == 0:  # no byte is 0xFF
            return position + 4, bits << 32 | word, ahead
    for _ in range(4):
        value: Any = np.int64(0)
        if position >= data.size:
            ahead += 8
        elif data[position] != 0xFF:
            value = np.int64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:  # T.81 B.1.1.5: a stuffed 0xFF
            value = np.int64(0xFF)
            position += 2
        else:
            ahead += 8
        bits = bits << 8 | value
    return position, bits, ahead


@inlined(fastmath=False)
def long_code(word: Any, ends: Any, shifts: Any, entries: Any) -> Any:
    """The entry of the code of more than QUICK bits that begins 16 bits; 0 if it is invalid."""
    length: Any = QUICK + 1
    while length <= 16 and word >> (16 - length) >= ends[length]:
        length += 1
    return np.int64(entries[(word >> (16 - length)) + shifts[length]]) if length <= 16 else np.int64(0)


@inlined(fastmath=False)
def amplitude_of(bits: Any, held: Any, size: Any) -> Any:
    """The coefficient or difference whose `size` bits end at bit `held`: T.81 F.2.2.1, EXTEND."""
    amplitude: Any = bits >> held & ((1 << size) - 1)
    return amplitude if amplitude >= (1 << size) >> 1 else amplitude - ((1 << size) - 1)


@inlined(fastmath=False)
def first_unread(data: npt.NDArray[np.uint8], position: Any, bits: Any) -> Any:
    """The position of the first byte of which no bit was read, where so many bits before `position` were not."""
    left = bits // 8
    while left > 0:
        position -= 2 if position >= 2 and data[position - 1] == 0 and data[position - 2] == 0xFF else 1
        left -= 1
    return position


@inlined(fastmath=False)
def behind_restart(data: npt.NDArray[np.uint8], position: Any) -> tuple[Any, int]:
    """The position behind the restart marker that must come here, and 0 or what is wrong."""
    size, left = data.size, 0
    while position < size and data[position] != 0xFF:
        position += 1
        left += 1
    while position + 1 < size and data[position] == 0xFF and data[position + 1] == 0xFF:
        position += 1
    if position + 1 >= size:
        return position, TOO_SHORT
    if data[position + 1] < 0xD0 or data[position + 1] > 0xD7:
        return position, LEFT_OVER if data[position + 1] == 0 else TOO_SHORT
    return position + 2, LEFT_OVER if left > 2 else 0


@inlined(fastmath=False)
def behind_fill(data: npt.NDArray[np.uint8], position: Any) -> tuple[Any, int]:
    """The position of the next marker or the end, and 0 or what is wrong if more than a little fill lies before it."""
    fill = 0
    while position < data.size:
        value = int(data[position])
        if (
            value == 0xFF
            and position + 1 < data.size
            and data[position + 1] != 0
            and data[position + 1] != 0xFF
        ):
            break
        fill += 1
        if (value != 0 and value != 0xFF) or fill > FILL:
            return position, LEFT_OVER
        position += 1
    return position, 0


@kernel(fastmath=False)
def read_scan(
    data: npt.NDArray[np.uint8],
    position: int,
    units: int,
    order: npt.NDArray[np.int32],
    tables: Tables,
    steps: npt.NDArray[np.int32],
    harmless_sizes: npt.NDArray[np.int64],
    interval: int,
) -> tuple[int, int]:
    """Read all codes of a scan.

    Args:
        data: of the file.
        position: of the scan's first byte of compressed data.
        units: minimum coded units in the scan.
        order: int32[blocks,3], per block of a unit its component, and the numbers of the tables of its DC and AC codes.
        tables: of the codes.
        steps: int32[components,64], the quantiser's steps in zigzag order.
        harmless_sizes: int64[components], amplitudes of that many bits are not too large whatever the coefficient.
        interval: units between restart markers; 0 for none.

    Returns:
        The position behind the data that was read, and 0 or what is wrong.
    """
    quick, ends, shifts, entries, several = tables
    bits: Any = np.int64(0)  # the next bits, at the low end
    held: Any = np.int64(0)
    ahead: Any = np.int64(0)  # bits in `bits` that stand for data behind a marker or the end: zeros
    predicted = np.zeros(steps.shape[0], np.int64)
    for unit in range(units):
        if interval and unit and unit % interval == 0:
            position, problem = behind_restart(data, first_unread(data, position, held - ahead))
            held = ahead = bits = np.int64(0)
            predicted[:] = 0
            if problem:
                return position, problem
        for block in range(order.shape[0]):
            component = order[block, 0]
            if held < 32:  # a code of 16 bits and an amplitude of 15
                position, bits, ahead = four_bytes(data, position, bits, ahead)
                held += 32
            table: Any = order[block, 1]
            entry: Any = np.int64(quick[table, bits >> (held - QUICK) & ((1 << QUICK) - 1)])
            if entry == 0:
                word = bits >> (held - 16) & 0xFFFF
                entry = long_code(word, ends[table], shifts[table], entries[table])
            if entry == 0:
                return position, TOO_SHORT if held - 16 < ahead else INVALID
            held -= entry & 31
            step: Any = steps[component, 0]
            predicted[component] += amplitude_of(bits, held, entry >> 5 & 15)
            if abs(predicted[component]) * step > LARGEST + step:
                return position, TOO_SHORT if held < ahead else TOO_LARGE
            table, harmless = order[block, 2], harmless_sizes[component]
            coefficient: Any = np.int64(1)
            while coefficient < 64:
                if held < 32:
                    position, bits, ahead = four_bytes(data, position, bits, ahead)
                    held += 32
                entry = np.int64(several[table, bits >> (held - WIDE) & ((1 << WIDE) - 1)])
                following: Any = coefficient + (entry >> 5)
                # All of these codes belong to this block: it is not full before the last of them.
                if entry and (following <= 64 or LAST < following < LAST + 64):
                    held -= entry & 31
                    coefficient = following
                    continue
                entry = np.int64(quick[table, bits >> (held - QUICK) & ((1 << QUICK) - 1)])
                if entry == 0:
                    word = bits >> (held - 16) & 0xFFFF
                    entry = long_code(word, ends[table], shifts[table], entries[table])
                if entry == 0:
                    return position, TOO_SHORT if held - 16 < ahead else INVALID
                held -= entry & 31
                coefficient += entry >> 9
                size: Any = entry >> 5 & 15
                if size > harmless and coefficient <= 64:
                    step = steps[component, coefficient - 1]
                    if abs(amplitude_of(bits, held, size)) * step > LARGEST + step:
                        return position, TOO_SHORT if held < ahead else TOO_LARGE
            if held < ahead:
                return position, TOO_SHORT
            if 64 < coefficient < END_OF_BLOCK:
                return position, TOO_MANY
    return behind_fill(data, first_unread(data, position, held - ahead))
