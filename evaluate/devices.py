"""The devices that networks run on, with the options' defaults for this machine."""

from __future__ import annotations

import torch

from evaluate.inference import Compute
from evaluate.options import ComputeOptions
from pipeline.errors import InputError
from pipeline.machine import usable_cores

MOST_WORKERS = 16


def devices(name: str) -> list[str]:
    """The devices of a --device option: every visible GPU for "auto" and "cuda" where there are any, else the CPU.

    Raises:
        InputError: a GPU is asked for that cannot be used.
    """
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return ["cpu"]
    if name in ("auto", "cuda") and count:
        return [f"cuda:{index}" for index in range(count)]
    if name.startswith("cuda") and not count:
        raise InputError(f"--device {name}: torch finds no usable GPU here; use --device cpu")
    try:
        index = torch.device(name).index
    except RuntimeError as error:
        raise InputError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if not name.startswith("cuda") or index is None or index >= count:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N with N below {count}")
    return [name]


def computing(options: ComputeOptions, most: int | None = None) -> list[Compute]:
    """How to compute on each of the requested devices, at most `most` of them; they share the threads that decode.

    Raises:
        InputError: a GPU is asked for that cannot be used.
    """
    places = devices(options.device)[:most]
    gpu = places[0] != "cpu"
    workers = options.workers
    if workers is None:
        workers = min(usable_cores(), MOST_WORKERS) if gpu else 1
    each = workers if len(places) == 1 else max(1, workers // len(places))
    batch = options.batch or (500 if gpu else 100)
    return [Compute(place, batch, each, options.bf16) for place in places]
