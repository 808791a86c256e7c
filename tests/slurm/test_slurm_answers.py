"""SLURM's answers as sites print them: the chain is submitted, or nothing of it is left in the queue.

The stand-ins for SLURM's programs keep the queue as a folder with a file for each job, named by its number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from slurm import answers, queueing, record, scheduler, state
from slurm.answers import Answer, JobId, claimed_jobs, command_line, job_id, lines_of
from slurm.chain import Job

BANNER = """
-------------------------------------------
    Welcome to the Example3 Supercomputer
-------------------------------------------
--> Verifying valid submit host (login4)...OK
--> Your job 4711 is running, 12 nodes are free
"""

# What every stand-in begins with. From the job ODD_FROM on, sbatch prints SAYS and exits with STATUS.
QUEUE = """#!/bin/bash
echo "${0##*/} $*" >> "$FAKE/calls"
cluster= number= name= before= exit_early=
while (($#)); do
    case $1 in
        -M) cluster=$2; shift;;
        --clusters=*) cluster=${1#*=};;
        -j) number=$2; shift;;
        -u) shift;;
        -n) name=$2; shift;;
        --job-name=*) name=${1#*=};;
        -o) format=$2; shift;;
        --dependency=*) before=${1##*:};;
        --test-only) exit_early=1;;
        [0-9]*) number=$1;;
    esac
    shift
done
fail() { echo "$*" >&2; exit 1; }
unknown() { fail "slurm_load_jobs error: Invalid job id specified"; }
needs_cluster() { [[ -z ${CLUSTER-} || $cluster == "$CLUSTER" ]] || unknown; }
"""
SBATCH = """
[[ -n $exit_early ]] && exit 0
[[ -z $before || -e $FAKE/queue/$before ]] || fail "sbatch: error: Job dependency problem"
read -r id < "$FAKE/next"
echo $((id + 1)) > "$FAKE/next"
echo "$name" > "$FAKE/queue/$id"
((id >= ${ODD_FROM:-1000000})) || SAYS='%s\\n' STATUS=0
printf -- "$SAYS" "$id" "$id"
exit "${STATUS:-0}"
"""
SQUEUE = """
needs_cluster
echo "CLUSTER: ${cluster:-here}"
case $format in
    "%i|%j") for file in "$FAKE"/queue/*; do
        [[ -e $file && ( -z $number || ${file##*/} == "$number" ) ]] || continue
        [[ -z $name || $(< "$file") == "$name" ]] && echo "${file##*/}|$(< "$file")"
    done; exit 0;;
    "%P|%l") echo "normal|12:00:00";;
    *) [[ -e $FAKE/queue/$number ]] || unknown
       printf '%s|PENDING|Priority|\\r\\n' "$number";;
esac
"""
SCANCEL = """
needs_cluster
rm "$FAKE/queue/$number"
"""
PROGRAMS = {
    "sbatch": SBATCH,
    "squeue": SQUEUE,
    "scancel": SCANCEL,
    "sinfo": "echo 'normal*|up|2-00:00:00'",
    "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
}


def job(stage: str) -> Job:
    waits = None if stage == "flow" else "afterok"
    return Job(
        stage, f"{stage}-toy", None, {}, [f"--job-name={stage}-toy"], f"slurm/{stage}.sbatch", [], waits
    )


@dataclass(frozen=True)
class Site:
    """A site's SLURM; what it answers is set by environment variables and by other programs."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def program(self, name: str, script: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(QUEUE + script)
        file.chmod(0o755)

    def set(self, **values: str) -> None:
        for name, value in values.items():
            self.monkeypatch.setenv(name, value)

    def queue(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "queue").iterdir())

    def calls(self, program: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(f"{program} ")]

    def submit(self) -> list[record.Submitted]:
        return queueing.submit_all([job("flow"), job("verify"), job("train")], self.folder)

    def fault(self) -> str:
        with pytest.raises(InputError) as caught:
            self.submit()
        return str(caught.value)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "bin").mkdir()
    (tmp_path / "queue").mkdir()
    (tmp_path / "next").write_text("519605\n")
    (tmp_path / "queue" / "4711").write_text("flow-toy\n")  # of another chain, and none of our business
    made = Site(tmp_path, monkeypatch)
    for name, script in PROGRAMS.items():
        made.program(name, script)
    made.set(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", FAKE=str(tmp_path))
    monkeypatch.setattr(queueing, "PAUSES", (0.0,))
    return made


# --- the id of a job ------------------------------------------------------------------------------------------------

IDS = {
    "12\n": JobId("12"),
    "12;c1\n": JobId("12", "c1"),
    "  12 \r\n": JobId("12"),
    f"{BANNER}12\n": JobId("12"),
    f"12\n{BANNER}": JobId("12"),
    "\x1b[1;32m12\x1b[0m;c-1.x_y\n": JobId("12", "c-1.x_y"),
    "\x1b]0;login4\x0712\n": JobId("12"),
    "11\n12\n": JobId("12"),
    "sbatch: warning: can't run 1 processes on 2 nodes\n12\n": JobId("12"),
    "quota 50%\r12\n": JobId("12"),
    "": None,
    "\n \n": None,
    "Submitted batch job 12\n": None,
    "12;\n": None,
    "12;-M\n": None,
    "12;a b\n": None,
    "12 13\n": None,
    "0\n": None,
    "-12\n": None,
    "12.5\n": None,
    "٣\n": None,
    f"{'9' * 5000}\n": None,
}


@pytest.mark.parametrize(("text", "expected"), IDS.items(), ids=[repr(text[:40]) for text in IDS])
def test_a_job_id_is_the_last_line_that_is_a_number_and_perhaps_a_cluster(
    text: str, expected: JobId | None
) -> None:
    assert job_id(lines_of(text)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Submitted batch job 12", [JobId("12")]),
        ("Submitted batch job 12 on cluster c1", [JobId("12", "c1")]),
        ("Job <12> is submitted to the queue.", [JobId("12")]),
        ("JOBID=12", [JobId("12")]),
        ('{"job_id": 12}', [JobId("12")]),
        ("--> Your job 4711 is running", []),
        ("12 of 40 jobs submitted today", []),
        ("submit host login4", []),
    ],
)
def test_a_sentence_about_a_submitted_job_names_it(line: str, expected: list[JobId]) -> None:
    assert claimed_jobs([line]) == expected


