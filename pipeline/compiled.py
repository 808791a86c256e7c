"""The compiler of every CPU kernel: numba, set up so that a kernel computes the same bits in every process.

Modules that hold kernels import their decorators from here, so that numba's cache is set before numba reads it. This
loads numba, which takes a while, so only kernel modules import it, and commands import those when they first compute.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("pipeline", "extract_flow")
"""Where kernels are."""


def cache_folder() -> Path:
    """Where numba keeps compiled kernels: per user, since installations are often shared and read-only.

    The name holds a digest of the kernels' sources and of the processor: numba looks only at the file that a function
    stands in, so it would miss an edited rule in another; and different kinds of nodes may share a home folder.
    """
    digest = hashlib.sha256(f"{sys.version} {platform.machine()} {platform.processor()}".encode())
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        processor = ""
    digest.update(
        "".join(line for line in processor.splitlines() if "flags" in line or "model" in line).encode()
    )
    root = Path(__file__).parent.parent
    for source in sorted(path for package in PACKAGES for path in root.glob(f"{package}/**/*.py")):
        text = source.read_bytes()
        if b"from pipeline.compiled import" in text:
            digest.update(text)
    base = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    return Path(base) / "two-stream" / "numba" / digest.hexdigest()[:16]


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(cache_folder())
    if "numba" in sys.modules:  # it read the environment when it was imported
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]

from numba import njit  # noqa: E402  # after its cache folder is set
from numba.core import event  # noqa: E402
from numba.core.compiler import CompilerBase, DefaultPassBuilder  # noqa: E402

__all__ = ["cache_folder", "inlined", "kernel", "reporting"]


def kernel(function: Any = None, *, fastmath: bool = True) -> Any:
    """Decorator of a function that Python calls: compiled when first used, then kept in the cache.

    A kernel calls only functions that are `inlined`. Otherwise a process that compiles both runs the callee as it was
    compiled for itself, and one that loads the caller from the cache runs the copy of the callee that is kept with the
    caller and was optimised once more; with fastmath the two round differently. A callee without fastmath may be a
    kernel itself: optimising it again changes no bit.
    """
    decorate = njit(nogil=True, error_model="numpy", fastmath=fastmath, cache=True)
    return decorate if function is None else decorate(function)


def inlined(function: Any = None, *, fastmath: bool | set[str] = True, no_alias: bool = False) -> Any:
    """Decorator of a function that kernels call: it becomes part of each kernel, and is not cached on its own.

    Args:
        function: the function.
        fastmath: let LLVM reorder float operations and use reciprocals; or which of its flags to set.
        no_alias: promise that an array or pointer argument that is written overlaps no other argument.
    """
    options: dict[str, Any] = {"pipeline_class": NoAlias} if no_alias else {}
    decorate = njit(nogil=True, error_model="numpy", fastmath=fastmath, forceinline=True, **options)
    return decorate if function is None else decorate(function)


@contextmanager
def reporting(began: Callable[[], None], took: Callable[[float], None] | None = None) -> Iterator[None]:
    """Report compiling inside the block: compiling all kernels of a flow method takes seconds.

    Args:
        began: called once, before the first function that has to be compiled; never if all are cached.
        took: called with the seconds of every compilation, those that it led to included.
    """
    with event.install_listener("numba:compile", _Compilations(began, took)):
        yield


class _Compilations(event.Listener):
    """Calls functions when compiling begins for the first time, and whenever it ends; numba compiles one at a time."""

    def __init__(self, began: Callable[[], None], took: Callable[[float], None] | None) -> None:
        self._began: Callable[[], None] | None = began
        self._took = took
        self._depth = 0
        self._since = 0.0

    def on_start(self, event: Any) -> None:
        if self._began is not None:
            call, self._began = self._began, None
            call()
        if self._depth == 0:
            self._since = time.monotonic()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._took is not None:
            self._took(time.monotonic() - self._since)


class NoAlias(CompilerBase):
    """Numba's compiler with its `noalias` flag set."""

    def define_pipelines(self) -> list[Any]:
        """Numba's own passes, unchanged."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]
