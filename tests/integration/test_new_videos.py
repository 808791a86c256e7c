"""New videos get exactly the frames and flow that a run was trained on, from its checkpoint alone."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rendered_clips import clip

from evaluate import score
from evaluate.__main__ import main
from evaluate.inference import Compute
from evaluate.new_videos import untrained_checkpoint
from evaluate.score import Measurement
from evaluate.views import Views
from extract_flow import __main__ as extraction
from extract_flow import worker
from extract_flow.clip import VideoTask
from extract_flow.methods import load, module
from extract_flow.options import ExtractionOptions
from extract_flow.settings import ExtractionSettings
from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video, load_dataset
from pipeline.errors import InputError
from pipeline.options import from_options, given_values
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths, RunRecord
from pipeline.shard import open_shard
from pipeline.video import Selection, VideoReader
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.models import build
from train.recipe import Recipe, to_toml
from train.training_data import gather
from train.volume_spec import COLOUR_MEAN, COLOUR_STD

CLASSES = ("Bow", "Kick")
VIDEOS = {"Bow/v_0": 14, "Kick/v_0": 12, "Bow/v_1": 13, "Kick/v_1": 15}
TEST = ("Bow/v_1", "Kick/v_1")
VIEWS = Views(3, 5)
TOLERANCE = 1e-5

WAYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "lossless": ("--codec=lossless",),
    "high-fidelity": ("--codec=high-fidelity",),
    "bound": ("--bound=30",),
    "quality": ("--quality=90",),
    "size": ("--size=56x36",),
    "own-size": ("--short-side=none",),
    "step": ("--step=2",),
    "brox": ("--method=brox",),
    "both-directions": ("--direction=both", "--rgb-quality=50", "--every=2"),
}
"""Options of extraction, by the name of a shard set."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """A dataset of four short clips, one of each class to train on; no shards yet."""
    root = tmp_path_factory.mktemp("new_videos")
    known = {}
    for seed, (name, frames) in enumerate(VIDEOS.items()):
        path = clip(root / "videos" / f"{name}.mp4", frames, 52, 40, seed)
        label = name.split("/")[0]
        known[name] = Video(name, path, label, name, frames, 52, 40)
    split = Split(1, tuple(name for name in VIDEOS if name not in TEST), TEST)
    dataset = Dataset("clips", CLASSES, known, {1: split}, short_side=32)
    catalog.save(dataset, root / "videos", root)
    return DatasetPaths(root, "clips")


def extract(paths: DatasetPaths, shard_set: str, options: tuple[str, ...]) -> None:
    """A shard set of all videos with options of `python -m extract_flow`, made in this process."""
    dataset = load_dataset("clips", paths.data)
    values = extraction.main.make_context("extract_flow", ["--dataset=clips", *options]).params
    given = from_options(ExtractionOptions, values)
    parameters = given_values(module(given.shards.method).Parameters, values)
    settings = ExtractionSettings.from_options(given.shards, parameters, dataset.short_side)
    method = load(settings.method, "cpu", **settings.parameters)
    for video in dataset.videos.values():
        task = VideoTask(video.id, video.path, paths.shard(shard_set, video.id))
        assert worker.make(0, task, settings, method, "cpu").outcome.status == "done"


def add_run(paths: DatasetPaths, stream: str, shard_set: str) -> RunPaths:
    """A run with an untrained network and what the trainer records about its shards."""
    recipe = Recipe(
        model="resnet18", width=0.125, dropout=0.0, crop=24, short_side=32, length=2, iterations=1,
        direction="both" if shard_set == "both-directions" and stream == "temporal" else "forward",
        flow_scale=5.0, mean_subtraction=False,
    )  # fmt: skip
    spec = recipe.volume(stream)
    data = gather("clips", 1, spec, recipe, paths.data, shard_set)
    torch.manual_seed(1)
    network = build(recipe.model, spec.channels, len(CLASSES), recipe.dropout, spec.crop, recipe.width)
    run = RunPaths(paths.run(f"{stream}-{shard_set}"))
    record = RunRecord("clips", stream, 1, data.shard_sets)
    run.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(
        network.state_dict(), recipe.as_dict(), record, spec, data.heads, 1, dict(data.requests)
    )
    save_checkpoint(run.checkpoint(1), checkpoint)
    run.recipe.write_text(to_toml(recipe.as_dict(), record))
    return run


def scored(paths: DatasetPaths, run: RunPaths, shard_set: str) -> dict[str, dict[str, float]]:
    """Softmax of each class for each test video, as `evaluate score` computes it from the shards."""
    measurement = Measurement(
        load_dataset("clips", paths.data),
        run,
        load_checkpoint(run.folder),
        1,
        "test",
        paths.shards(shard_set),
        VIEWS,
    )
    scores = score.score(measurement, score.scoring_state(measurement), Compute()).scored
    assert scores is not None
    return {
        video: dict(zip(CLASSES, row.tolist(), strict=True))
        for video, row in zip(scores.videos, scores.softmax, strict=True)
    }


def command(*arguments: str | Path) -> str:
    result = CliRunner().invoke(
        main, [*map(str, arguments), "--frames=3", "--crops=5", "--device=cpu", "--workers=0"]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def predicted(runs: Mapping[str, Path], videos: Mapping[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Softmax by run, video and class, as `evaluate predict --json` prints it."""
    lines = command("predict", *videos.values(), "--json", *(f"--run={run}" for run in runs.values()))
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in runs}
    for video, line in zip(videos, lines.splitlines(), strict=True):
        columns = json.loads(line)
        for name, run in runs.items():
            stream = name.partition(" ")[0]
            found[name][video] = columns[f"{stream} ({run.name})"]
    return found


