"""On a device, training waits for nothing but the losses that it logs.

The stub of a device is torch's "meta": its tensors hold no values, so that reading one is an error, and every operation
on it, copies among them, can be seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from made_shards import make_shard
from tiny_dataset import RECIPE
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.runs import RunPaths, RunRecord
from pipeline.shard import open_shard
from train.batches import Item
from train.distributed import Place, World
from train.loader import DeviceFeed
from train.meter import Meter
from train.options import LoopOptions
from train.recipe import Recipe
from train.sampler import Schedule, TrainingReader
from train.trainer import Trainer
from train.training_data import TrainingData

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device, those that block apart, and operations whose shape is a value."""

    def __init__(self) -> None:
        super().__init__()
        self.copied, self.blocking, self.waiting = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_to_copy" and args[0].device.type == "cpu" and kwargs.get("device") == META:
            self.copied += 1
            self.blocking += not kwargs.get("non_blocking", False)
        if name == "copy_" and args[0].device == META and args[1].device.type == "cpu":
            self.blocking += 1
        on_device = any(isinstance(value, torch.Tensor) and value.device == META for value in args)
        self.waiting += on_device and name in ("_local_scalar_dense", "nonzero", "masked_select", "item")
        return func(*args, **kwargs)


class Stub:
    """A loss on its way: counts who waits for one."""

    waited = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device == META
        self.shape = tensor.shape

    def wait(self) -> torch.Tensor:
        Stub.waited += 1
        return torch.ones(self.shape)


def data(folder: Path) -> TrainingData:
    paths = [
        make_shard(folder / f"{i}.h5", f"C/{i}", flows=6, frames=True, height=40, width=48, seed=i)
        for i in range(4)
    ]
    items = [Item(open_shard(path), i, i // 2, "g") for i, path in enumerate(paths)]
    return TrainingData({"first": ("a", "b"), "second": ("c", "d")}, items, [])


@pytest.mark.parametrize(
    ("stream", "changes"),
    [
        ("temporal", {}),
        ("temporal", {"stacking": "trajectory", "mean_subtraction": True}),
        ("temporal", {"scales": (1.0, 0.75), "segments": 2}),
        ("spatial", {"lighting": 0.2, "clip": 5.0}),
    ],
)
def test_iterations_wait_for_the_device_only_where_losses_are_logged(
    stream: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.trainer.Readback", Stub)
    monkeypatch.setattr(Stub, "waited", 0)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # has no such device
    recipe: Recipe = dataclasses.replace(RECIPE, precision="fp32", dropout=0.5, **changes)
    spec = recipe.volume("spatial" if stream == "spatial" else "temporal")
    options = LoopOptions(tensorboard=False, workers=0, log_every=3, micro_batch=4)
    trainer = Trainer(
        recipe, spec, data(tmp_path), RunRecord("tiny", "temporal", 1), RunPaths(tmp_path), options,
        World(Place(), META), None, None, lambda _: None,
    )  # fmt: skip
    meter = Meter(["first", "second"], None, lambda _: None)
    schedule = Schedule(trainer.indices, trainer.micro_batch, 0, 6)
    with Copies() as seen:
        batches = (trainer.reader.read(keys) for keys in schedule)
        for iteration in range(1, 7):
            trainer.step(batches, schedule.micro_batches, 0.01, recipe.clip, meter)
            trainer.iteration += 1
            assert Stub.waited == 2 * (iteration // 3 * 3)  # micro-batches of the iterations that were logged
    assert seen.copied >= 12 * 5
    assert (seen.blocking, seen.waiting) == (0, 0)


def test_a_batch_reaches_the_device_as_bytes(tmp_path: Path) -> None:
    """The network's input is four times as large as what is copied."""
    spec = RECIPE.volume("temporal")
    reader = TrainingReader(data(tmp_path).train, spec, RECIPE)
    batch = reader.read([(0, index) for index in range(4)])
    sent = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func.overloadpacket.__name__ == "_to_copy" and kwargs.get("device") == META:
                sent.append(args[0].nbytes)
            return func(*args, **kwargs)

    with Sizes():
        samples = DeviceFeed(spec, META)(batch)
    assert samples.inputs.device == META
    assert samples.inputs.shape == (4, 1, 8, 32, 32)
    pixels = batch.raw.levels.nbytes
    assert pixels <= sum(sent) < 1.5 * pixels
