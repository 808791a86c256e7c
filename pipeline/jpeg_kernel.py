"""Reading the Huffman codes of a JPEG scan, compiled by numba; imported when first used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.compiled import njit

INVALID, TOO_MANY, TOO_SHORT, LEFT_OVER, TOO_LARGE = 1, 2, 3, 4, 5
LARGEST = 1280
"""No coefficient of 8-bit samples exceeds 1024 (T.81 A.3.3); a quarter more is left for encoders' rounding."""
FILL = 16
"""Bytes 0x00 or 0xFF that may stand between the last block and the next marker: some cameras align to words."""


@njit(cache=True, nogil=True)
def read_scan(
    data: npt.NDArray[np.uint8],
    position: int,
    units: int,
    order: npt.NDArray[np.int32],
    decoders: npt.NDArray[np.uint16],
    steps: npt.NDArray[np.int32],
    interval: int,
) -> tuple[int, int]:
    """Read all codes of a scan.

    Args:
        data: of the file.
        position: of the scan's first byte of compressed data.
        units: minimum coded units in the scan.
        order: int32[blocks,3], per block of a unit its component, and the rows of `decoders` for its DC and AC codes.
        decoders: uint16[tables,65536], the next 16 bits -> length << 8 | symbol.
        steps: int32[components,64], the quantiser's steps in zigzag order.
        interval: units between restart markers; 0 for none.

    Returns:
        The position behind the data that was read, and 0 or what is wrong.
    """
    bits = np.uint64(0)  # the next bits, at the low end
    held = 0
    short = False  # a marker or the end was reached: zeros follow
    ahead = 0  # bits in `bits` that are such zeros
    size = data.size
    predicted = np.zeros(steps.shape[0], np.int64)
    for unit in range(units):
        if interval and unit and unit % interval == 0:
            held = ahead = 0
            bits = np.uint64(0)
            short = False
            predicted[:] = 0
            left = 0
            while position < size and data[position] != 0xFF:
                position += 1
                left += 1
            while position + 1 < size and data[position] == 0xFF and data[position + 1] == 0xFF:
                position += 1
            if position + 1 >= size:
                return position, TOO_SHORT
            if data[position + 1] < 0xD0 or data[position + 1] > 0xD7:
                return position, LEFT_OVER if data[position + 1] == 0 else TOO_SHORT
            if left > 2:
                return position, LEFT_OVER
            position += 2
        for block in range(order.shape[0]):
            component = order[block, 0]
            coefficient = 0
            while coefficient < 64:
                while held <= 40:
                    value = 0
                    if not short:
                        if position >= size:
                            short = True
                        else:
                            value = int(data[position])
                            if value == 0xFF:
                                if position + 1 < size and data[position + 1] == 0:
                                    position += 2
                                else:
                                    short = True
                                    value = 0
                            else:
                                position += 1
                    if short:
                        ahead += 8
                    bits = bits << np.uint64(8) | np.uint64(value)
                    held += 8
                table = order[block, 1 if coefficient == 0 else 2]
                entry = int(decoders[table, int(bits >> np.uint64(held - 16)) & 0xFFFF])
                if entry == 0:
                    return position, TOO_SHORT if held - 16 < ahead else INVALID
                symbol = entry & 255
                length = symbol & 15
                held -= (entry >> 8) + length
                if held < ahead:
                    return position, TOO_SHORT
                amplitude = int(bits >> np.uint64(held)) & ((1 << length) - 1)
                if length and amplitude < 1 << (length - 1):
                    amplitude -= (1 << length) - 1
                if coefficient == 0:
                    if symbol > 11:
                        return position, INVALID
                    predicted[component] += amplitude
                    step = steps[component, 0]
                    if abs(predicted[component]) * step > LARGEST + step:
                        return position, TOO_LARGE
                    coefficient = 1
                elif symbol == 0:
                    coefficient = 64
                elif length == 0 and symbol != 0xF0:
                    return position, INVALID
                else:
                    coefficient += (symbol >> 4) + 1
                    if coefficient > 64:
                        return position, TOO_MANY
                    step = steps[component, coefficient - 1]
                    if abs(amplitude) * step > LARGEST + step:
                        return position, TOO_LARGE
    # Bytes that were taken but not used lie before `position`; an escaped 0xFF may be among them.
    left = (held - ahead) // 8
    first = position
    while left > 0:
        first -= 2 if first >= 2 and data[first - 1] == 0 and data[first - 2] == 0xFF else 1
        left -= 1
    fill = 0
    while first < size:
        value = int(data[first])
        if value == 0xFF and first + 1 < size and data[first + 1] != 0 and data[first + 1] != 0xFF:
            break
        if value != 0 and value != 0xFF:
            return first, LEFT_OVER
        fill += 1
        if fill > FILL:
            return first, LEFT_OVER
        first += 1
    return first, 0
