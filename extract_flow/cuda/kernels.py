"""CUDA C++ sources compiled by NVRTC when first used, kept on disk as cubins, loaded and launched.

A program is the text of its definitions followed by its files, so what is kept is known by that text, the options, the
GPU's architecture and the version of NVRTC alone; see `compiled`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import driver

from extract_flow.cuda.device import Buffer, DriverError, Part, Stream, checked, driver_version
from pipeline import atomic
from pipeline.errors import InputError
from pipeline.progress import COMPILING, note

SHARED = Path(__file__).parent
"""Folder of the sources that methods share."""

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Program:
    """CUDA C++ to compile.

    Attributes:
        name: for messages.
        files: the sources, in this order.
        definitions: macros, name -> value, defined before the sources.
        fast: approximate division and square roots, fused multiply-adds, no denormals; else IEEE float32 throughout.
    """

    name: str
    files: tuple[Path, ...]
    definitions: Mapping[str, str]
    fast: bool = True

    def text(self) -> str:
        """The whole source."""
        defined = "".join(f"#define {name} {value}\n" for name, value in self.definitions.items())
        return defined + "".join(file.read_text(encoding="utf-8") for file in self.files)


def cache_folder() -> Path:
    """Where cubins are kept: per user, since installations are often shared and read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    return Path(base) / "two-stream" / "cuda"


def compiled(program: Program, capability: tuple[int, int]) -> bytes:
    """The program as machine code for a compute capability, from the disk or else from NVRTC, which is noted.

    Raises:
        InputError: NVRTC is missing, is too old or too new for the GPU, or refuses the source.
    """
    text, version = program.text(), nvrtc_version()
    key = hashlib.sha256(repr((text, program.fast, capability, version)).encode()).hexdigest()
    kept = cache_folder() / f"{program.name}-sm{capability[0]}{capability[1]}-{key[:32]}.cubin"
    code = _read(kept)
    if code is None:
        note(COMPILING)
        began = time.perf_counter()
        code = _compile(program, text, capability)
        took = f"{program.name}: CUDA kernels for sm_{capability[0]}{capability[1]} compiled in "
        took += f"{time.perf_counter() - began:.1f} s"
        try:
            _write(kept, code)
            took += f", kept in {kept.parent}"
        except OSError as error:
            took += f"; they cannot be kept in {kept.parent} ({error.strerror}), so every start compiles them"
        note(took)
    return code


def _read(file: Path) -> bytes | None:
    """The code in a file that begins with its digest; None if there is no such file, or it is not whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path, code: bytes) -> None:
    """Put digest and code in place at once: other processes read the same folder, and perhaps other users."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = atomic.temporary_path(file)
    try:
        with temporary.open("xb") as stream:  # as readable as the umask allows
            stream.write(hashlib.sha256(code).digest() + code)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _nvrtc() -> Any:
    """The bindings of NVRTC, whose library they load on first use."""
    from cuda.bindings import nvrtc

    return nvrtc


def nvrtc_version() -> tuple[int, int]:
    """Version of the NVRTC that compiles.

    Raises:
        InputError: it does not load.
    """
    try:
        _, major, minor = _nvrtc().nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"CUDA kernels cannot be compiled: the library NVRTC does not load ({reason}); "
            "`pip install -e .[cuda]` brings it (package nvidia-cuda-nvrtc), or use --device cpu"
        ) from error
    return int(major), int(minor)


def _compile(program: Program, text: str, capability: tuple[int, int]) -> bytes:
    number = 10 * capability[0] + capability[1]
    _, supported = _nvrtc().nvrtcGetSupportedArchs()
    if number < min(supported):
        raise InputError(
            f"{program.name}: this NVRTC compiles for sm_{min(supported)} and newer, the GPU is sm_{number}; "
            "use --device cpu, or an older CUDA"
        )
    if number in supported:
        return run_nvrtc(program, text, f"sm_{number}")[0]
    # A GPU that is newer than NVRTC gets PTX, which the driver translates.
    return run_nvrtc(program, text, f"compute_{max(a for a in supported if a <= number)}")[0]


def run_nvrtc(program: Program, text: str, architecture: str, *options: str) -> tuple[bytes, str]:
    """Machine code for "sm_90" or PTX for "compute_90", and what the compiler printed.

    Raises:
        InputError: NVRTC refuses the source.
    """
    nvrtc = _nvrtc()
    arithmetic = "--use_fast_math" if program.fast else "--fmad=false"
    words = [f"--gpu-architecture={architecture}", "--std=c++17", arithmetic, *options]
    flags = [word.encode() for word in words]
    handle = nvrtc.nvrtcCreateProgram(text.encode(), f"{program.name}.cu".encode(), 0, [], [])[1]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(handle, len(flags), flags)
        log = bytearray(nvrtc.nvrtcGetProgramLogSize(handle)[1])
        nvrtc.nvrtcGetProgramLog(handle, log)
        printed = bytes(log).rstrip(b"\0").decode(errors="replace").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise InputError(f"{program.name}: NVRTC refuses the CUDA source ({status.name}): {printed}")
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        code = bytearray(getattr(nvrtc, f"nvrtcGet{kind}Size")(handle)[1])
        getattr(nvrtc, f"nvrtcGet{kind}")(handle, code)
        return bytes(code), printed
    finally:
        nvrtc.nvrtcDestroyProgram(handle)