def assert_close(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for video, scores in expected.items():
        assert found[video] == pytest.approx(scores, abs=TOLERANCE)


def runs_of(paths: DatasetPaths, way: str) -> dict[str, RunPaths]:
    """A run of each stream on shards made in one of `WAYS`."""
    if not paths.shards(way).is_dir():
        extract(paths, way, WAYS[way])
    return {stream: add_run(paths, stream, way) for stream in ("spatial", "temporal")}


@pytest.mark.parametrize("way", WAYS)
def test_a_new_video_is_scored_as_from_its_shard(videos: DatasetPaths, way: str) -> None:
    runs = runs_of(videos, way)
    files = {name: load_dataset("clips", videos.data).videos[name].path for name in TEST}
    found = predicted({stream: run.folder for stream, run in runs.items()}, files)
    for stream, run in runs.items():
        assert_close(found[stream], scored(videos, run, way))


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("default", "both-directions")])
def test_a_way_of_making_shards_changes_scores_by_more_than_the_tolerance(
    videos: DatasetPaths, way: str
) -> None:
    """So the test above sees it when a new video is made in the default way instead."""
    default = scored(videos, runs_of(videos, "default")["temporal"], "default")
    other = scored(videos, runs_of(videos, way)["temporal"], way)
    differences = [abs(default[video][label] - other[video][label]) for video in TEST for label in CLASSES]
    assert max(differences) > 3 * TOLERANCE


