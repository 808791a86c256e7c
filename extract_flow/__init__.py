"""Stage one: dense optical flow and frames from videos into shards."""

import hashlib
import os
import platform
import sys
from pathlib import Path


def _compiled_code_folder() -> Path:
    """Where numba keeps compiled kernels: per user, since installations are often shared and read-only.

    The name holds a digest of the kernels' sources and of the processor: numba looks only at the file that a function
    stands in, so it would miss an edit of the rules it calls; and nodes of several kinds may share a home.
    """
    digest = hashlib.sha256(f"{sys.version} {platform.machine()} {platform.processor()}".encode())
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        processor = ""
    digest.update(
        "".join(line for line in processor.splitlines() if "flags" in line or "model" in line).encode()
    )
    package = Path(__file__).parent
    for source in sorted([*package.glob("*/rules.py"), *package.glob("*/cpu.py")]):
        digest.update(source.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    return Path(base) / "two-stream" / "numba" / digest.hexdigest()[:16]


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(_compiled_code_folder())
    if "numba" in sys.modules:  # it read the environment when it was imported
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]
