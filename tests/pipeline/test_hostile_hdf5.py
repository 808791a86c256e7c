"""Everything that HDF5 can store where a shard has an attribute, a table or a group: refused, and nothing crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from forked import forked
from made_shards import make_shard

from pipeline.errors import InputError
from pipeline.shard import ShardAddress
from pipeline.verify import Target, verify_shard

Change = Callable[[Any, str], None]


def typed(stored: Callable[[], Any], values: object = None, shape: tuple[int, ...] = ()) -> Change:
    """An attribute of a type of HDF5's low-level interface; without values its bytes are whatever HDF5 leaves."""

    def change(owner: Any, name: str) -> None:
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        attribute = h5py.h5a.create(owner.id, name.encode(), stored(), space)
        if values is not None:
            attribute.write(np.asarray(values), mtype=stored())

    return change


def created(value: object, dtype: Any = None) -> Change:
    return lambda owner, name: owner.attrs.create(name, value, dtype=dtype)


def resized(base: Any, size: int) -> Any:
    copy = base.copy()
    copy.set_size(size)
    return copy


def enumeration() -> Any:
    copy = h5py.h5t.enum_create(h5py.h5t.NATIVE_INT64)
    copy.enum_insert(b"A", 1)
    return copy


ATTRIBUTES: dict[str, Change] = {
    "text of any length": created("text", h5py.string_dtype()),
    "many texts of any length": created(["text"] * 9, h5py.string_dtype()),
    "a list of any length": typed(lambda: h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT32)),
    "a reference": lambda owner, name: owner.attrs.create(name, owner.file["rgb"].ref, dtype=h5py.ref_dtype),
    "a reference to a region": lambda owner, name: owner.attrs.create(
        name, owner.file["rgb/start"].regionref[:2], dtype=h5py.regionref_dtype
    ),
    "an array as a type": typed(
        lambda: h5py.h5t.array_create(h5py.h5t.NATIVE_INT64, (1000,)), np.arange(1000)
    ),
    "a compound": created(np.zeros((), [("a", "i4"), ("b", "f8")])),
    "bytes of no type": typed(lambda: h5py.h5t.create(h5py.h5t.OPAQUE, 5000), np.zeros((), "V5000")),
    "an enumeration": typed(enumeration, np.array(1)),
    "bits": typed(lambda: h5py.h5t.STD_B64LE),
    "an integer of 16 bytes": typed(lambda: resized(h5py.h5t.NATIVE_INT64, 16)),
    "a null space": created(h5py.Empty("S4")),
    "no values": created(np.zeros(0)),
    "a list of one": created(np.zeros(1, np.int64)),
    "many texts": created(np.full(200, b"x" * 300)),
    "a complex number": created(1j),
}


def stored(**settings: Any) -> Change:
    def change(file: Any, name: str) -> None:
        data = np.zeros(3, np.float32)
        file.create_dataset(name, **{"data": data, **settings})

    return change


def low_level(fill: Callable[[Any], None], shape: tuple[int, ...]) -> Change:
    """A dataset with a property list of HDF5's low-level interface, and nothing written."""

    def change(file: Any, name: str) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        fill(settings)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, settings)

    return change


def unknown_filter(settings: Any) -> None:
    settings.set_chunk((3,))
    settings.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1, 2))


def virtual(file: Any, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset(name, layout)


DATASETS: dict[str, Change] = {
    "a null space": stored(data=h5py.Empty("f4")),
    "texts of any length": stored(data=["a"] * 3, dtype=h5py.string_dtype()),
    "lists of any length": stored(data=None, shape=(3,), dtype=h5py.vlen_dtype("i4")),
    "compounds": stored(data=np.zeros(3, [("a", "i4"), ("b", "f8")])),
    "compressed": stored(chunks=True, compression="gzip"),
    "of a size that may change": stored(chunks=True, maxshape=(None,)),
    "a filter that nobody has": low_level(unknown_filter, (3,)),
    "never written": low_level(lambda settings: settings.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE), (3,)),
    "huge": low_level(lambda settings: settings.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE), (2**40,)),
    "in another file": stored(
        data=None, shape=(3,), dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    ),
    "virtual": virtual,
    "a single value": stored(data=np.float32(0)),
    "of other rank": stored(data=np.zeros((3, 1, 1), np.float32)),
    "a soft link": lambda file, name: file.__setitem__(name, h5py.SoftLink("/flow/forward/mean")),
    "a soft link to itself": lambda file, name: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
    "a link to another file": lambda file, name: file.__setitem__(
        name, h5py.ExternalLink("../other.h5", f"/{name}")
    ),
    "another table": lambda file, name: file.__setitem__(
        name, file["rgb/crc32" if name != "rgb/crc32" else "rgb/start"]
    ),
    "a group": lambda file, name: file.create_group(name),
    "a type": lambda file, name: file.__setitem__(name, np.dtype("f4")),
    "nothing": lambda file, name: None,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "A" / "one.h5"
    make_shard(path, video="A/one", flows=3, frames=True)
    return path


