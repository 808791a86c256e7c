"""From a batch of bytes on the host to the network's input on the device, beside the work of the network."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from train.batches import Batch, network_input
from train.losses import Samples
from train.volume import upload
from train.volume_spec import VolumeSpec

QUEUED = 2
"""Batches that may be on their way to the network or in it at a time: the device's memory holds so many inputs."""


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
