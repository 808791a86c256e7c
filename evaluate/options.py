"""Options that several commands of `python -m evaluate` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from pipeline.catalog import Dataset, known_datasets, load_dataset
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths, data_root

Command = Callable[..., Any]


class NumberList(click.ParamType):
    """Numbers with commas between them, as in 1,1.5."""

    name = "numbers"

    def __init__(self, number: Callable[[str], Any] = float) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            return [self.number(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"expected numbers with commas between them, found {value!r}", param, ctx)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


dataset_options = _together(
    click.option("--dataset", help="Dataset. [default: the only known one, else demo]"),
    click.option("--data", type=click.Path(), help="Data root. [default: $TWO_STREAM_DATA, else ./data]"),
)

run_options = _together(
    click.option(
        "--split",
        "splits",
        type=NumberList(int),
        help="Splits, as 1 or 1,2,3. [default: every split that has runs]",
    ),
    click.option(
        "--stream",
        "streams",
        multiple=True,
        type=click.Choice(["spatial", "temporal"]),
        help="Only runs of this stream; may be given twice.",
    ),
    click.option(
        "--run",
        "runs",
        multiple=True,
        help="Runs by name, in the order of fusion. [default: <stream>-split<k>, else the only one of a stream]",
    ),
)

view_options = _together(
    click.option(
        "--frames", type=int, default=25, show_default=True, help="Positions per video, equally spaced."
    ),
    click.option(
        "--crops",
        type=click.Choice(["1", "5", "10"]),
        default="10",
        show_default=True,
        callback=lambda context, parameter, value: int(value),
        help="Crops per position: centre; with four corners; with their mirrors.",
    ),
)

device_options = _together(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--batch", type=int, help="Views per call of the network. [default: 100 on a CPU, 500 on a GPU]"
    ),
    click.option(
        "--workers",
        type=int,
        help="Processes that decode. [default: 1 on a CPU, all cores up to 16 on a GPU]",
    ),
    click.option(
        "--bf16", is_flag=True, help="bf16 arithmetic: faster on GPUs; scores differ in the third digit."
    ),
    click.option("--shards", help="Set of shards. [default: the one the run was trained on]"),
    click.option(
        "--allow-missing", is_flag=True, help="Score the videos that have shards, and say how many have none."
    ),
    click.option("--overwrite", is_flag=True, help="Score again what is scored already."),
)


def open_dataset(name: str | None, data: str | None, console: Console) -> tuple[Dataset, DatasetPaths]:
    """The dataset asked for, or the one at hand; says which it took.

    Raises:
        InputError: unknown, or several are known and none is named.
    """
    root = data_root(data)
    if name is None:
        known = known_datasets(root)
        if len(known) != 1 and "demo" not in known:
            raise InputError(
                f"{root}: which dataset? Known there: {', '.join(known) or 'none'}. Name one with --dataset, or "
                "make one known with: python -m pipeline import (or: python -m pipeline demo)"
            )
        name = known[0] if len(known) == 1 else "demo"
        console.print(f"Dataset: {name} (in {root})", highlight=False, markup=False)
    return load_dataset(name, root), DatasetPaths(root, name)
