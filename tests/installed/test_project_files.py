"""Files beside the code: they name programs, files and versions that are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def test_every_package_says_that_it_is_typed() -> None:
    sys.path.insert(0, str(PROJECT / "tests" / "layout"))
    from source_tree import PACKAGES

    assert [name for name in PACKAGES if not (PROJECT / name / "py.typed").is_file()] == []


def test_the_hooks_run_programs_of_the_development_requirements() -> None:
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    programs = re.findall(r"entry: \.venv/bin/(\S+)", hooks)
    assert set(programs) == {"ruff", "mypy", "shellcheck"}
    requirements = (PROJECT / "setup.cfg").read_text(encoding="utf-8").split("\ndev =\n")[1]
    assert all(re.search(rf"^    {program}\b", requirements, re.MULTILINE) for program in programs)
    assert all(shutil.which(program, path=str(Path(sys.executable).parent)) for program in programs)


def test_the_hook_for_scripts_covers_what_make_lint_covers() -> None:
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pattern = re.findall(r"files: (\S+)", hooks)[-1]
    names = subprocess.run(
        ["git", "ls-files", "*.sh", "*.sbatch", "*.env", ".ci/run", "containers/bin"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in names if not re.search(pattern, name)] == []


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert [number for number in range(1, 10) if f"\n   {number}. " not in text] == []
    assert "the two-stream authors" in text
