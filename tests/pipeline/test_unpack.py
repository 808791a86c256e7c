"""Archives of datasets: RAR in RAR, names that lead out, damage; and the official lists from a server of the test's."""

from __future__ import annotations

import http.server
import ssl
import struct
import threading
import urllib.error
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline import fetch_lists, unpack
from pipeline.catalog import FACTS

libarchive = pytest.importorskip("libarchive", reason="unpacking needs libarchive-c and libarchive")


def rar(members: Mapping[str, bytes]) -> bytes:
    """A RAR file (version 4) that stores its members uncompressed: RAR's technical note, headers and CRCs by hand."""

    def block(kind: int, flags: int, rest: bytes, data: bytes = b"") -> bytes:
        header = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
        return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header + data

    blocks = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for name, data in members.items():
        size, encoded = len(data), name.encode()
        fields = struct.pack(
            "<IIBIIBBHI", size, size, 3, zlib.crc32(data), 0x5A21_6000, 20, 0x30, len(encoded), 0o100644
        )
        blocks.append(block(0x74, 0x8000, fields + encoded, data))
    return b"".join([*blocks, block(0x7B, 0x4000, b"")])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(unpack.command, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_rar_files_in_a_rar_file_become_the_folders_of_the_classes(tmp_path: Path) -> None:
    classes = {
        f"{label}.rar": rar(
            {f"{label}/{label}_{number}.avi": f"{label} {number}".encode() for number in range(3)}
        )
        for label in ("brush_hair", "wave")
    }
    (tmp_path / "hmdb51_org.rar").write_bytes(rar(classes))
    result = run(tmp_path / "hmdb51_org.rar", "--output", tmp_path / "hmdb51")
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "hmdb51") == {
        f"{label}/{label}_{number}.avi": f"{label} {number}".encode()
        for label in ("brush_hair", "wave")
        for number in range(3)
    }
    assert "6 files" in result.output
    again = run(tmp_path / "hmdb51_org.rar", "--output", tmp_path / "hmdb51")
    assert again.exit_code == 1
    assert "already exists" in again.output


@pytest.mark.parametrize("name", ["../out.avi", "/out.avi", "a/../../out.avi", "..\\out.avi", "C:\\out.avi"])
def test_a_member_that_would_lie_outside_is_refused_and_nothing_is_unpacked(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "bad.rar").write_bytes(rar({"good.avi": b"1", name: b"2"}))
    result = run(tmp_path / "bad.rar", "--output", tmp_path / "x" / "y")
    assert result.exit_code == 1
    assert "would lie outside" in result.output
    assert not list(tmp_path.rglob("*.avi"))


