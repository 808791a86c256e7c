"""Scoring: every view through the network once, averaged by video, whatever the batches, tasks and interruptions."""

from __future__ import annotations

import resource
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import add_run

from evaluate import commands, features, inference, score, score_file
from evaluate.__main__ import main
from evaluate.inference import Compute
from evaluate.runs import choose_runs
from evaluate.score import Measurement
from evaluate.score_file import Scores, read_scores
from evaluate.views import Views
from pipeline.atomic import is_temporary
from pipeline.catalog import load_dataset
from pipeline.errors import InputError, OtherFormat
from pipeline.manifest import ShardSet, read_shard_set
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths
from pipeline.shard import open_shard
from train.checkpoint import Checkpoint, load_checkpoint


def measurement_of(
    paths: DatasetPaths, stream: str, views: Views | None = None, part: str = "test"
) -> Measurement:
    dataset = load_dataset("tiny", paths.data)
    run = RunPaths(paths.run(f"{stream}-split1"))
    checkpoint = load_checkpoint(run.folder)
    return Measurement(dataset, run, checkpoint, 1, part, paths.shards("tvl1"), views or Views(4, 10))


def scored(measurement: Measurement, *options: Any, **named: Any) -> Scores | None:
    """The scores of the whole list, or None while other tasks have some left."""
    state = score.score(measurement, score.scoring_state(measurement), *options, **named)
    return None if state.todo else state.scored


def slow_scores(measurement: Measurement, video: str) -> np.ndarray:
    """Logits of every view, from the shard's public reader and the formulas, one view at a time."""
    spec, network = measurement.checkpoint.volume, measurement.checkpoint.model()
    with open_shard(measurement.shards / f"{video}.h5") as shard:
        if spec.stream == "spatial":
            count = shard.frame_count
        else:
            count = max(shard.flow_count - spec.length + 1, 1)
        frames = min(measurement.views.frames, count)
        places = (
            [int(np.floor(i * (count - 1) / (frames - 1) + 0.5)) for i in range(frames)]
            if frames > 1
            else [0]
        )
        logits = []
        for place in places:
            if spec.stream == "spatial":
                pixels = shard.frames(place, place + 1)[0].astype(np.float32).transpose(2, 0, 1)
                mean, std = (
                    np.array(x, np.float32)[:, None, None] for x in (spec.colour_mean, spec.colour_std)
                )
                whole = (pixels - mean) / std
            else:
                flows = [min(place + k, shard.flow_count - 1) for k in range(spec.length)]
                fields = [shard.flows(i, i + 1)[0] - shard.mean()[i][:, None, None] for i in flows]
                zoom = spec.short_side / min(shard.height, shard.width)
                whole = np.concatenate(fields) * zoom * spec.flow_scale
            side = round(spec.crop * min(whole.shape[1:]) / spec.short_side)
            bottom, right = whole.shape[1] - side, whole.shape[2] - side
            for mirrored in (False, True):
                for y, x in [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]:
                    view = torch.from_numpy(np.ascontiguousarray(whole[:, y : y + side, x : x + side]))[None]
                    view = F.interpolate(view, size=(spec.crop, spec.crop), mode="bilinear", antialias=True)
                    if mirrored:
                        view = view.flip(-1)
                        if spec.stream == "temporal":
                            view[:, 0::2] *= -1
                    with torch.inference_mode():
                        logits.append(network(view)[0].numpy())
    return np.stack(logits)


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_scores_are_those_of_a_slow_reference(scored_data: DatasetPaths, stream: str) -> None:
    measurement = measurement_of(scored_data, stream)
    columns = measurement.checkpoint.columns("tiny", measurement.dataset.classes)
    network = inference.load_network(measurement.checkpoint)
    forward = inference.logits_forward(network, columns, Compute())
    shards, _ = score.listed_shards(measurement)
    names = [name for name in shards if name.startswith("Bow")]
    for place, outputs in inference.view_outputs(
        forward,
        measurement.checkpoint.volume,
        [shards[name] for name in names],
        measurement.views,
        Compute(batch=70),
    ):
        expected = slow_scores(measurement, names[place])
        by_position = outputs.reshape(-1, 10, 2)
        # The reference lists corners then centre of the straight views, then of the mirrored ones, as crop_views does.
        np.testing.assert_allclose(by_position, expected.reshape(-1, 10, 2), atol=2e-4)
        logits, softmax = inference.video_scores(outputs)
        np.testing.assert_allclose(logits, expected.mean(0), atol=2e-4)
        powers = np.exp(expected - expected.max(1, keepdims=True))
        np.testing.assert_allclose(softmax, (powers / powers.sum(1, keepdims=True)).mean(0), atol=2e-4)


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_scores_do_not_depend_on_batches_workers_or_tasks(own_data: DatasetPaths, stream: str) -> None:
    measurement = measurement_of(own_data, stream, Views(3, 5))
    reference = scored(measurement, Compute(batch=1000))
    assert reference is not None
    for batch, workers, tasks in ((7, 0, 1), (40, 2, 1), (64, 0, 3)):
        measurement.file.unlink()
        merged = None
        for task in range(tasks):
            assert merged is None
            merged = scored(measurement, Compute(batch=batch, workers=workers), task, tasks)
        assert merged is not None
        assert merged.videos == reference.videos
        np.testing.assert_allclose(merged.logits, reference.logits, atol=1e-5)
        np.testing.assert_allclose(merged.softmax, reference.softmax, atol=1e-5)
        np.testing.assert_array_equal(merged.views, reference.views)
        np.testing.assert_array_equal(merged.labels, reference.labels)


