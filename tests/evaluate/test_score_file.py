"""Score files come back as written, are joined and aligned by video, and refuse what does not belong together."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from evaluate import score_file
from evaluate.score_file import Scores
from pipeline.errors import Damaged, InputError, Unreadable


def make_scores(count: int = 5, seed: int = 0, **changes: Any) -> Scores:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 3)).astype(np.float32)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values: dict[str, Any] = {
        "dataset": "demo",
        "split": 1,
        "part": "test",
        "stream": "spatial",
        "run": "spatial-split1",
        "checkpoint": "c0ffee",
        "shards": "tvl1",
        "settings": {"frames": 25, "crops": 10, "size": 64},
        "classes": ("a", "b", "ç"),
        "videos": tuple(f"a/v {video:02d} é" for video in range(count)),
        "groups": tuple(f"g{video // 2}" for video in range(count)),
        "labels": (np.arange(count) % 3).astype(np.int32),
        "logits": logits,
        "softmax": softmax.astype(np.float32),
        "views": np.full(count, 250, np.int32),
    }
    return Scores(**{**values, **changes})


def assert_equal(first: Scores, second: Scores) -> None:
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), field.name)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scores = make_scores()
    score_file.write_scores(tmp_path / "deep" / "test.h5", scores)
    assert_equal(score_file.read_scores(tmp_path / "deep" / "test.h5"), scores)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["test.h5"]


def test_files_do_not_depend_on_the_order_of_scoring(tmp_path: Path) -> None:
    scores = make_scores()
    score_file.write_scores(tmp_path / "test.h5", scores.take(np.array([3, 0, 4, 2, 1])))
    assert_equal(score_file.read_scores(tmp_path / "test.h5"), scores)


def test_disjoint_parts_join_to_the_whole_and_a_video_counts_once() -> None:
    scores = make_scores()
    parts = [scores.take(np.array(rows)) for rows in ([4, 1], [0], [1, 3, 2])]
    assert_equal(score_file.joined(parts), scores)


def test_parts_of_different_checkpoints_are_not_joined() -> None:
    with pytest.raises(InputError, match="not parts of one measurement"):
        score_file.joined([make_scores(), make_scores(checkpoint="other")])


def test_streams_are_aligned_by_video_not_by_order() -> None:
    spatial, temporal = make_scores(), make_scores(seed=1, stream="temporal").take(np.array([2, 0, 1, 4, 3]))
    first, second = score_file.aligned([spatial, temporal])
    assert first.videos == second.videos
    np.testing.assert_array_equal(second.logits, make_scores(seed=1).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": 2}, "split is 1 and 2"),
        ({"part": "train"}, "part is 'test' and 'train'"),
        ({"dataset": "hmdb51"}, "dataset is 'demo' and 'hmdb51'"),
        ({"classes": ("a", "b", "d")}, r"1 only in the first \(ç\); 1 only in the second \(d\)"),
        ({"classes": ("b", "a", "ç")}, "another order"),
        ({"videos": ("a/x", *(f"a/v {video:02d} é" for video in range(1, 5)))}, "only in the second"),
        (
            {"labels": np.array([0, 1, 2, 0, 2], np.int32)},
            "1 labels differ, first that of a/v 04 é: 'b' and 'ç'",
        ),
    ],
)
def test_streams_that_differ_are_not_fused_and_the_difference_is_shown(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_file.aligned([make_scores(), make_scores(seed=1, **changes)])


def damage_attribute(file: h5py.File) -> None:
    file.attrs["version"] = 99


def damage_shape(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = np.zeros(2, np.int32)


def damage_labels(file: h5py.File) -> None:
    file["labels"][0] = 7


def damage_values(file: h5py.File) -> None:
    file["logits"][0, 0] = np.nan


def damage_link(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("elsewhere.h5", "/")


def damage_missing(file: h5py.File) -> None:
    del file["softmax"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_attribute, "version 1, found"),
        (damage_shape, "labels should have shape"),
        (damage_labels, "outside the 3 classes"),
        (damage_values, "not finite"),
        (damage_link, "link out of the file"),
        (damage_missing, "not a readable score file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "test.h5"
    score_file.write_scores(path, make_scores())
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message) as error:
        score_file.read_scores(path)
    assert str(path) in str(error.value)


def test_no_file_and_no_hdf5_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such score file"):
        score_file.read_scores(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("not hdf5")
    with pytest.raises(InputError, match="not a readable score file"):
        score_file.read_scores(tmp_path / "text.h5")


def softmax_of_two(file: h5py.File) -> None:
    file["softmax"][0] *= 2


def negative_softmax(file: h5py.File) -> None:
    file["softmax"][0] = [-0.5, 1, 0.5]


def no_views(file: h5py.File) -> None:
    file["views"][1] = 0


def same_class_twice(file: h5py.File) -> None:
    file["classes"][1] = file["classes"][0]


def other_part(file: h5py.File) -> None:
    file.attrs["part"] = np.bytes_("all")


def settings_are_a_list(file: h5py.File) -> None:
    file.attrs["views"] = np.bytes_("[1]")


def array_of_texts(file: h5py.File) -> None:
    file.attrs["dataset"] = np.array(["x" * 300] * 200, "S300")


def external(file: h5py.File) -> None:
    del file["views"]
    file.create_dataset("views", (5,), "<i4", external=[("elsewhere", 0, 20)])


def virtual(file: h5py.File) -> None:
    del file["views"]
    layout = h5py.VirtualLayout((5,), "<i4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "views", (5,))
    file.create_virtual_dataset("views", layout)


def other_type(file: h5py.File) -> None:
    del file["views"]
    file["views"] = np.ones(5, np.int64)


def plausible_value(file: h5py.File) -> None:
    file["logits"][0, 0] += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (softmax_of_two, "does not add up to 1"),
        (negative_softmax, "does not add up to 1"),
        (no_views, "has no view"),
        (same_class_twice, "classes must be distinct"),
        (other_part, "part 'all'"),
        (settings_are_a_list, "not a mapping"),
        (array_of_texts, "'dataset' is not a single value"),
        (external, "not stored contiguously"),
        (virtual, "has 0 bytes, which are not those of its 5 values"),
        (other_type, "'views' is not of type int32"),
        (plausible_value, "fail their checksum"),
    ],
)
def test_every_value_is_checked(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "test.h5"
    score_file.write_scores(path, make_scores())
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(Damaged, match=message):
        score_file.read_scores(path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "test.h5"
    score_file.write_scores(path, make_scores())
    whole, random = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for place in random.integers(0, 8 * len(whole), 400):
        data = bytearray(whole)
        data[place // 8] ^= 1 << (place % 8)
        path.write_bytes(data)
        try:
            assert_equal(score_file.read_scores(path), make_scores())
        except InputError:
            found += 1
    assert found > 50


def version_1(path: Path, scores: Scores) -> None:
    """As score files were written before they had checksums."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "two-stream scores", "version": 1, "views": json.dumps(scores.settings)})
        for name in ("dataset", "split", "part", "stream", "run", "checkpoint", "shards"):
            file.attrs[name] = getattr(scores, name)
        for name in ("videos", "classes", "groups"):
            file.create_dataset(name, data=list(getattr(scores, name)), dtype=h5py.string_dtype())
        for name in ("labels", "logits", "softmax", "views"):
            file[name] = getattr(scores, name)


