"""The report is one file that stands alone, shows everything, and renders in a browser without an error."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_results import both

from evaluate import report, results
from evaluate.report import RunStory
from train.volume_spec import VolumeSpec


def made_report(folder: Path, splits: tuple[int, ...] = (1, 2)) -> Path:
    random = np.random.default_rng(0)
    found = [
        results.evaluate_split(both(split=split), ["average", "svm"], both("train", split))
        for split in splits
    ]
    stories = [
        RunStory(
            f"{stream}-split{split}",
            "resnet18, 300 iterations of 32",
            VolumeSpec(stream),
            [{"iteration": i, "loss": 2 / (1 + i)} for i in range(40)],
            random.normal(size=(64, 3 if stream == "spatial" else 20, 7, 7)).astype(np.float32),
        )
        for split in splits
        for stream in ("spatial", "temporal")
    ]
    path = folder / "report.html"
    report.write_report(path, found, stories, {})
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_report(tmp_path_factory.mktemp("report"))


def test_the_report_needs_no_other_file_and_no_network(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert 'name="viewport"' in text


def test_the_report_shows_every_row_and_section(page: Path) -> None:
    text = page.read_text()
    for words in (
        "Mean over splits 1, 2",
        "fusion by averaging",
        "fusion by SVM",
        "mean class recall",
        "Confusion matrix",
        "First-layer filters",
        "Example clips",
        "training loss",
    ):
        assert words in text


def test_names_are_shown_as_text_never_as_markup(tmp_path: Path) -> None:
    hostile = "<script>alert('a & b')</script>"
    streams = [results.evaluate_split([one], ["none"]) for one in both()[:1]]
    values = report.context(streams, [], {})
    values["title"] = hostile
    text = report.render(values)
    assert hostile not in text
    assert "&lt;script&gt;" in text


def test_examples_are_right_and_mistakes_are_wrong() -> None:
    result = results.evaluate_split(both(), ["none"])
    predicted = result.rows[-1].scores.argmax(1)
    examples, mistakes = (
        pick(result, result.rows[-1]) for pick in (report.pick_examples, report.pick_mistakes)
    )
    assert examples
    assert mistakes
    assert all(predicted[video] == result.labels[video] for video in examples)
    assert all(predicted[video] != result.labels[video] for video in mistakes)
    gaps = [
        result.rows[-1].scores[video].max() - result.rows[-1].scores[video, result.labels[video]]
        for video in mistakes
    ]
    assert gaps == sorted(gaps, reverse=True)


def test_the_report_renders_in_a_browser_without_errors(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    run = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--window-size=390,2000",
            f"--screenshot={tmp_path / 'phone.png'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr, run.stderr
    # Chromium writes what it built from the page: closed, with every picture.
    assert run.stdout.rstrip().endswith("</html>")
    assert run.stdout.count("<img") == page.read_text().count("<img")
