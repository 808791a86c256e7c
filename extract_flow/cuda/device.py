"""The NVIDIA driver as the solvers need it: devices, memory, streams and graphs, errors as exceptions.

`cuda.bindings.driver` mirrors the C API; every call returns an error code first.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from extract_flow.flow_method import DeviceLostError, DeviceMemoryError
from pipeline.errors import InputError


class DriverError(RuntimeError):
    """A call of the driver failed; `code` is its CUresult."""

    def __init__(self, code: Any) -> None:
        text = driver.cuGetErrorString(code)[1]
        super().__init__(f"{code.name}: {text.decode() if text else 'no description'}")
        self.code = code


class DriverLostError(DriverError, DeviceLostError):
    """One of the errors after which every call of this process fails."""


LOST = frozenset(
    getattr(driver.CUresult, f"CUDA_ERROR_{name}")
    for name in (
        "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "ASSERT", "ECC_UNCORRECTABLE",
        "NVLINK_UNCORRECTABLE", "CONTAINED", "TENSOR_MEMORY_LEAK", "EXTERNAL_DEVICE", "MPS_CLIENT_TERMINATED",
        "MPS_RPC_FAILURE", "CONTEXT_IS_DESTROYED", "INVALID_CONTEXT", "DEINITIALIZED", "NO_DEVICE",
        "DEVICE_UNAVAILABLE", "SYSTEM_NOT_READY", "UNKNOWN",
    )
    if hasattr(driver.CUresult, f"CUDA_ERROR_{name}")
)  # fmt: skip
"""Codes after which the context is of no use, by the driver's documentation, or that say that it or the GPU is gone."""


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned besides its error code.

    Raises:
        DriverError: the code is not CUDA_SUCCESS; a DriverLostError if nothing will work any more.
    """
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise (DriverLostError if code in LOST else DriverError)(code)
    return values[0] if len(values) == 1 else tuple(values)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Raise DeviceMemoryError, naming `what`, where the GPU runs out of memory inside the block."""
    try:
        yield
    except DriverError as error:
        if error.code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceMemoryError(f"{what}: the GPU has too little memory ({error})") from error
        raise


OLDEST_DRIVER = 13000
"""CUDA of the oldest driver that loads what this package's NVRTC compiles, as the driver counts."""


def driver_version() -> str:
    """The CUDA that the driver is for, as "13.0"."""
    version = checked(driver.cuDriverGetVersion())
    return f"{version // 1000}.{version % 1000 // 10}"


def device_count() -> int:
    """GPUs that this process can use; CUDA_VISIBLE_DEVICES limits and orders them. 0 without a driver."""
    return 0 if reason_against() else int(checked(driver.cuDeviceGetCount()))


def reason_against() -> str:
    """Why this process can use no GPU; "" if it can."""
    try:
        checked(driver.cuInit(0))
        if checked(driver.cuDriverGetVersion()) < OLDEST_DRIVER:
            return f"the driver is for CUDA {driver_version()}, expected 13.0 or later"
        return "" if checked(driver.cuDeviceGetCount()) else "the driver finds no device"
    except (
        RuntimeError,
        ImportError,
        OSError,
    ) as error:  # no libcuda, no device, or a driver that does not start
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


def available() -> bool:
    """Whether a GPU can be used."""
    return device_count() > 0


def select(method: str, device: str) -> Device:
    """The GPU that `device` names.

    Args:
        method: the method's name, for messages.
        device: "auto", "cuda" or "cuda:N".

    Raises:
        InputError: there is no usable GPU, or not that one, or others leave nothing of it.
    """
    count = device_count()
    if count == 0:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if chosen is None else f", which is {chosen!r}"
        raise InputError(
            f"{method} on {device}: no usable NVIDIA GPU is visible: {reason_against()} (look at `nvidia-smi`, the "
            f"driver and CUDA_VISIBLE_DEVICES{seen}); use --device cpu"
        )
    number = "0" if device in ("auto", "cuda") else device.removeprefix("cuda:")
    if not number.isdecimal() or int(number) >= count:
        raise InputError(
            f"{method}: expected the device cpu, cuda or one of cuda:0 to cuda:{count - 1}, found {device!r}"
        )
    try:
        return Device(int(number))
    except DriverError as error:
        raise InputError(
            f"{method}: cuda:{number} cannot be used ({error}): see in `nvidia-smi` whether other processes fill its "
            "memory or have it exclusively (then --processes 1), or use --device cpu"
        ) from error


