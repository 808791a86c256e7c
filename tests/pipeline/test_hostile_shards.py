"""Whatever is in a file named like a shard or a pack: an error that names it, before memory or time is spent."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from made_shards import make_shard
from real_data import FAULTS

from pipeline import export, pack, verify, view
from pipeline.errors import Damaged, InputError, Unreadable
from pipeline.shard import ShardAddress, open_shard
from pipeline.shard_file import FLOW_TABLES, STREAM_TABLES, tables_crc32
from pipeline.shard_index import index_pack, index_shards

PROJECT = Path(__file__).resolve().parents[2]


def invoke(command: object, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    for seed, video in enumerate(("A/one", "A/two", "B/three")):
        make_shard(root / f"{video}.h5", video=video, flows=3, frames=True, seed=seed)
    return root


# --- attributes ---


def stored(name: str, dtype: object, shape: tuple[int, ...] | None = ()) -> Callable[[h5py.File], None]:
    """Replace an attribute of a shard by one of another type or space; a shape of None is a null space."""

    def change(file: h5py.File) -> None:
        owner = file if name in file.attrs else file["flow/forward"]
        del owner.attrs[name]
        if shape is None:
            owner.attrs[name] = h5py.Empty(dtype)
        else:
            owner.attrs.create(name, np.zeros(shape, dtype))

    return change


def value(name: str, new: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        owner = file if name in file.attrs else file["flow/forward"]
        owner.attrs.modify(name, new)

    return change


@pytest.mark.parametrize("name", ["width", "frames", "step", "quality", "tables_crc32", "version"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("i8", (200,)), ("i8", None), ("f8", ()), ("S8", ()), ([("a", "i8"), ("b", "i8")], ())],
)
def test_a_whole_number_is_a_single_integer(tmp_path: Path, name: str, dtype: object, shape: object) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        stored(name, np.dtype(dtype), shape)(file)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=f"'{name}'"):
        open_shard(path)


@pytest.mark.parametrize("name", ["fps", "start"])
@pytest.mark.parametrize(("dtype", "shape"), [("f8", (200,)), ("f8", None), ("i8", ()), ("f16", ())])
def test_a_real_number_is_a_single_float(tmp_path: Path, name: str, dtype: str, shape: object) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        stored(name, np.dtype(dtype), shape)(file)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=f"'{name}'"):
        open_shard(path)


@pytest.mark.parametrize("name", ["video", "format", "size", "parameters", "method", "source_sha256"])
@pytest.mark.parametrize(("dtype", "shape"), [("S300", (200,)), ("S4", None), ("i8", ())])
def test_text_is_a_single_text(tmp_path: Path, name: str, dtype: str, shape: object) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        stored(name, np.dtype(dtype), shape)(file)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=f"'{name}'"):
        open_shard(path)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("fps", np.nan),
        ("fps", np.inf),
        ("fps", -1.0),
        ("step", 2**62),
        ("step", 0),
        ("step", -1),
        ("frames", 2**62),
        ("frames", -5),
        ("frames", 3),
        ("every", 0),
        ("start", np.nan),
        ("end", -np.inf),
        ("source_bytes", -1),
        ("source_width", -1),
        ("quality", 0),
        ("width", 65535),
        ("height", 65535),
        ("width", 34),
        ("height", 17),
        ("video", b"../elsewhere"),
        ("video", b"A//x"),
        ("video", b"/etc/x"),
        ("parameters", b"[" * 100_00),
    ],
)
def test_values_are_within_their_bounds(tmp_path: Path, name: str, new: object) -> None:
    path = make_shard(tmp_path / "x.h5", frames=True)
    with h5py.File(path, "r+") as file:
        if name == "end":
            file.attrs["end"] = new
        elif isinstance(new, bytes):
            owner = file if name in file.attrs else file["flow/forward"]
            owner.attrs[name] = np.bytes_(new)
        else:
            value(name, new)(file)
    with pytest.raises(Damaged, match=r"x\.h5"):
        open_shard(path)
    assert "1 bad" in invoke(verify.command, path).output


@pytest.mark.parametrize("name", ["scale", "offset", "mean", "table", "clipped"])
@pytest.mark.parametrize("new", [np.nan, np.inf, 1e30])
def test_tables_hold_finite_numbers(tmp_path: Path, name: str, new: float) -> None:
    """With a checksum that agrees, as a writer with a fault of its own would leave it."""
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        part = file["flow/forward"]
        part[name][...] = np.where(
            np.arange(part[name].size).reshape(part[name].shape) == 1, new, part[name][...]
        )
        part.attrs.modify(
            "tables_crc32", tables_crc32({n: part[n][...] for n in [*STREAM_TABLES, *FLOW_TABLES]})
        )
    with pytest.raises(Damaged, match=f"'{name}' holds values"):
        open_shard(path)


@pytest.mark.parametrize(("side", "most"), [("width", 65535), ("height", 65535)])
def test_a_size_that_the_images_do_not_have_takes_no_memory(tmp_path: Path, side: str, most: int) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.attrs.modify(side, most)
    command = (
        "import resource, sys; from pipeline.errors import Damaged; from pipeline.shard import open_shard\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: open_shard(sys.argv[1])\n"
        "except Damaged as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", command, path], cwd=PROJECT, capture_output=True, text=True)
    assert "x.h5" in done.stdout, done.stderr


@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"no damaged files at {FAULTS}: see TWO_STREAM_TEST_DATA")
@pytest.mark.parametrize(
    "name", ["attr_overflow", "attr_width_empty", "dims_huge_attr", "fps_nan", "step_huge"]
)
def test_the_collected_faults_are_named_and_the_rest_is_still_checked(folder: Path, name: str) -> None:
    shutil.copy(FAULTS / f"{name}.h5", folder / "A" / "bad.h5")
    output = invoke(verify.command, folder)
    assert output.exit_code == 1
    assert "bad.h5: damaged shard" in output.output
    assert "3 good, 1 bad" in output.output
    assert invoke(view.command, folder / "A" / "bad.h5").exit_code == 1
    assert (
        invoke(export.command, folder, "--layout", "npy", "--output", folder.parent / "out").output.count(
            "failed"
        )
        == 2
    )


# --- storage and links ---


def virtual(file: h5py.File, data: np.ndarray) -> None:
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "x", data.shape)
    file.create_virtual_dataset("flow/forward/crc32", layout)


def external(file: h5py.File, data: np.ndarray) -> None:
    file.create_dataset(
        "flow/forward/crc32", data.shape, data.dtype, external=[("/etc/hostname", 0, data.nbytes)]
    )


def chunked(file: h5py.File, data: np.ndarray) -> None:
    file.create_dataset("flow/forward/crc32", data=data, chunks=True)


def compact(file: h5py.File, data: np.ndarray) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(data.shape)
    h5py.h5d.create(file["flow/forward"].id, b"crc32", h5py.h5t.STD_U32LE, space, created)


def other_order(file: h5py.File, data: np.ndarray) -> None:
    file.create_dataset("flow/forward/crc32", data=data.astype(">u4"))


def scalar(file: h5py.File, data: np.ndarray) -> None:
    file.create_dataset("flow/forward/crc32", data=data[0])


@pytest.mark.parametrize("how", [virtual, external, chunked, compact, other_order, scalar])
def test_tables_stored_in_another_way_are_refused(tmp_path: Path, how: Callable[..., None]) -> None:
    path = make_shard(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        data = file["flow/forward/crc32"][...]
        del file["flow/forward/crc32"]
        how(file, data)
    with pytest.raises(Damaged, match="'crc32'"):
        open_shard(path)


def test_a_named_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "A" / "pipe.h5")
    assert "pipe.h5: could not be read: it is not a regular file" in invoke(verify.command, folder).output


def test_hdf5_of_the_old_format_has_no_checksums_and_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w", libver="earliest") as file:
        file.attrs["format"] = "two-stream shard"
    with pytest.raises(InputError, match="old format"):
        open_shard(tmp_path / "old.h5")


# --- packs ---


@pytest.fixture
def packed(folder: Path) -> Path:
    invoke(pack.command, folder)
    return folder / "A.h5pack"


def self_links(file: h5py.File) -> None:
    for number in range(30):
        file[f"A/self{number}"] = file["A"]


def soft_link(file: h5py.File) -> None:
    file["A/soft"] = h5py.SoftLink("/A/one")


def external_link(file: h5py.File) -> None:
    file["A/external"] = h5py.ExternalLink("/etc/hostname", "/")


def second_name(file: h5py.File) -> None:
    file["A/again"] = file["A/one"]


def link_to_root(file: h5py.File) -> None:
    file["A/root"] = file["/"]


def dataset(file: h5py.File) -> None:
    file["A/data"] = np.zeros(3)


def leads_out(file: h5py.File) -> None:
    file.copy("A/one", file["A"], name="..")


def deep(file: h5py.File) -> None:
    file.create_group("/".join("x" * 40))


def renamed(file: h5py.File) -> None:
    file.move("A/one", "A/three")
    file.copy("A/three", file["A"], name="one")
    file["A/one"].attrs.modify("video", np.bytes_(b"A/one"))


STRAYS = [self_links, soft_link, external_link, second_name, link_to_root, dataset, leads_out, deep, renamed]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stray", STRAYS)
def test_a_pack_with_something_stray_keeps_its_shards_and_loses_the_rest(
    packed: Path, stray: Callable[[h5py.File], None]
) -> None:
    expected = {video: open_shard(address).flows(0, 3) for video, address in index_pack(packed).items()}
    with h5py.File(packed, "r+", libver=("v110", "v110")) as file:
        stray(file)
    if stray not in (second_name, link_to_root, renamed):  # which only opening finds
        with pytest.raises(InputError, match=r"A\.h5pack"):
            index_shards(packed.parent)
    found = invoke(verify.command, packed.parent)
    assert found.exit_code == 1
    assert "A.h5pack:/" in found.output
    before = packed.read_bytes()
    assert "2 good shards kept" in invoke(verify.command, packed.parent, "--repair").output
    assert packed.with_name("A.h5pack.damaged").read_bytes() == before
    kept = {video: open_shard(address).flows(0, 3) for video, address in index_pack(packed).items()}
    assert kept.keys() == expected.keys()
    assert all(np.array_equal(kept[video], expected[video]) for video in expected)
    assert invoke(verify.command, packed.parent).exit_code == 0


@pytest.mark.parametrize("stray", [leads_out, soft_link, self_links])
def test_unpacking_a_pack_with_something_stray_writes_and_deletes_nothing(
    packed: Path, stray: Callable[[h5py.File], None]
) -> None:
    with h5py.File(packed, "r+", libver=("v110", "v110")) as file:
        stray(file)
    before = sorted(packed.parent.parent.rglob("*"))
    assert invoke(pack.command, packed.parent, "--unpack").exit_code == 1
    assert sorted(packed.parent.parent.rglob("*")) == before


# --- what cannot be read now is not damaged ---


def test_too_few_file_handles_repair_nothing(folder: Path) -> None:
    command = (
        "import resource, sys, h5py, numpy, click.testing; from pipeline import verify\n"
        "import pipeline.shard, joblib\n"
        "opened = len(__import__('os').listdir('/proc/self/fd')) - 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (opened, opened))\n"
        "from pipeline.shard_sets import Target; from pipeline.shard import ShardAddress; from pathlib import Path\n"
        "for path in sys.argv[1:]:\n"
        "    finding = verify.verify_shard(Target('', ShardAddress(Path(path))))\n"
        "    print(finding.faults, finding.unread)"
    )
    paths = sorted(folder.rglob("*.h5"))
    done = subprocess.run(
        [sys.executable, "-c", command, *paths], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout.count("[] could not be read: Too many open files") == 3, done.stdout + done.stderr


def test_a_pack_of_a_later_version_is_left(packed: Path) -> None:
    with h5py.File(packed, "r+", libver=("v110", "v110")) as file:
        file.attrs.modify("version", 2)
    before = {path: path.read_bytes() for path in packed.parent.rglob("*") if path.is_file()}
    for command, *arguments in ([pack.command], [pack.command, "--unpack"], [verify.command, "--delete"]):
        refused = invoke(command, packed.parent, *arguments)
        assert refused.exit_code == 1
        assert "it is a pack of version 2, and this program reads version 1" in refused.output
    assert {path: path.read_bytes() for path in packed.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "EACCES"])
@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_an_error_of_the_system_repairs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: str, deep: tuple[str, ...]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.h5")}
    whole = os.pread
    calls = iter(range(10**6))

    def failing(*arguments: int) -> bytes:
        if next(calls) % 10 == 7:
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        return whole(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    output = invoke(verify.command, folder, "--delete", *deep)
    assert output.exit_code == 1
    assert "could not be read: " + os.strerror(getattr(errno, number)) in output.output
    assert "0 bad" in output.output
    assert {path: path.read_bytes() for path in folder.rglob("*.h5")} == before


@pytest.mark.parametrize("command", ["verify", "view", "view one", "export"])
def test_a_pack_that_could_not_be_read_for_a_moment_is_reported_as_that(
    packed: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    whole, calls, before = os.pread, iter(range(10**6)), packed.read_bytes()

    def failing_once(*arguments: int) -> bytes:
        if next(calls) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(*arguments)

    monkeypatch.setattr(os, "pread", failing_once)
    shards = packed.parent
    called = {
        "verify": (verify.command, shards, "--repair"),
        "view": (view.command, shards, "--output", shards.parent / "x.png"),
        "view one": (view.command, packed / "A/one", "--output", shards.parent / "x.png"),
        "export": (export.command, shards, "--layout=npy", "--output", shards.parent / "out"),
    }
    done = invoke(*called[command])
    assert done.exit_code == 1
    assert f"{packed}: could not be read: Input/output error" in done.output
    assert packed.read_bytes() == before


def test_an_error_of_the_system_while_hdf5_reads_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open file is replaced by a folder between its first bytes and HDF5's, so that reading fails."""
    from pipeline import hdf5

    begin = hdf5.SourceFile.bytes_at

    def lost(source: hdf5.SourceFile, offset: int, size: int) -> bytes:
        found = begin(source, offset, size)
        handle = os.open(folder, os.O_RDONLY)
        os.dup2(handle, source.fileno())
        os.close(handle)
        return found

    monkeypatch.setattr(hdf5.SourceFile, "bytes_at", lost)
    with pytest.raises(Unreadable, match="could not be read: Is a directory"):
        open_shard(folder / "A" / "one.h5")


