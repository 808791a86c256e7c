"""Files of the shared collection in every place where a command reads one: an error in a few words, and no crash."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from real_data import FAULTS

import evaluate.__main__
import train.__main__
from evaluate import score_file_v1
from pipeline import export, pack, verify, view

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in FAULTS.iterdir() if path.suffix != ".md") if FAULTS.is_dir() else []

sys.path.insert(0, str(PROJECT / "tests" / "pipeline"))
from forked import forked  # noqa: E402  its folder is not on the path

PLACES: dict[str, tuple[str, object, Sequence[str]]] = {
    "verify a shard": ("A/x.h5", verify.command, ["{root}"]),
    "verify a shard and decode it": ("A/x.h5", verify.command, ["{root}", "--deep"]),
    "verify a pack": ("x.h5pack", verify.command, ["{root}"]),
    "pack": ("A/x.h5", pack.command, ["{root}"]),
    "unpack": ("x.h5pack", pack.command, ["{root}", "--unpack"]),
    "view": ("A/x.h5", view.command, ["{file}", "--output", "{root}/x.png"]),
    "export": ("A/x.h5", export.command, ["{root}", "--layout", "npy", "--output", "{root}/out"]),
    "fuse": ("x.h5", evaluate.__main__.main, ["fuse", "{file}", "{file}"]),
    "predict": ("x.pt", evaluate.__main__.main, ["predict", "{root}", "--run", "{file}"]),
    "convert": ("x.pt", train.__main__.main, ["convert", "{file}"]),
}


@pytest.mark.skipif(not FILES, reason=f"no damaged files at {FAULTS}: see TWO_STREAM_TEST_DATA")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_file_is_an_error_that_names_it_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    monkeypatch.setattr(score_file_v1, "SECONDS", 5)  # on one of them HDF5 loops for ever
    own, command, words = PLACES[place]
    file = tmp_path / own
    file.parent.mkdir(exist_ok=True)
    shutil.copy(FAULTS / name, file)
    before = file.read_bytes()
    arguments = [word.format(root=tmp_path, file=file) for word in words]

    def run() -> None:
        result = CliRunner().invoke(command, arguments)  # type: ignore[arg-type]
        print(result.output)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        sys.exit(result.exit_code)

    status, printed = forked(run)
    assert status == 1, printed
    assert "Traceback" not in printed
    assert file.name in printed
    assert max(map(len, printed.splitlines())) < 1000
    assert file.read_bytes() == before
