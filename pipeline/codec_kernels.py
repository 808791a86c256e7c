"""The codec's loops over pixels, compiled by numba; imported when first used, since numba takes a while to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.compiled import inlined, kernel

LARGEST_FINITE = np.finfo(np.float32).max


@inlined(fastmath=False)
def limited(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """The value within low..high, and low for NaN, so that what is computed from it is a valid index."""
    raised = value if value > low else low
    return raised if raised < high else high


@kernel(fastmath=False)
def sum_field(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    unit: np.float32,
    limit: np.float32,
    sums: npt.NDArray[np.int64],
) -> bool:
    """Fixed-point sums of one field's components; False if a value is not finite."""
    finite = True
    x_sum = np.int64(0)
    y_sum = np.int64(0)
    for pixel in range(x.size):
        value = x[pixel]
        finite &= abs(value) <= LARGEST_FINITE
        x_sum += np.int64(np.rint(limited(value, -limit, limit) * unit))
        value = y[pixel]
        finite &= abs(value) <= LARGEST_FINITE
        y_sum += np.int64(np.rint(limited(value, -limit, limit) * unit))
    sums[0] = x_sum
    sums[1] = y_sum
    return finite


@kernel(fastmath=False)
def count_beyond(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    limits: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    """For each limit, in ascending order, the pixels with max(|x - offset|, |y - offset|) above it: int64[limits]."""
    beyond = np.zeros(limits.size, np.int64)
    x_offset, y_offset = offset[0], offset[1]
    first = limits[0]
    for pixel in range(x.size):
        reach = max(abs(x[pixel] - x_offset), abs(y[pixel] - y_offset))
        if reach > first:
            for k in range(limits.size):
                beyond[k] += reach > limits[k]
    return beyond


@kernel(fastmath=False)
def quantise_field(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    edges: npt.NDArray[np.float32],
    bins: npt.NDArray[np.uint8],
    lowest: np.float32,
    highest: np.float32,
    bins_per_unit: np.float32,
    x_levels: npt.NDArray[np.uint8],
    y_levels: npt.NDArray[np.uint8],
) -> int:
    """Levels of one field of finite values; returns the clipped pixels.

    A value's bin gives its level except for the one edge that may lie in that bin, so one comparison decides. Exact:
    binning is monotone, hence edges in lower bins are below the value and edges in higher bins above it.
    """
    clipped = 0
    for pixel in range(x.size):
        value = (x[pixel] - offset[0]) / scale[0]
        inside = limited(value, lowest, highest)
        outside = inside != value
        level = bins[np.uint32((inside - lowest) * bins_per_unit)]
        x_levels[pixel] = level + (inside >= edges[level])

        value = (y[pixel] - offset[1]) / scale[1]
        inside = limited(value, lowest, highest)
        outside |= inside != value
        level = bins[np.uint32((inside - lowest) * bins_per_unit)]
        y_levels[pixel] = level + (inside >= edges[level])
        clipped += outside
    return clipped


@kernel(fastmath=False)
def look_up(
    levels: npt.NDArray[np.uint8], table: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """out[i] = table[levels[i]] over flat arrays."""
    for i in range(levels.size):
        out[i] = table[levels[i]]


@intrinsic
def store_past_cache(
    context: Any, target: types.Array, index: types.Integer, value: types.Integer
) -> tuple[Any, Callable[..., Any]]:
    """target[index] = value by a non-temporal store: a batch of flow does not fit into the cache, and written in the
    usual way it evicts what the next image's decoding needs (measured: a third of the decoding time)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        store = builder.store(arguments[2], builder.gep(array.data, [arguments[1]]))
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint64), generate


@kernel(fastmath=False)
def look_up_planes(
    levels: npt.NDArray[np.uint8], values: npt.NDArray[np.uint32], out: npt.NDArray[np.uint64]
) -> None:
    """Two neighbours at a time, out[p] = values[p,levels[p]]: levels[planes,2n], the bits of values float32[planes,256]
    and of out float32[planes,2n]."""
    planes, pairs = out.shape
    flat = out.reshape(-1)
    for plane in range(planes):
        for i in range(pairs):
            first = np.uint64(values[plane, levels[plane, 2 * i]])
            second = np.uint64(values[plane, levels[plane, 2 * i + 1]])
            store_past_cache(flat, plane * pairs + i, first | (second << np.uint64(32)))  # type: ignore[call-arg, arg-type]


@kernel(fastmath=False)
def look_up_windows(
    levels: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint32],
    planes: npt.NDArray[np.int64],
    signs: npt.NDArray[np.uint64],
    top: int,
    left: int,
    out: npt.NDArray[np.uint64],
    mirrored: npt.NDArray[np.uint64],
) -> None:
    """A window of several planes, and its mirror image, two neighbours at a time as in `look_up_planes`.

    Args:
        levels: [planes,H,W].
        values: bits of float32[planes,256].
        planes: [n], which ones.
        signs: [n], set bits are those that differ in the mirror image.
        top, left: the window's upper left; it lies within H and W.
        out: bits of float32[n,rows,2*pairs], the window.
        mirrored: of the same shape, the same with columns reversed; empty if it is not wanted.
    """
    height, width = levels.shape[1:]
    count, rows, pairs = out.shape
    lines, straight, reverse = levels.reshape(-1), out.reshape(-1), mirrored.reshape(-1)
    at = np.uint64(0)
    for i in range(count):
        table, sign = values[planes[i]], signs[i]
        for row in range(rows):
            start = np.uint64((planes[i] * height + top + row) * width + left)
            end = at + np.uint64(pairs - 1)
            for k in range(pairs):
                place = start + np.uint64(2 * k)
                first, second = np.uint64(table[lines[place]]), np.uint64(table[lines[place + np.uint64(1)]])
                store_past_cache(straight, at + np.uint64(k), first | (second << np.uint64(32)))  # type: ignore[call-arg, arg-type]
                if reverse.size:
                    turned = (second | (first << np.uint64(32))) ^ sign
                    store_past_cache(reverse, end - np.uint64(k), turned)
            at += np.uint64(pairs)


@kernel(fastmath=False)
def look_up_pairs(
    levels: npt.NDArray[np.uint16], table: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]
) -> None:
    """out[i] = table[levels[i]], where a uint16 is two neighbouring levels and a uint64 their two values."""
    for i in range(levels.size):
        store_past_cache(out, i, table[levels[i]])  # type: ignore[call-arg, arg-type]  # numba adds the context


@intrinsic
def store_scaled_past_cache(
    context: Any,
    target: types.Array,
    index: types.Integer,
    pair: types.Integer,
    scale: types.Float,
    offset: types.Float,
) -> tuple[Any, Callable[..., Any]]:
    """As `store_past_cache`, of the two float32 in `pair`, each times scale plus offset, rounded after each step."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        floats = ir.VectorType(ir.FloatType(), 2)

        def both(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(floats, ir.Undefined), value, ir.IntType(32)(0))
            return builder.insert_element(first, value, ir.IntType(32)(1))

        values = builder.bitcast(arguments[2], floats)
        values = builder.fadd(builder.fmul(values, both(arguments[3])), both(arguments[4]))
        word = builder.bitcast(values, ir.IntType(64))
        store = builder.store(word, builder.gep(array.data, [arguments[1]]))
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint64, types.float32, types.float32), generate


@kernel(fastmath=False)
def look_up_scaled_pairs(
    levels: npt.NDArray[np.uint16],
    table: npt.NDArray[np.uint64],
    out: npt.NDArray[np.uint64],
    scale: np.float32,
    offset: np.float32,
) -> None:
    """As `look_up_pairs`, with every value times scale plus offset."""
    for i in range(levels.size):
        store_scaled_past_cache(out, i, table[levels[i]], scale, offset)  # type: ignore[call-arg, arg-type]
