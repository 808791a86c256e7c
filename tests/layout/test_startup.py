"""What every command loads for its help, and SLURM's submission for its checks: nothing that takes long to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import PACKAGES, PROJECT

from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video

HEAVY = ("torch", "numba", "matplotlib", "sklearn")
NOT_OF_SLURM = ("numpy", "h5py")
"""What the help of slurm's commands needs not either: they read no shard before they check."""

# Prints, for each command line, its exit status and which heavy modules it has loaded. Each runs in a process of its
# own that begins with nothing loaded but click.
HELP = """
import contextlib, importlib, io, json, os, sys
import click
package, heavy = sys.argv[1], set(sys.argv[2:])
def run(words):
    \"\"\"Exit status of the command with --help, the heavy modules it loaded, its subcommands.\"\"\"
    main = importlib.import_module(package + ".__main__").main
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main([*words, "--help"])
        except SystemExit as end:
            status = end.code
    loaded = sorted(heavy & set(sys.modules))
    command, context = main, click.Context(main)
    for word in words:
        command = command.get_command(context, word)
    inner = command.list_commands(context) if isinstance(command, click.Group) else []
    return status, loaded, inner
def forked(words):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, json.dumps(run(words)).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        return json.load(answer)
found, waiting = {}, [[]]
while waiting:
    words = waiting.pop()
    status, loaded, inner = forked(words)
    found[" ".join([package, *words])] = [status, loaded]
    waiting += [[*words, name] for name in inner]
print(json.dumps(found))
"""

SUBMIT = """
import contextlib, io, json, sys
from slurm.__main__ import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        main(["submit", "--dry-run", "--dataset=toy", "--data=" + sys.argv[1], "--fusion=svm"])
    except SystemExit as end:
        status = end.code
print(json.dumps([status, printed.getvalue().count("sbatch --parsable"), sorted(set(sys.argv[2:]) & set(sys.modules))]))
"""


def python(script: str, *arguments: str) -> object:
    """What a script prints as JSON, run by a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, *HEAVY],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_help_loads_nothing_heavy(package: str) -> None:
    found = python(HELP, package)
    assert isinstance(found, dict)
    assert package in found
    assert found == {command: [0, []] for command in found}


def test_the_help_of_slurm_loads_no_arrays() -> None:
    found = python(HELP, "slurm", *NOT_OF_SLURM)
    assert isinstance(found, dict)
    assert found == {command: [0, []] for command in found}


def test_the_checks_before_submitting_load_nothing_heavy(tmp_path: Path) -> None:
    videos = {name: Video(name, tmp_path / f"{name}.avi", name[0], name) for name in ("a/x", "b/x")}
    catalog.save(Dataset("toy", ("a", "b"), videos, {1: Split(1, ("a/x",), ("b/x",))}), tmp_path, tmp_path)
    assert python(SUBMIT, str(tmp_path)) == [0, 5, []]
