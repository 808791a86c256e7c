"""The job scripts on a real SLURM, with a stand-in for `python` that records what reaches it."""

from __future__ import annotations

import pytest
from slurm_cluster import Cluster, wait_until
from slurm_recorder import Recorder

from train.distributed import Place, find_place

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SMALL = ("--cpus-per-task=1", "--mem-per-cpu=100M")
"""Resources of a task that only records."""

HOSTILE = [
    "a space",
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "it's",
    'a "quoted" word',
    "*",
    "a,b=c",
    "\\",
    "",
    "-",
    "two\nlines",
    "a[$(touch executed)]",
    "%A %j",
]


def argument(call: dict[str, list[str]], name: str) -> str:
    """The last value of an option, the one that counts."""
    arguments = call["arguments"]
    return arguments[len(arguments) - 1 - arguments[::-1].index(name) + 1]


def test_every_task_of_64_sees_its_own_device_and_share(cluster: Cluster, recorder: Recorder) -> None:
    job = cluster.sbatch(
        "--array=0-63",
        *SMALL,
        "--gpus-per-node=1",
        "slurm/flow.sbatch",
        cwd=recorder.project,
        STAND_IN_SLEEP="0.3",
    )
    states = cluster.wait(job, seconds=240)
    assert states == {f"{job}_{task}": "COMPLETED" for task in range(64)}
    calls = recorder.calls()
    assert sorted(int(argument(call, "--task")) for call in calls) == list(range(64))
    assert {argument(call, "--tasks") for call in calls} == {"64"}
    assert {argument(call, "--device") for call in calls} == {"cuda"}
    assert {call["environment"]["CUDA_VISIBLE_DEVICES"] for call in calls} == {"0", "1"}
    # No two tasks that ran at one time on one node had the same device.
    for first in calls:
        for second in calls:
            together = first["began"] < second["ended"] and second["began"] < first["ended"]
            if first is not second and together:
                device, other = (
                    (call["environment"]["SLURMD_NODENAME"], call["environment"]["CUDA_VISIBLE_DEVICES"])
                    for call in (first, second)
                )
                assert device != other


def test_arguments_and_values_reach_programs_as_data(cluster: Cluster, recorder: Recorder) -> None:
    values = {
        "DATASET": "; touch executed",
        "STREAMS": "$(touch${IFS}executed) * spatial",
        "SPLITS": "a[$(touch${IFS}executed)] 2",
    }
    values["TASKS"] = "a[$(touch executed)]"
    jobs = [
        cluster.sbatch("--array=0", *SMALL, "slurm/flow.sbatch", *HOSTILE, cwd=recorder.project, **values),
        cluster.sbatch("--array=0,1", *SMALL, "slurm/train.sbatch", *HOSTILE, cwd=recorder.project, **values),
        cluster.sbatch(
            "--array=0", *SMALL, "slurm/evaluate.sbatch", *HOSTILE, cwd=recorder.project, **values
        ),
        cluster.sbatch(*SMALL, "slurm/evaluate.sbatch", *HOSTILE, cwd=recorder.project, **values),
        cluster.sbatch(*SMALL, "slurm/verify.sbatch", *HOSTILE, cwd=recorder.project, **values),
    ]
    assert set(cluster.wait(*jobs).values()) == {"COMPLETED"}
    calls = [call["arguments"] for call in recorder.calls()]
    assert len(calls) == 6
    for arguments in calls:
        assert arguments[-len(HOSTILE) :] == HOSTILE
        assert argument({"arguments": arguments}, "--dataset") == values["DATASET"]
    flow = next(arguments for arguments in calls if arguments[1] == "extract_flow")
    assert argument({"arguments": flow}, "--tasks") == values["TASKS"]
    pairs = {
        (argument({"arguments": arguments}, "--stream"), argument({"arguments": arguments}, "--split"))
        for arguments in calls
        if arguments[1] == "train"
    }
    assert pairs == {
        ("$(touch${IFS}executed)", "a[$(touch${IFS}executed)]"),
        ("*", "a[$(touch${IFS}executed)]"),
    }
    assert not list(recorder.project.parent.rglob("executed"))

    refused = cluster.sbatch(
        "--array=0", *SMALL, "slurm/flow.sbatch", cwd=recorder.project, MAX_RESTARTS=values["TASKS"]
    )
    assert cluster.wait(refused) == {f"{refused}_0": "FAILED"}
    assert "MAX_RESTARTS='a[$(touch executed)]' is not a number" in recorder.log(f"{refused}_0")
    assert not list(recorder.project.parent.rglob("executed"))