def test_links_are_refused(tmp_path: Path) -> None:
    with libarchive.file_writer(str(tmp_path / "bad.tar"), "ustar") as archive:
        archive.add_file_from_memory("link", 0, b"", filetype=0o120000, linkpath="/etc/passwd")
    result = run(tmp_path / "bad.tar", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "link or device" in result.output
    assert not (tmp_path / "out").exists()


def test_damage_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    whole = rar({"a.avi": bytes(range(256)) * 40})
    (tmp_path / "cut.rar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.rar").write_bytes(b"<html>not found</html>")
    for name in ("cut.rar", "text.rar"):
        result = run(tmp_path / name, "--output", tmp_path / "out")
        assert result.exit_code == 1, result.output
        assert f"{name}: is not an archive, or a damaged one" in result.output
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose reading fails")
def test_an_archive_that_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    done = run("/proc/self/mem", "--output", tmp_path / "new")
    assert done.exit_code == 1
    assert "/proc/self/mem: could not be read: Input/output error" in done.output
    assert not list(tmp_path.iterdir())


def test_without_the_library_the_message_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.rar").write_bytes(rar({"a.avi": b"1"}))
    monkeypatch.setitem(__import__("sys").modules, "libarchive", None)
    result = run(tmp_path / "a.rar", "--output", tmp_path / "out")
    assert result.exit_code == 1
    for word in ("libarchive-c", "apt install libarchive13", "unar"):
        assert word in result.output


def test_a_pack_of_shards_is_sent_to_its_own_command(tmp_path: Path) -> None:
    (tmp_path / "a.h5pack").write_bytes(b"")
    assert "pack --unpack" in run(tmp_path / "a.h5pack", "--output", tmp_path / "out").output


# --- the official lists -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that a server of this machine serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetch(*arguments: object) -> Result:
    return CliRunner().invoke(fetch_lists.command, [str(argument) for argument in arguments])


@pytest.mark.realdata
def test_the_official_lists_are_fetched_and_checked(
    test_data: Path, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    with zipfile.ZipFile(folder / "ucf.zip", "w") as archive:
        for path in (test_data / "splits" / "ucf101").glob("*.txt"):
            archive.write(path, f"ucfTrainTestlist/{path.name}")
    lists = {path.name: path.read_bytes() for path in (test_data / "splits" / "hmdb51").glob("*.txt")}
    (folder / "hmdb.rar").write_bytes(
        rar({f"testTrainMulti_7030_splits/{name}": data for name, data in lists.items()})
    )
    for kind, name in (("ucf101", "ucf.zip"), ("hmdb51", "hmdb.rar")):
        result = fetch(kind, "--output", tmp_path / kind, "--url", f"{address}/{name}")
        assert result.exit_code == 0, result.output
        assert f"the official lists of {FACTS[kind].title}" in result.output
        assert FACTS[kind].archive in result.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "hmdb51").iterdir()} == lists


def test_lists_that_are_not_the_official_ones_are_refused(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    with zipfile.ZipFile(folder / "ucf.zip", "w") as archive:
        archive.writestr("x/trainlist01.txt", "Bow/v_Bow_g01_c01.avi 1\n")
        archive.writestr("x/testlist01.txt", "Bow/v_Bow_g02_c01.avi\n")
        archive.writestr("x/classInd.txt", "1 Bow\n")
    result = fetch("ucf101", "--output", tmp_path / "lists", "--url", f"{address}/ucf.zip")
    assert result.exit_code == 1
    assert "classes: expected 101, found 1" in result.output
    assert not (tmp_path / "lists").exists()


def test_without_a_network_the_message_names_the_file_and_what_to_do_with_it(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    _, address = served
    result = fetch("hmdb51", "--output", tmp_path / "lists", "--url", f"{address}/test_train_splits.rar")
    assert result.exit_code == 1
    assert f"{address}/test_train_splits.rar: cannot be fetched" in result.output
    assert "fetch-lists hmdb51 --output" in result.output
    assert "--archive test_train_splits.rar" in result.output
    assert "the site answers 404" in result.output
    missing = fetch("hmdb51", "--output", tmp_path / "lists", "--archive", tmp_path / "absent.rar")
    assert FACTS["hmdb51"].lists in missing.output


def test_a_site_that_moved_or_is_not_trusted_is_said_with_what_to_do_by_hand(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    (folder / "lists.zip").write_text("\n<!DOCTYPE html><html>We have moved</html>")
    page = fetch("ucf101", "--output", tmp_path / "lists", "--url", f"{address}/lists.zip")
    assert "expected an archive of lists, found a web page" in page.output
    secure = address.replace("http://", "https://")
    tls = fetch("ucf101", "--output", tmp_path / "lists", "--url", f"{secure}/lists.zip")
    assert f"{secure}/lists.zip: cannot be fetched (" in tls.output
    for result in (page, tls):
        assert result.exit_code == 1
        assert FACTS["ucf101"].page in result.output
        assert "--archive lists.zip" in result.output
    assert not (tmp_path / "lists").exists()


def test_a_certificate_that_is_not_trusted_is_named_as_such() -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = "self-signed certificate"
    why = fetch_lists._why(urllib.error.URLError(refused))
    assert why == "the site's certificate is not trusted: self-signed certificate"