def test_videos_with_fewer_positions_than_asked_for_take_each_once(own_data: DatasetPaths) -> None:
    merged = scored(measurement_of(own_data, "temporal", Views(25, 1)))
    assert merged is not None
    lengths = {f"Bow/v_{number}": flows for number, flows in enumerate((9, 30, 4, 12))}
    for video, views in zip(merged.videos, merged.views, strict=True):
        if video in lengths:
            assert views == min(25, max(lengths[video] - 5 + 1, 1))


def test_interrupted_scoring_goes_on_where_it_stopped(
    own_data: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = measurement_of(own_data, "spatial", Views(3, 1))
    seen: list[str] = []

    class Stop(Exception):
        pass

    def stop_after_three(video: str) -> None:
        seen.append(video)
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        scored(measurement, progress=stop_after_three)
    assert not measurement.file.exists()
    again: list[str] = []
    merged = scored(measurement, progress=again.append)
    assert sorted(seen + again) == sorted(measurement.videos)
    assert merged is not None
    assert measurement.file.exists()
    assert not measurement.parts.exists()


def test_score_files_are_read_once_and_scores_of_other_tasks_are_found(
    own_data: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = measurement_of(own_data, "spatial", Views(2, 1))
    assert scored(measurement, None, 0, 3) is None
    state, read = score.scoring_state(measurement), []
    monkeypatch.setattr(score_file, "read_scores", lambda path: read.append(path) or read_scores(path))
    assert scored(measurement, None, 1, 3) is None
    read.clear()
    after = score.score(measurement, state, None, 2, 3)
    assert not after.todo
    assert after.scored is not None
    assert set(after.scored.videos) == set(measurement.videos)
    parts = [path for path in read if path.name.startswith("part-")]
    assert len(parts) == len(set(parts)) == 2  # what tasks 1 and 2 have written since the state was taken


def test_scores_of_another_checkpoint_are_made_again(own_data: DatasetPaths) -> None:
    measurement = measurement_of(own_data, "spatial", Views(2, 1))
    first = scored(measurement)
    add_run(own_data, "spatial", seed=5)
    changed = measurement_of(own_data, "spatial", Views(2, 1))
    second = scored(changed)
    assert first is not None
    assert second is not None
    assert first.checkpoint != second.checkpoint
    assert score_file.read_scores(measurement.file).checkpoint == second.checkpoint
    assert not np.allclose(first.logits, second.logits)


def test_a_damaged_score_file_is_made_again(own_data: DatasetPaths) -> None:
    measurement = measurement_of(own_data, "spatial", Views(2, 1))
    first = scored(measurement)
    measurement.file.write_bytes(measurement.file.read_bytes()[:500])
    second = scored(measurement)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.logits, second.logits)
    assert score_file.read_scores(measurement.file).videos == first.videos


@pytest.mark.parametrize("part", [False, True])
def test_scores_of_a_later_version_are_neither_made_again_nor_replaced(
    own_data: DatasetPaths, part: bool
) -> None:
    measurement = measurement_of(own_data, "spatial", Views(2, 1))
    assert scored(measurement) is not None
    path = measurement.parts / "part-later.h5" if part else measurement.file
    path.parent.mkdir(exist_ok=True)
    if part:
        measurement.file.rename(path)
    with h5py.File(path, "r+") as file:
        file.attrs.modify("version", score_file.VERSION + 1)
    before = path.read_bytes()
    arguments = ["score", "--dataset", "tiny", "--data", str(own_data.data), "--workers", "0"]
    arguments += ["--run", "spatial-split1", "--frames", "2", "--crops", "1"]
    for more in ([], ["--overwrite"]):
        refused = CliRunner().invoke(main, [*arguments, *more])
        assert refused.exit_code == 1
        assert f"found 'two-stream scores' {score_file.VERSION + 1}; it was left as it is" in refused.output
    assert path.read_bytes() == before
    assert measurement.file.exists() is not part
    with pytest.raises(OtherFormat):
        score.discard(measurement)


def test_scores_stay_until_those_of_overwrite_are_complete(
    own_data: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = measurement_of(own_data, "spatial", Views(2, 1))
    first = scored(measurement, Compute(workers=0))
    before = measurement.file.read_bytes()
    arguments = ["score", "--dataset", "tiny", "--data", str(own_data.data), "--workers", "0", "--overwrite"]
    arguments += ["--run", "spatial-split1", "--frames", "2", "--crops", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(score, "_scores_of", lambda *_: (_ for _ in ()).throw(InputError("the disk is full")))
        assert CliRunner().invoke(main, arguments).exit_code == 1
    assert measurement.file.read_bytes() == before
    for task in (0, 1):  # each leaves alone what the other made
        assert measurement.file.read_bytes() == before
        done = CliRunner().invoke(main, [*arguments, "--task", str(task), "--tasks", "2"])
        assert done.exit_code == 0, done.output
    assert not measurement.parts.exists(), "merged"
    again = scored(measurement)
    assert first is not None
    assert again is not None
    np.testing.assert_allclose(again.logits, first.logits, atol=1e-5)
    modified = measurement.file.stat().st_mtime_ns
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert measurement.file.stat().st_mtime_ns > modified, "scored again"


def test_features_of_a_later_version_are_not_replaced(own_data: DatasetPaths, tmp_path: Path) -> None:
    output = tmp_path / "features.h5"
    with h5py.File(output, "w", libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(features.FORMAT)
        file.attrs["version"] = np.int64(features.VERSION + 1)
    before = output.read_bytes()
    arguments = [
        "features",
        "--dataset",
        "tiny",
        "--data",
        str(own_data.data),
        "--workers",
        "0",
        "--overwrite",
    ]
    arguments += ["--run", "spatial-split1", "--frames", "2", "--crops", "1", "--output", str(output)]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "of a later version than 2; it was left as it is" in refused.output
    assert output.read_bytes() == before


def test_missing_shards_are_named_or_left_out_and_counted(own_data: DatasetPaths) -> None:
    own_data.shard("tvl1", "Bow/v_1").unlink()
    arguments = ["score", "--dataset", "tiny", "--data", str(own_data.data), "--frames", "2", "--crops", "1"]
    refused = CliRunner().invoke(main, [*arguments, "--workers", "0"])
    assert refused.exit_code == 1
    assert "1 of the 8 videos" in refused.output
    assert "Bow/v_1" in refused.output
    allowed = CliRunner().invoke(main, [*arguments, "--workers", "0", "--allow-missing"])
    assert allowed.exit_code == 0, allowed.output
    assert "1 video without a shard left out" in " ".join(allowed.output.split())
    assert (
        len(score_file.read_scores(RunPaths(own_data.run("spatial-split1")).scores("test-2x1")).videos) == 7
    )


def test_a_checkpoint_for_something_else_is_refused_with_both_values(own_data: DatasetPaths) -> None:
    dataset = load_dataset("tiny", own_data.data)
    temporal = load_checkpoint(own_data.run("temporal-split1"))
    with pytest.raises(InputError, match="asked for the spatial stream, but it was trained on the temporal"):
        score.check_checkpoint(temporal, dataset, "spatial", None)
    with pytest.raises(InputError, match="asked for L = 10, but it was trained with L = 5"):
        score.check_checkpoint(temporal, dataset, None, 10)
    temporal.heads = {"tiny": ("Bow", "Wave é", "Kick")}
    with pytest.raises(InputError, match="fit together"):
        inference.load_network(temporal)
    temporal.heads = {"tiny": ("Bow", "Kick")}
    with pytest.raises(InputError, match="has 2 classes and lacks 1 of the 2 asked for: Wave é"):
        score.check_checkpoint(temporal, dataset, None, None)


def test_a_stream_without_its_flow_says_how_to_make_it(own_data: DatasetPaths) -> None:
    from made_shards import make_shard

    add_run(own_data, "temporal", direction="both", length=4)
    make_shard(own_data.shard("tvl1", "Bow/v_0"), "Bow/v_0", 9, ("forward",), height=36, width=48)
    with pytest.raises(InputError, match=r"no forward and backward flow.*--direction both"):
        scored(measurement_of(own_data, "temporal", Views(2, 1)))


def test_mirrored_videos_have_the_same_averaged_scores(scored_data: DatasetPaths) -> None:
    """Mirroring a volume (x flow negated) permutes its ten views."""
    measurement = measurement_of(scored_data, "temporal")
    spec = measurement.checkpoint.volume
    network = measurement.checkpoint.model()
    from evaluate.inference import crop_views
    from train.volume import mirror

    whole = torch.randn(
        1, spec.channels, 36, 48
    )  # crop 27 of 36x48: the centre is off by half a pixel only downwards
    whole = whole[..., :47]
    with torch.inference_mode():
        straight = network(torch.cat(crop_views(whole, spec, 10))).mean(0)
        mirrored = network(torch.cat(crop_views(mirror(whole, spec), spec, 10))).mean(0)
    torch.testing.assert_close(straight, mirrored, atol=1e-5, rtol=1e-5)


def all_commands(data: Path) -> Iterator[list[str]]:
    common = ["--dataset", "tiny", "--data", str(data), "--frames", "2", "--crops", "1"]
    yield ["--fusion", "none", "--workers", "0", *common]
    yield ["score", "--workers", "0", "--part", "train", *common]
    yield ["fuse", "--fusion", "average", "--fusion", "weighted", "--weights", "1,2", *common]
    yield ["fuse", "--fusion", "svm", *common]
    yield ["report", *common]
    yield ["features", "--workers", "0", "--per", "view", *common]


def test_every_command_runs_on_the_same_dataset(own_data: DatasetPaths) -> None:
    for arguments in all_commands(own_data.data):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
    assert (own_data.results("split1") / "report.html").is_file()
    assert (own_data.results("split1") / "metrics.csv").is_file()


def test_group_options_before_a_subcommand_are_refused_rather_than_ignored(own_data: DatasetPaths) -> None:
    result = CliRunner().invoke(main, ["--dataset", "tiny", "score"])
    assert result.exit_code == 2
    assert "--dataset belongs after 'score'" in result.output


def test_a_command_walks_a_shard_set_once_and_builds_each_network_once(
    own_data: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[Path] = []
    built: list[Path | None] = []

    def index(folder: Path) -> ShardSet:
        walked.append(folder)
        return read_shard_set(folder)

    def load(checkpoint: Checkpoint) -> Any:
        built.append(checkpoint.path)
        return inference.load_network(checkpoint)

    monkeypatch.setattr(commands, "read_shard_set", index)
    monkeypatch.setattr(score, "read_shard_set", index)
    monkeypatch.setattr(score, "load_network", load)
    options = ["--dataset", "tiny", "--data", str(own_data.data), "--frames", "1", "--crops", "1"]
    result = CliRunner().invoke(main, [*options, "--workers", "0"])
    assert result.exit_code == 0, result.output
    assert walked == [own_data.shards("tvl1")]
    assert len(built) == len(set(built)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuse", "scores.h5", "--split", "1"], "leave it out with score FILEs"),
        (["--weights", "1,2"], "--weights goes with --fusion weighted"),
        (["--on", "logits", "--fusion", "svm"], "goes with --fusion average or weighted"),
        (["--train-frames", "5"], "go with --fusion svm"),
        (["--details", "temporal"], "--details goes with --report"),
        (["fuse", "--details", "temporal"], "No such option"),
        (["reproduce", "--table", "1b", "--init", "w.pt"], "no run of table 1b starts from ImageNet weights"),
        (["reproduce-real", "--weights", "w.pth"], "no such option --weights: write --init w.pth"),
        (["features", "film.mp4", "--run", "x", "--part", "train"], "choose videos of a dataset"),
        (["features", "--like", "shard.h5"], "--like goes with VIDEOs"),
        (["predict", "film.mp4", "--run", "a/run", "--dataset", "tiny"], "goes with a --run that is a name"),
        (["reproduce", "--table", "1b", "--other", "hmdb51"], "no run of table 1b needs a second dataset"),
        (["predict", "film.mp4", "--run", "a/run", "--shards", "tvl1"], "No such option"),
        (["predict", "film.mp4", "--run", "a/run", "--allow-missing"], "No such option"),
        (["predict", "film.mp4", "--run", "a/run", "--overwrite"], "No such option"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    own_data: DatasetPaths, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("TWO_STREAM_DATA", str(own_data.data))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_run_is_named_or_given_by_path(own_data: DatasetPaths, tmp_path: Path) -> None:
    options = ["--dataset", "tiny", "--data", str(own_data.data), "--frames", "1", "--crops", "1"]
    copied = tmp_path / "copied"
    shutil.copytree(own_data.run("temporal-split1"), copied)
    for run, folder in (("temporal-split1", own_data.run("temporal-split1")), (str(copied), copied)):
        result = CliRunner().invoke(main, ["score", *options, "--workers", "0", "--run", run])
        assert result.exit_code == 0, result.output
        assert RunPaths(folder).scores("test-1x1").is_file()


@pytest.mark.parametrize("per", ["video", "view"])
def test_features_are_written_with_checksums_and_survive_a_full_disk(
    own_data: DatasetPaths, tmp_path: Path, per: str, request: pytest.FixtureRequest
) -> None:
    """HDF5 alone ends the process with a segmentation fault where the disk is full."""
    output = tmp_path / "out" / "features.h5"
    arguments = [
        "features",
        "--dataset",
        "tiny",
        "--data",
        str(own_data.data),
        "--workers",
        "0",
        "--per",
        per,
    ]
    arguments += ["--run", "spatial-split1", "--frames", "2", "--crops", "1", "--output", str(output)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    refused = CliRunner().invoke(main, arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.exit_code == 1
    assert "no space left" in refused.output
    assert not output.exists()
    assert not any(is_temporary(path.name) for path in output.parent.rglob("*"))
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    with h5py.File(output) as file:
        videos = file["videos"].asstr()[...].tolist()
        assert videos == sorted(measurement_of(own_data, "spatial", Views(2, 1)).videos)
        assert len(file["features"]) == len(videos) * (2 if per == "view" else 1)
        names = ["videos", "features", "start"] if per == "view" else ["videos", "features"]
        assert file.attrs["crc32"] == zlib.crc32(b"".join(file[name][...].tobytes() for name in names))
        assert file.attrs["per"] == per.encode()


def test_a_run_whose_recipe_is_damaged_is_an_error_and_not_left_out(own_data: DatasetPaths) -> None:
    recipe = own_data.run("temporal-split1") / "recipe.toml"
    recipe.write_bytes(b"garbage \xff")
    with pytest.raises(InputError, match=r"recipe\.toml.*\n.*--run"):
        choose_runs(own_data)
    assert [run.name for run in choose_runs(own_data, names=["spatial-split1"])[1]] == ["spatial-split1"]
    for checkpoint in recipe.parent.glob("*.pt"):
        checkpoint.unlink()
    assert [run.name for run in choose_runs(own_data)[1]] == ["spatial-split1"]  # the other has only begun