def test_with_a_fold_one_array_trains_without_it_and_another_scores_it(
    cluster: Cluster, recorder: Recorder
) -> None:
    values = {"FOLD": "2", "STREAMS": "temporal", "PARTS": "held-out"}
    jobs = [
        cluster.sbatch("--array=0", *SMALL, script, cwd=recorder.project, **values)
        for script in ("slurm/train.sbatch", "slurm/evaluate.sbatch")
    ]
    assert set(cluster.wait(*jobs).values()) == {"COMPLETED"}
    calls = {call["arguments"][1]: call for call in recorder.calls()}
    for call in calls.values():
        assert "--run=temporal-split1-fold2of3" in call["arguments"]
    assert (argument(calls["train"], "--fold"), argument(calls["train"], "--folds")) == ("2", "3")
    assert argument(calls["evaluate"], "--part") == "held-out"
    assert "--fold" not in calls["evaluate"]["arguments"]


def test_part_of_an_array_says_of_how_many(cluster: Cluster, recorder: Recorder) -> None:
    """--array=3 of 64 must not be taken for one of four, nor 2-5 for shares of six."""
    unclear = [
        cluster.sbatch(f"--array={part}", *SMALL, "slurm/flow.sbatch", cwd=recorder.project)
        for part in ("3", "0,2")
    ]
    clear = cluster.sbatch("--array=3,9%1", *SMALL, "slurm/flow.sbatch", cwd=recorder.project, TASKS="64")
    whole = cluster.sbatch(*SMALL, "slurm/flow.sbatch", cwd=recorder.project)
    states = cluster.wait(*unclear, clear, whole)
    assert {states[f"{unclear[0]}_3"], states[f"{unclear[1]}_0"], states[f"{unclear[1]}_2"]} == {"FAILED"}
    assert "TASKS=64 sbatch --array=3" in recorder.log(f"{unclear[0]}_3")
    shares = sorted((argument(call, "--task"), argument(call, "--tasks")) for call in recorder.calls())
    assert shares == [("0", "1"), ("3", "64"), ("9", "64")]
    assert {argument(call, "--device") for call in recorder.calls()} == {"cpu"}


def test_the_log_ends_with_how_the_task_ended(cluster: Cluster, recorder: Recorder) -> None:
    good = cluster.sbatch("--array=0", *SMALL, "slurm/flow.sbatch", cwd=recorder.project)
    bad = cluster.sbatch(*SMALL, "slurm/verify.sbatch", cwd=recorder.project, STAND_IN_FAIL="pipeline=3")
    nowhere = cluster.sbatch(
        *SMALL, "slurm/verify.sbatch", cwd=recorder.project, TWO_STREAM_SITE="no such file"
    )
    cluster.wait(good, bad, nowhere)
    assert f"flow, job {good}_0 on n" in recorder.log(f"{good}_0").splitlines()[-1]
    assert ": finished (" in recorder.log(f"{good}_0").splitlines()[-1]
    assert ": failed with exit status 3 (" in recorder.log(bad).splitlines()[-1]
    assert "error: no file 'no such file'" in recorder.log(nowhere)
    assert ": failed before its work began (" in recorder.log(nowhere).splitlines()[-1]
    assert cluster.states(bad) == {bad: "FAILED"}


