"""`python -m slurm submit` and `status` on a real SLURM, with a stand-in for the stages' commands."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_recorder import PROJECT, Recorder

from pipeline import catalog
from pipeline.catalog import Dataset, Split, Video

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SMALL = ("--sbatch=all=--cpus-per-task=1", "--sbatch=all=--mem-per-cpu=100M")


@dataclass(frozen=True)
class User:
    """Someone on a login node with one known dataset."""

    cluster: Cluster
    recorder: Recorder
    data: Path

    def slurm(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and all output of `python -m slurm`."""
        done = self.cluster.run(
            [sys.executable, "-m", "slurm", *arguments, "--data", self.data],
            check=False,
            cwd=self.recorder.project,
            environment={"PYTHONPATH": f"{self.recorder.project}:{PROJECT}", **environment},
        )
        return done.returncode, done.stdout + done.stderr

    def submit(self, *arguments: str, **environment: str) -> dict[str, str]:
        """Submit a chain of tiny jobs; the jobs' numbers by stage."""
        code, output = self.slurm("submit", "--dataset=toy", *SMALL, *arguments, **environment)
        assert code == 0, output
        jobs = dict(re.findall(r"^(flow|verify|train|score|fuse) +(\d+) ", output, re.MULTILINE))
        assert f"squeue -j {','.join(jobs.values())}" in output
        return jobs

    def queued(self) -> list[str]:
        return self.cluster.run(["squeue", "-h", "-o", "%i"]).stdout.split()


@pytest.fixture
def user(cluster: Cluster, recorder: Recorder, tmp_path: Path) -> User:
    data = tmp_path / "it's; $(touch executed) 100%j"
    videos = tmp_path / "videos"
    names = ["a/x", "a/y", "b/x", "b/y"]
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / f"{name}.avi").touch()
    known = {name: Video(name, videos / f"{name}.avi", name[0], name) for name in names}
    splits = {number: Split(number, ("a/x", "b/x"), ("a/y", "b/y")) for number in (1, 2)}
    catalog.save(Dataset("toy", ("a", "b"), known, splits), videos, data)
    (data / "toy" / "shards" / "tvl1").mkdir(parents=True)  # so that a chain may begin with training
    return User(cluster, recorder, data)


def test_the_chain_runs_in_order_and_status_tells_its_end(user: User) -> None:
    arguments = ["--tasks=3", "--at-once=2", "--pass=train=--init=$(touch executed)", "--fusion=svm"]
    # What the shell has exported for other purposes means nothing to the chain.
    jobs = user.submit(*arguments, TASKS="9", RUN="another", SLURM_ARRAY_TASK_ID="5", SLURM_JOB_GPUS="1")
    states = user.cluster.wait(*jobs.values())
    assert set(states.values()) == {"COMPLETED"}
    assert len(states) == 3 + 1 + 4 + 4 + 1
    calls = user.recorder.calls()
    stages = [call["arguments"][1] for call in calls]
    assert stages == ["extract_flow"] * 3 + ["pipeline"] + ["train"] * 4 + ["evaluate"] * 9
    for before, after in ((2, 3), (3, 4), (15, 16)):
        assert max(call["ended"] for call in calls[: before + 1]) <= calls[after]["began"]
    assert {call["environment"].get("RUN") for call in calls} == {None}
    assert {tuple(call["arguments"][4:10:2]) for call in calls[:3]} == {("--device", "--jobs", "--task")}
    assert {call["arguments"][5] for call in calls[:3]} == {"cpu"}
    for call in calls:
        assert "--dataset=toy" in call["arguments"]
        assert f"--data={user.data}" in call["arguments"]
    assert "--init=$(touch executed)" in calls[4]["arguments"]
    scored = sorted(tuple(call["arguments"][5:11]) for call in calls if "score" in call["arguments"])
    assert scored == [
        ("--stream", stream, "--split", split, "--part", part)
        for stream in ("spatial", "temporal")
        for split in ("1", "2")
        for part in ("test", "train")
    ]
    assert calls[-1]["arguments"][-4:] == [
        "--split=1,2",
        "--stream=spatial",
        "--stream=temporal",
        "--fusion=svm",
    ]
    logs = sorted(path.name for path in (user.data / "toy" / "logs").glob("*.log"))
    assert len(logs) == len(states)
    assert f"train-toy-{jobs['train']}_3.log" in logs
    code, output = user.slurm("status", "--dataset=toy")
    assert code == 0
    assert output.splitlines()[-1] == "finished"
    assert re.search(rf"flow +{jobs['flow']}  3 completed", output)
    assert not list(user.data.parent.rglob("executed"))


def test_a_failed_flow_task_is_verified_and_stops_the_training(user: User) -> None:
    jobs = user.submit("--tasks=2", "--split=1", STAND_IN_FAIL="extract_flow=3 pipeline=1")
    states = user.cluster.wait(*jobs.values())
    assert states[jobs["verify"]] == "FAILED"
    later = (jobs["train"], jobs["score"], jobs["fuse"])
    assert {state for name, state in states.items() if name.startswith(later)} == {"CANCELLED"}
    code, output = user.slurm("status", "--dataset=toy")
    assert code == 0
    assert re.search(rf"flow +{jobs['flow']}  2 failed", output)
    assert f"{jobs['flow']}_1 FAILED on n" in output
    assert "error: this is to fail" in output
    again = output.splitlines()[-1]
    assert again.startswith("to resume: python -m slurm submit --dataset=toy")
    assert again.endswith("--from=flow")
    assert user.queued() == []