def accepted(sound: Path, path: Path, names: list[str], kinds: dict[str, Change], group: bool) -> list[str]:
    """What is not refused of everything that each of the kinds makes of each of the names."""
    found = []
    for name in names:
        owner, _, own = name.rpartition("/")
        for kind, change in kinds.items():
            shutil.copy(sound, path)
            with h5py.File(path, "r+", libver=("v110", "v110")) as file:
                if group:
                    del file[name]
                    change(file, name)
                else:
                    del file[owner or "/"].attrs[own]
                    change(file[owner or "/"], own)
            finding = verify_shard(Target("A/one", ShardAddress(path)), deep=True, source=None)
            if not finding.faults and not finding.unread:
                found.append(f"{name}: {kind}")
    return found


def test_whatever_is_stored_as_an_attribute_is_refused_and_crashes_nothing(
    sound: Path, tmp_path: Path
) -> None:
    with h5py.File(sound) as file:
        names = [
            f"{owner}/{name}" for owner in ("", "flow/forward", "rgb") for name in file[owner or "/"].attrs
        ]
    done = forked(lambda: print(accepted(sound, tmp_path / "x.h5", names, ATTRIBUTES, group=False)))
    assert done == (0, "[]\n")


def test_whatever_is_stored_as_a_table_is_refused_and_crashes_nothing(sound: Path, tmp_path: Path) -> None:
    with h5py.File(sound) as file:
        names = [f"{owner}/{name}" for owner in ("flow/forward", "rgb") for name in file[owner]]
    done = forked(lambda: print(accepted(sound, tmp_path / "x.h5", names, DATASETS, group=True)))
    assert done == (0, "[]\n")


def loop(file: Any) -> None:
    del file["flow/forward"]
    file["flow/forward"] = file["flow"]


def another_shards(file: Any) -> None:
    del file["flow"]
    file["flow"] = h5py.ExternalLink("other.h5", "/flow")


def a_table(file: Any) -> None:
    del file["rgb"]
    file["rgb"] = np.arange(4)


def a_type(file: Any) -> None:
    del file["flow"]
    file["flow"] = np.dtype("i4")


@pytest.mark.parametrize("change", [loop, another_shards, a_table, a_type])
def test_a_group_that_is_none_is_refused(sound: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    path = tmp_path / "x.h5"
    shutil.copy(sound, path)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file)
    status, printed = forked(
        lambda: print(verify_shard(Target("A/one", ShardAddress(path)), deep=False, source=None).faults)
    )
    assert status == 0
    assert printed.startswith(("['", '["'))


def test_names_that_no_video_can_have_are_no_videos_of_a_pack(sound: Path, tmp_path: Path) -> None:
    from pipeline.shard_index import index_pack

    path = tmp_path / "x.h5pack"
    names = [b"..", b".", b"\x1b[2J", b"a\nb", b"\xff\xfe", b"C:\\x", b"x" * 60_000, b".hidden", b"A/../../x"]
    with h5py.File(path, "w", libver=("v110", "v110")) as file, h5py.File(sound) as shard:
        file.attrs["format"], file.attrs["version"] = np.bytes_("two-stream pack"), np.int64(1)
        for name in names:
            try:
                group = h5py.h5g.create(file.id, name)
            except (ValueError, RuntimeError):
                continue  # HDF5 does not write such a name
            shard.copy(shard["flow"], h5py.Group(group), "flow")

    def listed() -> None:
        unusable: dict[ShardAddress, InputError] = {}
        try:
            print(sorted(index_pack(path, unusable)), len(unusable) > 0)
        except InputError as error:
            print(error)

    status, printed = forked(listed)
    assert status == 0
    assert "\x1b" not in printed
    assert ".." not in printed.split("]")[0]