def test_a_warned_task_saves_and_goes_on_after_a_requeue_alone(cluster: Cluster, recorder: Recorder) -> None:
    """The last task of an array shares its number with the array: requeueing by that number would restart all."""
    job = cluster.sbatch(
        "--array=0-1", *SMALL, "slurm/train.sbatch", cwd=recorder.project, STAND_IN_SLEEP="600"
    )
    dependency = ("--kill-on-invalid-dep=yes", f"--dependency=aftercorr:{job}")
    after = cluster.sbatch("--array=0-1", *SMALL, *dependency, "slurm/evaluate.sbatch", cwd=recorder.project)
    wait_until(lambda: len(recorder.calls()) == 2, 90, "both tasks to work")
    (last,) = [name for name, task in cluster.tasks(job).items() if task.job_id == job]
    cluster.run(["scancel", "--batch", "--signal=USR1", last])
    wait_until(
        lambda: len([call for call in recorder.calls() if call["arguments"][1] == "train"]) == 3,
        120,
        "the restart",
    )
    index = last.removeprefix(f"{job}_")
    other_index = "1" if index == "0" else "0"
    other = f"{job}_{other_index}"
    assert cluster.states(job)[other] == "RUNNING"
    cluster.run(["scancel", other])
    states = cluster.wait(job, after)
    assert states[last] == "COMPLETED"
    assert states[other] == "CANCELLED"
    assert states[f"{after}_{index}"] == "COMPLETED"
    assert states[f"{after}_{other_index}"] == "CANCELLED"
    training = [call for call in recorder.calls() if call["arguments"][1] == "train"]
    assert sorted(str(call["signal"]) for call in training) == ["None", "SIGTERM", "SIGUSR1"]
    assert "cancelled, preempted or out of time" in recorder.log(other).splitlines()[-1]
    log = recorder.log(last).splitlines()
    assert any("back in the queue" in line for line in log)
    assert any("begins, restart 1" in line for line in log)
    assert ": finished (" in log[-1]


def test_a_command_that_does_not_save_in_time_is_stopped_and_restarted(
    cluster: Cluster, recorder: Recorder
) -> None:
    values = {"STAND_IN_STUBBORN": "1", "STAND_IN_SLEEP": "600", "SAVE_SECONDS": "2"}
    job = cluster.sbatch("--array=0", *SMALL, "slurm/flow.sbatch", cwd=recorder.project, **values)
    wait_until(lambda: len(recorder.calls()) == 1, 90, "the task to work")
    cluster.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"])
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}
    assert [call["signal"] for call in recorder.calls()] == ["SIGTERM", None]
    assert "back in the queue" in recorder.log(f"{job}_0")


def test_restarts_are_limited(cluster: Cluster, recorder: Recorder) -> None:
    job = cluster.sbatch(
        "--array=0", *SMALL, "slurm/flow.sbatch", cwd=recorder.project, STAND_IN_SLEEP="600", MAX_RESTARTS="0"
    )
    wait_until(lambda: len(recorder.calls()) == 1, 90, "the task to work")
    cluster.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"])
    assert cluster.wait(job) == {f"{job}_0": "FAILED"}
    assert "MAX_RESTARTS" in recorder.log(f"{job}_0").splitlines()[-1]
    assert [call["signal"] for call in recorder.calls()] == ["SIGUSR1"]


def test_tasks_of_several_processes_on_one_node_meet_at_ports_of_their_own(
    cluster: Cluster, recorder: Recorder
) -> None:
    job = cluster.sbatch(
        "--array=0-1",
        *SMALL,
        "--ntasks-per-node=2",
        "--nodelist=n1",
        "slurm/train.sbatch",
        cwd=recorder.project,
    )
    assert set(cluster.wait(job).values()) == {"COMPLETED"}
    places: dict[str, list[Place]] = {}
    for call in recorder.calls():
        places.setdefault(argument(call, "--stream"), []).append(find_place(call["environment"]))
    assert sorted(places) == ["spatial", "temporal"]
    ports = set()
    for found in places.values():
        assert sorted((place.rank, place.size, place.local_rank) for place in found) == [(0, 2, 0), (1, 2, 1)]
        assert {place.address for place in found} == {"127.0.0.1"}
        (port,) = {place.port for place in found}
        ports.add(port)
    assert len(ports) == 2
