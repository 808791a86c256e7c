"""Whatever a damaged or invented file holds, its reader answers with the data or with an InputError."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_shards import make_shard

from evaluate.score_file import Scores, read_scores, write_scores
from pipeline.errors import InputError
from pipeline.lists import read_lists
from pipeline.pack import write_pack
from pipeline.shard import ShardAddress, open_shard, parts
from pipeline.shard_index import index_pack, index_shards

FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# --- damage to bytes ---

PLACE = st.floats(0, 1, exclude_max=True)
"""Where in a file, as a share of its size."""
BYTES = st.one_of(
    st.binary(min_size=1, max_size=16), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7])
)
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PLACE, BYTES),
        st.tuples(st.just("insert"), PLACE, BYTES),
        st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
        st.tuples(st.just("cut"), PLACE, st.none()),
        st.tuples(st.just("copy"), PLACE, PLACE),
    ),
    min_size=1,
    max_size=4,
)


def damaged(whole: bytes, changes: list[tuple[str, float, Any]]) -> bytes:
    data = bytearray(whole)
    for how, share, value in changes:
        place = int(share * len(data))
        if how == "write":
            data[place : place + len(value)] = value
        elif how == "insert":
            data[place:place] = value
        elif how == "flip" and data:
            data[place] ^= 1 << value
        elif how == "cut":
            del data[place:]
        elif how == "copy":
            other = int(value * len(data))
            data[place : place + 64] = data[other : other + 64]
    return bytes(data)


def of_shard(address: ShardAddress) -> list[Any]:
    with open_shard(address) as shard:
        streams = [shard.streams(0, len(shard.part(part)), part) for part in parts(shard)]
        return [
            shard.video,
            [[bytes(stream) for stream in part] for part in streams],
            shard.flows(0, 2).tobytes(),
        ]


def of_pack(path: Path) -> list[Any]:
    return [of_shard(address) for address in index_pack(path).values()]


def of_scores(path: Path) -> list[Any]:
    scores = read_scores(path)
    return [
        scores.classes,
        scores.videos,
        scores.logits.tobytes(),
        scores.softmax.tobytes(),
        scores.labels.tobytes(),
    ]


READERS: dict[str, Callable[[Path], list[Any]]] = {
    "shard": lambda path: of_shard(ShardAddress(path)),
    "pack": of_pack,
    "scores": of_scores,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound file of each kind."""
    root = tmp_path_factory.mktemp("sound")
    make_shard(root / "set" / "A" / "one.h5", video="A/one", flows=2, frames=True)
    write_pack(root / "pack.h5pack", index_shards(root / "set").values())
    softmax = np.full((2, 2), 0.5, np.float32)
    scores = Scores("d", 1, "test", "spatial", "r", "c", "s", {}, ("a", "b"), ("a/1", "b/2"), ("g", "h"),
                    np.zeros(2, np.int32), softmax, softmax, np.ones(2, np.int32))  # fmt: skip
    write_scores(root / "scores.h5", scores)
    return {
        "shard": root / "set" / "A" / "one.h5",
        "pack": root / "pack.h5pack",
        "scores": root / "scores.h5",
    }


@pytest.mark.parametrize("kind", READERS)
@FUZZ
@given(changes=DAMAGE)
@example(changes=[("cut", 0.0, None)])
@example(changes=[("flip", 0.0, 1)])
@example(changes=[("insert", 0.0, b"\0" * 16)])
def test_damaged_bytes_are_an_error_or_change_nothing(
    files: dict[str, Path], tmp_path: Path, kind: str, changes: list[tuple[str, float, Any]]
) -> None:
    path = tmp_path / files[kind].name
    path.write_bytes(damaged(files[kind].read_bytes(), changes))
    try:
        found = READERS[kind](path)
    except InputError as error:
        message = str(error)
    else:
        message = str(path)
        assert found == READERS[kind](files[kind])
    assert str(path) in message


# --- files that HDF5 calls sound ---

VALUE = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
    st.sampled_from(
        [np.zeros(0), np.zeros((2, 3)), np.full(300, 2**62), np.bool_(True), np.bytes_(b"x" * 70_000)]
    ),
)


@pytest.mark.parametrize("kind", READERS)
@FUZZ
@given(choice=st.integers(0, 10**6), value=VALUE, of_attribute=st.booleans())
@example(choice=0, value=np.full(300, 2**62), of_attribute=True)
@example(choice=0, value=np.zeros(0), of_attribute=False)
def test_any_value_in_any_place_is_an_error_or_is_read(
    files: dict[str, Path], tmp_path: Path, kind: str, choice: int, value: Any, of_attribute: bool
) -> None:
    path = tmp_path / files[kind].name
    shutil.copy(files[kind], path)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        objects: list[Any] = [file]
        file.visititems(lambda _, found: objects.append(found))
        places = [(found, name) for found in objects for name in found.attrs]
        arrays = [found for found in objects if isinstance(found, h5py.Dataset)]
        if of_attribute:
            owner, name = places[choice % len(places)]
            owner.attrs[name] = value
        else:
            replaced = arrays[choice % len(arrays)].name
            del file[replaced]
            file[replaced] = value
    try:
        READERS[kind](path)
        message = str(path)
    except InputError as error:
        message = str(error)
    assert str(path) in message


# --- lists ---

WORD = st.one_of(
    st.sampled_from(
        [
            "run/a.avi",
            "walk/b.mp4",
            "run",
            "1",
            "0",
            "-1",
            "99999999999999999999",
            "../x.avi",
            "/etc/x.avi",
            ",",
        ]
    ),
    st.text(max_size=6),
)
LINES = st.lists(st.lists(WORD, max_size=4).map(" ".join), max_size=5).map("\n".join)
LIST_NAMES = (
    "trainlist01.txt",
    "testlist01.txt",
    "classInd.txt",
    "run_test_split1.txt",
    "train.txt",
    "val.csv",
)


@FUZZ
@given(
    texts=st.dictionaries(
        st.sampled_from(LIST_NAMES), st.one_of(LINES.map(str.encode), st.binary(max_size=40))
    )
)
@example(texts={"train.txt": b"run/a.avi 0 1\nrun/a.avi 1 0"})
@example(texts={"train.txt": b"\xff\xfe\0"})
@example(texts={"val.csv": b'"'})
@example(texts={"trainlist01.txt": b"run/../../x.avi 1"})
def test_any_list_is_read_or_an_error_that_names_it(tmp_path: Path, texts: dict[str, bytes]) -> None:
    folder = tmp_path / "lists"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    try:
        paths = read_lists(folder).paths.values()
        assert paths
        message = str(folder)
    except InputError as error:
        paths, message = {}.values(), str(error)
    assert str(folder) in message
    assert not any(path.startswith("/") or ".." in Path(path).parts for path in paths)
