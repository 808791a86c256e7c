"""HDF5 files: written so that a full disk is an error, and read without trusting anything in them.

HDF5 reads and writes through file objects of ours. So an error of the disk is known for what it is and never taken for
damage, no file is locked (finished files never change, and some file systems have no locks), and the metadata and the
bytes read beside it come from the same open file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import signal
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.errors import unreadable
from pipeline.text import first_line

SIGNATURE = b"\x89HDF\r\n\x1a\n"
OLDEST_SUPERBLOCK = 2
"""Version of HDF5 1.8, the first whose metadata have checksums."""
LONGEST_TEXT = 1 << 16
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Invalid(Exception):
    """What is wrong with a file that was read, before its name is put in front."""


class Foreign(Invalid):
    """An intact file of another kind or a later version: it cannot be used, but it is not damaged."""


# --- reading --------------------------------------------------------------------------------------------------------


class SourceFile(io.FileIO):
    """A file for HDF5 to read from, which keeps the first error instead of raising it.

    HDF5 gives its own reasons for what it could not read, or crashes at closing. `reading` raises the kept error.
    """

    error: BaseException | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        status = os.fstat(self.fileno())
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # a named pipe, for example, would never end
            self.close()
            raise OSError(0, "it is not a regular file")

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view) and (count := super().readinto(view[done:])):
                done += count
        except BaseException as error:  # noqa: BLE001  no exception may cross HDF5, not even Ctrl-C
            self.error = self.error or error
        view[done:] = bytes(len(view) - done)
        return len(view)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """The bytes at an offset; Invalid if the file ends before."""
        try:
            data = os.pread(self.fileno(), size, offset)
        except OSError as error:
            self.error = self.error or error
            raise
        if len(data) != size:
            raise Invalid("it ends early: the file was cut short")
        return data


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[Any, SourceFile]]:
    """An HDF5 file, open in h5py's low-level interface, and the file object below it.

    Whatever HDF5 or the code in the block finds wrong becomes `Invalid`.

    Raises:
        FileNotFoundError: no such file.
        Unreadable: the system did not let it be read; this says nothing about its bytes.
        Invalid: its bytes were read, and are not such a file, or not all of one.
    """
    try:
        source = SourceFile(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    with source:
        try:
            with _opened(source) as file:
                yield file, source
        except (Invalid, LookupError, OSError, RuntimeError, ValueError, TypeError) as error:
            _raise_kept(source, path)
            if isinstance(error, Invalid):
                raise
            raise Invalid(first_line(error)) from error
        _raise_kept(source, path)


def _raise_kept(source: SourceFile, path: Path) -> None:
    if isinstance(source.error, OSError):
        raise unreadable(path, source.error) from source.error
    if source.error is not None:
        raise source.error


@contextlib.contextmanager
def _opened(source: SourceFile) -> Iterator[Any]:
    head = source.bytes_at(0, min(len(SIGNATURE) + 1, source.size))
    if head[: len(SIGNATURE)] != SIGNATURE:
        raise Invalid("it is empty" if not head else "it is not an HDF5 file")
    if head[-1] < OLDEST_SUPERBLOCK:
        raise Invalid("it is of HDF5's old format, which has no checksums")
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, source)
    file = None
    try:
        with _undisturbed():
            file = h5py.h5f.open(b"source", h5py.h5f.ACC_RDONLY, fapl=access)
        yield file
    finally:
        if file is not None:
            file.close()


def child(group: Any, name: str, opened: Callable[[Any, bytes], Any]) -> Any:
    """A group or dataset below a group, reached by a hard link only."""
    key = name.encode()
    try:
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise Invalid(f"{name!r} is a link to elsewhere, which is not allowed")
        return opened(group, key)
    except (KeyError, RuntimeError) as error:
        fault = (
            f"its {name!r} cannot be opened ({first_line(error)})" if key in group else f"it has no {name!r}"
        )
        raise Invalid(fault) from error


def subgroup(group: Any, path: str) -> Any:
    """The group at a path below a group, hard links all the way."""
    for name in path.strip("/").split("/"):
        if name:
            group = child(group, name, h5py.h5g.open)
    return group


def attribute(owner: Any, name: str, kind: Any) -> Any:
    """A scalar attribute as str, int or float; None if it is absent and may be.

    Class, size and space are checked first: HDF5 writes as many bytes as it finds, wherever they fit.
    """
    try:
        found = h5py.h5a.open(owner, name.encode())
    except KeyError as error:
        if kind in (int | None, float | None):
            return None
        raise Invalid(f"it has no attribute {name!r}") from error
    if found.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        raise Invalid(f"attribute {name!r} is not a single value")
    stored = found.get_type()
    if kind is str:
        return _text(found, stored, name)
    real = kind in (float, float | None)
    if not isinstance(stored, h5py.h5t.TypeFloatID if real else h5py.h5t.TypeIntegerID):
        raise Invalid(f"attribute {name!r} is not {'a real number' if real else 'a whole number'}")
    if stored.get_size() > 8:
        raise Invalid(f"attribute {name!r} has {stored.get_size()} bytes, expected at most 8")
    value = np.empty((), np.float64 if real else np.int64)
    found.read(value, mtype=h5py.h5t.NATIVE_DOUBLE if real else h5py.h5t.NATIVE_INT64)
    return value.item()


def _text(found: Any, stored: Any, name: str) -> str:
    if not isinstance(stored, h5py.h5t.TypeStringID) or stored.is_variable_str():
        raise Invalid(f"attribute {name!r} is not text of a fixed length")
    if stored.get_size() > LONGEST_TEXT:
        raise Invalid(f"attribute {name!r} has {stored.get_size()} bytes, expected at most {LONGEST_TEXT}")
    text = np.empty((), f"S{stored.get_size()}")
    found.read(text, mtype=stored)
    return str(text.item().decode())


@functools.cache
def _stored_type(dtype: str) -> Any:
    return h5py.h5t.py_create(np.dtype(dtype))


def place(dataset: Any, name: str, dtype: str, source: SourceFile) -> tuple[int, tuple[int, ...]]:
    """Offset and shape of a dataset whose bytes must lie in the file as they are, and whole.

    Args:
        dataset: low-level h5py.
        name: for messages.
        dtype: NumPy's name of the type with its order, for example "<f4".
        source: the file.
    """
    if not dataset.get_type().equal(_stored_type(dtype)):
        raise Invalid(f"{name!r} is not of type {np.dtype(dtype).name}")
    return _place(dataset, name, np.dtype(dtype).itemsize, source)


def _place(dataset: Any, name: str, itemsize: int, source: SourceFile) -> tuple[int, tuple[int, ...]]:
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE:
        raise Invalid(f"{name!r} is not an array")
    shape = tuple(map(int, space.get_simple_extent_dims()))
    size, offset = dataset.get_storage_size(), dataset.get_offset()
    if size and offset is None:  # chunked, compact or external; a virtual one has no bytes, as is found below
        raise Invalid(f"{name!r} is not stored contiguously in the file")
    if size and offset + size > source.size:
        raise Invalid(f"{name!r} reaches beyond the end of the file, which was cut short")
    if math.prod(shape) * itemsize != size:
        raise Invalid(f"{name!r} has {size} bytes, which are not those of its {math.prod(shape)} values")
    return int(offset or 0), shape


def array(dataset: Any, name: str, dtype: str, source: SourceFile) -> npt.NDArray[Any]:
    """A dataset, read from where it lies; read-only."""
    offset, shape = place(dataset, name, dtype, source)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(source.bytes_at(offset, size), dtype).reshape(shape)


def texts(dataset: Any, name: str, source: SourceFile) -> npt.NDArray[np.bytes_]:
    """A dataset of fixed-length UTF-8 texts as encoded bytes[n], read from where it lies; see `decoded`."""
    stored = dataset.get_type()
    if not isinstance(stored, h5py.h5t.TypeStringID) or stored.is_variable_str():
        raise Invalid(f"{name!r} does not hold texts of a fixed length")
    length = stored.get_size()
    if length > LONGEST_TEXT:
        raise Invalid(f"{name!r} holds texts of {length} bytes, expected at most {LONGEST_TEXT}")
    offset, shape = _place(dataset, name, length, source)
    if len(shape) != 1:
        raise Invalid(f"{name!r} is not a list")
    return np.frombuffer(source.bytes_at(offset, shape[0] * length), f"S{length}")


def encoded(values: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Texts as fixed-length UTF-8; file names that are not UTF-8 keep their bytes."""
    return np.array([value.encode(errors="surrogateescape") for value in values], np.bytes_)


