"""What a chain takes where little is named, and what an array task works on; without a SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from made_shards import make_shard

from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video
from pipeline.errors import InputError
from pipeline.paths import DatasetPaths
from pipeline.runs import RunPaths, RunRecord, chain_run_name, default_run_name, fold_run_name
from slurm.__main__ import main
from slurm.array_task import run_options
from slurm.chain import STAGES, pairs, plan
from slurm.submit import SubmitOptions, chain_request, method_and_shard_set
from train.recipe import load_recipe, to_toml

VIDEOS = ("a/x", "b/x")


def known(data: Path, name: str) -> DatasetPaths:
    """A dataset of two videos that do not exist."""
    videos = {video: Video(video, data / "videos" / f"{video}.avi", video[0], video) for video in VIDEOS}
    catalog.save(
        Dataset(name, ("a", "b"), videos, {1: Split(1, VIDEOS[:1], VIDEOS[1:])}), data / "videos", data
    )
    return DatasetPaths(data, name)


def submit(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["submit", "--dry-run", f"--data={data}", *arguments])


@pytest.mark.parametrize(
    ("there", "named", "stages", "expected"),
    [
        ((), {}, STAGES, ("tvl1", "tvl1")),
        ((), {"method": "brox"}, STAGES, ("brox", "brox")),
        (("mine",), {}, STAGES, ("dis", "mine")),
        (("mine",), {}, ("train",), ("dis", "mine")),
        (("mine",), {"method": "tvl1"}, STAGES, ("tvl1", "tvl1")),
        (("mine",), {"method": "tvl1", "shards": "new"}, STAGES, ("tvl1", "new")),
        (("mine", "tvl1"), {}, ("train",), ("dis", "tvl1")),
        (("mine", "tvl1"), {"shards": "mine"}, STAGES, ("dis", "mine")),
    ],
)
def test_a_chain_takes_the_shard_set_that_is_there(
    tmp_path: Path,
    there: tuple[str, ...],
    named: dict[str, str],
    stages: tuple[str, ...],
    expected: tuple[str, str],
) -> None:
    """Its method too: the shards here were made with `dis`, whatever their set is called."""
    paths = known(tmp_path, "toy")
    for shard_set in there:
        make_shard(paths.shard(shard_set, VIDEOS[0]), VIDEOS[0])
    assert method_and_shard_set(paths, SubmitOptions(**named), stages) == expected  # type: ignore[arg-type]


def test_a_choice_between_shard_sets_is_left_to_the_user(tmp_path: Path) -> None:
    paths = known(tmp_path, "toy")
    for shard_set in ("one", "two"):
        make_shard(paths.shard(shard_set, VIDEOS[0]), VIDEOS[0])
    result = submit(tmp_path)
    assert result.exit_code == 1
    assert "one, two: choose one with --shards" in result.output
    assert submit(tmp_path, "--shards=two").exit_code == 0


def test_training_without_shards_is_refused(tmp_path: Path) -> None:
    known(tmp_path, "toy")
    result = submit(tmp_path, "--from=train")
    assert result.exit_code == 1
    assert "no shards yet; make them with: python -m extract_flow --dataset toy" in result.output


def test_without_a_name_the_only_dataset_is_taken(tmp_path: Path) -> None:
    known(tmp_path, "toy")
    assert "--dataset=toy" in submit(tmp_path).output
    known(tmp_path, "other")
    result = submit(tmp_path)
    assert result.exit_code == 1
    assert "other, toy" in result.output
    known(tmp_path, "demo")
    assert "--dataset=demo" in submit(tmp_path).output


def test_array_tasks_work_on_the_runs_that_fusion_reads(tmp_path: Path) -> None:
    """The names that the trainer and the evaluation get from different jobs are the same ones."""
    paths = known(tmp_path, "toy")
    dataset = catalog.load_dataset("toy", tmp_path)
    jobs = {job.stage: job for job in plan(chain_request(dataset, paths, SubmitOptions(run="try")))}
    train, fuse = jobs["train"], jobs["fuse"]
    assert train.tasks is not None
    runs = [
        run_options({**train.environment, "SLURM_ARRAY_TASK_ID": str(index)})[-1]
        for index in range(train.tasks)
    ]
    assert runs == ["--run=try-spatial-split1", "--run=try-temporal-split1"]
    assert [word for word in fuse.arguments if word.startswith("--run=")] == runs


def test_an_array_task_takes_its_pair_of_split_and_stream() -> None:
    values = {"SPLITS": "1 3", "STREAMS": "temporal spatial"}
    found = [run_options({**values, "SLURM_ARRAY_TASK_ID": str(index)}) for index in range(4)]
    expected = pairs(["1", "3"], ["temporal", "spatial"])
    assert found == [["--stream", stream, "--split", split] for split, stream in expected]
    assert run_options({"SLURM_ARRAY_TASK_ID": "1"}) == ["--stream", "temporal", "--split", "1"]


def test_an_array_task_with_a_fold_works_on_the_run_that_held_out_scores_are_read_from() -> None:
    values = {"SLURM_ARRAY_TASK_ID": "1", "FOLD": "2"}
    assert run_options(values)[-1] == f"--run={fold_run_name(default_run_name('temporal', 1), 2, 3)}"
    named = {**values, "RUN": "try", "FOLDS": "4"}
    assert run_options(named)[-1] == f"--run={fold_run_name(chain_run_name('try', 'temporal', 1), 2, 4)}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"SLURM_ARRAY_TASK_ID": "2"}, "make 2 pairs: submit with --array=0-1"),
        ({}, "expected the number of an array task"),
        ({"SLURM_ARRAY_TASK_ID": "0", "RUN": "../x"}, "cannot be the name of a run"),
        ({"SLURM_ARRAY_TASK_ID": "0", "RUN": "x", "SPLITS": "$(y)"}, "expected numbers of splits"),
        ({"SLURM_ARRAY_TASK_ID": "0", "FOLD": "4"}, "FOLD='4', FOLDS='3'"),
        ({"SLURM_ARRAY_TASK_ID": "0", "FOLD": "1", "FOLDS": "x"}, "expected the number of one of the folds"),
    ],
)
def test_an_array_task_without_a_pair_is_an_error(values: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as raised:
        run_options(values)
    assert words in str(raised.value)


def test_submitting_prints_the_recipes_that_the_trainer_will_take(tmp_path: Path) -> None:
    known(tmp_path, "toy")
    printed = submit(tmp_path, "--dataset=toy").stderr
    assert "train: spatial stream, recipe small (2 clips, fewer than 2,000)" in printed
    assert "train: temporal stream, recipe small (2 clips, fewer than 2,000)" in printed
    printed = submit(tmp_path, "--dataset=toy", "--stream=spatial", "--pass=train=--init=imagenet").stderr
    assert "train: spatial stream, recipe small-pretrained" in printed
    assert "temporal stream" not in printed
    assert "recipe" not in submit(tmp_path, "--dataset=toy", "--pass=train=--recipe=modern").stderr
    videos = {
        f"a/{number}": Video(f"a/{number}", tmp_path / "v.avi", "a", str(number)) for number in range(2000)
    }
    names = tuple(videos)
    catalog.save(Dataset("large", ("a",), videos, {1: Split(1, names[1:], names[:1])}), tmp_path, tmp_path)
    printed = submit(tmp_path, "--dataset=large", "--stream=temporal").stderr
    assert "recipe temporal-stack10 on a node with a GPU, small on one without" in printed


def test_a_run_of_that_name_with_another_recipe_is_seen_before_anything_is_queued(tmp_path: Path) -> None:
    paths = known(tmp_path, "toy")
    make_shard(paths.shard("mine", VIDEOS[0]), VIDEOS[0])
    begun = RunPaths(paths.run("try-temporal-split1"))
    begun.folder.mkdir(parents=True)
    recipe = load_recipe("small", {"learning_rate": 0.01})
    record = RunRecord("toy", "temporal", 1, {"toy": "mine"})
    begun.recipe.write_text(to_toml(recipe.as_dict(), record))
    begun.checkpoint(1).write_bytes(b"not looked into")
    assert submit(tmp_path, "--run=try").exit_code == 0, "without a recipe the run keeps its own"
    assert submit(tmp_path, "--run=try", "--pass=train=--learning-rate=0.01").exit_code == 0
    other = submit(tmp_path, "--run=try", "--pass=train=--recipe=small", "--pass=train=--learning-rate=0.5")
    assert other.exit_code == 1
    assert "learning_rate: 0.01 there, 0.5 asked for" in other.output
    assert "nothing was submitted" in other.output
    assert submit(tmp_path, "--run=another", "--pass=train=--learning-rate=0.5").exit_code == 0
    make_shard(paths.shard("tvl1", VIDEOS[0]), VIDEOS[0])
    shards = submit(tmp_path, "--run=try", "--shards=tvl1")
    assert shards.exit_code == 1
    assert "shard set: mine there, tvl1 asked for" in shards.output
