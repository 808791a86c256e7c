"""The `FlowMethod` around a CUDA solver: chunks of pairs on two streams, frames up as uint8, levels down as uint8.

Each of two lanes has a stream, its solver's buffers and pinned host memory. While one lane computes, the other's
results are fetched and its next frames are laid ready. What a chunk does on the device is recorded as a CUDA graph the
first time, and started with one call after that.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from extract_flow.cuda import device as devices
from extract_flow.cuda import quantise
from extract_flow.cuda.device import Buffer, Device, Graph, Memory, Part, Pinned, Stream
from extract_flow.cuda.images import Size
from extract_flow.cuda.kernels import Kernels, Program
from extract_flow.flow_method import DeviceMemoryError, FlowMethod, check_frames, check_pairs
from pipeline.codec import Quantised, Quantiser

LANES = 2
MOST_PAIRS = 128
"""Pairs of a chunk at most: about a block per multiprocessor for the levels that one block solves."""
MEMORY_SHARE = 0.8
USUAL_SIZE = (256, 340)
GRAPHS = 16
"""Recorded chunks that a lane keeps; one for each count of frames and pairs."""

Indices = npt.NDArray[np.int64]


class Solver(Protocol):
    """Buffers for up to `frames` frames and `pairs` pairs of one size, and the solver that works in them."""

    def solve(
        self, frames: Memory, count: int, first: Memory, second: Memory, pairs: int, stream: Stream
    ) -> Memory:
        """Queue the flow of pairs; nothing may wait for the host.

        Args:
            frames: uint8[count, height, width].
            count: frames.
            first, second: int32[pairs]: the frames of each pair.
            pairs: how many.
            stream: where.

        Returns:
            The flow in pixels, float32[pairs, 2, height, pitch] (`images.Size`).
        """


MakeSolver = Callable[[Kernels, Size, int, int], Solver]
"""(kernels, size, frames, pairs) -> Solver"""


class _Lane:
    """A stream with buffers for chunks of one size of frame."""

    def __init__(self, method: CudaMethod, size: Size, frames: int, pairs: int) -> None:
        self.size, self.frames, self.pairs = size, frames, pairs
        self.stream = Stream()
        self._levels_kernels = method.levels_kernels
        self._solver = method.make(method.kernels, size, frames, pairs)
        self._frames = Buffer(frames * size.height * size.width)
        self._host_frames = Pinned((frames, *size), np.uint8)
        self._pairs = Buffer(2 * 4 * pairs)
        self._host_pairs = Pinned((2, pairs), np.int32)
        self._room = quantise.allocate(pairs, size)
        self._host_flow: Pinned | None = None
        self._graphs: collections.OrderedDict[Any, Graph] = collections.OrderedDict()

    def queue(self, frames: npt.NDArray[np.uint8], pairs: Indices, tables: quantise.Tables | None) -> None:
        """Queue a chunk; the lane must be idle. Without tables the flow itself comes back."""
        used, index = np.unique(pairs, return_inverse=True)
        self._host_frames.array[: len(used)] = frames[used]
        self._host_pairs.array[:, : len(pairs)] = index.reshape(pairs.shape).T
        if tables is None and self._host_flow is None:
            self._host_flow = Pinned((self.pairs, 2, self.size.height, self.size.pitch), np.float32)
        key = len(used), len(pairs), tables
        if key not in self._graphs:
            graph = Graph()
            with self.stream.recording(graph):
                self._queue(len(used), len(pairs), tables)
            self._graphs[key] = graph
            if len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        self._graphs[key].launch(self.stream)

    def _queue(self, frames: int, pairs: int, tables: quantise.Tables | None) -> None:
        self.stream.upload(self._frames, self._host_frames.array[:frames])
        second = Part(self._pairs, 4 * self.pairs)
        self.stream.upload(self._pairs, self._host_pairs.array)
        flow = self._solver.solve(self._frames, frames, self._pairs, second, pairs, self.stream)
        if tables is not None:
            quantise.quantise(self._levels_kernels, self.stream, flow, pairs, self.size, tables, self._room)
        elif self._host_flow is not None:
            self.stream.download(self._host_flow.array[:pairs], flow)

    def collect(self, count: int, quantiser: Quantiser | None) -> Quantised | npt.NDArray[np.float32]:
        """Wait for the chunk; its results lie in memory that the next chunk overwrites.

        Raises:
            ValueError: a field that is not finite.
        """
        self.stream.wait()
        if quantiser is not None:
            return quantise.collect(count, self.size, quantiser, self._room)
        assert self._host_flow is not None
        flow: npt.NDArray[np.float32] = self._host_flow.array[:count, :, :, : self.size.width]
        return flow


class Pending:
    """Pairs that were handed over, and their results as they arrive."""

    def __init__(self, method: CudaMethod, shape: tuple[int, ...], quantiser: Quantiser | None) -> None:
        self.quantiser = quantiser
        self._method = method
        self.chunks = 0
        self.error: Exception | None = None
        count = shape[0]
        self.flow = np.empty(shape, np.float32) if quantiser is None else None
        self.levels = None if quantiser is None else Quantised(
            np.empty(shape, np.uint8), np.empty((count, 2), np.float32), np.empty((count, 2), np.float32),
            np.empty((count, 2), np.float32), np.empty(count, np.float32),
        )  # fmt: skip

    def take(self, chosen: Indices, lane: _Lane) -> None:
        """The results of a chunk."""
        self.chunks -= 1
        try:
            found = lane.collect(len(chosen), self.quantiser)
        except Exception as error:  # noqa: BLE001  belongs to who collects this, not to who waits for the lane
            self.error = error
            return
        if isinstance(found, Quantised):
            for field in dataclasses.fields(Quantised):
                getattr(self.levels, field.name)[chosen] = getattr(found, field.name)
        else:
            assert self.flow is not None
            self.flow[chosen] = found

    def collect(self) -> Any:
        """Wait; flow float32[n,2,H,W], or `Quantised` where a quantiser was given.

        Raises:
            ValueError: a field that is not finite.
        """
        self._method.finish(self)
        if self.error is not None:
            raise self.error
        return self.flow if self.quantiser is None else self.levels


class CudaMethod(FlowMethod):
    """A method on one GPU; see `FlowMethod`. One thread at a time may use it.

    Args:
        name: the method's name.
        parameters: its `Parameters`.
        device: "auto", "cuda" or "cuda:N".
        program: its kernels.
        make: makes the solver for one size of frame.
        bytes_per_pair: device bytes that a pair and its share of the frames need.

    Raises:
        InputError: see `device.select` and `kernels.compiled`.
    """

    def __init__(
        self,
        name: str,
        parameters: Any,
        device: str,
        program: Program,
        make: MakeSolver,
        bytes_per_pair: Callable[[Size], int],
    ) -> None:
        self._device: Device = devices.select(name, device)
        self.name = name
        self.device = f"cuda:{self._device.index}"
        self.device_count = devices.device_count()
        self.parameters = dataclasses.asdict(parameters)
        self.kernels = Kernels(program, self._device.capability)
        self.levels_kernels = Kernels(quantise.PROGRAM, self._device.capability)
        self.make, self._bytes_per_pair = make, bytes_per_pair
        self._size: Size | None = None
        self._lanes: list[_Lane] = []
        self._waiting: collections.deque[tuple[_Lane, Indices, Pending]] = collections.deque()
        self._tables: dict[Quantiser, quantise.Tables] = {}
        self._most: dict[Size, int] = {}
        self._memory = self._device.free_memory()
        self.batch_pairs = self.chunk_pairs(Size(*USUAL_SIZE))

    def chunk_pairs(self, size: Size) -> int:
        """Pairs that a lane takes at once; fewer after the device ran out of memory."""
        fitting = MEMORY_SHARE * self._memory / (LANES * self._bytes_per_pair(size))
        return min(self._most.get(size, MOST_PAIRS), int(max(1, min(MOST_PAIRS, fitting))))

    def flow(self, frames: npt.NDArray[np.uint8], pairs: Indices) -> npt.NDArray[np.float32]:
        """Flow of each pair: frames uint8[T,H,W], pairs int[n,2] of (from, to) -> float32[n,2,H,W] in pixels.

        Raises:
            DeviceMemoryError: a single pair is too much for the device.
        """
        flow: npt.NDArray[np.float32] = self.submit(frames, pairs, None).collect()
        return flow

    def levels(self, frames: npt.NDArray[np.uint8], pairs: Indices, quantiser: Quantiser) -> Quantised:
        """Quantised flow; only levels and sums come back from the device.

        Raises:
            DeviceMemoryError: a single pair is too much for the device.
            ValueError: a field that is not finite.
        """
        levels: Quantised = self.submit(frames, pairs, quantiser).collect()
        return levels

    def begin(
        self, frames: npt.NDArray[np.uint8], pairs: Indices, quantiser: Quantiser
    ) -> Callable[[], Quantised]:
        """See `FlowMethod.begin`; what is raised later is a ValueError for a field that is not finite."""
        frames, pairs = check_frames(frames), check_pairs(pairs, len(frames))
        return self.submit(frames, pairs, quantiser).collect

    def share_device(self, processes: int) -> None:
        """Use this part of the memory that was free, as so many processes use the device."""
        self._memory //= max(1, processes)
        self.batch_pairs = self.chunk_pairs(Size(*USUAL_SIZE))

    def submit(self, frames: npt.NDArray[np.uint8], pairs: Indices, quantiser: Quantiser | None) -> Pending:
        """Hand pairs over and return while the device works; `Pending.collect` has the results.

        Frames are copied, so they may change afterwards. What needs more than the free lanes waits here for earlier
        pairs.

        Raises:
            DeviceMemoryError: a single pair is too much for the device.
        """
        self._device.use()
        size = Size(*frames.shape[1:])
        pending = Pending(self, (len(pairs), 2, *size), quantiser)
        tables = None
        if quantiser is not None and len(pairs):
            if quantiser not in self._tables:
                with devices.memory_errors(f"{self.name}, tables of the codec"):
                    self._tables[quantiser] = quantise.Tables(quantiser)
            tables = self._tables[quantiser]
        order = np.argsort(pairs.min(axis=1), kind="stable") if len(pairs) else np.empty(0, np.int64)
        while len(order):
            chosen = order[: self.chunk_pairs(size)]
            what = f"{self.name} of {len(chosen)} pairs of {size.width}x{size.height}"
            try:
                with devices.memory_errors(what):
                    lane = self._free_lane(size, pairs[chosen])
                    lane.queue(frames, pairs[chosen], tables)
            except DeviceMemoryError:
                self._drop_lanes()
                if len(chosen) == 1:
                    raise
                self._most[size] = len(chosen) // 2
                continue
            except BaseException:
                self._drop_lanes()
                raise
            pending.chunks += 1
            self._waiting.append((lane, chosen, pending))
            order = order[len(chosen) :]
        return pending

    def finish(self, pending: Pending) -> None:
        """Fetch results until none of these pairs is outstanding."""
        self._device.use()
        while pending.chunks:
            self._take_oldest()

    def _take_oldest(self) -> None:
        lane, chosen, pending = self._waiting.popleft()
        pending.take(chosen, lane)

    def _drop_lanes(self) -> None:
        while self._waiting:
            self._take_oldest()
        self._lanes = []

    def _idle(self) -> Iterator[int]:
        busy = {id(lane) for lane, _, _ in self._waiting}
        return (number for number, lane in enumerate(self._lanes) if id(lane) not in busy)

    def _free_lane(self, size: Size, pairs: Indices) -> _Lane:
        """An idle lane with room for these pairs of this size; one that is too small is replaced."""
        if self._size != size:
            self._drop_lanes()
            self._size = size
        if len(self._waiting) == LANES:
            self._take_oldest()
        frames, count = len(np.unique(pairs)), len(pairs)
        number = next(self._idle(), None)
        if number is not None:
            lane = self._lanes[number]
            if lane.frames >= frames and lane.pairs >= count:
                return lane
            frames, count = max(frames, lane.frames), max(count, lane.pairs)
            del self._lanes[number], lane  # its memory is free before the next is made
        self._lanes.append(_Lane(self, size, frames, count))
        return self._lanes[-1]
