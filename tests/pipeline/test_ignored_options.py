"""Commands refuse an option that would have no effect beside the others."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pipeline.__main__ import main

IMPORT = ["import", "folder", "--videos", "pipeline", "--name", "x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "a.h5", "--shards", "x"], "--shards goes with --dataset"),
        (["verify", "a.h5", "--data", "d"], "--data goes with --dataset"),
        (["verify", "a.h5", "--complete"], "--complete goes with --dataset"),
        (["export", "a.h5", "--data", "d", "--layout", "flo", "--output", "o"], "--data goes with --dataset"),
        (["export", "a.h5", "--layout", "flo", "--output", "o", "--bound", "9"], "go with tsn and denseflow"),
        (["view", "a.h5", "--data", "d"], "--data goes with --dataset"),
        (["pack", "folder", "--data", "d"], "--data goes with --dataset"),
        (["pack", "folder", "--unpack", "--videos", "3"], "--videos goes with packing"),
        (["import-flow", "f", "--output", "o", "--shards", "x"], "--data and --shards go with --dataset"),
        (["import-flow", "f", "--output", "o", "--data", "d"], "--data and --shards go with --dataset"),
        (["status", "folder", "--data", "d"], "give either FOLDER"),
        (["status", "--json", "--show", "3"], "--show has no effect with --json"),
        ([*IMPORT, "--classes", "pyproject.toml"], "--classes goes with --lists"),
        ([*IMPORT, "--no-probe", "--jobs", "2"], "--jobs goes with --probe"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, words: list[str], message: str
) -> None:
    monkeypatch.chdir(request.config.rootpath)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert message in result.output
