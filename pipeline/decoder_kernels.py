"""Decoding of flow streams cut to a region, in one call that holds no lock of the interpreter, compiled by numba.

The streams are gray baseline JPEGs of one scan without restart markers, x over y in one image. Pixels equal those of
libjpeg's "islow" decoder (jidctint.c) bit for bit. Any other stream gives a code other than OK and is left to OpenCV.
Nothing is read or written outside the arrays, whatever the bytes are; what they assume is checked by the one
caller, `pipeline.decoder`.

How it is fast: of the blocks of smooth flow four in five hold nothing but a DC difference, most often zero. One look-up
decodes the difference and the end of block together, with up to three more empty blocks behind it, and another an AC
coefficient with, where it fits, the end of block. Blocks outside the region are not transformed, and decoding stops
behind its last row. The inverse transform is libjpeg's as two integer matrix products with the rounding between them,
whose right half is left out where it is zero.
"""

# mypy: disable-error-code="assignment, call-arg"
# Numba unifies the integer types of a variable; its types are the ones that count here. It adds the first argument of
# intrinsics.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from pipeline.compiled import inlined, kernel

OK, CHECKSUM, UNSUPPORTED, DAMAGED = 0, 1, 2, 3

LOOK = 11  # bits of the look-ups
SIZE = 1 << LOOK
LAST = 1 << 12  # in an entry: the block ends here
RUN = 4  # blocks that one look-up decodes at most
PAD = 64  # bytes behind the scan that may be read

ZIGZAG = np.array(
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
     28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61,
     54, 47, 55, 62, 63], np.uint8)  # fmt: skip


def _islow(c: list[int]) -> list[int]:
    """One pass of jidctint without its rounding, which is linear in its eight inputs."""
    z1 = (c[2] + c[6]) * 4433
    t2, t3 = z1 - c[6] * 15137, z1 + c[2] * 6270
    t0, t1 = (c[0] + c[4]) << 13, (c[0] - c[4]) << 13
    e = t0 + t3, t1 + t2, t1 - t2, t0 - t3
    t0, t1, t2, t3 = c[7], c[5], c[3], c[1]
    z1, z2, z3, z4 = t0 + t3, t1 + t2, t0 + t2, t1 + t3
    z5 = (z3 + z4) * 9633
    t0, t1, t2, t3 = t0 * 2446, t1 * 16819, t2 * 25172, t3 * 12299
    z1, z2, z3, z4 = -z1 * 7373, -z2 * 20995, -z3 * 16069 + z5, -z4 * 3196 + z5
    o = t3 + z1 + z4, t2 + z2 + z3, t1 + z2 + z4, t0 + z1 + z3
    return [e[i] + o[i] for i in range(4)] + [e[i] - o[i] for i in (3, 2, 1, 0)]


BASIS = np.array([_islow([int(i == k) for i in range(8)]) for k in range(8)], np.int32)  # [frequency, place]


def _crc_tables() -> np.ndarray:
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = (first >> np.uint32(1)) ^ (np.uint32(0xEDB88320) * (first & np.uint32(1)))
    tables = [first]
    for _ in range(7):
        tables.append((tables[-1] >> np.uint32(8)) ^ first[tables[-1] & np.uint32(255)])
    return np.array(tables, np.uint32)


CRC = _crc_tables()

U8, U64, I32, I64 = np.uint8, np.uint64, np.int32, np.int64
LOWS, HIGHS, ONES = U64(0x7F7F7F7F7F7F7F7F), U64(0x8080808080808080), U64(0x0101010101010101)


@inlined(fastmath=False)
def little(data: Any, at: Any) -> Any:
    """Eight bytes as a little-endian word; LLVM makes one load of it."""
    return (
        U64(data[at]) | (U64(data[at + U64(1)]) << U64(8)) | (U64(data[at + U64(2)]) << U64(16))
        | (U64(data[at + U64(3)]) << U64(24)) | (U64(data[at + U64(4)]) << U64(32))
        | (U64(data[at + U64(5)]) << U64(40)) | (U64(data[at + U64(6)]) << U64(48))
        | (U64(data[at + U64(7)]) << U64(56))
    )  # fmt: skip


