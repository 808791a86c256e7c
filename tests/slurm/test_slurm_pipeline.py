"""The real stages on a real SLURM: the chain, lost nodes, interrupted and distributed training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from slurm_cluster import Cluster, process_is_alive, wait_until
from slurm_recorder import PROJECT

from evaluate.score_file import read_scores
from pipeline import catalog
from pipeline.atomic import is_temporary
from pipeline.catalog import Dataset, Split, Video, load_dataset
from pipeline.paths import DatasetPaths
from pipeline.status import set_status

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(900)]

SMALL = ("--cpus-per-task=1", "--mem-per-cpu=100M")
FLOW = ["--method=farneback", "--short-side=48"]
ITERATIONS = 30
TRAIN = [
    "--model=resnet18",
    "--crop=32",
    "--short-side=48",
    "--batch=8",
    "--length=2",
    f"--iterations={ITERATIONS}",
]
TRAIN += [
    f"--validate-every={ITERATIONS}",
    "--checkpoint-every=50",
    "--log-every=1",
    "--workers=0",
    "--no-tensorboard",
]
VIEWS = ["--frames=2", "--crops=1"]
PATIENCE = 300
"""Seconds for a handful of small jobs on a busy machine; they take a tenth of that on an idle one."""


@dataclass(frozen=True)
class Commands:
    """Runs the project's commands as a user without SLURM would."""

    data: Path

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *command, "--dataset=demo", f"--data={self.data}"],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def paths(self) -> DatasetPaths:
        return DatasetPaths(self.data, "demo")


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The demo dataset and its shards, made without SLURM."""
    run = Commands(tmp_path_factory.mktemp("local"))
    subprocess.run(
        [sys.executable, "-m", "pipeline", "demo", "--videos-per-class=6", "--jobs=2", "--data", run.data],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    run("extract_flow", *FLOW, "--device=cpu", "--jobs=2")
    return run


@pytest.fixture(scope="session")
def trained(extracted: Commands) -> Commands:
    """And a run of the temporal stream."""
    extracted("train", "--split=1", "--stream=temporal", "--threads=1", *TRAIN)
    return extracted


@pytest.fixture(scope="session")
def evaluated(trained: Commands) -> Commands:
    """And one of the spatial stream, and the scores of both."""
    trained("train", "--split=1", "--stream=spatial", "--threads=1", *TRAIN)
    trained("evaluate", "--split=1", *VIEWS)
    return trained


def copied(local: Commands, folder: Path) -> Commands:
    """The same videos below another data root, with nothing made of them."""
    copy = Commands(folder / "the user's data; $(touch executed)")
    copy.paths.root.mkdir(parents=True)
    shutil.copy(local.paths.record, copy.paths.record)
    shutil.copytree(local.paths.videos, copy.paths.videos)
    return copy


def contents(file: Path) -> dict[str, object]:
    """Every dataset and attribute of an HDF5 file by its name."""
    found: dict[str, object] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(file) as shard:
        add("/", shard)
        shard.visititems(add)
    return found


def assert_same_shards(shards: Path, expected: Path) -> None:
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*.h5"))
    assert names
    assert sorted(str(path.relative_to(shards)) for path in shards.rglob("*.h5")) == names
    for name in names:
        found, wanted = contents(shards / name), contents(expected / name)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{name}: {key}")


def assert_complete(run: Commands, shard_set: str, unrecorded: int = 0) -> None:
    """Every video has one shard, every shard is valid, each video counts once, and nothing half made is left."""
    verified = run("pipeline", "verify", "--deep", "--complete", f"--shards={shard_set}")
    assert "54 good, 0 bad" in verified.stdout
    status = set_status(load_dataset("demo", run.data), run.paths, shard_set)
    assert (status.done, dict(status.failed), dict(status.stale), status.missing) == (54, {}, {}, ())
    # A task killed between a shard's renaming and its record leaves a shard whose making nobody recorded.
    assert status.unrecorded <= unrecorded
    assert status.flows == (54 - status.unrecorded) * 19
    left = [path for path in run.paths.shards(shard_set).rglob("*") if is_temporary(path.name)]
    assert left == []


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint, by the path of keys that leads to each."""
    newest = sorted(run.glob("checkpoint-*.pt"))[-1]
    found: dict[str, torch.Tensor] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                walk(f"{name}/{index}", item)

    walk(newest.name, torch.load(newest, weights_only=True))
    return found


