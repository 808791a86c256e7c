"""Commands in the documentation run; those that cannot run here are checked for their options; links lead somewhere.

Commands stand in ```console blocks after "$ "; a page's ```python blocks are one program, run after them. A block after
`<!-- not run: reason -->` is not run. Each page has a fresh copy of a small demo dataset, with shards and barely
trained runs, in `data` of an empty working folder.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]*) -->\s*\n)?```console\n(?P<text>.*?)```", re.DOTALL)
PYTHON = re.compile(r"(<!-- not run: [^>]* -->\s*\n)?```python\n(.*?)```", re.DOTALL)
COMMANDS = {
    "pipeline": "main",
    "extract_flow": "main",
    "train": "main",
    "evaluate": "main",
    "slurm": "main",
    "two_stream": "main",
}


class Command(NamedTuple):
    """One line after "$ " of a page, and why it is not run, if so."""

    page: Path
    line: str
    reason: str


def commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            text = block["text"].replace("\\\n", " ")
            found += [
                Command(page, line[2:].split("  #")[0].strip(), block["reason"] or "")
                for line in text.splitlines()
                if line.startswith("$ ")
            ]
    return found


def pages_with_commands() -> Iterator[Path]:
    with_commands = {command.page for command in commands() if not command.reason}
    yield from (page for page in PAGES if page in with_commands or python_of(page))


def python_of(page: Path) -> str:
    """The Python of a page, block after block as one program; a block may be marked as not run, as commands are."""
    return "\n".join(code for mark, code in PYTHON.findall(page.read_text(encoding="utf-8")) if not mark)


def name(page: Path) -> str:
    return str(page.relative_to(PROJECT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = [
        target
        for target in LINK.findall(text)
        if not re.match(r"https?://|mailto:|#", target) and not (page.parent / target.split("#")[0]).exists()
    ]
    assert not broken


@pytest.mark.parametrize(
    "command", commands(), ids=lambda command: f"{name(command.page)}: {command.line}"[:110]
)
def test_commands_use_options_that_exist(command: Command) -> None:
    words = shlex.split(command.line)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(wanted) <= set(targets)
    elif words[:1] == ["sbatch"]:
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (PROJECT / script).is_file()
    elif words[0].endswith("python") and words[1] == "-m" and words[2] in COMMANDS:
        check_options(words[2], words[3:])
    elif words[0] == "two-stream":
        check_options("two_stream", words[1:])
    elif words[0].endswith("python") and words[1].endswith(".py"):
        assert (PROJECT / words[1]).is_file()


def check_options(package: str, words: list[str]) -> None:
    """Every option among the words is one of the command's."""
    command: click.Command = getattr(importlib.import_module(f"{package}.__main__"), COMMANDS[package])
    context = click.Context(command)
    while isinstance(command, click.Group) and words and (found := command.get_command(context, words[0])):
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    known = {
        flag
        for parameter in command.get_params(context)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    given = [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]
    assert set(given) <= known


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the demo, its shards and a run of each stream."""
    folder = tmp_path_factory.mktemp("documentation")
    few = ["--iterations", "2", "--batch", "4", "--workers", "0"]
    for words in (
        ["pipeline", "demo", "--videos-per-class", "6"],
        ["extract_flow", "--dataset", "demo"],
        ["train", "--dataset", "demo", "--stream", "spatial", *few],
        ["train", "--dataset", "demo", "--stream", "temporal", *few],
    ):
        run([sys.executable, "-m", *words], folder)
    return folder / "data"


def run(words: list[str] | str, folder: Path) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TWO_STREAM"))
    }
    program = folder / "bin" / "two-stream"  # of this checkout, installed or not
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m two_stream "$@"\n')
    program.chmod(0o755)
    environment["PATH"] = os.pathsep.join(
        [str(program.parent), str(Path(sys.executable).parent), environment["PATH"]]
    )
    environment["PYTHONPATH"] = str(PROJECT)
    environment["MPLBACKEND"] = "agg"
    done = subprocess.run(
        words,
        shell=isinstance(words, str),
        executable="/bin/bash" if isinstance(words, str) else None,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.xdist_group("documentation")  # one worker, so that the demo is made once
@pytest.mark.parametrize("page", list(pages_with_commands()), ids=name)
def test_commands_run_in_the_order_of_the_page(page: Path, small_demo: Path, tmp_path: Path) -> None:
    shutil.copytree(small_demo, tmp_path / "data")
    (tmp_path / "my-videos").mkdir()
    for clip in sorted((tmp_path / "data" / "demo" / "videos").rglob("*.mp4"))[:1]:
        shutil.copy(clip, tmp_path / "my-videos" / "juggling.mp4")
    for part in ("benchmarks", "opencv_cuda", "slurm"):
        (tmp_path / part).symlink_to(PROJECT / part)
    for command in commands():
        if command.page == page and not command.reason and not command.line.startswith("make"):
            run(command.line, tmp_path)
    if code := python_of(page):
        (tmp_path / "page.py").write_text(code, encoding="utf-8")
        run([sys.executable, "page.py"], tmp_path)


@pytest.mark.xdist_group("documentation")
@pytest.mark.parametrize(
    "notebook", sorted((PROJECT / "examples").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_run(notebook: Path, small_demo: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 2
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "clear the outputs"
    (tmp_path / "notebook.py").write_text("\n\n".join(code))
    shutil.copytree(small_demo, tmp_path / "data")
    run([sys.executable, "notebook.py"], tmp_path)


def test_figures_of_the_readme_stand_on_the_pages_that_it_links_to() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^]]*\]\((docs/performance/[^)]*)\) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for page, cells in rows:
        figures = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", cells)
        known = (PROJECT / page).read_text(encoding="utf-8")
        assert [
            each for each in figures if not re.search(rf"(?<![\d.,]){re.escape(each)}(?![\d])", known)
        ] == [], page
