"""The command's options for the methods' parameters, made from their dataclasses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from extract_flow import methods
from extract_flow.__main__ import main
from extract_flow.options import chosen_method, given_parameters, option_name


def test_help_shows_every_parameter_of_every_method_with_its_default() -> None:
    sections = CliRunner().invoke(main, ["--help"], terminal_width=110).output.split("Options of --method ")
    assert len(sections) == len(methods.MODULES) + 1
    for section in sections[1:]:
        name = section.split()[0]
        for field in dataclasses.fields(methods.module(name).Parameters):
            assert f"--{option_name(field.name)} " in section
            assert f"[default: {field.default}]" in " ".join(section.split())


def test_values_get_the_type_of_the_chosen_method() -> None:
    values = {"parameter_scales": "7", "parameter_lambda_": "0.3", "parameter_epsilon": None}
    assert given_parameters("tvl1", values) == {"scales": 7, "lambda_": 0.3}
    assert given_parameters("farneback", {"parameter_gaussian": True}) == {"gaussian": True}


def test_an_option_of_another_method_is_refused_and_its_owners_named() -> None:
    with pytest.raises(
        click.UsageError, match=r"--window is no option of the method dis; farneback, opencv-cuda-farneback"
    ):
        given_parameters("dis", {"parameter_window": "3"})


def test_a_value_of_the_wrong_type_names_the_option() -> None:
    with pytest.raises(click.BadParameter, match="'x' is not a valid integer"):
        given_parameters("dis", {"parameter_patch_size": "x"})


def test_no_parameter_takes_the_place_of_an_option_of_the_command() -> None:
    own = {name for parameter in main.params for name in parameter.opts}
    for name in methods.MODULES:
        for field in dataclasses.fields(methods.module(name).Parameters):
            assert f"--{option_name(field.name)}" not in own


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom extract_flow.__main__ import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'av', 'h5py', 'matplotlib', 'sklearn') if name in sys.modules])"
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