def test_version_1_is_read_and_its_values_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "test.h5"
    version_1(path, make_scores())
    assert_equal(score_file.read_scores(path), make_scores())
    version_1(path, make_scores(views=np.zeros(5, np.int32)))
    with pytest.raises(Damaged, match="has no view"):
        score_file.read_scores(path)


def test_a_file_on_which_hdf5_loops_for_ever_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for one flipped bit in version 1: the process that reads does not come back."""
    path = tmp_path / "test.h5"
    version_1(path, make_scores())
    monkeypatch.setattr(score_file.score_file_v1, "__file__", str(tmp_path / "loop.py"))
    (tmp_path / "loop.py").write_text("while True: pass")
    monkeypatch.setattr(score_file.score_file_v1, "SECONDS", 0.5)
    with pytest.raises(Damaged, match="did not end within"):
        score_file.read_scores(path)


def test_a_file_whose_reading_process_the_system_kills_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out."""
    path = tmp_path / "test.h5"
    version_1(path, make_scores())
    monkeypatch.setattr(score_file.score_file_v1, "__file__", str(tmp_path / "killed.py"))
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(Unreadable, match="could not be read"):
        score_file.read_scores(path)


def test_a_file_that_may_not_be_read_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test.h5"
    score_file.write_scores(path, make_scores())

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(Unreadable, match="could not be read"):
        score_file.read_scores(path)


def test_a_full_disk_is_one_message_and_leaves_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """HDF5 alone ends the process with a segmentation fault."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
    for limit in (0, 100, 1000, 4000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(InputError, match="no space left"):
            score_file.write_scores(tmp_path / "test.h5", make_scores(200))
        assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_hdf5_opens_a_file_ends_quietly(tmp_path: Path) -> None:
    """A file that was opened and not closed would crash HDF5 at the end of the process."""
    script = (
        "import os, signal, sys, h5py\nfrom pathlib import Path\nfrom pipeline import hdf5\n"
        "opened = h5py.h5f.create\n"
        "def create(*arguments, **named):\n"
        "    file = opened(*arguments, **named)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return file\n"
        "h5py._hl.files.h5f.create = create\n"
        "try:\n    with hdf5.new_file(Path(sys.argv[1])): print('not interrupted')\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.h5")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
