"""Batches on their way: read ahead by threads, which decode without holding Python's lock, then copied to the device,
where they become the network's input."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from train.batches import Batch, Key, SampleReader, keep_opencv_to_one_thread
from train.losses import Samples
from train.volume import RawFrames, VolumeSpec, cut, memory_for, mirror_where, upload, volume

Argument = TypeVar("Argument")
Result = TypeVar("Result")

AHEAD = 2
"""Results computed ahead, or waiting, beyond one for each thread."""
QUEUED = 2
"""Batches that may be on their way to the network or in it at a time: the device's memory holds so many inputs."""


@contextlib.contextmanager
def loading(
    reader: SampleReader, schedule: Iterable[Sequence[Key]], threads: int, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Batches in the schedule's order, read ahead by threads that end with the block.

    Args:
        reader: what is read.
        schedule: the keys of each read.
        threads: see `ahead`.
        device: where batches go: into pinned memory for a GPU.
    """
    memory = memory_for(device)
    with ahead(lambda keys: reader.read(keys, memory), schedule, threads) as batches:
        yield batches


@contextlib.contextmanager
def ahead(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], threads: int
) -> Iterator[Iterator[Result]]:
    """The function's results in the order of the arguments, computed ahead by threads that end with the block.

    At most threads + AHEAD results exist besides those that the caller still refers to. What the function raises is
    raised where its result would have been.

    Args:
        function: called in any of the threads.
        arguments: of its calls; iterated in the caller's thread.
        threads: how many; 0 calls the function in the caller's thread.
    """
    keep_opencv_to_one_thread()
    if not threads:
        yield map(function, arguments)
        return
    pool = ThreadPoolExecutor(threads, "loader")

    def results() -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) >= threads + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


# --- to the device, and back -----------------------------------------------------------------------------------------


class DeviceFeed:
    """Copies batches to the device and builds their volumes; on a GPU by a stream of its own.

    Nothing waits for the device there but a host that is `QUEUED` batches ahead of it: copies come from pinned memory,
    and the network's stream waits for the volumes on the device.
    """

    def __init__(self, spec: VolumeSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._used: deque[torch.cuda.Event] = deque()

    def __call__(self, batch: Batch) -> Samples:
        """The network's input, valid on the current stream."""
        if self._stream is None:
            return self._build(batch)
        network = torch.cuda.current_stream(self._device)
        # What was queued until now is the work on the batches before this one.
        done = torch.cuda.Event()
        done.record(network)
        self._used.append(done)
        if len(self._used) > QUEUED:
            self._used.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            samples = self._build(batch)
        network.wait_stream(self._stream)
        for tensor in samples:
            tensor.record_stream(network)  # its memory is not used again before the network is done with it
        return samples

    @torch.no_grad()
    def _build(self, batch: Batch) -> Samples:
        inputs = network_input(batch, self._spec, self._device)
        # Every snippet has its own dropout masks.
        keys: Tensor = batch.key[:, None] + torch.arange(inputs.shape[1]) * (1 << 32)
        label, head, keys = (upload(tensor, self._device) for tensor in (batch.label, batch.head, keys))
        return Samples(inputs, label, head, keys)


def network_input(batch: Batch, spec: VolumeSpec, device: torch.device | str) -> Tensor:
    """The network's input on the device: float32[B,K,C,crop,crop], cropped, resized and flipped."""
    raw = batch.raw.to(device)
    noise = upload(batch.noise, device)[:, None] if isinstance(raw, RawFrames) else None
    volumes = volume(raw, spec, noise)
    count, snippets = volumes.shape[:2]
    boxes = batch.boxes.repeat_interleave(snippets, dim=0)
    inputs = cut(volumes.flatten(0, 1), boxes, spec.crop)
    inputs = mirror_where(inputs, upload(batch.flip, device).repeat_interleave(snippets), spec)
    return inputs.unflatten(0, (count, snippets))


class Readback:
    """A small tensor being copied to the CPU while the device works on.

    `wait` returns it once the kernels queued before have run, without waiting for those queued after: a loss can be
    looked at while its backward pass is still running, or iterations later.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Queue the copy."""
        self._copy = tensor.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if tensor.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> Tensor:
        """The tensor on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copy