def assert_same_weights(run: Path, expected: Path) -> None:
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    assert len(wanted) > 100
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def losses(run: Path) -> dict[int, float]:
    """Training loss by iteration; an iteration done again after a restart counts once."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["iteration"]: entry["loss"] for entry in entries if "loss" in entry}


def processes_of(cluster: Cluster, job_id: str, program: str) -> list[int]:
    """Live processes of a job whose command line holds a word."""
    found = []
    for pid in cluster.processes():
        folder = Path(f"/proc/{pid}")
        try:
            mine = f"SLURM_JOB_ID={job_id}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if mine and program.encode() in (folder / "cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        if process_is_alive(pid):
            os.kill(pid, number)


def test_the_whole_chain_gives_what_a_local_run_gives(
    cluster: Cluster, evaluated: Commands, site: Path, tmp_path: Path
) -> None:
    run = copied(evaluated, tmp_path)
    options = [
        "--tasks=3",
        "--split=1",
        "--method=farneback",
        *(f"--sbatch=all={option}" for option in SMALL),
    ]
    options += [f"--pass=flow={argument}" for argument in FLOW[1:]]
    options += [f"--pass=train={argument}" for argument in TRAIN]
    options += [f"--pass=evaluate={argument}" for argument in VIEWS]
    command = [sys.executable, "-m", "slurm"]
    where = ["--dataset=demo", f"--data={run.data}"]
    environment = {"TWO_STREAM_SITE": str(site)}
    cluster.run([*command, "submit", *where, *options], cwd=PROJECT, environment=environment)
    record = json.loads(next(run.paths.logs.glob("chain-*.json")).read_text())
    jobs = {job["stage"]: job["job"] for job in record["jobs"]}
    states = cluster.wait(*jobs.values(), seconds=PATIENCE)
    logs = "".join(log.read_text() for log in sorted(run.paths.logs.glob("*.log")))
    assert set(states.values()) == {"COMPLETED"}, logs
    assert len(states) == 3 + 1 + 2 + 2 + 1

    assert_same_shards(run.paths.shards("farneback"), evaluated.paths.shards("farneback"))
    assert_complete(run, "farneback")
    for stream in ("spatial", "temporal"):
        name = f"{stream}-split1"
        assert_same_weights(run.paths.run(name), evaluated.paths.run(name))
        (scored,) = (run.paths.run(name) / "scores").glob("test-*.h5")
        found, expected = read_scores(scored), read_scores(evaluated.paths.run(name) / "scores" / scored.name)
        np.testing.assert_array_equal(found.videos, expected.videos)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.softmax, expected.softmax)
    assert (run.paths.results("split1") / "report.html").stat().st_size > 10_000

    done = cluster.run([*command, "status", *where], cwd=PROJECT).stdout
    assert "farneback: 54 of 54 done, 0 missing, 0 failed" in done
    assert done.splitlines()[-1] == "finished"
    flow_log = (run.paths.logs / f"flow-demo-{jobs['flow']}_0.log").read_text().splitlines()
    assert any("done, 0 skipped (already valid), 0 failed" in line for line in flow_log)
    assert ": finished (" in flow_log[-1]
    assert not list(tmp_path.rglob("executed"))

    # Another array of another size, over shards of which one is lost and one damaged, mends both.
    shards = sorted(run.paths.shards("farneback").rglob("*.h5"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:1000])
    again = cluster.sbatch(
        "--array=0-1", *SMALL, f"--output={tmp_path}/%x-%a.log", "slurm/flow.sbatch", *where, *FLOW,
        cwd=PROJECT, **environment,
    )  # fmt: skip
    assert set(cluster.wait(again, seconds=PATIENCE).values()) == {"COMPLETED"}
    assert_same_shards(run.paths.shards("farneback"), evaluated.paths.shards("farneback"))


def test_a_video_that_fails_is_named_and_stops_the_chain_until_it_is_let_off(
    cluster: Cluster, extracted: Commands, site: Path, tmp_path: Path
) -> None:
    data, videos = tmp_path / "data", tmp_path / "videos"
    demo = load_dataset("demo", extracted.data)
    good = sorted(demo.videos)[0]
    names = ("A/good", "B/bad")
    for name in names:
        (videos / name).parent.mkdir(parents=True)
    shutil.copy(demo.videos[good].path, videos / "A/good.mp4")
    (videos / "B/bad.mp4").write_bytes(b"no video")
    known = {name: Video(name, videos / f"{name}.mp4", name[0], name) for name in names}
    catalog.save(Dataset("pair", ("A", "B"), known, {1: Split(1, ("A/good",), ("B/bad",))}), videos, data)

    def slurm(command: str, *arguments: str) -> str:
        words = [sys.executable, "-m", "slurm", command, "--dataset=pair", f"--data={data}", *arguments]
        return cluster.run(words, cwd=PROJECT, environment={"TWO_STREAM_SITE": str(site)}).stdout

    options = ["--method=farneback", "--until=verify", *(f"--sbatch=all={option}" for option in SMALL)]
    slurm("submit", *options)
    (chain,) = data.glob("pair/logs/chain-*.json")
    jobs = {job["stage"]: job["job"] for job in json.loads(chain.read_text())["jobs"]}
    states = cluster.wait(*jobs.values(), seconds=PATIENCE)
    assert sorted(states.values()) == ["COMPLETED", "FAILED", "FAILED"]
    assert states[jobs["verify"]] == "FAILED"
    assert "B/bad: no shard" in next(data.glob(f"pair/logs/verify-*{jobs['verify']}.log")).read_text()
    told = slurm("status")
    assert "farneback: 1 of 2 done, 0 missing, 1 failed" in told
    assert "failed: B/bad: " in told
    assert told.splitlines()[-1].endswith("--from=flow")

    slurm("submit", *options, "--from=verify", "--allow-missing")
    (again,) = set(data.glob("pair/logs/chain-*.json")) - {chain}
    verify = json.loads(again.read_text())["jobs"][0]["job"]
    assert cluster.wait(verify, seconds=PATIENCE) == {verify: "COMPLETED"}
    assert slurm("status").splitlines()[-1] == "finished"


def flow_array(cluster: Cluster, run: Commands, site: Path, array: str) -> str:
    """An array of flow tasks, spread over both nodes; its number."""
    return cluster.sbatch(
        f"--array={array}", *SMALL, f"--output={run.data}/%x-%a.log", "slurm/flow.sbatch",
        "--dataset=demo", f"--data={run.data}", *FLOW, cwd=PROJECT, TWO_STREAM_SITE=str(site),
    )  # fmt: skip


def running_on(cluster: Cluster, job: str, node: str) -> dict[str, str]:
    """Tasks that run on a node, and their job ids."""
    return {
        name: task.job_id
        for name, task in cluster.tasks(job).items()
        if task.state == "RUNNING" and task.node == node
    }


def begun(run: Commands) -> Callable[[], bool]:
    """Whether there is a shard already."""
    return lambda: any(run.paths.root.glob("shards/*/*/*.h5"))


def test_a_node_lost_in_mid_array_loses_no_video(
    cluster: Cluster, extracted: Commands, site: Path, tmp_path: Path
) -> None:
    run = copied(extracted, tmp_path)
    cluster.run(["scontrol", "update", "nodename=n1", "state=drain", "reason=test"])
    job = flow_array(cluster, run, site, "0-3")
    wait_until(lambda: running_on(cluster, job, "n2") and begun(run)(), 120, "shards from n2")
    lost = running_on(cluster, job, "n2")
    assert lost
    cluster.run(["scontrol", "update", "nodename=n1", "state=resume"])
    cluster.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"])
    states = cluster.wait(job, seconds=PATIENCE)
    assert set(states.values()) == {"COMPLETED"}
    assert {cluster.tasks(job)[name].node for name in lost} == {"n1"}
    assert_same_shards(run.paths.shards("farneback"), extracted.paths.shards("farneback"))
    assert_complete(run, "farneback", unrecorded=len(lost))


def test_two_copies_of_a_task_after_a_killed_slurmd_tear_nothing(
    cluster: Cluster, extracted: Commands, site: Path, tmp_path: Path
) -> None:
    """SLURM takes a node without slurmd for lost and restarts its task elsewhere, but the old copy still runs there."""
    run = copied(extracted, tmp_path)
    cluster.run(["scontrol", "update", "nodename=n1", "state=drain", "reason=test"])
    job = flow_array(cluster, run, site, "0")
    wait_until(lambda: running_on(cluster, job, "n2") and begun(run)(), 120, "shards from n2")
    ((task, job_id),) = running_on(cluster, job, "n2").items()
    old = processes_of(cluster, job_id, "python")
    # The old copy stands still until the new one works, so that both are sure to write at one time.
    send(old, signal.SIGSTOP)
    before = len(list(run.paths.shards("farneback").rglob("*.h5")))
    assert before < 54
    cluster.run(["scontrol", "update", "nodename=n1", "state=resume"])
    os.kill(cluster.pid("slurmd-n2"), signal.SIGKILL)
    wait_until(lambda: running_on(cluster, job, "n1"), 120, "the restart on n1")
    wait_until(lambda: len(list(run.paths.shards("farneback").rglob("*.h5"))) > before, 120, "shards from n1")
    assert all(process_is_alive(pid) for pid in old)
    send(old, signal.SIGCONT)
    assert cluster.wait(job, seconds=PATIENCE) == {task: "COMPLETED"}
    wait_until(lambda: not any(process_is_alive(pid) for pid in old), PATIENCE, "the old copy's end")
    assert_same_shards(run.paths.shards("farneback"), extracted.paths.shards("farneback"))
    assert_complete(run, "farneback")


def test_interrupted_training_ends_with_the_weights_of_an_undisturbed_run(
    cluster: Cluster, trained: Commands, site: Path, tmp_path: Path
) -> None:
    """Interrupted by a signal as before preemption, and by a time limit that SLURM itself keeps."""

    def train(run: str, *options: str) -> str:
        return cluster.sbatch(
            "--array=0", *SMALL, f"--output={tmp_path}/{run}.log", *options, "slurm/train.sbatch",
            "--dataset=demo", f"--data={trained.data}", *TRAIN,
            cwd=PROJECT, STREAMS="temporal", SPLITS="1", RUN=run, TWO_STREAM_SITE=str(site),
        )  # fmt: skip

    # SLURM looks at limits every 30 s, and warns up to 30 s earlier than asked.
    jobs = {"warned": train("warned"), "limited": train("limited", "--time=1", "--signal=B:USR1@5")}
    folders = {name: trained.paths.run(f"{name}-temporal-split1") for name in jobs}
    stopped: dict[str, list[int]] = {}

    def stop_early() -> bool:
        """Halt each run once it has begun; from then on it stands still, so that it cannot end before the warning."""
        for name, job in jobs.items():
            if name not in stopped and (folders[name] / "log.jsonl").exists() and losses(folders[name]):
                (task,) = cluster.tasks(job).values()
                stopped[name] = processes_of(cluster, task.job_id, "train")
                send(stopped[name], signal.SIGSTOP)
        return len(stopped) == len(jobs)

    wait_until(stop_early, PATIENCE, "the first iterations", interval=0.05)
    assert all(len(losses(folder)) < ITERATIONS for folder in folders.values())
    cluster.run(["scancel", "--batch", "--signal=USR1", f"{jobs['warned']}_0"])
    for name in jobs:
        log = tmp_path / f"{name}.log"
        wait_until(
            lambda log=log: "SLURM warns that time is up" in log.read_text(), 90, f"the warning to {name}"
        )
        send(stopped[name], signal.SIGCONT)
    states = cluster.wait(*jobs.values(), seconds=PATIENCE)
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in jobs}
    assert set(states.values()) == {"COMPLETED"}, logs
    for name in jobs:
        assert "back in the queue" in logs[name]
        assert "begins, restart 1" in logs[name]
        assert_same_weights(folders[name], trained.paths.run("temporal-split1"))
        assert losses(folders[name]) == losses(trained.paths.run("temporal-split1"))


def test_two_nodes_of_two_processes_train_as_one(
    cluster: Cluster, extracted: Commands, site: Path, tmp_path: Path
) -> None:
    """With gloo, without BatchNorm and dropout; node names do not resolve here."""
    arguments = ["--recipe=temporal-stack10", "--crop=56", "--short-side=64", "--dropout=0", "--iterations=3"]
    arguments += ["--batch=8", "--length=2", "--workers=0", "--log-every=1", "--device=cpu"]
    arguments += ["--validate-every=9", "--checkpoint-every=9", "--no-tensorboard"]
    alone = ["train", "--split=1", "--stream=temporal", "--run=alone", "--threads=1", *arguments]
    job = cluster.sbatch(
        "--array=0", *SMALL, "--nodes=2", "--ntasks-per-node=2", f"--output={tmp_path}/log", "slurm/train.sbatch",
        "--dataset=demo", f"--data={extracted.data}", *arguments,
        cwd=PROJECT, STREAMS="temporal", SPLITS="1", RUN="four", TWO_STREAM_SITE=str(site),
    )  # fmt: skip
    extracted(*alone)
    assert cluster.wait(job, seconds=PATIENCE) == {f"{job}_0": "COMPLETED"}, (tmp_path / "log").read_text()
    assert cluster.tasks(job)[f"{job}_0"].node == "n[1-2]"
    assert "4 processes" in (tmp_path / "log").read_text()
    together, single = (
        losses(extracted.paths.run("four-temporal-split1")),
        losses(extracted.paths.run("alone")),
    )
    assert sorted(together) == sorted(single) == [1, 2, 3]
    for iteration, loss in single.items():
        assert together[iteration] == pytest.approx(loss, rel=1e-4)
    (log,) = tmp_path.glob("log")
    assert ": finished (" in log.read_text().splitlines()[-1]


def test_a_wrong_dataset_given_to_sbatch_itself_fails_at_once_and_says_why(
    cluster: Cluster, site: Path, tmp_path: Path
) -> None:
    bad = {"nowhere": "nowhere", "; touch executed": "cannot be the name of a dataset"}
    jobs = {
        name: cluster.sbatch(
            "--array=0", *SMALL, f"--output={tmp_path}/%A.log", "slurm/flow.sbatch", f"--data={tmp_path}",
            cwd=PROJECT, DATASET=name, TWO_STREAM_SITE=str(site),
        )
        for name in bad
    }  # fmt: skip
    assert set(cluster.wait(*jobs.values(), seconds=PATIENCE).values()) == {"FAILED"}
    for name, words in bad.items():
        log = (tmp_path / f"{jobs[name]}.log").read_text()
        assert "error: " in log
        assert words in log
        assert "Traceback" not in log
    assert not list(tmp_path.rglob("executed"))