@inlined(fastmath=False)
def big(data: Any, at: Any) -> Any:
    """Eight bytes as a big-endian word, likewise."""
    return (
        U64(data[at + U64(7)]) | (U64(data[at + U64(6)]) << U64(8)) | (U64(data[at + U64(5)]) << U64(16))
        | (U64(data[at + U64(4)]) << U64(24)) | (U64(data[at + U64(3)]) << U64(32))
        | (U64(data[at + U64(2)]) << U64(40)) | (U64(data[at + U64(1)]) << U64(48)) | (U64(data[at]) << U64(56))
    )  # fmt: skip


@kernel(fastmath=False)
def crc32(data: Any, start: Any, stop: Any) -> Any:
    """zlib.crc32 of data[start:stop], eight bytes at a time."""
    crc = U64(0xFFFFFFFF)
    at, end = U64(start), U64(stop)
    m = U64(255)
    while at + U64(8) <= end:
        w = little(data, at) ^ crc
        crc = U64(
            CRC[7, w & m] ^ CRC[6, (w >> U64(8)) & m] ^ CRC[5, (w >> U64(16)) & m] ^ CRC[4, (w >> U64(24)) & m]
            ^ CRC[3, (w >> U64(32)) & m] ^ CRC[2, (w >> U64(40)) & m] ^ CRC[1, (w >> U64(48)) & m]
            ^ CRC[0, w >> U64(56)]
        )  # fmt: skip
        at += U64(8)
    while at < end:
        crc = U64(CRC[0, (crc ^ U64(data[at])) & m]) ^ (crc >> U64(8))
        at += U64(1)
    return crc ^ U64(0xFFFFFFFF)


@kernel(fastmath=False)
def unstuff(data: Any, start: Any, stop: Any, scan: Any) -> Any:
    """The entropy-coded bytes up to the next marker, without the zeros behind 0xFF; their number.

    `scan` holds at least stop - start + PAD bytes.
    """
    at, end, to = U64(start), U64(stop), U64(0)
    while at < end:
        if at + U64(8) <= end:
            w = little(data, at)
            if (((w & LOWS) + ONES) & w & HIGHS) == U64(0):
                for i in range(8):
                    scan[to + U64(i)] = U8(w >> U64(8 * i))
                at += U64(8)
                to += U64(8)
                continue
        upto = min(at + U64(8), end)
        while at < upto:
            b = data[at]
            at += U64(1)
            if b == U8(255):
                if at >= end or data[at] != U8(0):
                    at = end
                    break
                at += U64(1)
            scan[to] = b
            to += U64(1)
    for i in range(PAD):
        scan[to + U64(i)] = U8(0)
    return I64(to)


@kernel(fastmath=False)
def codes(data: Any, at: Any, ends: Any, first: Any, symbols: Any) -> Any:
    """Canonical code of a DHT segment's table at `at`: for each length the end of its codes, left-aligned to 16 bits,
    and the place of its first symbol less its first code. Symbols are data[symbols:].

    Returns the number of symbols; -1 if this is not a code.
    """
    code, place = 0, 0
    for length in range(1, 17):
        count = I64(data[at + length - 1])
        first[length] = place - code
        code += count
        place += count
        if code > (1 << length):
            return -1
        ends[length] = code << (16 - length)
        code <<= 1
    return place if place <= 256 else -1


