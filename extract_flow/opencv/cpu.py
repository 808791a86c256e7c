"""What OpenCV's CPU methods share: one single-threaded solver per thread, each with its share of the pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from extract_flow.flow_method import FlowMethod
from pipeline.errors import InputError

Field = npt.NDArray[np.float32]
Gray = npt.NDArray[np.uint8]


class OpenCvMethod(FlowMethod):
    """A `cv2.DenseOpticalFlow` on the CPU.

    Args:
        name: the method's name.
        parameters: its `Parameters`.
        make: builds one solver; every thread has its own, since solvers keep buffers.
        device: "cpu" or "auto".
        threads: pairs computed at a time; results do not depend on it.
        least_side: smaller frames are padded to it by repeating their border, because the solver refuses them.

    Raises:
        InputError: a device other than the CPU was asked for.
    """

    def __init__(
        self,
        name: str,
        parameters: Any,
        make: Callable[[], Any],
        device: str,
        threads: int,
        least_side: int = 1,
    ) -> None:
        if device not in ("cpu", "auto"):
            raise InputError(
                f"{name} runs on the CPU only, but the device {device!r} was asked for: use --device cpu, "
                "or a method with a GPU version (tvl1, brox)"
            )
        self.name = name
        self.device = "cpu"
        self.implementation = f"OpenCV {cv2.__version__}"
        self.parameters = dataclasses.asdict(parameters)
        self._least_side = least_side
        self._solvers = [make() for _ in range(max(1, threads))]

    def flow(self, frames: Gray, pairs: npt.NDArray[np.int64]) -> Field:
        height, width = frames.shape[1:]
        below, right = max(0, self._least_side - height), max(0, self._least_side - width)
        if below or right:
            frames = np.pad(frames, ((0, 0), (0, below), (0, right)), mode="edge")
        result = np.empty((len(pairs), 2, height, width), np.float32)

        def compute(share: int) -> None:
            for i in range(share, len(pairs), len(self._solvers)):
                before, after = pairs[i]
                field = self._solvers[share].calc(frames[before], frames[after], None)
                result[i] = field[:height, :width].transpose(2, 0, 1)

        # OpenCV's own threads would compete with other workers, and the result of DIS depends on their number.
        threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            if len(self._solvers) == 1:
                compute(0)
            else:
                with ThreadPoolExecutor(len(self._solvers)) as pool:
                    list(pool.map(compute, range(len(self._solvers))))
        finally:
            cv2.setNumThreads(threads_before)
        return result