def decoded(values: npt.NDArray[np.bytes_]) -> tuple[str, ...]:
    """The texts that `encoded` encoded."""
    return tuple(value.decode(errors="surrogateescape") for value in values.tolist())


def crc32(arrays: Iterable[npt.NDArray[Any]], crc: int = 0) -> int:
    """CRC-32 over the bytes of arrays, one after another, continued from that of others."""
    for values in arrays:
        crc = zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"", crc)
    return crc


# --- writing --------------------------------------------------------------------------------------------------------


class DiskFile(io.FileIO):
    """A file for HDF5 to write to, which keeps the first error instead of raising it.

    HDF5 ends the process, or crashes, when the last blocks of metadata cannot be written at closing (HDF5 2.0). So it
    sees no error, and `new_file` raises the first one afterwards.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view) and self.error is None:
            try:
                written += super().write(view[written:])
            except BaseException as error:  # noqa: BLE001  no exception may cross HDF5, not even Ctrl-C
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except BaseException as error:  # noqa: BLE001
            self.error = self.error or error
            return size or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except BaseException as error:  # noqa: BLE001
            self.error = self.error or error
            return offset

    def flush(self) -> None:
        """Nothing is buffered."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file of format 1.10 to write into; OSError if it could not be written."""
    with DiskFile(path, "w+") as disk:
        file = None
        try:
            with _undisturbed():
                file = h5py.File(disk, "w", libver=("v110", "v110"))
            yield file
        finally:
            with _undisturbed():
                if file is not None:
                    file.close()
        if disk.error is not None:
            raise disk.error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back the signals that end a command: HDF5 (2.0) crashes at the end of a process that left a file open.

    Their handlers are exchanged, since masking would only pass them on to another thread, such as NumPy's.
    """
    if threading.current_thread() is not threading.main_thread():  # in which alone handlers run
        yield
        return
    held: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ENDING}
    handlers = {number: handler for number, handler in handlers.items() if handler is not None}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: held.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)


def write_arrays(
    file: h5py.File, arrays: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Datasets and attributes of a new file, and attribute `crc32` over the arrays in their order."""
    for name, values in arrays.items():
        if values.dtype.kind == "S":
            write_texts(file, name, values)
        else:
            write_array(file, name, values)
    write_attributes(file, {**attributes, "crc32": crc32(arrays.values())})


