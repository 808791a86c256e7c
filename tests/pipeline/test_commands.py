"""python -m pipeline: quick help, and every command behind the line that announces it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline.__main__ import COMMANDS, main


def test_help_lists_every_command_and_loads_none() -> None:
    script = (
        "import sys, runpy; sys.argv = ['pipeline', '--help']\n"
        "try: runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'cv2', 'h5py', 'av'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]"
    assert [line.split()[0] for line in told.split("Commands:")[1].splitlines()[1:-1]] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_begins_as_the_line_that_announces_it(name: str) -> None:
    told = CliRunner().invoke(main, [name, "--help"])
    assert told.exit_code == 0, told.output
    described = told.output.split("\n\n")[1].split()
    assert described[:2] == COMMANDS[name][2].split()[:2]


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(main, ["nothing"]).exit_code == 2