def test_commands_to_copy_name_each_cluster() -> None:
    assert command_line("squeue", [JobId("1"), JobId("2")], "-j", ",") == "squeue -j 1,2"
    assert command_line("scancel", [JobId("1", "a"), JobId("2", "a")]) == "scancel -M a 1 2"
    assert command_line("scancel", [JobId("1", "a"), JobId("2", "b")]) == "scancel -M a 1; scancel -M b 2"


# --- submitting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "says",
    [
        f"{BANNER}%s\\n",
        "%s\\n\\n\\n",
        "%s\\r\\n",
        "\\033[32m%s\\033[0m\\n",
        "sbatch: warning: no memory asked for\\n%s\\n",
        f"%s\\n{BANNER}",
        "\\xd3 \\xff\\n%s\\n",
        "Submitted batch job 99\\n%s\\n",
    ],
)
def test_a_chain_is_submitted_whatever_a_site_prints_around_the_ids(site: Site, says: str) -> None:
    site.set(ODD_FROM="1", SAYS=says)
    assert [each.id for each in site.submit()] == [JobId("519605"), JobId("519606"), JobId("519607")]
    assert site.queue() == ["4711", "519605", "519606", "519607"]


def test_a_named_cluster_is_asked_by_every_later_command_and_printed_line(site: Site, tmp_path: Path) -> None:
    site.set(ODD_FROM="1", SAYS="%s;c1\\n", CLUSTER="c1")
    submitted = site.submit()
    assert {each.cluster for each in submitted} == {"c1"}
    assert all("--clusters=c1" in call for call in site.calls("sbatch")[1:])
    assert all(" -M c1 " in call for call in [*site.calls("squeue")[1:], *site.calls("sinfo")])
    record.save(record.Chain(1000.0, (), tuple(submitted)), tmp_path)
    chain = record.latest(tmp_path)
    assert chain is not None
    assert chain.jobs == tuple(submitted)
    assert state.is_alive(chain.jobs[0])
    scheduler.cancel([each.id for each in chain.jobs])
    assert site.queue() == ["4711"]


def test_a_cluster_that_a_stage_asks_for_is_not_replaced(site: Site) -> None:
    flow = JobId("12", "c1")
    train = job("train")
    assert "--clusters=c1" in train.command(flow)
    for option in ("--clusters=c1,c2", "-Mc2,c1"):
        several = Job(**{**vars(train), "options": [option]})
        assert several.command(flow)[-2] == "--clusters=c1"
    other = Job(**{**vars(train), "options": ["--clusters=c9"]})
    assert "--clusters=c1" not in other.command(flow)


UNCLEAR = {
    "nothing": "",
    "a sentence": "Submitted batch job %s\\n",
    "a sentence with a cluster": "Submitted batch job %s on cluster here\\n",
    "a word": "accepted\\n",
    "another number": "You have 4711 jobs in the queue\\n",
    "another job": "job 4711 was submitted\\n",
    "two numbers": "%s %s\\n",
    "an option for a cluster": "%s;--all\\n",
    "a web page": "<html><body>502 Bad Gateway</body></html>\\n",
}