class Kernels:
    """The kernels of a program on the current device; they stay loaded, since recorded graphs may hold them.

    Attributes:
        capability: compute capability that they were compiled for.
    """

    def __init__(self, program: Program, capability: tuple[int, int]) -> None:
        """Load them.

        Raises:
            InputError: see `compiled`; or the driver refuses the code, or has no memory for it.
        """
        self.capability = capability
        code = compiled(program, capability)
        try:
            self._module = checked(driver.cuModuleLoadData(code))
        except DriverError as error:
            advice = "see in `nvidia-smi` what fills its memory"
            if error.code != driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                version = driver_version()
                advice = (
                    f"update the driver, or `pip install nvidia-cuda-nvrtc=={version}.*`, its own compiler"
                )
            raise InputError(
                f"{program.name}: the driver (CUDA {driver_version()}) does not load the kernels that NVRTC "
                f"{'.'.join(map(str, nvrtc_version()))} compiled ({error}): {advice}; or use --device cpu"
            ) from error
        self._functions: dict[str, Any] = {}
        self._shared: dict[str, int] = {}

    def function(self, name: str) -> Any:
        """The driver's handle of a kernel."""
        if name not in self._functions:
            found = checked(driver.cuModuleGetFunction(self._module, name.encode()))
            # Asking for an attribute loads the code now; while a graph is recorded it would be too late.
            checked(driver.cuFuncGetAttribute(driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, found))
            self._functions[name] = found
        return self._functions[name]

    def launch(self, name: str, grid: Grid, threads: Grid, stream: Stream, *arguments: Any) -> None:
        """Queue a kernel.

        Args:
            name: of the kernel.
            grid: blocks in x, y, z.
            threads: per block in x, y, z.
            stream: where.
            *arguments: a buffer or None for a pointer, int for int, float for float, a ctypes value for itself.
        """
        with packed(arguments) as pointers:
            checked(
                driver.cuLaunchKernel(
                    self.function(name), *grid, *threads, 0, stream.handle, ctypes.addressof(pointers), 0
                )
            )

    def launch_clusters(self, name: str, shape: Cluster, grid: Grid, stream: Stream, *arguments: Any) -> None:
        """Queue a kernel whose blocks form clusters along x; see `launch`.

        `clusters_at_once` must have been asked about this kernel and shape before: it sets what the kernel may use.
        """
        config = shape.config(grid, stream)
        with packed(arguments) as pointers:
            checked(driver.cuLaunchKernelEx(config, self.function(name), ctypes.addressof(pointers), 0))

    def clusters_at_once(self, name: str, shape: Cluster) -> int:
        """How many clusters of this shape the device runs at the same time; 0 if it cannot run any."""
        kind = driver.CUfunction_attribute
        most = self._shared[name] = max(shape.shared, self._shared.get(name, 0))
        try:
            function = self.function(name)
            for attribute, value in (
                (kind.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most),
                (kind.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
            ):
                checked(driver.cuFuncSetAttribute(function, attribute, value))
            config = shape.config((shape.blocks, 1, 1), None)
            return int(checked(driver.cuOccupancyMaxActiveClusters(function, config)))
        except DriverError:  # no such clusters on this device
            return 0


@dataclass(frozen=True)
class Cluster:
    """Blocks that run at the same time and reach each other's shared memory.

    Attributes:
        blocks: of a cluster.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
    """

    blocks: int
    threads: int
    shared: int

    def config(self, grid: Grid, stream: Stream | None) -> Any:
        """The driver's description of a launch."""
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attribute.value.clusterDim
        size.x, size.y, size.z = self.blocks, 1, 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared
        if stream is not None:
            config.hStream = stream.handle
        config.attrs, config.numAttrs = [attribute], 1
        return config


@contextmanager
def packed(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """The array of pointers to a kernel's arguments, which the driver copies."""
    values = [as_argument(argument) for argument in arguments]
    yield (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


def as_argument(value: Any) -> Any:
    """A kernel's argument as the C value that the driver copies."""
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, Buffer | Part):
        return ctypes.c_void_p(value.pointer)
    if isinstance(value, int):
        return ctypes.c_int(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value


def pixel_launch(height: int, width: int, count: int) -> tuple[Grid, Grid]:
    """Grid and threads for kernels with a thread for each pixel of `count` images."""
    return (-(-width // 32), -(-height // 8), count), (32, 8, 1)
