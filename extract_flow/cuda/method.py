"""The `FlowMethod` around a CUDA solver: chunks of pairs on two streams, frames up as uint8, levels down as uint8.

Each of two lanes has a stream, its solver's buffers and pinned host memory. While one lane computes, the other's
results travel down and its next frames travel up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import cuda

from extract_flow.cuda import device as devices
from extract_flow.cuda import quantise
from extract_flow.flow_method import FlowMethod
from pipeline.codec import Quantised, Quantiser

LANES = 2
MOST_PAIRS = 128
"""Pairs of a chunk at most: about a block per multiprocessor for the levels that fit one block."""
MEMORY_SHARE = 0.8
USUAL_SIZE = (256, 340)


class Solver(Protocol):
    """Buffers for up to `frames` frames and `pairs` pairs of one size, and the solver that works in them."""

    def solve(self, frames: Any, first: Any, second: Any, pairs: int, stream: Any) -> Any:
        """Queue the flow of pairs.

        Args:
            frames: device uint8[T,H,W], T at most `frames`.
            first, second: device int32[n]: the frames of each pair.
            pairs: n.
            stream: a numba stream. Nothing may wait for the host.

        Returns:
            device float32, flat, at least n*2*H*W long: the flow [n,2,H,W] in pixels.
        """


MakeSolver = Callable[[int, int, int, int], Solver]
"""(height, width, frames, pairs) -> Solver"""


class _Lane:
    """A stream with buffers for chunks of one size of frame."""

    def __init__(self, make: MakeSolver, height: int, width: int, frames: int, pairs: int) -> None:
        pixels = height * width
        self.frames, self.pairs = frames, pairs
        self.stream = 0 if devices.SIMULATED else cuda.stream()
        self.solver = make(height, width, frames, pairs)
        self.device_frames = cuda.device_array((frames, height, width), np.uint8)
        self.host_frames = cuda.pinned_array((frames, height, width), np.uint8)
        self.device_pairs = [cuda.device_array(pairs, np.int32) for _ in range(2)]
        self.host_pairs = cuda.pinned_array((2, pairs), np.int32)
        self.levels = quantise.allocate(pairs, pixels)
        self.host_levels = cuda.pinned_array(pairs * 2 * pixels, np.uint8)
        self.flow: Any = None

    def queue(
        self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], quantiser: Quantiser | None
    ) -> None:
        """Queue a chunk; the lane must be idle."""
        used, index = np.unique(pairs, return_inverse=True)
        index = index.reshape(pairs.shape)
        count, height, width = len(pairs), *frames.shape[1:]
        self.host_frames[: len(used)] = frames[used]
        self.device_frames[: len(used)].copy_to_device(self.host_frames[: len(used)], stream=self.stream)
        for side in range(2):
            self.host_pairs[side, :count] = index[:, side]
            self.device_pairs[side][:count].copy_to_device(self.host_pairs[side, :count], stream=self.stream)
        self.flow = self.solver.solve(
            self.device_frames[: len(used)], self.device_pairs[0], self.device_pairs[1], count, self.stream
        )
        if quantiser is not None:
            quantise.quantise(self.flow, count, height * width, quantiser, self.levels, self.stream)
            size = count * 2 * height * width
            self.levels.levels[:size].copy_to_host(self.host_levels[:size], stream=self.stream)

    def collect_flow(self, flow: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Wait for the chunk; its flow float32[n,2,H,W], of the given array's shape."""
        back = self.flow[: flow.size].copy_to_host(stream=self.stream)
        quantise.stream_wait(self.stream)
        return np.asarray(back).reshape(flow.shape)

    def collect_levels(self, shape: tuple[int, ...], quantiser: Quantiser) -> Quantised:
        """Wait for the chunk; its levels, in memory that the next chunk overwrites."""
        quantise.stream_wait(self.stream)
        levels = np.asarray(self.host_levels[: int(np.prod(shape))]).reshape(shape)
        return quantise.collect(levels, quantiser, self.levels, self.stream)


