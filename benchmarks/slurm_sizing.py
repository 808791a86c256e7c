"""How many core hours, hours and gigabytes the flow of a dataset takes on a cluster, from measured rates; and training.

    python benchmarks/slurm_sizing.py --core-pairs 35 [--gpu-pairs N] [--pair-bytes 21400] [--tasks 64] [--cores 4]
    python benchmarks/slurm_sizing.py --training [--tflops 20]

The rates are those of docs/performance for 340x256, in pairs of frames a second: of one CPU core, of one GPU. Work
grows with pairs x pixels. Prints the table of docs/how-to/slurm.md.

Training is calculated, not measured: the operations of a forward and backward pass as torch counts them, and the bytes
that it keeps for the backward pass; a GPU's speed is an assumption that --tflops replaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import click

REFERENCE_PIXELS = 340 * 256


@dataclass(frozen=True)
class Amount:
    """How much there is of a dataset: videos, pairs of consecutive frames, pixels of a frame at smaller side 256."""

    videos: int
    pairs: float
    pixels: int


DATASETS = {
    # Videos and pairs: counted (13,320 videos of 2,469,975 flows).
    "UCF-101": Amount(13_320, 2_469_975, 340 * 256),
    # Kuehne et al. 2011 count 6,766 clips; a clip of about 95 frames is an assumption.
    "HMDB-51": Amount(6_766, 6_766 * 94, 340 * 256),
    # Kay et al. 2017: 306,245 clips of about 10 s; 30 frames a second and 16:9 are the upper end.
    "Kinetics-400": Amount(306_245, 306_245 * 299, 456 * 256),
}


def rows(core: float, gpu: float | None, pair_bytes: float, tasks: int, cores: int) -> list[list[str]]:
    """The table's rows: dataset, tasks, hours of one task on CPU nodes and on GPUs, gigabytes."""
    table = []
    for name, amount in DATASETS.items():
        scale = amount.pixels / REFERENCE_PIXELS
        core_hours = amount.pairs * scale / core / 3600
        # As many tasks as asked for, and more where one would run longer than half a day.
        here = tasks * math.ceil(core_hours / cores / tasks / 12)
        gpu_hours = amount.pairs * scale / gpu / 3600 if gpu else None
        table.append(
            [
                name,
                f"{amount.videos:,}",
                f"{amount.pairs / 1e6:.2f} M",
                f"{core_hours:,.0f}",
                f"{here} x {cores} cores",
                readable(core_hours / here / cores),
                "" if gpu_hours is None else readable(gpu_hours),
                "" if gpu_hours is None else readable(gpu_hours / 8),
                f"{amount.pairs * scale * pair_bytes / 1e9:,.0f}",
            ]
        )
    return table


def readable(hours: float) -> str:
    """Hours, or minutes below two hours."""
    if hours >= 2:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 0.5 else "under 1 min"


def two_digits(value: float) -> str:
    """One decimal, and below 1 two significant digits, so that little does not read as nothing."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


RECIPES = (
    ("temporal-stack10", "temporal"),
    ("spatial-lastlayer-dropout5", "spatial"),
    ("modern", "temporal"),
    ("small", "temporal"),
)
CLASSES = 101
COUNTED = 2
"""Samples of the pass whose operations and bytes are counted."""


def training_rows(tflops: float) -> list[list[str]]:
    """Recipe, iterations x batch, operations of a sample, hours of one GPU, GB for a batch of the recipe at once."""
    return [_training_row(name, stream, tflops) for name, stream in RECIPES]


def _training_row(name: str, stream: str, tflops: float) -> list[str]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from train.models import build
    from train.recipe import load_recipe

    recipe = load_recipe(name)
    spec = recipe.volume(stream)  # type: ignore[arg-type]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor)] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.device("meta"):
        network = build(recipe.model, spec.channels, CLASSES, recipe.dropout, spec.crop, recipe.width)
        inputs = torch.empty(COUNTED, spec.channels, spec.crop, spec.crop)
        keys = torch.zeros(COUNTED, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(inputs, keys).sum().backward()
    operations = counter.get_total_flops() / COUNTED
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    activations = max(0, sum(kept.values()) - weights) / COUNTED
    hours = operations * recipe.batch * recipe.iterations / (tflops * 1e12) / 3600
    return [
        name,
        f"{recipe.iterations:,} x {recipe.batch}",
        two_digits(operations / 1e9),
        readable(hours),
        two_digits((3 * weights + activations * recipe.batch) / 1e9),
    ]


@click.command()
@click.option("--core-pairs", type=float, help="Pairs per second of one CPU core at 340x256.")
@click.option("--gpu-pairs", type=float, help="Pairs per second of one GPU at 340x256.")
@click.option(
    "--pair-bytes",
    type=float,
    default=21_400,
    show_default=True,
    help="Shard bytes per pair, frames included.",
)
@click.option(
    "--tasks",
    type=int,
    default=64,
    show_default=True,
    help="Array size, multiplied where a task would take over 12 hours.",
)
@click.option("--cores", type=int, default=4, show_default=True, help="Cores per task.")
@click.option("--training", is_flag=True, help="The table of training instead.")
@click.option("--tflops", type=float, default=20, show_default=True, help="Sustained TFLOP/s of a GPU.")
def main(
    core_pairs: float | None,
    gpu_pairs: float | None,
    pair_bytes: float,
    tasks: int,
    cores: int,
    training: bool,
    tflops: float,
) -> None:
    """Print a sizing table."""
    if training:
        print(
            "| recipe | iterations x batch | GFLOP a sample | one GPU, calculated | GB of GPU memory, calculated |\n"
            "|---|---|---|---|---|"
        )
        for row in training_rows(tflops):
            print("| " + " | ".join(row) + " |")
        print(
            f"\nCalculated, not measured: at {tflops:g} TFLOP/s sustained (--tflops), and if samples are read fast "
            "enough."
        )
        return
    if core_pairs is None:
        raise click.UsageError("give --core-pairs, or --training")
    head = ["dataset", "videos", "pairs", "core hours", "tasks", "hours a task"]
    head += ["1 GPU", "8 GPUs", "GB"] if gpu_pairs else ["GB"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows(core_pairs, gpu_pairs, pair_bytes, tasks, cores):
        print("| " + " | ".join(cell for cell in row if cell) + " |")


if __name__ == "__main__":
    main()
