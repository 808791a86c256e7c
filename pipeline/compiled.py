"""The compiler of every CPU kernel: numba with its cache where it belongs.

Modules that hold kernels import numba's `njit` by way of this one, so that the cache is set before numba reads it. It
loads numba, which takes a while, so only kernel modules import it, and commands import those when they first compute.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("pipeline", "extract_flow")
"""Where kernels are."""


def cache_folder() -> Path:
    """Where numba keeps compiled kernels: per user, since installations are often shared and read-only.

    The name holds a digest of the kernels' sources and of the processor: numba looks only at the file that a function
    stands in, so it would miss an edit of a rule in another; and nodes of several kinds may share a home.
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
from numba.core.compiler import CompilerBase, DefaultPassBuilder  # noqa: E402

__all__ = ["NoAlias", "cache_folder", "njit"]


class NoAlias(CompilerBase):
    """Numba's compiler with its `noalias` flag set: an array or pointer argument that is written overlaps no other."""

    def define_pipelines(self) -> list[Any]:
        """Numba's own passes, unchanged."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]
