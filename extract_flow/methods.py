"""Flow methods by name, behind one interface that single calls, batched CPU solvers and GPUs share.

A method is a module with three names:

- `Parameters`: a frozen dataclass of the method's options with their defaults. Each field's metadata may hold `help`
  (a line for `--help`) and `choices`.
- `PRESETS`: name -> Parameters; "default" is always there.
- `create(parameters, device, threads) -> FlowMethod`.

The command line makes its options from `Parameters`, and a shard records them, so a new method needs only an entry in
`MODULES`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from pipeline.codec import Quantised, Quantiser
from pipeline.errors import InputError

MODULES = {
    "tvl1": "extract_flow.tvl1",
    "brox": "extract_flow.brox",
    "opencv-tvl1": "extract_flow.opencv.tvl1",
    "dis": "extract_flow.opencv.dis",
    "farneback": "extract_flow.opencv.farneback",
    "opencv-cuda-tvl1": "extract_flow.opencv.cuda_tvl1",
    "opencv-cuda-brox": "extract_flow.opencv.cuda_brox",
    "opencv-cuda-farneback": "extract_flow.opencv.cuda_farneback",
}


class DeviceMemoryError(RuntimeError):
    """The device has too little memory for this many pairs at once; callers halve the batch and go on."""


def option(default: Any, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    """A field of a method's `Parameters`: its default, a line for `--help`, and the values it may take."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def positive(parameters: Any, *names: str, zero: bool = False) -> None:
    """ValueError for one of the named fields that is not finite or not above zero (`zero`: below it)."""
    for name in names:
        value = getattr(parameters, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError(f"{name}: expected {'0 or more' if zero else 'more than 0'}, found {value}")


class FlowMethod(ABC):
    """One method with its parameters on one device; made once per process, since solvers keep their buffers.

    Attributes:
        name: the method's name, a key of `MODULES`.
        device: "cpu" or "cuda:N", as really used.
        parameters: every option's value; what a shard records, and what must match for it to count as the same.
        implementation: the library that computes, with its version, where that is not this project's; recorded only.
        device_count: devices of this kind that this process can see; an extraction runs one process on each GPU.
        batch_pairs: pairs worth handing over at once.
    """

    name: str
    device: str
    parameters: dict[str, Any]
    implementation: str = ""
    device_count: int = 1
    batch_pairs: int = 16

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


def module(name: str) -> ModuleType:
    """The module that implements a method (see the module docstring); InputError for an unknown name."""
    if name not in MODULES:
        raise InputError(f"unknown flow method {name!r}: choose one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])


def resolve(name: str, preset: str | None = None, **parameters: Any) -> Any:
    """The method's `Parameters`: the preset's values with the given ones over them.

    Raises:
        InputError: unknown method, preset or parameter, or a value that the method refuses.
    """
    method = module(name)
    if (preset or "default") not in method.PRESETS:
        raise InputError(f"{name} has no preset {preset!r}: choose one of {', '.join(method.PRESETS)}")
    fields = {field.name: field for field in dataclasses.fields(method.Parameters)}
    for key, value in parameters.items():
        if key not in fields:
            raise InputError(
                f"{name} has no parameter {key!r}: it takes {', '.join(sorted(fields)) or 'none'}"
            )
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            raise InputError(
                f"{name}: {key}: expected one of {', '.join(map(str, choices))}, found {value!r}"
            )
    try:
        return dataclasses.replace(method.PRESETS[preset or "default"], **parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error


def load(
    name: str, device: str = "auto", threads: int = 1, preset: str | None = None, **parameters: Any
) -> FlowMethod:
    """A flow method, ready to run.

    Args:
        name: a key of `MODULES`.
        device: "cpu", "cuda", "cuda:N", or "auto", which takes a usable GPU if the method has a GPU version.
        threads: CPU threads over pairs; results do not depend on it.
        preset: a named set of parameters of that method.
        **parameters: single parameters over the preset's.

    Raises:
        InputError: unknown names or values, or a device that cannot be used (the message says what to do).
    """
    return module(name).create(resolve(name, preset, **parameters), device, threads)
