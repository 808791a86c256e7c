"""Batches read ahead by threads: their order, their bits, their memory, their errors."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import torch
from made_shards import make_shard
from tiny_dataset import RECIPE

from pipeline.errors import InputError
from pipeline.shard import open_shard
from train.batches import Item
from train.loader import AHEAD, ahead, loading
from train.sampler import Schedule, TrainingReader
from train.volume import ReusedMemory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TrainingReader:
    folder = tmp_path_factory.mktemp("shards")
    sizes = ((40, 52), (36, 40), (44, 36))
    paths = [
        make_shard(folder / f"{i}.h5", f"C/{i}", flows=6 + i, height=height, width=width, seed=i)
        for i, (height, width) in enumerate(sizes)
    ]
    items = [Item(open_shard(path), i % 2, 0, "g") for i, path in enumerate(paths)]
    return TrainingReader(items, RECIPE.volume("temporal"), RECIPE)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_give_the_batches_of_the_schedule_in_its_order(
    reader: TrainingReader, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More batches than exist at a time; each is compared when it was taken, and again when the next one was."""
    monkeypatch.setattr("train.batches.OPEN_FILES", 1)  # files are closed and opened while others read them
    schedule = Schedule(range(6), 6, 0, 12, read=3)
    before = expected = None
    with loading(reader, schedule, threads, CPU) as batches:
        for keys, found in zip(schedule, batches, strict=True):
            if before is not None:
                assert torch.equal(before.raw.levels, expected)
            own = reader.read(keys)
            for i, (_, _, height, width) in enumerate(own.boxes.tolist()):
                ours, theirs = found.raw.levels[i], own.raw.levels[i]
                assert torch.equal(ours[..., :height, :width], theirs[..., :height, :width])
            for ours, theirs in zip((*found.raw[1:], *found[1:]), (*own.raw[1:], *own[1:]), strict=True):
                assert torch.equal(ours, theirs)
            before, expected = found, found.raw.levels.clone()


def test_no_more_is_read_ahead_than_was_said() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def slow(number: int) -> int:
        with lock:
            done.append(number)
        return number

    with ahead(slow, itertools.count(), threads=2) as results:
        for taken in range(10):
            assert next(results) == taken
            with lock:
                assert max(done, default=0) <= taken + 2 + AHEAD
    assert len(done) < 20


def test_an_error_is_raised_where_its_batch_would_have_been(reader: TrainingReader, tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.h5", "C/a", flows=4)
    shard = open_shard(path)
    stream = bytes(shard.streams(1, 2)[0])
    path.write_bytes(path.read_bytes().replace(stream, bytes(len(stream))))
    broken = TrainingReader([Item(shard, 0, 0, "g")], RECIPE.volume("temporal"), RECIPE)
    readers = [reader, broken, reader]
    with ahead(lambda number: readers[number].read([(0, 1)]), range(3), threads=2) as batches:
        next(batches)
        with pytest.raises(InputError, match=r"a\.h5: damaged shard: forward 1 fails its checksum"):
            next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_memory_is_used_again_once_nothing_refers_to_it_and_not_before() -> None:
    memory = ReusedMemory()
    first = memory((2, 3, 4)).fill_(1)
    part, place = first[1:, :2], first.data_ptr()
    del first
    second = memory((24,)).fill_(2)
    assert second.data_ptr() != place
    assert part.unique().tolist() == [1]
    del part
    third = memory((3, 5))
    assert third.data_ptr() == place
    assert memory((30,)).numel() == 30
