"""The report is one file that stands alone, shows everything, and renders in a browser without an error."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_scores import class_names, split_result, story, write_example
from made_shards import make_shard, request
from test_results import both

from evaluate import class_charts, metrics, report, results
from evaluate.__main__ import main
from evaluate.provenance import Provenance, ScoredSet
from evaluate.report import RunStory
from evaluate.results import SplitResult
from pipeline.paths import DatasetPaths
from pipeline.shard import ShardAddress
from pipeline.version import VERSION
from train.checkpoint import load_checkpoint
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


# --- what a reader relies on ----------------------------------------------------------------------------------------

VOID = {"meta", "link", "img", "br", "path", "rect"}


class Outline(HTMLParser):
    """Elements that were opened and not closed, or closed and not open, and the text of each kind of cell."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.images_without_words = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img" and not dict(attributes).get("alt"):
            self.images_without_words += 1
        if len({name for name, _ in attributes}) != len(attributes):
            self.faults.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.faults.append(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> in line {self.getpos()[0]}")


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    return parsed


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 101 classes and three splits."""
    return write_example(tmp_path_factory.mktemp("many"), 101, (1, 2, 3), ("average",), 5)


def shown(results_: Sequence[SplitResult], **more: Any) -> str:
    return report.render(report.context(results_, [], {}, **more))


def test_the_report_is_well_formed_and_its_pictures_have_words(page: Path, many: Path) -> None:
    for path in (page, many):
        found = outline(path.read_text(encoding="utf-8"))
        assert (found.faults, found.open, found.images_without_words) == ([], [], 0)
        assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", path.read_text(encoding="utf-8"))


def test_a_report_of_101_classes_and_three_splits_can_be_sent_by_mail(many: Path) -> None:
    assert many.stat().st_size < 4_000_000


def test_of_many_classes_the_ten_best_and_worst_are_shown_and_the_others_folded(
    tmp_path: Path, many: Path
) -> None:
    text = many.read_text(encoding="utf-8")
    assert re.search(r"<h4>The 10 best</h4>", text)
    assert re.search(r"<h4>The 10 worst</h4>", text)
    assert re.search(r"<details[^>]*><summary>The 81 between</summary>", text)
    assert re.search(r"<details[^>]*><summary>Table of all 101 classes</summary>", text)
    few = shown([split_result(tmp_path, class_charts.MOST_SHOWN, videos=4)])
    assert "between</summary>" not in few
    assert "<summary>Table" not in few


@pytest.mark.parametrize("classes", [2, 9, 30])
def test_all_charts_and_tables_have_the_classes_in_one_order(tmp_path: Path, classes: int) -> None:
    made = [split_result(tmp_path, classes, split, videos=4) for split in (1, 2)]
    text = shown(made)
    best = np.sum([row.metrics.confusion for row in results.detailed_rows(made)], axis=0)
    recall = np.diag(best) / best.sum(axis=1)
    expected = [
        class_names(classes)[index] for index in sorted(range(classes), key=lambda index: -recall[index])
    ]
    # The chart over all splits and those of each, the table, and both sides of each matrix.
    charts = re.findall(r'<span class="name">(\w+)</span><span class="track">', text)
    assert [name for name in charts if name in expected] == 3 * expected
    table = text[text.index('<table class="sortable">') :]
    assert (
        re.findall(r'<th class="text" scope="row">(\w+)</th>', table[: table.index("</table>")]) == expected
    )
    assert re.findall(r'<text class="label"[^>]*>(\w+)</text>', text) == 6 * expected


def test_chance_is_drawn_in_every_chart(tmp_path: Path) -> None:
    text = shown([split_result(tmp_path, 9)])
    charts = re.findall(r'<ol class="chart".*?</ol>', text, re.DOTALL)
    assert len(charts) == 2  # of the rows, and of the classes
    for chart in charts:
        assert "chance 11.1%" in chart
        assert chart.count('<i class="chance" style="left:11.1%"') == chart.count('<span class="name">')


def test_chance_is_the_most_frequent_class() -> None:
    assert metrics.chance(np.array([0, 1, 1, 2, 1])) == 0.6


def test_shares_of_every_row_add_up_to_one_in_the_order_of_its_scores() -> None:
    result = results.evaluate_split(both(), ["average", "weighted", "svm"], both("train"))
    logits = results.evaluate_split(both(), ["average"], on="logits")
    for row in (*result.rows, *logits.rows):
        np.testing.assert_allclose(row.shares.sum(axis=1), 1, atol=1e-5)
        assert (row.shares >= 0).all()
        np.testing.assert_array_equal(row.shares.argmax(axis=1), row.scores.argmax(axis=1))


def test_the_report_shows_shares_and_no_margins(tmp_path: Path) -> None:
    text = shown([split_result(tmp_path, 9, fusions=("average", "svm"))])
    lists = re.findall(r'<ol class="top">.*?</ol>', text, re.DOTALL)
    assert lists
    for one in lists:
        percents = [
            float(value.replace("&lt;1", "0")) for value in re.findall(r"<span>([^<]+)%</span></li>", one)
        ]
        assert len(percents) >= 3
        assert min(percents) >= 0
        assert sum(percents) <= 102


def test_a_share_that_is_small_is_not_shown_as_nothing() -> None:
    shares = np.array([1 - 1e-4, 1e-4, 0.0])
    assert [guess["text"] for guess in report.top_classes(shares, "abc", 0)] == ["100%", "<1%", "0%"]


def test_the_true_class_is_shown_with_its_place_where_it_is_not_among_the_first() -> None:
    shares = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    assert [
        (guess["name"], guess["place"], guess["true"]) for guess in report.top_classes(shares, "abcde", 4)
    ] == [
        ("a", 1, False),
        ("b", 2, False),
        ("c", 3, False),
        ("e", 5, True),
    ]
    assert [guess["name"] for guess in report.top_classes(shares, "abcde", 1)] == ["a", "b", "c"]


def test_all_clips_share_one_scale_of_flow_beside_its_wheel(tmp_path: Path) -> None:
    result = split_result(tmp_path, 2)
    slow, fast = result.videos[:2]
    pictures = {}
    for name, speed in ((slow, 1.0), (fast, 3.0)):
        field = np.full((2, 18, 33), speed / np.sqrt(2), np.float32)
        pictures[name] = report.ClipPictures(None, field, speed)
    assert report._one_scale(pictures) == pytest.approx(2.0)
    best = result.rows[-1]
    shades = [report._clip(result, best, video, pictures, 2.0)["flow"] for video in (0, 1)]
    assert shades[0] != shades[1]
    shards = {}
    for video in {*report.pick_examples(result, best), *report.pick_mistakes(result, best)}:
        path = tmp_path / f"{video}.h5"
        make_shard(path, result.videos[video], frames=True, seed=video)
        shards[result.videos[video]] = ShardAddress(path)
    text = report.render(report.context([result], [], shards))
    assert text.count("Colour wheel of flow") == 1
    assert len(re.findall(r"full colour is [0-9.]+ pixels in every picture", text)) == 1


def test_provenance_comes_first_and_from_the_files(tmp_path: Path) -> None:
    result = split_result(tmp_path, 9, fusions=("average", "svm"))
    made = Provenance(
        "two-stream evaluate --dataset 'a b'",
        "2026-11-25 12:00 UTC",
        {"two-stream": VERSION},
        {"kind": "folder"},
        {1: (1234, len(result.videos) + 5)},
        [
            ScoredSet(
                "tvl1", request(method="tvl1", parameters={"scales": 5}, short_side=256), result.videos[0]
            )
        ],
    )
    runs = [story(stream) for stream in result.streams]
    text = report.render(report.context([result], runs, {}, provenance=made))
    first = text[text.index("<h2>How it was made</h2>") : text.index("<h2>Results</h2>")]
    for fact in (
        "two-stream evaluate --dataset &#39;a b&#39;",
        f"two-stream {VERSION}",
        "<b>tvl1</b>, forward flow over 1 frame, every frame, short side 256",
        "scales = 5",
        "1,234 training and 77 test videos",
        "<b>72 of the latter scored</b>",
        "18 groups",
        "25 x 10",
        "training 7; bootstrap of the intervals 0 (1,000 draws of groups); folds of the SVM 0",
        result.streams[0].checkpoint[:12],
        "imagenet",
        "random weights",
    ):
        assert fact in first, fact


def test_what_is_not_recorded_is_not_invented(tmp_path: Path) -> None:
    text = report.render(report.context([split_result(tmp_path, 9)], [], {}))
    first = text[text.index("<h2>How it was made</h2>") : text.index("<h2>Results</h2>")]
    assert (
        first.count("not recorded") == 4
    )  # command, versions, how the shards were made, the seed of the training
    assert "random weights" not in first


def test_a_run_that_was_trained_further_since_is_not_described_by_its_new_checkpoint(tmp_path: Path) -> None:
    result = split_result(tmp_path, 9)
    later = dataclasses.replace(story(result.streams[0]), digest="f" * 64, iteration=12345)
    text = report.render(report.context([result], [later], {}))
    assert "run spatial-split1 has another checkpoint now" in text
    assert "12,345" not in text


def test_shards_that_were_made_otherwise_than_those_learned_from_are_noticed(tmp_path: Path) -> None:
    result = split_result(tmp_path, 9)
    learned = dataclasses.replace(story(result.streams[1]), requests={"made": request(step=2)})
    scored = Provenance(sets=[ScoredSet("tvl1", request(), result.videos[0])])
    text = report.render(report.context([result], [learned], {}, provenance=scored))
    assert "run temporal-split1 learned from shards that were made otherwise" in text
    assert "step: asked 2, the shard has 1" in text
    same = dataclasses.replace(learned, requests={"made": request(source_bytes=5)})
    assert "made otherwise" not in report.render(report.context([result], [same], {}, provenance=scored))


def test_the_details_of_several_splits_are_about_one_row(tmp_path: Path) -> None:
    made = [split_result(tmp_path, 9, split) for split in (1, 2, 3)]
    mean = {entry["name"]: entry["accuracy"] for entry in results.mean_rows(made)}
    assert {row.name for row in results.detailed_rows(made)} == {max(mean, key=lambda name: mean[name])}
    assert {row.name for row in results.detailed_rows(made, "temporal")} == {"temporal"}


def test_names_of_classes_videos_runs_and_commands_are_shown_as_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>\"'&"
    result = split_result(tmp_path, 2)
    streams = tuple(
        dataclasses.replace(
            stream,
            classes=tuple(name + hostile for name in stream.classes),
            videos=tuple(name + hostile for name in stream.videos),
            run=hostile,
            shards=hostile,
        )
        for stream in result.streams
    )
    made = Provenance(hostile, "now", {hostile: hostile}, {"kind": hostile}, {1: (1, 1)})
    text = report.render(
        report.context([dataclasses.replace(result, streams=streams)], [], {}, provenance=made)
    )
    assert "<img src=x" not in text
    assert outline(text).faults == []


def test_the_command_writes_its_own_making_into_the_report(own_data: DatasetPaths, monkeypatch: Any) -> None:
    arguments = [
        "--dataset",
        "tiny",
        "--split",
        "1",
        "--frames",
        "1",
        "--crops",
        "1",
        "--report",
        "--device",
        "cpu",
    ]
    arguments += ["--data", str(own_data.data)]
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    done = CliRunner().invoke(main, arguments, prog_name="two-stream evaluate", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (own_data.results("split1") / "report.html").read_text(encoding="utf-8")
    digest = load_checkpoint(own_data.run("temporal-split1")).digest
    for fact in (
        "two-stream evaluate --dataset tiny --split 1",
        f"two-stream {VERSION}",
        "<b>dis</b>",
        "4 training and 8 test videos, all of the latter scored",
        digest[:12],
        "1 x 1",
    ):
        assert fact in text, fact
    assert text.count("optical flow of") == text.count('<article class="clip">')


def test_words_stand_out_from_their_ground_by_day_and_by_night() -> None:
    style = (Path(report.__file__).parent / "report.html").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]+)", rules)) for rules in re.findall(r":root \{([^}]*)\}", style)
    ]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        for ink in ("ink", "faint", "good", "bad"):
            for ground in ("paper", "card"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as in WCAG 2.1."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