@kernel(fastmath=False)
def fill(data: Any, at: Any, table: Any, ac: Any) -> Any:
    """Look-up by the next LOOK bits: length | steps << 5 | value << 16 where code and value fit, else 0.

    Steps are the coefficients, or the blocks, to go on by. Returns code << 8 | length of symbol 0: of the end of block,
    or of no difference.
    """
    for i in range(SIZE):
        table[i] = 0
    code, place = 0, at + 16
    zero = 0
    for length in range(1, 17):
        for _ in range(I64(data[at + length - 1])):
            symbol = I64(data[place])
            size = symbol & 15 if ac else symbol
            steps = (symbol >> 4) + 1
            if symbol == 0:
                zero = (code << 8) | length
            if ac and size == 0:
                if length <= LOOK and (symbol == 0 or symbol == 0xF0):
                    e = I32(length | (LAST if symbol == 0 else 16 << 5))
                    low = code << (LOOK - length)
                    for i in range(low, low + (1 << (LOOK - length))):
                        table[i] = e
            elif length + size <= LOOK:
                spare = LOOK - length - size
                at_entry = code << (LOOK - length)
                for bits in range(1 << size):
                    value = bits if size == 0 or bits >> (size - 1) else bits - (1 << size) + 1
                    e = I32((length + size) | ((steps << 5) if ac else 1 << 5) | (value << 16))
                    for i in range(at_entry, at_entry + (1 << spare)):
                        table[i] = e
                    at_entry += 1 << spare
            code += 1
            place += 1
        code <<= 1
    return zero


@kernel(fastmath=False)
def fuse(table: Any, end_of_block: Any) -> Any:
    """Include the end of block in entries where it follows and fits."""
    code, length = I32(end_of_block >> 8), I32(end_of_block & 255)
    if length == 0 or length > LOOK:
        return
    mask = I32((1 << length) - 1)
    for i in range(SIZE):
        e = table[i]
        spare = I32(I32(LOOK) - I32(e & I32(31)) - length)
        follows = I32(I32(I32(i) >> I32(max(spare, I32(0)))) & mask) == code
        more = I32((e != I32(0)) & (I32(e & I32(LAST)) == I32(0)) & (spare >= I32(0)) & follows)
        table[i] = I32(e + I32(more * I32(length + I32(LAST))))


@kernel(fastmath=False)
def fuse_runs(table: Any, length: Any, code: Any) -> Any:
    """Include in entries of whole blocks up to RUN - 1 more that follow without difference or coefficients.

    The code of such a block is `code`, of `length` bits.
    """
    size, wanted, mask = I32(length), I32(code), I32((1 << length) - 1)
    for _ in range(RUN - 1):
        for i in range(SIZE):
            e = table[i]
            spare = I32(I32(LOOK) - I32(e & I32(31)) - size)
            follows = I32(I32(I32(i) >> I32(max(spare, I32(0)))) & mask) == wanted
            more = I32((I32(e & I32(LAST)) != I32(0)) & (spare >= I32(0)) & follows)
            table[i] = I32(e + I32(more * I32(size + I32(32))))


@kernel(fastmath=False)
def slow(buffer: Any, ends: Any, first: Any, data: Any, symbols: Any) -> Any:
    """Symbol << 8 | length of a code that no look-up holds; -1 if there is none."""
    top = I64(buffer >> U64(48))
    for length in range(1, 17):
        if top < ends[length]:
            return (I64(data[symbols + first[length] + (top >> (16 - length))]) << 8) | length
    return -1


@inlined(fastmath=False)
def extend(buffer: Any, length: Any, size: Any) -> Any:
    """The value of `size` bits behind `length` others, at the upper end of the buffer."""
    if size == 0:
        return I64(0)
    bits = I64((buffer << U64(length)) >> U64(64 - size))
    return bits if bits >> (size - 1) else bits - (1 << size) + 1


# The inverse transform on vectors, which stay in registers: a pass over a block's columns in eight lanes, one for each
# row, and one over its rows in 64. Loops over arrays, as numba compiles them, take twice as long. No bounds are checked
# here; their caller touches the last element that they use.
ROWS = ir.VectorType(ir.IntType(32), 8)
PIXELS = ir.VectorType(ir.IntType(32), 64)
QUICK = 4  # columns beyond these rarely hold anything


