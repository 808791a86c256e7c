"""Samples per second of the training loader alone, against bare JPEG decoding of the same streams.

    python benchmarks/loader.py --dataset demo --shards dis

Bare decoding is cv2.imdecode, on one thread, of streams that lie in memory. The loader reads the shards, checks and
decodes the streams, cuts the crop and hands uint8 batches over to the main process. Candidates take turns; medians. The
second ratio is of CPU time, bare decoding's to the workers', so that other work on the machine moves it less.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from torch.utils.data import DataLoader

from pipeline.errors import command_errors
from pipeline.shard import Shard
from train.batches import TrainingReader, ignore_signals, unpack
from train.loader import PREFETCH, as_it_is
from train.recipe import load_recipe
from train.sampler import Schedule
from train.training_data import gather
from train.volume import flow_indices

Measured = tuple[float, float]
"""Samples per second, and seconds of CPU time per sample."""


def bare(reader: TrainingReader, samples: int) -> Callable[[], Measured]:
    """A function that decodes the streams of the first samples."""
    streams = []
    for index in range(samples):
        sample = reader.sample((0, index))
        shard = sample.item.source
        assert isinstance(shard, Shard)
        for position in sample.positions.tolist():
            if reader.spec.stream == "spatial":
                wanted = [("frames", position)]
            else:
                forward, backward = flow_indices(reader.spec, position, shard.flow_count(), shard.step())
                wanted = [("forward", i) for i in forward.tolist()] + [
                    ("backward", i) for i in backward.tolist()
                ]
            for part, i in wanted:
                streams.append(np.frombuffer(bytes(shard.streams(i, i + 1, part)[0]), np.uint8))
        shard.close()
    flag = cv2.IMREAD_COLOR if reader.spec.stream == "spatial" else cv2.IMREAD_GRAYSCALE

    def measure() -> Measured:
        begun, used = time.perf_counter(), time.process_time()
        for stream in streams:
            cv2.imdecode(stream, flag)
        return samples / (time.perf_counter() - begun), (time.process_time() - used) / samples

    return measure


def loaded(reader: TrainingReader, samples: int, batch: int, workers: int) -> Callable[[], Measured]:
    """A function that runs the loader with some workers and measures once they are under way."""

    def cpu_seconds(batches: Any) -> float:
        fields = [
            Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            for worker in batches._workers
        ]
        return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")

    def measure() -> Measured:
        count = samples // batch
        warm = (PREFETCH + 2) * workers  # until every slot of the ring was written once
        schedule = Schedule(range(batch), batch, 0, count + warm + PREFETCH * workers)
        reader.share_memory(workers, PREFETCH, schedule.largest)
        loader = DataLoader(
            reader,
            batch_sampler=schedule,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=as_it_is,  # type: ignore[arg-type]
            worker_init_fn=ignore_signals,
            prefetch_factor=PREFETCH,
            multiprocessing_context="fork",
        )
        batches = iter(loader)
        for _ in range(warm):
            unpack(next(batches))
        begun, used = time.perf_counter(), cpu_seconds(batches)
        for _ in range(count):
            unpack(next(batches))
        rate = count * batch / (time.perf_counter() - begun)
        cpu = (cpu_seconds(batches) - used) / (count * batch)
        batches._shutdown_workers()  # type: ignore[attr-defined]
        return rate, cpu

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
    candidates = {"bare decoding, 1 thread": bare(reader, samples)}
    for workers in sorted({1, *(n for n in (2, 4, 8, 16) if n <= cores)}):
        candidates[f"loader, {workers} worker(s)"] = loaded(reader, samples, batch, workers)
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
