"""Options: a dataclass is a command's options, and comes back filled with what was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from pipeline.options import (
    CONTEXT,
    REQUIRED,
    DatasetOptions,
    ShardSetOptions,
    ShareOptions,
    argument,
    from_options,
    given_values,
    option,
    options_of,
)


@dataclass(frozen=True, kw_only=True)
class Wanted(DatasetOptions, ShardSetOptions):
    share: ShareOptions
    size: float = option(1.5, "How large.", above=0)
    layout: Literal["a", "b"] = option(REQUIRED, "Which.")
    frames: bool = option(True, "With frames.")
    overwrite: bool = option(False, "Again.")
    splits: tuple[int, ...] = option((), "Splits.", flag="split", commas=True)
    streams: tuple[str, ...] = option((), "Streams.", flag="stream", multiple=True, choices=("x", "y"))
    paths: tuple[Path, ...] = argument((), metavar="[PATH]...", multiple=True)


def run(*arguments: str, given_only: bool = False) -> Any:
    """What a command with these options gets, or its output where it refuses."""
    filled: list[Any] = []

    @click.command(context_settings=CONTEXT)
    @options_of(Wanted, given_only)
    def command(**values: Any) -> None:
        filled.append(given_values(Wanted, values) if given_only else from_options(Wanted, values))

    result = CliRunner().invoke(command, list(arguments))
    return filled[0] if filled else result.output


def test_without_options_every_field_has_its_default() -> None:
    assert run("--layout", "a") == Wanted(layout="a", share=ShareOptions())


def test_options_fill_the_fields_of_nested_and_inherited_dataclasses_alike() -> None:
    words = "--layout b --no-frames --overwrite --split 1,2 --stream x --stream y --task 1 --tasks 2 --size 3"
    assert run(*words.split(), "--dataset", "d", "--shards", "s", "--data", "/x", "p", "q") == Wanted(
        dataset="d",
        shards="s",
        data=Path("/x"),
        share=ShareOptions(task=1, tasks=2),
        size=3.0,
        layout="b",
        frames=False,
        overwrite=True,
        splits=(1, 2),
        streams=("x", "y"),
        paths=(Path("p"), Path("q")),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing option '--layout'"),
        ("--layout c", "'c' is not one of 'a', 'b'"),
        ("--layout a --size 0", "0.0 is not in the range x>0"),
        ("--layout a --split 1,x", "expected int values with commas between them, found '1,x'"),
        ("--layout a --stream z", "'z' is not one of"),
        ("--layout a --tasks 0", "0 is not in the range x>=1"),
        ("--layout a --task 2 --tasks 2", "--task 2: expected 0 to 1, as there are --tasks 2"),
        ("--layout a --set tvl1", "no such option --set: write --shards tvl1"),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(arguments: str, message: str) -> None:
    assert message in run(*arguments.split())


def test_help_shows_defaults_ranges_and_what_is_taken_for_none() -> None:
    lines = " ".join(run("--help").split())
    for words in ("[default: 1.5; x>0]", "[default: 0; x>=0]", "[required]", "(the only one, else tvl1)"):
        assert words in lines
    assert "--set " not in lines


def test_values_that_go_over_others_are_those_that_were_given() -> None:
    assert run(given_only=True) == {}
    assert run("--no-frames", "--size", "2", given_only=True) == {"frames": False, "size": 2.0}


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_a_number_is_finite(value: str) -> None:
    assert f"expected a finite number, found {value}" in run("--layout", "a", f"--size={value}")
