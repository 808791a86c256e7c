"""Flow that other tools left as numbers: Middlebury's .flo, NumPy's .npy. Nothing that is read is trusted.

- a folder of .flo files, or of .npy files float[2,H,W] or [H,W,2]: one field each, in the order of their numbers
- a folder with flow.npy, and frames.npy or img_*.jpg beside it, as `pipeline export` writes them
- a .npy file float[n,2,H,W] or [n,H,W,2]: all fields of a video

Flow is in pixels, x (right) first.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec import Floats
from pipeline.errors import InputError, reading, unreadable
from pipeline.export import FLO_TAG
from pipeline.shard_file import LARGEST_SIDE, MOST_PIXELS
from pipeline.text import first_line, some

FLOW_ARRAY, FRAME_ARRAY = "flow.npy", "frames.npy"
LARGEST_FLOW = 1e9
"""Values from which Middlebury's format marks the flow as unknown."""
NUMBER = re.compile(r"([0-9]+)[^0-9]*$")
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FlowNumbers:
    """The flow of one video.

    Attributes:
        files: of one field each, in order; or the one array of all of them.
        count: number of fields.
        height, width: of all of them, in pixels.
        in_one: whether it is one array.
    """

    files: tuple[Path, ...]
    count: int
    height: int
    width: int
    in_one: bool

    @property
    def format(self) -> str:
        """ "flo" or "npy"."""
        return self.files[0].suffix.lower().removeprefix(".")

    def fields(self) -> Iterator[Floats]:
        """Each field, float32[2,H,W].

        Raises:
            InputError: a file that is not flow, fields of different sizes, or unknown or infinite values.
        """
        if self.in_one:
            for index, field in enumerate(flow_array(self.files[0], 4).items()):
                yield checked_field(x_and_y_first(field), f"{self.files[0]}: field {index}")
            return
        for file in self.files:
            field = read_field(file)
            if field.shape[1:] != (self.height, self.width):
                raise InputError(
                    f"{file}: expected {self.width}x{self.height} as the first field, found "
                    f"{field.shape[2]}x{field.shape[1]}"
                )
            yield field


def flow_places(folder: Path) -> dict[str, Path]:
    """Where flow lies directly in a folder: the folder itself under "", or files that are a video each, by stem; a file
    that cannot be read is one of these, so that it is reported alone.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".flo", ".npy"))
    if any(path.suffix.lower() == ".flo" or path.name == FLOW_ARRAY for path in files):
        return {"": folder}
    arrays = [path for path in files if path.name != FRAME_ARRAY]
    with contextlib.suppress(InputError):
        if arrays and len(array_file(arrays[0]).shape) == 3:
            return {"": folder}
    return {path.stem: path for path in arrays}


def flow_numbers(place: Path) -> FlowNumbers:
    """The flow at one of the `flow_places`.

    Raises:
        InputError: no flow, an array of another shape, or files whose numbers do not give an order.
    """
    if place.is_file() or (place / FLOW_ARRAY).is_file():
        file = place if place.is_file() else place / FLOW_ARRAY
        array = flow_array(file, 4)
        height, width = size_of(array)
        _check_size(file, height, width)
        return FlowNumbers((file,), array.shape[0], height, width, in_one=True)
    flo = [path for path in place.iterdir() if path.suffix.lower() == ".flo"]
    files = in_order(place, flo or [path for path in place.iterdir() if path.suffix.lower() == ".npy"])
    height, width = read_field(files[0]).shape[1:]
    return FlowNumbers(files, len(files), height, width, in_one=False)


def in_order(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Files by the last number in their names, which must follow each other.

    Raises:
        InputError: a name without a number, a number twice, or a gap.
    """
    numbered: dict[int, Path] = {}
    for path in sorted(files):
        match = NUMBER.search(path.stem)
        if match is None:
            raise InputError(f"{path}: expected a number in the name, which gives the order of the fields")
        if (other := numbered.setdefault(int(match[1]), path)) != path:
            raise InputError(f"{path}: the same number as {other.name}; remove one of them")
    numbers = sorted(numbered)
    if missing := sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)):
        raise InputError(f"{folder}: expected numbers without gaps, missing {some(map(str, missing))}")
    return tuple(numbered[number] for number in numbers)


def read_field(path: Path) -> Floats:
    """One field, float32[2,H,W], of a .flo or .npy file.

    Raises:
        InputError: not such a file, or unknown or infinite values.
    """
    if path.suffix.lower() == ".flo":
        field = read_flo(path)
        _check_size(path, *field.shape[1:])
    else:
        array = flow_array(path, 3)
        _check_size(path, *size_of(array))
        field = x_and_y_first(np.stack(list(array.items())))
    return checked_field(field, str(path))


