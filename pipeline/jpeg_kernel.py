"""Reading the Huffman codes of a JPEG scan, compiled by numba; imported when first used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.compiled import inlined, kernel

INVALID, TOO_MANY, TOO_SHORT, LEFT_OVER, TOO_LARGE = 1, 2, 3, 4, 5
LARGEST = 1280
"""No coefficient of 8-bit samples exceeds 1024 (T.81 A.3.3); a quarter more is left for encoders' rounding."""
QUICK = 10
"""Bits of the table that most codes are found in, small enough for a processor's nearest cache."""
FILL = 16
"""Bytes 0x00 or 0xFF that may stand between the last block and the next marker: some cameras align to words."""


@inlined(fastmath=False)
def decoding_tables(
    codes: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tables that find a code's symbol.

    Returns:
        uint16[tables,2**QUICK], the next bits -> length << 8 | symbol, 0 for codes of more than QUICK bits;
        int64[tables,17], the first number that is no code of at most that length;
        int64[tables,17], what to add to a code of that length for the place of its symbol in `codes`.
    """
    quick = np.zeros((codes.shape[0], 1 << QUICK), np.uint16)
    ends = np.zeros((codes.shape[0], 17), np.int64)
    shifts = np.zeros((codes.shape[0], 17), np.int64)
    for table in range(codes.shape[0]):
        code, place = 0, 16
        for length in range(1, 17):
            shifts[table, length] = place - code
            for _ in range(codes[table, length - 1]):
                if place >= codes.shape[1] or code >= 1 << length:  # more codes than there can be
                    break
                if length <= QUICK:
                    first = code << (QUICK - length)
                    for index in range(first, first + (1 << (QUICK - length))):
                        quick[table, index] = length << 8 | codes[table, place]
                code += 1
                place += 1
            ends[table, length] = code
            code <<= 1
    return quick, ends, shifts


@inlined(fastmath=False)
def four_bytes(data: npt.NDArray[np.uint8], position: Any, bits: Any, ahead: Any) -> tuple[Any, Any, Any]:
    """Append four bytes of compressed data, or zeros behind a marker: (position, bits, bits that are such zeros)."""
    for _ in range(4):
        value: Any = np.uint64(0)
        if position >= data.size:
            ahead += 8
        elif data[position] != 0xFF:
            value = np.uint64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:  # T.81 B.1.1.5: a stuffed 0xFF
            value = np.uint64(0xFF)
            position += 2
        else:
            ahead += 8
        bits = bits << np.uint64(8) | value
    return position, bits, ahead


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
    codes: npt.NDArray[np.uint8],
    steps: npt.NDArray[np.int32],
    interval: int,
) -> tuple[int, int]:
    """Read all codes of a scan.

    Args:
        data: of the file.
        position: of the scan's first byte of compressed data.
        units: minimum coded units in the scan.
        order: int32[blocks,3], per block of a unit its component, and the rows of `codes` for its DC and AC codes.
        codes: uint8[tables,272], the number of codes of length 1..16, then their symbols (T.81 annex C).
        steps: int32[components,64], the quantiser's steps in zigzag order.
        interval: units between restart markers; 0 for none.

    Returns:
        The position behind the data that was read, and 0 or what is wrong.
    """
    quick, ends, shifts = decoding_tables(codes)
    bits = np.uint64(0)  # the next bits, at the low end
    held: Any = np.int64(0)
    ahead: Any = np.int64(0)  # bits in `bits` that stand for data behind a marker or the end: zeros
    blocks = order.shape[0]
    predicted = np.zeros(steps.shape[0], np.int64)
    for unit in range(units):
        if interval and unit and unit % interval == 0:
            held = ahead = np.int64(0)
            bits = np.uint64(0)
            predicted[:] = 0
            position, problem = behind_restart(data, position)
            if problem:
                return position, problem
        for block in range(blocks):
            component = order[block, 0]
            table: Any = order[block, 1]
            coefficient: Any = np.int64(0)
            while coefficient < 64:
                if held < 32:  # a code of 16 bits and an amplitude of 15
                    position, bits, ahead = four_bytes(data, position, bits, ahead)
                    held += 32
                word = (bits >> np.uint64(held - 16)) & np.uint64(0xFFFF)
                entry: Any = np.int64(quick[table, word >> np.uint64(16 - QUICK)])
                if entry == 0:
                    length: Any = QUICK + 1
                    while length <= 16 and np.int64(word >> np.uint64(16 - length)) >= ends[table, length]:
                        length += 1
                    if length > 16:
                        return position, TOO_SHORT if held - 16 < ahead else INVALID
                    place = np.int64(word >> np.uint64(16 - length)) + shifts[table, length]
                    entry = length << 8 | np.int64(codes[table, place])
                symbol = entry & 255
                length = symbol & 15
                held -= (entry >> 8) + length
                if held < ahead:
                    return position, TOO_SHORT
                amplitude: Any = np.int64(bits >> np.uint64(held)) & ((1 << length) - 1)
                if amplitude < (1 << length) >> 1:
                    amplitude -= (1 << length) - 1
                if coefficient == 0:
                    if symbol > 11:
                        return position, INVALID
                    predicted[component] += amplitude
                    step = steps[component, 0]
                    if abs(predicted[component]) * step > LARGEST + step:
                        return position, TOO_LARGE
                    table = order[block, 2]
                    coefficient = 1
                elif symbol == 0:
                    coefficient = 64
                else:
                    coefficient += (symbol >> 4) + 1
                    if coefficient > 64:
                        return position, TOO_MANY
                    step = steps[component, coefficient - 1]
                    if abs(amplitude) * step > LARGEST + step:
                        return position, TOO_LARGE
                    if length == 0 and symbol != 0xF0:
                        return position, INVALID
    # Bytes that were taken but not used lie before `position`; an escaped 0xFF may be among them.
    left = (held - ahead) // 8
    first = position
    while left > 0:
        first -= 2 if first >= 2 and data[first - 1] == 0 and data[first - 2] == 0xFF else 1
        left -= 1
    return behind_fill(data, first)
