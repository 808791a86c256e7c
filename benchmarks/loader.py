"""Samples per second of the training loader alone, against bare JPEG decoding of the same streams.

    python benchmarks/loader.py --dataset demo --shards dis

Bare decoding is cv2.imdecode, on one thread, of streams that lie in memory. The loader draws the samples, reads the
shards, checks and decodes the streams and gives batches of crops, in threads of this process. Candidates take turns;
medians. The second ratio is of CPU time, so that other work on the machine moves it less. Bare decoding by two threads
shows how much a second thread can give on the machine as it is. "All but decoding" is what
holds Python's lock: the threads that scale are the loader's time over it.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import cv2
import numpy as np
import torch

import pipeline.shard
from pipeline.errors import command_errors
from pipeline.shard import Shard
from train.loader import AHEAD, loading
from train.recipe import load_recipe
from train.sampler import Schedule, TrainingReader
from train.training_data import gather
from train.volume import flow_indices, memory_for

Measured = tuple[float, float]
"""Samples per second, and seconds of CPU time per sample."""


def bare(reader: TrainingReader, samples: int) -> Callable[[int], Measured]:
    """A function of a number of threads that decodes the streams of the first samples."""
    streams = []
    for index in range(samples):
        sample = reader.sample((0, index))
        shard = sample.item.source
        assert isinstance(shard, Shard)
        for position in sample.positions.tolist():
            if reader.spec.stream == "spatial":
                wanted = [("frames", position)]
            else:
                forward, backward = flow_indices(reader.spec, position, shard.flow_count, shard.step())
                wanted = [("forward", i) for i in forward.tolist()] + [
                    ("backward", i) for i in backward.tolist()
                ]
            for part, i in wanted:
                streams.append(np.frombuffer(bytes(shard.streams(i, i + 1, part)[0]), np.uint8))
        shard.close()
    flag = cv2.IMREAD_COLOR if reader.spec.stream == "spatial" else cv2.IMREAD_GRAYSCALE

    def decode(part: int, threads: int) -> None:
        for stream in streams[part::threads]:
            cv2.imdecode(stream, flag)

    def measure(threads: int) -> Measured:
        begun, used = time.perf_counter(), time.process_time()
        if threads == 1:
            decode(0, 1)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, range(threads), itertools.repeat(threads)))
        return samples / (time.perf_counter() - begun), (time.process_time() - used) / samples

    return measure


def loaded(reader: TrainingReader, samples: int, batch: int, threads: int) -> Callable[[], Measured]:
    """A function that runs the loader with some threads and measures once they are under way."""

    def measure() -> Measured:
        count, warm = samples // batch, threads + AHEAD  # until all memory was written once
        schedule = Schedule(range(batch), batch, 0, count + warm)
        with loading(reader, schedule, threads, torch.device("cpu")) as batches:
            for _ in range(warm):
                next(batches)
            begun, used = time.perf_counter(), time.process_time()
            done = sum(len(found.label) for found in itertools.islice(batches, count - threads - AHEAD))
            seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        return done / seconds, cpu / done

    return measure


def holding_the_lock(reader: TrainingReader, samples: int, batch: int) -> Callable[[], Measured]:
    """A function that does everything but decoding: drawing, reading the file, and the Python around them."""

    def nothing(*_: object, **__: object) -> None:
        return None

    def measure() -> Measured:
        memory, decode = memory_for(torch.device("cpu")), pipeline.shard.decode_fields
        pipeline.shard.decode_fields = nothing
        try:
            begun, used = time.perf_counter(), time.process_time()
            for keys in Schedule(range(batch), batch, 0, samples // batch):
                reader.read(keys, memory)
            return samples / (time.perf_counter() - begun), (time.process_time() - used) / samples
        finally:
            pipeline.shard.decode_fields = decode

    return measure


@click.command()
@click.option("--dataset", default="demo", show_default=True, help="dataset whose shards are read")
@click.option("--data", default=None, help="data root")
@click.option("--shards", default=None, help="shard set")
@click.option("--split", default=1, show_default=True)
@click.option("--stream", type=click.Choice(["temporal", "spatial"]), default="temporal", show_default=True)
@click.option("--samples", default=512, show_default=True, help="samples per measurement")
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="override a key of the recipe")
@command_errors
def main(
    dataset: str,
    data: str | None,
    shards: str | None,
    split: int,
    stream: str,
    samples: int,
    batch: int,
    rounds: int,
    settings: tuple[str, ...],
) -> None:
    """Compare the loader with bare decoding."""
    from train.recipe import parse

    cv2.setNumThreads(1)
    name = "temporal-stack10" if stream == "temporal" else "spatial-scratch-dropout9"
    keys = dict(setting.split("=", 1) for setting in settings)
    recipe = load_recipe(name, {key: parse(key, value) for key, value in keys.items()})
    recipe = dataclasses.replace(recipe, batch=batch)
    spec = recipe.volume(stream)
    reader = TrainingReader(gather(dataset, split, spec, recipe, data, shards).train, spec, recipe)
    cores = len(os.sched_getaffinity(0))
    decoding = bare(reader, samples)
    candidates = {"bare decoding, 1 thread": lambda: decoding(1)}
    if cores > 1:
        candidates["bare decoding, 2 threads"] = lambda: decoding(2)
    for threads in sorted({1, *(n for n in (2, 4, 8, 16) if n <= cores)}):
        candidates[f"loader, {threads} thread(s)"] = loaded(reader, samples, batch, threads)
    if stream == "temporal":
        candidates["all but decoding"] = holding_the_lock(reader, samples, batch)
    found: dict[str, list[Measured]] = {label: [] for label in candidates}
    for _ in range(rounds):
        for label, measure in candidates.items():
            found[label].append(measure())
    first = found["bare decoding, 1 thread"]
    for label, measured in found.items():
        rate = statistics.median(rate for rate, _ in measured)
        ratio = statistics.median(mine[0] / other[0] for mine, other in zip(measured, first, strict=True))
        cpu = statistics.median(other[1] / mine[1] for mine, other in zip(measured, first, strict=True))
        least = 1e3 * min(cpu for _, cpu in measured)
        print(
            f"{label:26} {rate:8.1f} samples/s {ratio:6.2f}x   CPU {least:.2f} ms/sample at best, {cpu:.2f}x"
        )


if __name__ == "__main__":
    main()