def test_a_failed_training_stops_only_its_own_scores(user: User) -> None:
    jobs = user.submit(
        "--from=train", "--split=2", "--pass=train=--lighting=0.1", STAND_IN_FAIL="train,temporal=1"
    )
    states = user.cluster.wait(*jobs.values())
    train, score, fuse = (jobs[stage] for stage in ("train", "score", "fuse"))
    assert states == {
        f"{train}_0": "COMPLETED",
        f"{train}_1": "FAILED",
        f"{score}_0": "COMPLETED",
        f"{score}_1": "CANCELLED",
        fuse: "CANCELLED",
    }
    _, output = user.slurm("status", "--dataset=toy")
    assert f"{train}_1 FAILED on n" in output
    assert "error: this is to fail" in output
    again = output.splitlines()[-1]
    assert again.startswith("to resume: python -m slurm submit --dataset=toy")
    assert "--split=2" in again
    assert "--pass=train=--lighting=0.1" in again
    assert again.endswith("--from=train")


def test_a_second_chain_waits_until_the_first_has_ended(user: User) -> None:
    first = user.submit("--tasks=1", "--until=flow", STAND_IN_SLEEP="600")
    code, output = user.slurm("submit", "--dataset=toy", "--until=flow")
    assert code == 1
    assert f"jobs {first['flow']} of the chain submitted last have not ended" in output
    _, output = user.slurm("status", "--dataset=toy")
    assert output.splitlines()[-1] == f"under way; watch: squeue -j {first['flow']}"
    second = user.submit("--tasks=1", "--until=flow", "--force")
    user.cluster.run(["scancel", first["flow"]])
    states = user.cluster.wait(first["flow"], second["flow"])
    assert states == {f"{first['flow']}_0": "CANCELLED", f"{second['flow']}_0": "COMPLETED"}


REFUSED = [
    (["--sbatch=flow=--gpus-per-node=3"], "Requested node configuration is not available"),
    (["--sbatch=train=--nodes=3"], "the job 'train'"),
    (["--sbatch=score=--partition=nowhere"], "invalid partition specified: nowhere"),
    (["--sbatch=all=--mem-per-cpu=100G"], "Requested node configuration is not available"),
    (["--until=flow", "--sbatch=flow=--partition=short", "--sbatch=flow=--time=60"], "asks for 1:00:00"),
    (["--until=verify", "--sbatch=verify=--partition=closed"], "partition closed is down"),
    (["--tasks=5000"], "Invalid job array specification"),
    (["--sbatch=flow=--no-such-option"], "no-such-option"),
    (["--split=9"], "dataset toy has no split 9 (it has: 1, 2)"),
    (["--dataset=tyo"], "tyo"),
    (["--dataset=toy; touch executed"], "cannot be the name of a dataset"),
    (["--pass=tarin=x"], "expected STAGE=VALUE"),
    (["--pass=train=--recepie=x"], "the command of stage 'train' does not take its arguments"),
    (["--method=tvl2"], "the command of stage 'flow' does not take its arguments"),
    (["--split=one"], "expected numbers"),
    (["--from=train", "--until=flow"], "the order is"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_could_never_run_is_refused_before_the_queue(
    user: User, arguments: list[str], words: str
) -> None:
    code, output = user.slurm("submit", "--dataset=toy", *SMALL, *arguments)
    assert code == 1, output
    assert "error: " in output
    assert words in output
    assert "Traceback" not in output
    wait_until(lambda: user.queued() == [], 20, "what was submitted before the refusal to be gone")


def test_a_folder_that_cannot_be_written_to_is_refused(user: User, tmp_path: Path) -> None:
    """Not by its mode, which means nothing to root: a file stands where the folder of logs should be."""
    (user.data / "toy" / "logs").touch()
    code, output = user.slurm("submit", "--dataset=toy")
    assert code == 1
    assert "cannot be written to" in output
    assert user.queued() == []


def test_the_printed_script_submits_the_chain(user: User, tmp_path: Path) -> None:
    code, script = user.slurm("submit", "--dataset=toy", *SMALL, "--tasks=2", "--until=verify", "--dry-run")
    assert code == 0
    assert user.queued() == []
    leaked = {"TASKS": "9", "RUN": "another"}
    jobs = user.cluster.run(["bash", "-c", script], cwd=tmp_path, environment=leaked).stdout.split()
    states = user.cluster.wait(*jobs)
    assert len(states) == 2 + 1
    assert set(states.values()) == {"COMPLETED"}


def test_site_options_reach_every_job(user: User) -> None:
    site = user.recorder.site
    site.write_text(
        site.read_text() + "ALL_OPTIONS=('--comment=it''s; $(touch executed)')\nFLOW_OPTIONS=(--nice=7)\n"
    )
    jobs = user.submit("--tasks=1", "--until=verify")
    shown = user.cluster.run(["squeue", "-h", "-t", "all", "-j", jobs["flow"], "-o", "%k|%y"]).stdout
    assert shown.startswith("its; $(touch executed)|")
    user.cluster.wait(*jobs.values())
    record = json.loads(next((user.data / "toy" / "logs").glob("chain-*.json")).read_text())
    assert "--nice=7" in record["jobs"][0]["command"]
    assert "--nice=7" not in record["jobs"][1]["command"]
    assert not list(user.data.parent.rglob("executed"))