def read_flo(path: Path) -> Floats:
    """A file in Middlebury's format as float32[2,H,W]: the tag "PIEH", width and height as int32, then x and y of each
    pixel as float32, all little-endian.

    Raises:
        InputError: not such a file.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(12)
        width, height = np.frombuffer(head[4:], "<i4").tolist() if len(head) == 12 else (0, 0)
        expected, found = 12 + 8 * width * height, path.stat().st_size
        if head[:4] != FLO_TAG or width < 1 or height < 1 or expected != found:
            raise InputError(
                f"{path}: expected a .flo file, which begins with PIEH and holds as many values as it says, found "
                f"{found} bytes that are none"
            )
        values = np.frombuffer(
            file.read(), "<f4"
        )  # not fromfile, which takes an error of the disk for the end
    return values.reshape(height, width, 2).transpose(2, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class ArrayFile:
    """A .npy file, read an item at a time: were it mapped, cutting it short meanwhile would end the process.

    Attributes:
        path: the file.
        dtype, shape: of the whole array.
        start: where its values begin, in bytes.
        contiguous: whether one item's values follow another's; else the first axis varies fastest.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    contiguous: bool

    def items(self) -> Iterator[npt.NDArray[Any]]:
        """The array's items along its first axis, in order.

        Raises:
            InputError: the file was cut short, or cannot be read now.
        """
        count, shape = self.shape[0], self.shape[1:]
        size = self.dtype.itemsize * math.prod(shape)
        try:
            if not self.contiguous:
                yield from np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False)
                return
            with self.path.open("rb") as file:
                file.seek(self.start)
                for index in range(count):
                    data = file.read(size)
                    if len(data) != size:
                        raise InputError(
                            f"{self.path}: expected {count} items, found {index}: it was cut short"
                        )
                    yield np.frombuffer(data, self.dtype).reshape(shape)
        except OSError as error:
            raise unreadable(self.path, error) from error
        except (ValueError, EOFError) as error:
            raise InputError(f"{self.path}: expected a NumPy array: {first_line(error)}") from error


def array_file(path: Path) -> ArrayFile:
    """What a .npy file holds, by its header and size.

    Raises:
        InputError: not such a file.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # whose values are not looked at
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: expected a NumPy array: {first_line(error)}") from error
    if not isinstance(mapped, np.memmap):
        raise InputError(f"{path}: expected a NumPy array, found an archive of several")
    return ArrayFile(path, mapped.dtype, mapped.shape, mapped.offset, mapped.flags.c_contiguous)


def flow_array(path: Path, axes: int) -> ArrayFile:
    """A .npy file of flow: float[n,2,H,W] or [n,H,W,2] of 4 axes, [2,H,W] or [H,W,2] of 3.

    Raises:
        InputError: not such a file, or not flow.
    """
    array = array_file(path)
    wanted = "[n,2,H,W] or [n,H,W,2]" if axes == 4 else "[2,H,W] or [H,W,2]"
    if (
        len(array.shape) != axes
        or array.dtype.kind != "f"
        or 0 in array.shape
        or 2 not in (array.shape[-3], array.shape[-1])
    ):
        raise InputError(f"{path}: expected flow as float {wanted}, found {array.dtype} {list(array.shape)}")
    return array


def x_and_y_first(field: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A field as [2,H,W], whether x and y lie in its first axis or in its last."""
    return field if field.shape[0] == 2 else np.moveaxis(field, -1, 0)


def size_of(array: ArrayFile) -> tuple[int, int]:
    """Height and width of the flow in a `flow_array`."""
    *_, first, second, third = array.shape
    return (second, third) if first == 2 else (first, second)


def frame_array(path: Path, height: int, width: int) -> ArrayFile:
    """A .npy file of RGB frames uint8[n,H,W,3].

    Raises:
        InputError: not such a file, or of another size than the flow.
    """
    array = array_file(path)
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[1:] != (height, width, 3):
        raise InputError(
            f"{path}: expected frames as uint8 [n,{height},{width},3], as the flow's size, found {array.dtype} "
            f"{list(array.shape)}"
        )
    return array


def checked_field(field: npt.NDArray[np.floating[Any]], where: str) -> Floats:
    """A field as float32; InputError where a value is not finite or marked as unknown."""
    values = np.ascontiguousarray(field, np.float32)
    unknown = int((~(np.abs(values) < LARGEST_FLOW)).sum())
    if unknown:
        raise InputError(
            f"{where}: {unknown} values are unknown or not finite; a shard holds flow of every pixel"
        )
    return values


def add_file(digest: Any, path: Path) -> None:
    """Add a file's bytes to a digest of hashlib, a piece at a time."""
    with reading(path), path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)


def _check_size(path: Path, height: int, width: int) -> None:
    if max(height, width) > LARGEST_SIDE or height * width > MOST_PIXELS:
        raise InputError(f"{path}: {width}x{height} is larger than any video")