@pytest.mark.parametrize("first", ["519605", "519606", "519607"])
@pytest.mark.parametrize("says", UNCLEAR.values(), ids=UNCLEAR)
def test_an_answer_without_an_id_is_shown_and_leaves_nothing_in_the_queue(
    site: Site, says: str, first: str
) -> None:
    site.set(ODD_FROM=first, SAYS=f"{BANNER}{says}")
    fault = site.fault()
    assert site.queue() == ["4711"]
    assert "answered without the id" in fault
    assert "Example3 Supercomputer" in fault
    assert f"cancelled: job {', '.join(str(number) for number in range(519605, int(first) + 1))}" in fault


def test_a_job_whose_wrapper_fails_after_submitting_is_cancelled(site: Site) -> None:
    site.set(ODD_FROM="519606", SAYS="%s\\n", STATUS="1")
    assert "cancelled: job 519605" in site.fault()
    assert site.queue() == ["4711"]


def test_an_answer_that_takes_too_long_leaves_nothing_in_the_queue(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wrapper's own child, which holds the pipe open, has to be stopped too: it could submit later still.
    script = SBATCH.replace('exit "$', 'sleep 60 & echo $! > "$FAKE/child"; sleep 60; exit "$')
    site.program("sbatch", script)
    submit = scheduler.submit

    def impatient(*arguments: Any) -> Answer:
        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "PATIENCE", 1.0)
            return submit(*arguments)

    monkeypatch.setattr(scheduler, "submit", impatient)
    fault = site.fault()
    assert "sbatch got no answer from SLURM in 1.0 s" in fault
    assert "cancelled: job 519605" in fault
    assert site.queue() == ["4711"]
    child = Path("/proc", (site.folder / "child").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().split()[2] in "ZX"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_submission_leaves_nothing_in_the_queue(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
) -> None:
    submit = scheduler.submit

    def interrupted(job: Job, project: Path, waits_for: JobId | None) -> Answer:
        answer = submit(job, project, waits_for)
        if job.stage == "verify":
            raise error
        return answer

    monkeypatch.setattr(scheduler, "submit", interrupted)
    with pytest.raises(error):
        site.submit()
    assert "cancelled: job 519605, 519606" in capsys.readouterr().err
    assert site.queue() == ["4711"]


def test_a_job_that_cannot_be_cancelled_is_named_with_the_command_to_try(site: Site) -> None:
    site.set(ODD_FROM="519606", SAYS="?\\n")
    site.program("scancel", "echo 'scancel: error: Kill job error: Access denied' >&2; exit 1")
    fault = site.fault()
    assert "could not be cancelled: job 519605 (pending; scancel: Kill job error: Access denied)" in fault
    assert fault.endswith("scancel 519605 519606")
    assert site.queue() == ["4711", "519605", "519606"]


def test_a_cancelled_job_that_slurm_calls_invalid_has_ended(site: Site) -> None:
    """scancel reports `Invalid job id` of a job that is gone: what counts is what the queue holds."""
    site.set(ODD_FROM="519606", SAYS="?\\n")
    site.program("scancel", 'rm "$FAKE/queue/$number"; echo "scancel: error: Invalid job id" >&2; exit 1')
    assert "cancelled: job 519605, 519606" in site.fault()


def test_a_queue_that_does_not_answer_is_not_taken_for_an_empty_one(site: Site) -> None:
    site.set(ODD_FROM="519605", SAYS="?\\n")
    site.program("squeue", "echo 'slurm_load_jobs error: Unexpected message received' >&2; exit 1")
    fault = site.fault()
    assert "SLURM does not say whether the job 'flow' is in the queue" in fault
    assert "-n flow-toy" in fault
    site.set(SAYS="Submitted batch job %s\\n")
    assert "could not be cancelled: job 519606 (its state is unknown" in site.fault()


def test_a_refusal_with_a_banner_cancels_no_job_that_the_banner_names(site: Site) -> None:
    site.program(
        "sbatch", "echo 4711; echo 'Your job 4711 was submitted yesterday'; echo 'no account' >&2; exit 1"
    )
    fault = site.fault()
    assert "no account" in fault
    assert "nothing of this chain is in the queue" in fault
    assert site.queue() == ["4711"]


UNREACHABLE = [
    "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "Batch job submission failed: Socket timed out on send/recv operation",
    "Could not establish a configuration source",
]


@pytest.mark.parametrize("words", UNREACHABLE)
@pytest.mark.parametrize("status", [0, 1])
def test_a_controller_that_cannot_be_reached_is_reported_as_that(site: Site, words: str, status: int) -> None:
    site.program("sbatch", f"echo 'sbatch: error: {words}' >&2; exit {status}")
    fault = site.fault()
    assert fault.startswith("no SLURM controller could be reached for the job 'flow'")
    assert words in fault
    assert "site.env" not in fault
    site.program("squeue", f"echo 'slurm_load_jobs error: {words}' >&2; exit {status}")
    with pytest.raises(InputError, match="no SLURM controller could be reached"):
        scheduler.states("12")
    site.program("sbatch", f"echo 'sbatch: error: {words}' >&2; exit 1")
    with pytest.raises(InputError, match="no SLURM controller could be reached for the job 'flow'"):
        scheduler.check(job("flow"), site.folder)


def test_a_program_that_cannot_be_run_is_an_error_of_its_own(site: Site) -> None:
    (site.folder / "bin" / "sbatch").chmod(0o644)
    site.set(PATH=str(site.folder / "bin"))
    assert "sbatch cannot be run: Permission denied" in site.fault()


# --- questions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("CLUSTER: c1\n12_0|RUNNING|None|n1\n", [("12_0", "RUNNING", "", "n1")]),
        (f"{BANNER}12|PENDING|Priority|\r\n", [("12", "PENDING", "Priority", "")]),
        ("JOBID|STATE|REASON|NODELIST\n12|RUNNING|None|n[1-3]\n", [("12", "RUNNING", "", "n[1-3]")]),
        ("\x1b[31m12|FAILED|NonZeroExitCode|n1\x1b[0m\n", [("12", "FAILED", "NonZeroExitCode", "n1")]),
        ("12|PENDING|(a|b)|\n", [("12", "PENDING", "(a|b)", "")]),
        ("13|RUNNING|None|n1\nfoo|bar|baz|x\n|||\n", []),
        (
            "12|RUNNING|None|n1\n12|REVOKED|None|\n",
            [("12", "REVOKED", "", ""), ("12", "RUNNING", "", "n1")],
        ),
        ("", []),
    ],
)
def test_lines_of_squeue_that_are_no_task_of_the_job_are_passed_over(
    site: Site, printed: str, expected: list[tuple[str, ...]]
) -> None:
    (site.folder / "printed").write_text(printed)
    site.program("squeue", 'cat "$FAKE/printed"')
    tasks = scheduler.states("12")
    assert [(task.name, task.state, task.reason, task.nodes) for task in tasks] == expected


