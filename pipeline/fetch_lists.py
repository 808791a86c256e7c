"""The official lists of UCF-101 and HMDB-51: `python -m pipeline fetch-lists`."""

from __future__ import annotations

import http.client
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline import atomic
from pipeline.catalog import FACTS, Facts
from pipeline.errors import InputError, command_errors
from pipeline.lists import check_facts, read_lists
from pipeline.options import CONTEXT, REQUIRED, argument, from_options, option, options_of
from pipeline.text import first_line, printable, typed
from pipeline.unpack import member_path, unpack

PATIENCE = 60.0
"""Seconds without an answer."""
LARGEST = 20_000_000
"""Most bytes of an archive of lists; the official ones have fewer than a million."""


def fetch_lists(kind: str, output: Path, url: str | None = None, archive: Path | None = None) -> Path:
    """Fetch, unpack and check the official lists of a dataset; the folder appears once they are whole.

    Args:
        kind: "ucf101" or "hmdb51".
        output: the new folder of lists.
        url: where to fetch the archive from; None: its official address.
        archive: the archive itself, fetched earlier, instead.

    Raises:
        InputError: no network (what to fetch, and what to do with it), or not the official lists.
    """
    facts = FACTS[kind]
    if output.exists():
        raise InputError(f"{output}: already exists; remove it, or name another with --output")
    url = url or facts.lists
    with tempfile.TemporaryDirectory(prefix="two-stream-lists-") as held:
        if archive is None:
            archive = Path(held) / url.rpartition("/")[2]
            _download(url, archive, kind, output)
        elif not archive.is_file():
            raise InputError(f"{archive}: no such file; it is {facts.lists}")
        unpacked = Path(held) / "unpacked"
        _unpack(archive, unpacked)
        lists = _folder_of_lists(unpacked, archive, facts)
        with atomic.writing_folder(output) as temporary:
            for path in sorted(lists.glob("*.txt")):
                shutil.copyfile(path, temporary / path.name)
    return output


def _download(url: str, path: Path, kind: str, output: Path) -> None:
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url}: expected an address that begins with https:// or http://")
    by_hand = (
        f"Get {path.name} by hand ({FACTS[kind].page} links to it), copy it here, and run: "
        f"{typed('pipeline')} fetch-lists {kind} --output {output} --archive {path.name} (--url takes the address of a "
        "mirror)"
    )
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data, where = answer.read(LARGEST + 1), answer.url
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{url}: cannot be fetched ({_why(error)}). {by_hand}") from error
    if len(data) > LARGEST:
        raise InputError(f"{url}: expected an archive of lists, found more than {LARGEST:,} bytes. {by_hand}")
    if data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        led = f", to which it leads: {where}" if where != url else ""
        raise InputError(f"{url}: expected an archive of lists, found a web page{led}. {by_hand}")
    path.write_bytes(data)


def _why(error: Exception) -> str:
    """Why nothing was fetched: the site's answer, a certificate that is not trusted, or what the system says."""
    if isinstance(error, urllib.error.HTTPError):
        moved = ": it is not there any more" if error.code in (404, 410) else ""
        return f"the site answers {error.code} {error.reason}{moved}"
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"the site's certificate is not trusted: {reason.verify_message}"
    return first_line(reason) if isinstance(reason, Exception) else str(reason)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack lists: ZIP by Python itself, everything else by `pipeline.unpack`."""
    if not zipfile.is_zipfile(archive):
        unpack(archive, folder)
        return
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                if not member.is_dir():
                    target = member_path(archive.name, member.filename, folder, True)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(members.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: a damaged archive: {error}") from error


def _folder_of_lists(unpacked: Path, archive: Path, facts: Facts) -> Path:
    """The folder in an unpacked archive that holds the official lists."""
    folders = sorted({path.parent for path in unpacked.rglob("*.txt") if not path.name.startswith(".")})
    folders = [folder for folder in folders if "__MACOSX" not in folder.parts]
    if len(folders) != 1:
        raise InputError(
            f"{archive}: expected the lists of {facts.title} in one folder, found {len(folders)}"
        )
    check_facts(read_lists(folders[0]), facts, archive)
    return folders[0]


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Which lists to fetch, from where and to where."""

    kind: str = argument(REQUIRED, metavar="KIND", choices=tuple(FACTS))
    output: Path = option(REQUIRED, "New folder for the lists.")
    url: str | None = option(
        None, "Address of the same archive elsewhere, such as a mirror.", shown_default="the official one"
    )
    archive: Path | None = option(None, "Use this archive, fetched earlier, instead of an address.")

    def __post_init__(self) -> None:
        if self.url and self.archive:
            raise click.UsageError("give either --url or --archive")


@click.command(context_settings=CONTEXT)
@options_of(FetchOptions)
@command_errors
def command(**values: Any) -> None:
    """Fetch the official lists of a dataset (KIND: ucf101 or hmdb51), and check them.

    Classes, videos and the size of every split must be the published ones. Those of HMDB-51 are a RAR file, for
    which `unpack` needs libarchive.
    """
    options = from_options(FetchOptions, values)
    facts = FACTS[options.kind]
    folder = fetch_lists(options.kind, options.output, options.url, options.archive)
    click.echo(printable(f"{folder}: the official lists of {facts.title}"))
    click.echo(f"the videos: {facts.archive}")
    click.echo(printable(f"then: {typed('pipeline')} import {options.kind} --videos DIR --lists {folder}"))
