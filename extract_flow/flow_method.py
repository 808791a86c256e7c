"""The interface that flow methods share, from single calls to batched CPU solvers and GPUs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from pipeline.codec import Quantised, Quantiser


class DeviceMemoryError(RuntimeError):
    """The device has too little memory for this many pairs at once; callers halve the batch and retry."""


class DeviceLostError(RuntimeError):
    """The device failed so that this process can compute nothing more on it; a new process perhaps can."""


class FlowMethod(ABC):
    """One method with its parameters on one device; made once per process, since solvers keep their buffers.

    Attributes:
        name: the method's name, a key of `extract_flow.methods.MODULES`.
        device: "cpu" or "cuda:N", as actually used.
        parameters: every option's value; what a shard records, and what must match for it to count as the same.
        implementation: the library that computes, with its version, where that is not this project's; recorded only.
        device_count: devices of this kind that this process can see; an extraction shares them among its processes.
        batch_pairs: pairs worth handing over at once.
    """

    name: str
    device: str
    parameters: dict[str, Any]
    implementation: str = ""
    device_count: int = 1
    batch_pairs: int = 16

    def __repr__(self) -> str:
        """The call of `extract_flow.methods.load` that makes it, without its threads."""
        values = {"device": self.device, **self.parameters}
        return f"load({', '.join([repr(self.name), *(f'{key}={value!r}' for key, value in values.items())])})"

    @abstractmethod
    def flow(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Flow of each pair: frames uint8[T,H,W], pairs int[n,2] of (from, to) -> float32[n,2,H,W] in pixels."""

    @overload
    def run(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...
    @overload
    def run(
        self,
        frames: npt.NDArray[np.uint8],
        pairs: npt.NDArray[np.int64],
        output: Literal["flow"],
    ) -> npt.NDArray[np.float32]: ...
    @overload
    def run(
        self,
        frames: npt.NDArray[np.uint8],
        pairs: npt.NDArray[np.int64],
        output: Literal["levels"],
        quantiser: Quantiser,
    ) -> Quantised: ...

    def run(
        self,
        frames: npt.NDArray[np.uint8],
        pairs: npt.NDArray[np.int64],
        output: Literal["flow", "levels"] = "flow",
        quantiser: Quantiser | None = None,
    ) -> npt.NDArray[np.float32] | Quantised:
        """Flow or quantised flow of the given pairs of frames.

        Several clips of one size may lie end to end in `frames`; forward and backward pairs and any step share the
        per-frame work (pyramids, gradients). The result of a pair does not depend on the other pairs.

        Args:
            frames: gray, uint8[T,H,W].
            pairs: int[n,2], the indices (from, to) of each pair.
            output: "flow" for float32[n,2,H,W] in pixels, "levels" for what a shard stores.
            quantiser: needed for "levels".

        Raises:
            ValueError: wrong shapes or types, or indices outside the frames.
            DeviceMemoryError: too many pairs at once for the device.
        """
        frames, pairs = check_frames(frames), check_pairs(pairs, len(frames))
        if output == "flow":
            return self.flow(frames, pairs)
        if quantiser is None:
            raise ValueError("output='levels' needs a quantiser (pipeline.codec)")
        return self.levels(frames, pairs, quantiser)

    def levels(
        self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], quantiser: Quantiser
    ) -> Quantised:
        """Quantised flow; methods on a device override this so that only levels and means come back."""
        return quantiser.quantise(self.flow(frames, pairs))

    def begin(
        self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], quantiser: Quantiser
    ) -> Callable[[], Quantised]:
        """Start `run` for levels; what is returned waits for the result, and raises its errors.

        A method on a device returns while the device works, so that the next pairs can be prepared meanwhile. Results
        may be asked for in any order. The frames may change once this has returned.

        Raises:
            ValueError: wrong shapes or types, or indices outside the frames.
            DeviceMemoryError: too many pairs at once for the device.
        """
        result = self.run(frames, pairs, "levels", quantiser)
        return lambda: result

    def share_device(self, processes: int) -> None:  # noqa: B027  most methods have no device memory to share
        """Leave so many other processes, less this one, their parts of the device's memory."""

    def __call__(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Forward flow of consecutive frames: uint8[T,H,W] -> float32[T-1,2,H,W] in pixels."""
        steps = np.arange(max(len(frames) - 1, 0))
        return self.run(frames, np.stack([steps, steps + 1], axis=1))


def check_frames(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames as contiguous uint8[T,H,W], or ValueError."""
    frames = np.ascontiguousarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 3 or 0 in frames.shape[1:]:
        raise ValueError(f"frames: expected gray uint8[T,H,W], found {frames.dtype}{list(frames.shape)}")
    return frames


def check_pairs(pairs: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Pairs as int64[n,2] with every index inside 0..count-1, or ValueError."""
    pairs = np.asarray(pairs)
    if not np.issubdtype(pairs.dtype, np.integer) or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: expected int[n,2] of (from, to), found {pairs.dtype}{list(pairs.shape)}")
    if pairs.size and (pairs.min() < 0 or pairs.max() >= count):
        raise ValueError(
            f"pairs: indices run from {pairs.min()} to {pairs.max()}, but there are {count} frames"
        )
    return pairs.astype(np.int64, copy=False)