@pytest.mark.parametrize("stream", ["", " >&2"])
def test_a_job_that_the_queue_has_forgotten_is_asked_of_the_accounting(site: Site, stream: str) -> None:
    site.program("squeue", f"echo 'slurm_load_jobs error: Invalid job id specified'{stream}; exit 1")
    assert scheduler.states("12") == []
    site.program(
        "sacct", f"echo '{BANNER}12_0|COMPLETED|n1\n13|FAILED|n1\n12_1|CANCELLED by 7|None assigned'"
    )
    assert [(task.name, task.state) for task in scheduler.states("12")] == [
        ("12_0", "COMPLETED"),
        ("12_1", "CANCELLED"),
    ]


def test_limits_are_found_among_banners_and_cluster_names(site: Site) -> None:
    site.program("squeue", f"echo '{BANNER}CLUSTER: c1\n(normal)|x y\nnormal|3-00:00:00'")
    site.program("sinfo", f"echo '{BANNER}CLUSTER: c1\nnormal*|up|2-00:00:00'")
    assert "asks for 3-00:00:00" in str(scheduler.never_starts(JobId("12", "c1")))
    site.program("sinfo", "echo 'normal|down|2-00:00:00'")
    assert scheduler.never_starts(JobId("12")) == "partition normal is down"
    for silent in ("squeue", "sinfo"):
        site.program(silent, "echo what?; exit 3")
        assert scheduler.never_starts(JobId("12")) is None


def test_messages_show_no_terminal_sequences_and_no_endless_lines() -> None:
    answer = Answer(1, (), lines_of("\x1b[2J\x1b]0;x\x07sbatch: error: no\x07 " + "x" * 5000))
    assert answer.words().startswith(r"no\x07 xxx")
    assert len(answer.words()) < 300
    assert len(answers.shown([str(number) for number in range(1000)])) == answers.SHOWN_LINES


def test_a_record_with_a_name_of_a_cluster_that_is_an_option_is_passed_over(tmp_path: Path) -> None:
    bad = record.Submitted("flow", "12", None, (), "--all")
    record.save(record.Chain(1000.0, (), (bad,)), tmp_path)
    assert record.latest(tmp_path) is None


def test_a_record_that_cannot_be_read_is_an_error_and_no_older_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chain-7.json").write_text("{}")
    assert record.latest(tmp_path) is None
    assert record.latest(tmp_path / "nowhere") is None

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"chain-7\.json: could not be read: Permission denied"):
        record.latest(tmp_path)