def _constant(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _same(builder: Any, kind: ir.VectorType, value: Any) -> Any:
    """The value in all lanes."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, _constant(kind, 0))


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _lanes(context: Any, builder: Any, kind: Any, array: Any, at: Any, lanes: ir.VectorType) -> Any:
    """Pointer to the int32 of an array from a place on."""
    place = builder.gep(_data(context, builder, kind, array), [at])
    return builder.bitcast(place, lanes.as_pointer())


@intrinsic
def begin(_: Any, half: Any, mean: Any) -> Any:
    """half[:8] = mean, the first column, and nothing in the others: half[8:64] = 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (kind, _), zero = signature.args, ir.IntType(64)(0)
        for lanes, value in ((PIXELS, _constant(PIXELS, 0)), (ROWS, _same(builder, ROWS, arguments[1]))):
            builder.store(value, _lanes(context, builder, kind, arguments[0], zero, lanes), align=4)
        return context.get_dummy_value()

    return types.void(half, types.int32), generate


@intrinsic
def accumulate(_: Any, half: Any, at: Any, value: Any, basis: Any, row: Any) -> Any:
    """half[at:at+8] += value * basis.flat[row:row+8]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _lanes(context, builder, signature.args[0], *arguments[:2], ROWS)
        down = _lanes(context, builder, signature.args[3], *arguments[3:], ROWS)
        product = builder.mul(_same(builder, ROWS, arguments[2]), builder.load(down, align=4))
        builder.store(builder.add(builder.load(place, align=4), product), place, align=4)
        return context.get_dummy_value()

    return types.void(half, types.uint64, types.int32, basis, types.uint64), generate


@intrinsic
def transform(_: Any, half: Any, columns: Any, lowest: Any, pixels: Any, to: Any) -> Any:
    """The second pass of the inverse transform and its rounding: 64 pixels from `to` on.

    Columns from QUICK on are left out if `columns`, an index or several joined by "or", holds none of them.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half, columns, lowest, pixels, to = arguments
        total = cgutils.alloca_once(builder, PIXELS)
        row_of = ir.Constant(PIXELS, [place // 8 for place in range(64)])

        def rounded(column: int) -> Any:
            start = ir.IntType(64)(8 * column)
            down = builder.load(_lanes(context, builder, signature.args[0], half, start, ROWS), align=4)
            down = builder.ashr(builder.add(down, _constant(ROWS, 1024)), _constant(ROWS, 11))
            return builder.shuffle_vector(down, down, row_of)

        def along(value: Any, first: int, stop: int) -> None:
            for column in range(first, stop):
                by = ir.Constant(PIXELS, [int(BASIS[column, place % 8]) for place in range(64)])
                value = builder.add(value, builder.mul(rounded(column), by))
            builder.store(value, total)

        mean = builder.shl(rounded(0), _constant(PIXELS, 13))
        along(builder.add(mean, _constant(PIXELS, (1 << 17) + (128 << 18))), 1, QUICK)
        with builder.if_then(builder.icmp_unsigned(">=", columns, ir.IntType(64)(QUICK))):
            along(builder.load(total), QUICK, 8)
        levels = builder.ashr(builder.load(total), _constant(PIXELS, 18))
        for limit, worse in ((_same(builder, PIXELS, lowest), "<"), (_constant(PIXELS, 255), ">")):
            levels = builder.select(builder.icmp_signed(worse, levels, limit), limit, levels)
        small = builder.trunc(levels, ir.VectorType(ir.IntType(8), 64))
        place = builder.gep(_data(context, builder, signature.args[3], pixels), [to])
        builder.store(small, builder.bitcast(place, small.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(half, types.uint64, types.int32, pixels, types.uint64), generate


@intrinsic
def copy_row(_: Any, out: Any, c: Any, y: Any, strip: Any, row: Any, skip: Any, count: Any) -> Any:
    """out[c,y,:count] = strip[row,skip:skip+count]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, c, y, strip, row, skip, count = arguments
        target = context.make_array(signature.args[0])(context, builder, out)
        source = context.make_array(signature.args[3])(context, builder, strip)
        _, height, width = cgutils.unpack_tuple(builder, target.shape, 3)
        across = builder.extract_value(source.shape, 1)
        to = builder.mul(builder.add(builder.mul(c, height), y), width)
        place = builder.add(builder.mul(row, across), skip)
        cgutils.raw_memcpy(
            builder, builder.gep(target.data, [to]), builder.gep(source.data, [place]), count, 1, align=1
        )
        return context.get_dummy_value()

    integers = types.int64, types.int64
    return types.void(out, *integers, strip, types.int64, types.uint64, types.int64), generate


@kernel(fastmath=False)
def scan_blocks(
    scan: Any, size: Any, data: Any, dc: Any, ac: Any, dc_ends: Any, dc_first: Any, dc_symbols: Any,
    ac_ends: Any, ac_first: Any, ac_symbols: Any, steps: Any, across: Any, end_of_block: Any, empty: Any,
    lower: Any, levels: Any, half: Any, pixels: Any, words: Any, place: Any, strip: Any,
    strip_bytes: Any, lowest: Any, top: Any, left: Any, tall: Any, broad: Any, out: Any,
) -> Any:  # fmt: skip
    """Entropy decoding and rendering into the upper left, tall x broad, of out[2,h,w]; OK or DAMAGED."""
    limit = U64(size + 16)
    at, buffer, count = U64(0), U64(0), U64(0)
    level = I32(0)
    q0 = I32(steps[0])
    first_column, end_column = left >> 3, (left + broad + 7) >> 3
    row_from, row_to = top >> 3, (top + tall + 7) >> 3
    lower_from, lower_to = (lower + top) >> 3, (lower + top + tall + 7) >> 3
    for block_row in range(lower_to):
        wanted = (block_row >= row_from and block_row < row_to) or block_row >= lower_from
        block, kept = 0, 0
        while block < across:
            buffer |= big(scan, at) >> count
            at += (U64(63) - count) >> U64(3)
            count |= U64(56)
            if at > limit:
                return DAMAGED
            e = dc[buffer >> U64(64 - LOOK)]
            if e & I32(LAST):
                length = I64(e & I32(31))
                n = I64((e >> I32(5)) & I32(127))
                if block + n > across:  # the rest of a run is in the next row
                    length -= (block + n - across) * empty
                    n = across - block
                buffer <<= U64(length)
                count -= U64(length)
                level += e >> I32(16)
                for i in range(RUN):
                    levels[U64(block + i)] = level
                block += n
                continue
            if e == 0:
                s = slow(buffer, dc_ends, dc_first, data, dc_symbols)
                if s < 0 or (s >> 8) > 11:
                    return DAMAGED
                length = (s & 255) + (s >> 8)
                level += I32(extend(buffer, s & 255, s >> 8))
                buffer <<= U64(length)
                count -= U64(length)
            else:
                buffer <<= U64(e & I32(31))
                count -= U64(e & I32(31))
                level += e >> I32(16)
            inside = wanted and block >= first_column and block < end_column
            if inside:
                begin(half, (level * q0) << I32(13))
            k, columns = I64(0), U64(0)
            while True:
                if count < U64(32):
                    buffer |= big(scan, at) >> count
                    at += (U64(63) - count) >> U64(3)
                    count |= U64(56)
                    if at > limit:
                        return DAMAGED
                e = ac[buffer >> U64(64 - LOOK)]
                if e == 0:
                    s = slow(buffer, ac_ends, ac_first, data, ac_symbols)
                    if s < 0:
                        return DAMAGED
                    symbol, length = s >> 8, s & 255
                    sz = symbol & 15
                    flag = I32(symbol == 0)
                    if (sz == 0 and symbol != 0xF0 and symbol != 0) or sz > 10:
                        return DAMAGED
                    value = I32(extend(buffer, length, sz))
                    length += sz
                    if symbol != 0:
                        k += (symbol >> 4) + 1
                else:
                    length = I64(e & I32(31))
                    k += I64((e >> I32(5)) & I32(127))
                    value = e >> I32(16)
                    flag = e & I32(LAST)
                if k >= 63:
                    if k > 63:
                        return DAMAGED
                    if flag != 0 and value != 0:  # behind the last coefficient there is no end of block
                        length -= end_of_block & 255
                    flag = I32(1)
                buffer <<= U64(length)
                count -= U64(length)
                if value != 0 and inside:
                    z = U64(ZIGZAG[U64(k)])
                    v, column = z >> U64(3), z & U64(7)
                    columns |= column
                    accumulate(half, column << U64(3), I32(value * steps[U64(k)]), BASIS, v << U64(3))
                if flag != 0:
                    break
            if inside:
                # Kept until the row's other blocks are in place.
                place[U64(kept)] = U64(block - first_column)
                to = U64(kept) << U64(6)
                kept += 1
                pixels[to + U64(63)] = U8(0)  # where bounds are checked, the next line's are
                transform(half, columns, I32(lowest), pixels, to)
            block += 1
        if wanted:
            wide = end_column - first_column
            for i in range(wide):
                pixel = I32(I32(I32(levels[U64(first_column + i)] * q0) + I32(4)) >> I32(3)) + I32(128)
                strip[0, U64(i)] = U64(min(max(pixel, I32(lowest)), I32(255))) * ONES
            for row in range(1, 8):
                for i in range(wide):
                    strip[U64(row), U64(i)] = strip[0, U64(i)]
            for i in range(kept):
                for row in range(8):
                    strip[U64(row), place[U64(i)]] = words[U64(8 * i + row)]
            skip = U64(left - 8 * first_column)
            for row in range(8):
                y = 8 * block_row + row - top
                for c in range(2):
                    target = y - (lower if c else 0)
                    if target >= 0 and target < tall:
                        end = U64(broad - 1)  # where bounds are checked, those of the whole row are
                        out[c, U64(target), end] = strip_bytes[U64(row), skip + end]
                        copy_row(out, c, target, strip_bytes, row, skip, broad)
    return OK if 8 * I64(at) - I64(count) <= 8 * size else DAMAGED


@kernel(fastmath=False)
def decode(
    data: Any, start: Any, stop: Any, height: Any, width: Any, lowest: Any, top: Any, left: Any, tall: Any,
    broad: Any, out: Any,
    s: Any,
) -> Any:  # fmt: skip
    """One stream data[start:stop] of x over y, each height x width: its tall x broad pixels at (top, left)
    go into the upper left of out[2,h,w].

    Levels are at least `lowest`. OK, or why it was not decoded; `out` may hold anything then.
    """
    scan, tables, ends, first, steps, levels, half, pixels, words, place, strip, strip_bytes = s
    if (
        stop - start < 4
        or data[start] != 0xFF
        or data[start + 1] != 0xD8
        or scan.size < stop - start + PAD
        or place.size < (width + 7) >> 3
    ):
        return UNSUPPORTED
    at = start + 2
    have = 0
    rows = 0
    symbols0, symbols1, same, eob = 0, 0, 0, 0
    while True:
        if at + 4 > stop or data[at] != 0xFF:
            return UNSUPPORTED
        marker = data[at + 1]
        size = (I64(data[at + 2]) << 8) | I64(data[at + 3])
        end = at + 2 + size
        if size < 2 or end > stop:
            return UNSUPPORTED
        at += 4
        if marker == 0xDB:
            while at < end:
                if data[at] != 0 or at + 65 > end:
                    return UNSUPPORTED
                for i in range(64):
                    steps[i] = data[at + 1 + i]
                at += 65
            have |= 1
        elif marker == 0xC0:
            if size != 11 or data[at] != 8 or data[at + 5] != 1 or data[at + 8] != 0:
                return UNSUPPORTED
            rows = (I64(data[at + 1]) << 8) | I64(data[at + 2])
            if (I64(data[at + 3]) << 8) | I64(data[at + 4]) != width:
                return UNSUPPORTED
            have |= 2
        elif marker == 0xC4:
            while at < end:
                if at + 17 > end or (data[at] != 0 and data[at] != 0x10):
                    return UNSUPPORTED
                kind = 1 if data[at] else 0
                n = codes(data, at + 1, ends[kind], first[kind], 0)
                if n < 0 or at + 17 + n > end:
                    return UNSUPPORTED
                if kind:
                    symbols1 = at + 17
                    eob = fill(data, at + 1, tables[1], True)
                    have |= 8
                else:
                    symbols0 = at + 17
                    for i in range(n):
                        if data[at + 17 + i] > 11:
                            return UNSUPPORTED
                    same = fill(data, at + 1, tables[0], False)
                    have |= 4
                at += 17 + n
        elif marker == 0xDA:
            if (
                size != 8
                or data[at] != 1
                or data[at + 2] != 0
                or data[at + 3] != 0
                or data[at + 4] != 63
                or data[at + 5]
            ):
                return UNSUPPORTED
            if have != 15:
                return UNSUPPORTED
            at = end
            break
        elif marker < 0xE0 or (marker > 0xEF and marker != 0xFE):
            return UNSUPPORTED
        at = end
    if rows == 2 * height:
        lower = height
    elif rows == 2 * height + (-height & 7):
        lower = height + (-height & 7)
    else:
        return UNSUPPORTED
    fuse(tables[0], eob)
    empty = (same & 255) + (eob & 255)
    if same and eob and empty <= LOOK:
        fuse_runs(tables[0], empty, ((same >> 8) << (eob & 255)) | (eob >> 8))
    fuse(tables[1], eob)
    n = unstuff(data, at, stop, scan)
    return scan_blocks(scan, n, data, tables[0], tables[1], ends[0], first[0], symbols0, ends[1], first[1], symbols1,
                       steps, (width + 7) >> 3, eob, empty, lower, levels, half, pixels, words, place, strip,
                       strip_bytes, lowest, top, left, tall, broad, out)  # fmt: skip


@kernel(fastmath=False)
def decode_streams(
    data: Any, start: Any, sums: Any, first: Any, done: Any, targets: Any, height: Any, width: Any,
    lowest: Any, top: Any, left: Any, tall: Any, broad: Any, out: Any, s: Any,
) -> Any:  # fmt: skip
    """Streams first + done .. first + len(targets) - 1, of which the i-th goes into the
    upper left of out[targets[i]], uint8[2,h,w].

    Args:
        data: the bytes from stream `first` on.
        start, sums: of all streams: where they begin, int64[n+1], and their CRC-32, uint32[n].
        s: `scratch`.

    Returns:
        OK, or code | i << 8 for the first stream that was not decoded; those before it were.
    """
    for i in range(done, len(targets)):
        a, b = start[first + i] - start[first], start[first + i + 1] - start[first]
        if a < 0 or b < a or b > data.size or crc32(data, a, b) != U64(sums[first + i]):
            return CHECKSUM | (i << 8)
        code = decode(data, a, b, height, width, lowest, top, left, tall, broad, out[targets[i]], s)
        if code != OK:
            return code | (i << 8)
    return OK


def scratch(longest: int, width: int) -> tuple[npt.NDArray[Any], ...]:
    """Scratch memory that one thread needs: streams of up to `longest` bytes, of fields of up to `width` columns."""
    across = (width + 7) // 8
    words, strip = np.zeros(8 * across, np.uint64), np.zeros((8, across), np.uint64)
    return (
        np.zeros(longest + PAD, np.uint8), np.zeros((2, SIZE), np.int32), np.zeros((2, 17), np.int64),
        np.zeros((2, 17), np.int64), np.zeros(64, np.int32), np.zeros(across + RUN, np.int32),
        np.zeros(64, np.int32), words.view(np.uint8), words, np.zeros(across, np.uint64),
        strip, strip.view(np.uint8),
    )  # fmt: skip