class CudaMethod(FlowMethod):
    """A method on one GPU; see `FlowMethod`.

    Args:
        name: the method's name.
        parameters: its `Parameters`.
        device: "auto", "cuda" or "cuda:N".
        make: makes the solver for one size of frame.
        bytes_per_pair: (height, width) -> device bytes that a pair and its share of the frames need.

    Raises:
        InputError: see `device.select`.
    """

    def __init__(
        self,
        name: str,
        parameters: Any,
        device: str,
        make: MakeSolver,
        bytes_per_pair: Callable[[int, int], int],
    ) -> None:
        self.index = devices.select(name, device)
        self.name = name
        self.device = f"cuda:{self.index}"
        self.device_count = devices.device_count()
        self.parameters = dataclasses.asdict(parameters)
        self._make, self._bytes_per_pair = make, bytes_per_pair
        self._size: tuple[int, int] | None = None
        self._lanes: list[_Lane] = []
        self._memory = devices.free_memory()
        self.batch_pairs = LANES * self.chunk_pairs(*USUAL_SIZE)

    def chunk_pairs(self, height: int, width: int) -> int:
        """Pairs that a lane takes at once."""
        fitting = MEMORY_SHARE * self._memory / (LANES * self._bytes_per_pair(height, width))
        return int(max(1, min(MOST_PAIRS, fitting)))

    def flow(self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Flow of each pair: frames uint8[T,H,W], pairs int[n,2] of (from, to) -> float32[n,2,H,W] in pixels.

        Raises:
            DeviceMemoryError: too many pairs at once for the device.
        """
        flow = np.empty((len(pairs), 2, *frames.shape[1:]), np.float32)
        for chosen, lane in self._chunks(frames, pairs, None):
            flow[chosen] = lane.collect_flow(flow[chosen])
        return flow

    def levels(
        self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], quantiser: Quantiser
    ) -> Quantised:
        """Quantised flow; only levels and sums come back from the device, or flow where levels need a range per field.

        Raises:
            DeviceMemoryError: too many pairs at once for the device.
            ValueError: a field that is not finite.
        """
        if quantiser.ladder:  # which the kernels do not choose yet
            return super().levels(frames, pairs, quantiser)
        count = len(pairs)
        result = Quantised(
            np.empty((count, 2, *frames.shape[1:]), np.uint8), np.empty((count, 2), np.float32),
            np.empty((count, 2), np.float32), np.empty((count, 2), np.float32), np.empty(count, np.float32),
        )  # fmt: skip
        for chosen, lane in self._chunks(frames, pairs, quantiser):
            part = lane.collect_levels((len(chosen), 2, *frames.shape[1:]), quantiser)
            for field in dataclasses.fields(Quantised):
                getattr(result, field.name)[chosen] = getattr(part, field.name)
        return result

    def _chunks(
        self, frames: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64], quantiser: Quantiser | None
    ) -> Iterator[tuple[npt.NDArray[np.int64], _Lane]]:
        """Queue the chunks on the lanes in turn; yield (pairs of the chunk, lane) when its results are due."""
        order = np.argsort(pairs.min(axis=1), kind="stable") if len(pairs) else np.empty(0, np.int64)
        most = self.chunk_pairs(*frames.shape[1:])
        chunks = [order[start : start + most] for start in range(0, len(order), most)]
        waiting: list[tuple[npt.NDArray[np.int64], _Lane]] = []
        if not devices.SIMULATED:
            cuda.select_device(self.index)
        for number, chosen in enumerate(chunks):
            if len(waiting) == LANES:
                yield waiting.pop(0)
            try:
                with devices.memory_errors(
                    f"{self.name} of {len(chosen)} pairs of {frames.shape[2]}x{frames.shape[1]}"
                ):
                    lane = self._lane(number % LANES, frames.shape[1:], pairs[chosen])
                    lane.queue(frames, pairs[chosen], quantiser)
            except BaseException:
                self._lanes = []
                raise
            waiting.append((chosen, lane))
        yield from waiting

    def _lane(self, number: int, size: tuple[int, ...], pairs: npt.NDArray[np.int64]) -> _Lane:
        """A lane with room for these pairs of this size; one that is too small or of another size is freed first."""
        if self._size != size:
            self._lanes, self._size = [], (size[0], size[1])
        frames, count = len(np.unique(pairs)), len(pairs)
        if number < len(self._lanes):
            lane = self._lanes[number]
            if lane.frames >= frames and lane.pairs >= count:
                return lane
            frames, count = max(frames, lane.frames), max(count, lane.pairs)
            # Lanes are filled from the first, so a later one's results have been fetched before it is replaced.
            del self._lanes[number]
            del lane
        self._lanes.insert(number, _Lane(self._make, size[0], size[1], frames, count))
        return self._lanes[number]