# Writing goes through h5py's low-level calls as well: the high-level ones take twice as long for a shard of few
# frames. They would write the same.


def write_texts(file: h5py.Group, name: str, values: npt.NDArray[np.bytes_]) -> None:
    """A dataset of texts from `encoded`."""
    dtype = h5py.string_dtype("utf-8", max(values.dtype.itemsize, 1))
    write_array(file, name, values.astype(dtype), _text_type(dtype.itemsize))


def write_array(group: h5py.Group, name: str, values: npt.NDArray[Any], stored: Any = None) -> None:
    """A contiguous dataset of the values; `stored` is their type in the file, unless it is the array's."""
    stored = _stored_type(values.dtype.str) if stored is None else stored
    dataset = h5py.h5d.create(
        group.id, name.encode(), stored, h5py.h5s.create_simple(values.shape), _untimed()
    )
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values), mtype=stored)


def write_bytes(group: h5py.Group, name: str, size: int, blocks: Iterable[bytes]) -> None:
    """A contiguous dataset uint8[size] of blocks, one after another."""
    stored, space = _stored_type("|u1"), h5py.h5s.create_simple((size,))
    dataset = h5py.h5d.create(group.id, name.encode(), stored, space, _untimed())
    at = 0
    for block in blocks:
        space.select_hyperslab((at,), (len(block),))
        values = np.frombuffer(block, np.uint8)
        dataset.write(h5py.h5s.create_simple(values.shape), space, values, mtype=stored)
        at += len(block)


@functools.cache
def _untimed() -> Any:
    """Properties of datasets that hold no times, so that the same values are the same bytes."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    return properties


def write_attributes(group: h5py.Group, attributes: Mapping[str, Any]) -> None:
    """Scalars as int64, float64 and fixed-length UTF-8; None is left out; a mapping becomes JSON."""
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            value = json.dumps(value, sort_keys=True)
        if isinstance(value, str):
            text = value.encode()
            data = np.array(text, f"S{max(len(text), 1)}")
            stored = _text_type(data.itemsize)
        elif value is not None:
            data = np.array(value, np.float64 if isinstance(value, float) else np.int64)
            stored = _stored_type(data.dtype.str)
        else:
            continue
        h5py.h5a.create(group.id, name.encode(), stored, _scalar()).write(data, mtype=stored)


@functools.lru_cache(256)
def _text_type(length: int) -> Any:
    return h5py.h5t.py_create(h5py.string_dtype("utf-8", length), logical=True)


@functools.cache
def _scalar() -> Any:
    return h5py.h5s.create(h5py.h5s.SCALAR)
