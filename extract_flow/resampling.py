"""Separable linear resampling as tables of taps, which the CPU's and the GPU's loops apply alike.

A table is made once per size on the host, so any kernel and any border rule is possible; the loops know neither.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Taps(NamedTuple):
    """One dimension of a linear resampling: output i is the sum over k of weights[i, k] * input[first[i] + k].

    Attributes:
        first: int32[outputs]; first[i] + k stays inside the input for every k.
        weights: float32[outputs, taps].
    """

    first: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]


def taps_of(matrix: npt.NDArray[np.floating], normalise: bool = False) -> Taps:
    """The table of a resampling matrix [outputs, inputs]: the window of each row that holds its non-zero values.

    Args:
        matrix: weight of each input for each output.
        normalise: scale every row to the sum 1.
    """
    used = matrix != 0
    inputs = matrix.shape[1]
    start, end = used.argmax(1), inputs - used[:, ::-1].argmax(1)
    width = int((end - start).max())
    first = np.minimum(start, inputs - width)
    weights = np.take_along_axis(matrix, first[:, None] + np.arange(width), axis=1)
    if normalise:
        weights = weights / weights.sum(1, keepdims=True)
    return Taps(first.astype(np.int32), weights.astype(np.float32))