def test_a_run_copied_elsewhere_predicts_the_same_without_its_dataset(
    videos: DatasetPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(videos.data, tmp_path / "first")
    paths = DatasetPaths(tmp_path / "first", "clips")
    runs = runs_of(paths, "bound")
    expected = {stream: scored(paths, run, "bound") for stream, run in runs.items()}
    moved = {stream: tmp_path / "elsewhere" / f"my {stream} run" for stream in runs}
    for stream, run in runs.items():
        shutil.copytree(run.folder, moved[stream], ignore=shutil.ignore_patterns("scores"))
    files = {name: tmp_path / "films" / f"{number}.mp4" for number, name in enumerate(TEST)}
    (tmp_path / "films").mkdir()
    for name, file in files.items():
        shutil.copy(paths.data / "videos" / f"{name}.mp4", file)
    shutil.rmtree(paths.data)
    monkeypatch.setenv("TWO_STREAM_DATA", str(tmp_path / "nothing"))
    found = predicted(moved, files)
    for stream in runs:
        assert_close(found[stream], expected[stream])


def test_features_of_a_new_video_are_those_of_its_shard(videos: DatasetPaths, tmp_path: Path) -> None:
    run = runs_of(videos, "quality")["temporal"]
    from_shards, from_videos = tmp_path / "shards.h5", tmp_path / "videos.h5"
    files = [load_dataset("clips", videos.data).videos[name].path for name in TEST]
    command(
        "features", "--dataset=clips", f"--data={videos.data}", f"--run={run.name}", "--output", from_shards
    )
    command("features", *files, f"--run={run.folder}", "--output", from_videos)
    with h5py.File(from_shards) as expected, h5py.File(from_videos) as found:
        assert expected["videos"].asstr()[...].tolist() == sorted(TEST)
        assert found["videos"].asstr()[...].tolist() == list(map(str, files))
        np.testing.assert_allclose(found["features"][...], expected["features"][...], atol=TOLERANCE)


def without_requests(run: RunPaths, folder: Path) -> Path:
    """A copy of a run whose checkpoint does not record how its shards were made, as in version 1."""
    checkpoint = load_checkpoint(run.folder)
    checkpoint.requests = {}
    folder.mkdir()
    save_checkpoint(RunPaths(folder).checkpoint(1), checkpoint)
    return folder


def test_a_checkpoint_that_does_not_record_its_shards_needs_one_of_them(
    videos: DatasetPaths, tmp_path: Path
) -> None:
    run = runs_of(videos, "step")["temporal"]
    old = without_requests(run, tmp_path / "old")
    file = load_dataset("clips", videos.data).videos[TEST[0]].path
    refused = CliRunner().invoke(main, ["predict", str(file), f"--run={old}"])
    assert refused.exit_code == 1
    assert "give one of those shards with --like SHARD" in " ".join(refused.output.split())
    like = videos.shard("step", "Bow/v_0")
    line = command("predict", file, "--json", f"--run={old}", f"--like={like}")
    expected = scored(videos, run, "step")[TEST[0]]
    assert json.loads(line)["temporal (old)"] == pytest.approx(expected, abs=TOLERANCE)


def test_like_is_refused_where_the_checkpoint_records_how(videos: DatasetPaths) -> None:
    run = runs_of(videos, "step")["temporal"]
    file = load_dataset("clips", videos.data).videos[TEST[0]].path
    like = videos.shard("step", "Bow/v_0")
    refused = CliRunner().invoke(main, ["predict", str(file), f"--run={run.folder}", f"--like={like}"])
    assert refused.exit_code == 2
    assert "--like is for runs whose checkpoint does not record" in " ".join(refused.output.split())


def test_a_run_on_images_says_what_is_assumed(videos: DatasetPaths, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(runs_of(videos, "default")["spatial"].folder)
    checkpoint.requests = {}
    checkpoint.run = RunRecord("clips", "spatial", images="/images")
    save_checkpoint(RunPaths(tmp_path).checkpoint(1), checkpoint)
    file = load_dataset("clips", videos.data).videos[TEST[0]].path
    result = CliRunner().invoke(
        main, ["predict", str(file), f"--run={tmp_path}", "--frames=1", "--crops=1", "--workers=0", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert "assumed for frames: smaller side 32 pixels, JPEG quality 90" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["video"] == str(file)


# --- many videos ----------------------------------------------------------------------------------------------------


@pytest.fixture
def films(videos: DatasetPaths, tmp_path: Path) -> Path:
    """A folder with two clips at two depths and a file that is no video."""
    folder = tmp_path / "films"
    for name in ("a/first.mp4", "second.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            videos.data / "videos" / "Bow" / ("v_0.mp4" if "first" in name else "v_1.mp4"), folder / name
        )
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def invoke(*arguments: str | Path, workers: int = 0) -> Result:
    views = ["--frames=3", "--crops=5", "--device=cpu", f"--workers={workers}"]
    return CliRunner().invoke(main, [*map(str, arguments), *views])


def test_a_list_names_videos_and_folders(videos: DatasetPaths, films: Path, tmp_path: Path) -> None:
    run = runs_of(videos, "default")["temporal"]
    listed = tmp_path / "list.txt"
    listed.write_text("films/second.mp4\nfilms/a\n")
    result = invoke("predict", f"@{listed}", f"--run={run.folder}", "--json")
    assert result.exit_code == 0, result.output
    names = {Path(json.loads(line)["video"]).name for line in result.stdout.splitlines()}
    assert names == {"first.mp4", "second.mp4"}
    assert invoke("predict", "--list", listed, f"--run={run.folder}", "--json").stdout == result.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_gives_a_line_per_video_and_names_what_failed(
    videos: DatasetPaths, films: Path, tmp_path: Path, workers: int
) -> None:
    run = runs_of(videos, "default")["temporal"]
    output = tmp_path / "results.jsonl"
    result = invoke("predict", films, f"--run={run.folder}", "--output", output, workers=workers)
    assert result.exit_code == 1, result.output
    shown = " ".join(result.output.split())
    assert f"failed: {films / 'broken.mp4'}: " in shown
    assert "error: 1 of 3 videos failed" in shown
    assert shown.count("broken.mp4") == 1  # one line about one failure
    found = {line["video"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert found.keys() == {str(films / "a" / "first.mp4"), str(films / "second.mp4")}
    line = found[str(films / "second.mp4")]
    assert line[f"temporal ({run.name})"] == pytest.approx(
        scored(videos, run, "default")["Bow/v_1"], abs=TOLERANCE
    )


def test_the_same_command_continues_and_kept_shards_are_not_made_again(
    videos: DatasetPaths, films: Path, tmp_path: Path
) -> None:
    (films / "broken.mp4").unlink()
    runs = runs_of(videos, "default")
    named = [f"--run={run.folder}" for run in runs.values()]
    output, kept = tmp_path / "results.csv", tmp_path / "kept"
    words = ["predict", films, *named, "--output", output, "--keep-shards", kept]
    assert invoke(*words).exit_code == 0
    shards = {path: path.stat().st_mtime_ns for path in kept.rglob("*.h5")}
    assert {str(path.relative_to(kept)) for path in shards} == {"a/first.h5", "second.h5"}
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2]) + lines[2][:9])
    again = invoke(*words)
    assert again.exit_code == 0, again.output
    assert "1 of 2 videos in it already" in " ".join(again.output.split())
    assert output.read_bytes() == b"".join(lines)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.h5")} == shards
    with output.open(newline="") as file:
        named_there = [row["video"] for row in csv.DictReader(file)]
    assert named_there == [str(films / "a" / "first.mp4"), str(films / "second.mp4")]


def test_every_video_of_a_dataset_is_classified(videos: DatasetPaths) -> None:
    run = runs_of(videos, "quality")["temporal"]
    result = invoke("predict", "--dataset=clips", f"--data={videos.data}", f"--run={run.name}", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["video"] for line in lines] == sorted(VIDEOS)
    assert lines[1][f"temporal ({run.name})"] == pytest.approx(
        scored(videos, run, "quality")["Bow/v_1"], abs=TOLERANCE
    )


def test_features_are_one_array_per_video_or_one_file(
    videos: DatasetPaths, films: Path, tmp_path: Path
) -> None:
    run = runs_of(videos, "default")["temporal"]
    folder, file = tmp_path / "arrays", tmp_path / "all.h5"
    result = invoke("features", films, f"--run={run.folder}", "--output", folder)
    assert result.exit_code == 1
    assert "1 of 3 videos failed" in " ".join(result.output.split())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.npy")} == {"a/first.npy", "second.npy"}
    (films / "broken.mp4").unlink()
    first = (folder / "a" / "first.npy").stat().st_mtime_ns
    (folder / "second.npy").unlink()
    assert invoke("features", films, f"--run={run.folder}", "--output", folder).exit_code == 0
    assert (folder / "a" / "first.npy").stat().st_mtime_ns == first, "it was not made again"
    assert invoke("features", films, f"--run={run.folder}", "--output", file).exit_code == 0
    with h5py.File(file) as whole:
        assert whole["videos"].asstr()[...].tolist() == [
            str(films / "a" / "first.mp4"),
            str(films / "second.mp4"),
        ]
        for row, name in zip(whole["features"][...], ("a/first", "second"), strict=True):
            np.testing.assert_array_equal(row, np.load(folder / f"{name}.npy"))
    assert not file.with_name("all.h5.parts").exists()
    other = invoke("features", films, f"--run={run.folder}", "--output", folder, "--per=view")
    assert other.exit_code == 1
    assert "holds results of another network, other videos or views" in " ".join(other.output.split())


def test_features_need_no_run(videos: DatasetPaths, films: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = build("resnet18", 3, 1000).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    output, kept = tmp_path / "features", tmp_path / "kept"
    words = ["features", films / "second.mp4", f"--init={tmp_path / 'weights.pth'}", "--output", output]
    views = ["--frames=1", "--crops=1", "--workers=0", "--device=cpu", f"--keep-shards={kept}"]
    result = CliRunner().invoke(main, [*map(str, words), *views])
    assert result.exit_code == 0, result.output
    assert "weights.pth: resnet18" in " ".join(result.stderr.split())
    with open_shard(kept / "second.h5") as shard:
        middle = shard.frames(6, 7)[0]
    assert min(middle.shape[:2]) == 256
    y, x = (middle.shape[0] - 224) // 2, (middle.shape[1] - 224) // 2
    colours = (middle[y : y + 224, x : x + 224] - np.array(COLOUR_MEAN)) / np.array(COLOUR_STD)
    with torch.inference_mode():
        expected = network.penultimate(torch.from_numpy(colours).float().permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(np.load(output / "second.npy"), expected, atol=1e-3)
    assert invoke("features", films, f"--init={tmp_path}", "--output", output, "--run=x").exit_code == 2


def test_features_from_convolutions_alone_are_their_mean_and_no_random_layers(tmp_path: Path) -> None:
    file = tmp_path / "convolutions.pth"
    torch.manual_seed(6)
    convolutions = build("vgg16", 3, 2).get_submodule("features").eval()
    torch.save({f"features.{name}": values for name, values in convolutions.state_dict().items()}, file)
    network = untrained_checkpoint(str(file), None, lambda line: None).model().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = convolutions(image).mean(dim=(2, 3))
        torch.testing.assert_close(network.penultimate(image), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="has the convolutions only, and features of vgg16"):
        untrained_checkpoint(str(file), "vgg16", lambda line: None)


def test_one_window_over_a_whole_video_is_its_prediction(
    videos: DatasetPaths, films: Path, tmp_path: Path
) -> None:
    runs = runs_of(videos, "default")
    named = [f"--run={run.folder}" for run in runs.values()]
    every = ["--frames=99", "--crops=5", "--device=cpu", "--workers=0"]
    film = films / "second.mp4"
    whole = CliRunner().invoke(main, ["predict", str(film), *named, "--json", *every])
    expected = json.loads(whole.stdout)["fusion"]
    line, overlay = tmp_path / "lines", tmp_path / "overlay.mp4"
    words = ["predict", str(film), *named, "--window=2", f"--output={line}", f"--overlay={overlay}", *every]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    with (line / "second.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["end"]) == pytest.approx(VIDEOS["Bow/v_1"] / 25)
    assert {label: float(row[label]) for label in CLASSES} == pytest.approx(expected, abs=1e-4)
    written = (line / "second.csv", line / "second.png", overlay)
    assert result.stdout.splitlines() == [f"saved {path}" for path in written]
    again = CliRunner().invoke(main, [word for word in words if "overlay" not in word])
    assert f"{line}: time lines of 1 of 1 video in it already" in " ".join(again.output.split())
    with VideoReader(overlay, Selection(short_side=None)) as reader:
        assert len(reader.read(99).gray) == VIDEOS["Bow/v_1"]
        assert (reader.width, reader.height) == (52, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stride=1"], "--stride and --overlay go with --window"),
        (["--window=1"], "--window needs --output DIR"),
        (["--json", "--output=x.csv"], "--json prints"),
    ],
)
def test_options_of_predict_that_do_not_go_together_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["predict", "film.mp4", "--run=a/run", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
