"""The command's options, and those for the methods' parameters, made from their dataclasses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from extract_flow.__main__ import main
from extract_flow.methods import MODULES, module
from extract_flow.options import FrameSize, MethodCommand, ShortSide, chosen_method, method_options
from pipeline.options import given_values


def flag_of(name: str, field: str) -> str:
    """The option of a method's parameter."""
    return next(parameter.opts[0] for parameter in method_options(name) if parameter.name == field)


def given(method: str, *words: str) -> dict[str, Any]:
    """The parameters that words of the command line give to a method."""
    context = main.make_context(
        "extract_flow", ["x.avi", "--output", "o", f"--method={method}", *words], resilient_parsing=False
    )
    return given_values(module(method).Parameters, context.params)


def test_help_shows_every_parameter_of_every_method_with_its_default() -> None:
    sections = CliRunner().invoke(main, ["--help"], terminal_width=110).output.split("Options of --method ")
    assert len(sections) == len(MODULES) + 1
    for section in sections[1:]:
        name = section.split()[0]
        for field in dataclasses.fields(module(name).Parameters):
            assert f"{flag_of(name, field.name)} " in section
            assert f"[default: {field.default}]" in " ".join(section.split())


def test_values_get_the_type_of_the_chosen_method() -> None:
    assert given("tvl1", "--scales", "7", "--lambda", "0.3") == {"scales": 7, "lambda_": 0.3}
    assert given("farneback", "--gaussian") == {"gaussian": True}
    assert given("tvl1", "--no-mask") == {"mask": False}


def test_an_option_of_another_method_is_refused_and_its_owners_named() -> None:
    with pytest.raises(
        click.UsageError,
        match=r"--window is not an option of the method dis; farneback, opencv-cuda-farneback",
    ):
        given("dis", "--window", "3")


def test_a_value_of_the_wrong_type_names_the_option() -> None:
    with pytest.raises(click.BadParameter, match="'x' is not a valid integer") as caught:
        given("dis", "--patch-size", "x")
    assert "--patch-size" in caught.value.format_message()


def test_no_parameter_takes_the_place_of_an_option_of_the_command() -> None:
    own = {name for parameter in main.params for name in parameter.opts}
    own_names = {parameter.name for parameter in main.params}
    for name in MODULES:
        for field in dataclasses.fields(module(name).Parameters):
            assert flag_of(name, field.name) not in own
            assert field.name not in own_names


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "numba", "numpy", "cv2", "av", "h5py", "matplotlib", "sklearn")
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom extract_flow.__main__ import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_loads_the_chosen_method_only() -> None:
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom extract_flow.__main__ import main\n"
        "words = ['x', '--output', 'o', '--method', 'farneback', '--window', '9']\n"
        "assert 'x: no such file' in CliRunner().invoke(main, words).output\n"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "tvl1"),
        (["a.avi", "--method", "dis"], "dis"),
        (["--method=brox", "--method", "dis"], "dis"),
        (["--method", "dis", "--", "--method", "brox"], "dis"),
        (["--method", "none-such"], None),
        (["--method"], None),
    ],
)
def test_the_chosen_method_is_the_last_one_named(words: list[str], method: str | None) -> None:
    assert chosen_method(words) == method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "64x48", "--short-side", "64"), "use one of them"),
        (("--no-rgb", "--rgb-quality", "80"), "--rgb-quality has no effect with --no-rgb"),
        (("--shards", "other"), "--data and --shards go with --dataset"),
        (("--processes", "2", "--device", "cpu"), "--processes is for GPUs"),
        (("--size", "0x48"), "is not a size"),
        (("--short-side", "0"), "neither a number of pixels nor none"),
        (("--method", "raft"), "'raft' is not one of 'tvl1', 'brox'"),
        (("--method", "raft", "--tau", "0.1"), "'raft' is not one of 'tvl1', 'brox'"),
        (("--codec", "paper", "--bound", "10"), "the paper preset takes each field's own range"),
        (("--codec", "lossless", "--quality", "90"), "the lossless preset has no quality"),
        (("--codec", "linear", "--bound-fixed"), "the linear preset has no bound that follows the field"),
        (("--set", "other"), "no such option --set: write --shards other"),
    ],
)
def test_no_option_is_accepted_and_ignored(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(main, ["x.avi", "--output", "o", *words])
    assert result.exit_code != 0
    assert message in result.output


def test_every_option_of_the_command_has_a_line_of_help() -> None:
    assert isinstance(main, MethodCommand)
    options = [parameter for parameter in main.params if isinstance(parameter, click.Option)]
    assert len(options) > 20
    assert [option.name for option in options if not option.help and not option.hidden] == []
    kinds = {parameter.name: type(parameter.type) for parameter in options}
    assert kinds["short_side"] is ShortSide
    assert kinds["size"] is FrameSize


def test_a_file_in_place_of_the_folder_of_shards_is_an_error(tmp_path: Path) -> None:
    for name in ("a.mp4", "out"):
        (tmp_path / name).write_bytes(b"mine")
    words = [str(tmp_path / "a.mp4"), "--output", str(tmp_path / "out"), "--method=dis"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert f"{tmp_path / 'out'}: expected a folder for the shards, found a file" in done.output
    assert (tmp_path / "out").read_bytes() == b"mine"
