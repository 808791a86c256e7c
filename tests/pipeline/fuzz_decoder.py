"""Damaged streams through the decoder's kernels, with numba's bounds checks. Ends with 1 at an access outside an array.

    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=/tmp/checked PYTHONPATH=.:tests/pipeline \
        python tests/pipeline/fuzz_decoder.py --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time

import numpy as np
from test_decoder import fields, other_kinds

from pipeline import decoder_kernels as kernels
from pipeline.codec import codec

HEIGHT, WIDTH = 40, 60


def damaged(stream: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, single bytes changed in the header or anywhere, a stretch replaced, or the same byte to the end."""
    data, kind = bytearray(stream), int(rng.integers(5))
    if kind == 0:
        del data[int(rng.integers(1, len(data))) :]
    elif kind == 1:
        data[int(rng.integers(min(len(data), 200)))] = int(rng.integers(256))
    elif kind == 2:
        for place in rng.integers(len(data), size=int(rng.integers(1, 6))):
            data[place] = int(rng.integers(256))
    elif kind == 3:
        place = int(rng.integers(len(data)))
        data[place : place + int(rng.integers(1, 200))] = rng.bytes(int(rng.integers(0, 200)))
    else:
        place = int(rng.integers(len(data) // 2, len(data)))
        data[place:] = bytes([int(rng.choice([0, 255, 127, 0xAA]))]) * (len(data) - place)
    return bytes(data)


def main() -> int:
    """Fuzz for some seconds, after compiling."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.environ.get("NUMBA_BOUNDSCHECK") != "1":
        print("NUMBA_BOUNDSCHECK=1 is to be set")
        return 2
    rng = np.random.default_rng(options.seed)
    coding, seen = codec(), collections.Counter[int]()
    streams = [coding.encode(field) for field in coding.quantiser.quantise(fields(12, HEIGHT, WIDTH)).levels]
    streams += other_kinds().values()
    room = kernels.scratch(8192, WIDTH)
    out = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    until = None
    while until is None or time.monotonic() < until or sum(seen.values()) < 500:
        stream = streams[int(rng.integers(len(streams)))]
        data = np.frombuffer(damaged(stream, rng)[: 8192 - kernels.PAD], np.uint8)
        tall, broad = int(rng.integers(1, HEIGHT + 1)), int(rng.integers(1, WIDTH + 1))
        top, left = int(rng.integers(HEIGHT - tall + 1)), int(rng.integers(WIDTH - broad + 1))
        try:
            code = kernels.decode(data, 0, len(data), HEIGHT, WIDTH, 0, top, left, tall, broad, out, room)
        except IndexError as error:
            print(f"{error}: {data.tobytes().hex()} cut at {top}, {left}, {tall}x{broad}")
            return 1
        seen[code] += 1
        until = until or time.monotonic() + options.seconds
    print(f"{sum(seen.values())} streams: {dict(seen)} (0 decoded, 2 not supported, 3 damaged)")
    return 0 if {kernels.OK, kernels.UNSUPPORTED, kernels.DAMAGED} <= seen.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