class Device:
    """A GPU, by its index among the visible ones, with its primary context (the one that torch uses too)."""

    def __init__(self, index: int) -> None:
        checked(driver.cuInit(0))
        self.index = index
        self._handle = checked(driver.cuDeviceGet(index))
        self._context = checked(driver.cuDevicePrimaryCtxRetain(self._handle))
        self.use()

    def use(self) -> None:
        """Make its context the calling thread's."""
        checked(driver.cuCtxSetCurrent(self._context))

    @functools.cached_property
    def name(self) -> str:
        """As the driver calls it, as "NVIDIA H200"."""
        text: bytes = checked(driver.cuDeviceGetName(256, self._handle))
        return text.split(b"\0")[0].decode()

    @functools.cached_property
    def capability(self) -> tuple[int, int]:
        """Compute capability, as (9, 0)."""
        attribute = driver.CUdevice_attribute
        major, minor = (
            int(checked(driver.cuDeviceGetAttribute(what, self._handle)))
            for what in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return major, minor

    def free_memory(self) -> int:
        """Bytes of free memory."""
        self.use()
        return int(checked(driver.cuMemGetInfo())[0])


class Buffer:
    """Bytes on the current device; freed when nothing refers to them any more.

    Attributes:
        pointer: their address.
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._memory = checked(driver.cuMemAlloc(self.size))
        self.pointer = int(self._memory)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            driver.cuMemFree(self._memory)


class Part:
    """The part of a buffer that begins so many bytes after its start."""

    def __init__(self, buffer: Buffer, offset: int) -> None:
        self.buffer, self.pointer = buffer, buffer.pointer + offset


Memory = Buffer | Part


def floats(count: int) -> Buffer:
    """Room for `count` float32."""
    return Buffer(4 * count)


def upload(array: npt.NDArray[Any]) -> Buffer:
    """A copy of an array on the device, complete on return."""
    array = np.ascontiguousarray(array)
    buffer = Buffer(array.nbytes)
    checked(driver.cuMemcpyHtoD(buffer.pointer, array.ctypes.data, array.nbytes))
    return buffer


class Pinned:
    """Host memory that copies to and from the device can use while the host does something else.

    Attributes:
        array: an array over it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        kind = np.dtype(dtype)
        size = max(1, int(np.prod(shape)) * kind.itemsize)
        self._memory = checked(driver.cuMemHostAlloc(size, 0))
        address = int(self._memory)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self.array: npt.NDArray[Any] = raw.view(kind)[: int(np.prod(shape))].reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            driver.cuMemFreeHost(self._memory)


class Stream:
    """A queue of work; non-blocking: work on the default stream does not hold it up."""

    def __init__(self) -> None:
        self.handle = checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            driver.cuStreamDestroy(self.handle)

    def upload(self, target: Memory, source: npt.NDArray[Any]) -> None:
        """Queue a copy from pinned memory, which must stay as it is until the copy is done."""
        checked(driver.cuMemcpyHtoDAsync(target.pointer, source.ctypes.data, source.nbytes, self.handle))

    def download(self, target: npt.NDArray[Any], source: Memory) -> None:
        """Queue a copy to pinned memory."""
        checked(driver.cuMemcpyDtoHAsync(target.ctypes.data, source.pointer, target.nbytes, self.handle))

    def clear(self, target: Memory, size: int) -> None:
        """Queue setting `size` bytes to zero."""
        checked(driver.cuMemsetD8Async(target.pointer, 0, size, self.handle))

    def wait(self) -> None:
        """Wait until everything queued is done."""
        checked(driver.cuStreamSynchronize(self.handle))

    @contextmanager
    def recording(self, graph: Graph) -> Iterator[None]:
        """Record what the block queues into a graph instead of running it."""
        # Relaxed: another thread of this process may allocate meanwhile.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        checked(driver.cuStreamBeginCapture(self.handle, mode))
        try:
            yield
        except BaseException:
            recorded = driver.cuStreamEndCapture(self.handle)[1]
            if recorded:
                driver.cuGraphDestroy(recorded)
            raise
        graph.keep(checked(driver.cuStreamEndCapture(self.handle)))


class Graph:
    """Recorded work that is queued again with a single call."""

    def keep(self, recorded: Any) -> None:
        """Take what a stream has recorded."""
        try:
            self._handle = checked(driver.cuGraphInstantiate(recorded, 0))
        finally:
            driver.cuGraphDestroy(recorded)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            driver.cuGraphExecDestroy(self._handle)

    def launch(self, stream: Stream) -> None:
        """Queue it."""
        checked(driver.cuGraphLaunch(self._handle, stream.handle))