def test_a_shard_of_a_later_version_or_another_program_is_left(folder: Path) -> None:
    with h5py.File(folder / "A" / "one.h5", "r+") as file:
        file.attrs.modify("version", 2)
    with h5py.File(folder / "A" / "two.h5", "w", libver=("v110", "v110")) as file:
        file.attrs["other"] = 1
    output = invoke(verify.command, folder, "--delete").output
    assert "1 good, 0 bad (nothing to do), 2 could not be read or used" in output
    assert len(list(folder.rglob("*.h5"))) == 3


def test_repair_renames_and_delete_deletes(folder: Path) -> None:
    for number in range(2):
        (folder / "A" / "one.h5").write_bytes(b"damaged %d" % number)
        assert "set aside as one.h5.damaged" in invoke(verify.command, folder, "--repair").output
    assert (folder / "A" / "one.h5.damaged").read_bytes() == b"damaged 0"
    assert (folder / "A" / "one.h5.damaged-2").read_bytes() == b"damaged 1"
    (folder / "A" / "two.h5").write_bytes(b"damaged")
    assert "two.h5: deleted" in invoke(verify.command, folder, "--delete").output
    assert sorted(index_shards(folder)) == ["B/three"]


def test_what_was_mended_meanwhile_is_left(folder: Path) -> None:
    good = folder / "A" / "one.h5"
    bad = verify.Finding(verify.Target("", ShardAddress(good)), ["forward 1 fails its checksum"])
    (line,) = verify.repair([bad], verify.verify_shard, delete=True)
    assert "left as it is" in line
    assert good.exists()


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(folder: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(Unreadable, match="Too many open files"):
            index_shards(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
