"""Score files of version 1: HDF5's old format, whose metadata have no checksums.

On a damaged file of that format HDF5 may loop forever or crash. So it is read in a separate process, with a time
limit. The process runs this file, which imports nothing of the project.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

SECONDS = 30
MAX_BYTES = 1 << 33
TEXTS = ("videos", "classes", "groups")
ARRAYS = ("labels", "logits", "softmax", "views")
ATTRIBUTES = ("dataset", "part", "stream", "run", "checkpoint", "shards", "views")


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Attributes and arrays of a score file of version 1, texts as str arrays; nothing about them is checked.

    Raises:
        OSError: the system did not let it be read, or there was not enough memory for it.
        ValueError: it is damaged, with the reason.
    """
    command, data = [sys.executable, "-P", __file__], path.read_bytes()
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it did not end within {SECONDS} s") from None
    if done.returncode == -signal.SIGKILL:  # by the system or by someone else
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(reason[-1] if reason else f"reading it ended with status {done.returncode}")
    try:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as values:
            arrays = dict(values)
        return json.loads(str(arrays.pop("attributes"))), arrays
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"reading it gave no scores ({error})") from error


def main(data: bytes) -> None:
    """Write the arrays of a file, and its attributes as JSON, to stdout in NumPy's .npz format."""
    with h5py.File(io.BytesIO(data), "r") as file:
        found = (file.attrs.get("format"), file.attrs.get("version"))
        if found != ("two-stream scores", 1):
            raise ValueError(f"expected 'two-stream scores' version 1, found {found[0]!r} {found[1]}")
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link out of the file; score files hold none")
        datasets = {name: file[name] for name in (*TEXTS, *ARRAYS)}
        if any(dataset.external or dataset.is_virtual for dataset in datasets.values()):
            raise ValueError("its arrays are stored outside the file, which is not allowed")
        if sum(dataset.size * dataset.dtype.itemsize for dataset in datasets.values()) > MAX_BYTES:
            raise ValueError(f"it claims more than {MAX_BYTES >> 30} GiB of scores")
        attributes: dict[str, Any] = {name: str(file.attrs[name]) for name in ATTRIBUTES}
        attributes["split"] = int(file.attrs["split"])
        arrays = {name: np.array(datasets[name].asstr()[...].tolist(), np.str_) for name in TEXTS}
        arrays |= {name: datasets[name][...] for name in ARRAYS}
    whole = io.BytesIO()
    np.savez(whole, attributes=np.array(json.dumps(attributes)), **arrays)  # type: ignore[arg-type]
    sys.stdout.buffer.write(whole.getvalue())


if __name__ == "__main__":
    try:
        main(sys.stdin.buffer.read())
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        sys.exit(str(error) or type(error).__name__)
