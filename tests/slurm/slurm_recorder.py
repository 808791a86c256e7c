"""A project folder with the real job scripts, in which `python` only records what it is told."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]

RECORDING_PYTHON = """\
#!{python}
# Stands in for `python`: records its arguments and surroundings, then sleeps or fails as STAND_IN_... say. Only the job
# scripts' own question, which stream and split a task works on, is answered by the real program.
import json, os, signal, sys, time, uuid
arguments = sys.argv[1:]
if arguments == ["-m", "slurm", "array-task"]:
    os.environ["PYTHONPATH"] = {project!r}
    os.execv(sys.executable, [sys.executable, *arguments])
record = {{"arguments": arguments, "environment": dict(os.environ), "began": time.time(), "signal": None}}
file = os.path.join({folder!r}, uuid.uuid4().hex)
def save():
    with open(file + ".new", "w") as out:
        json.dump(record, out)
    os.replace(file + ".new", file + ".json")
def stop(number, frame):
    record["signal"] = signal.Signals(number).name
    record["ended"] = time.time()
    save()
    sys.exit(0 if stubborn else 75)
stubborn = "STAND_IN_STUBBORN" in os.environ  # ends for TERM alone, and then with 0, as srun does
signal.signal(signal.SIGUSR1, signal.SIG_IGN if stubborn else stop)
signal.signal(signal.SIGTERM, stop)
save()
first_time = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
if first_time:
    time.sleep(float(os.environ.get("STAND_IN_SLEEP", "0")))
record["ended"] = time.time()
save()
for rule in os.environ.get("STAND_IN_FAIL", "").split():  # as in "train,temporal=3"
    marks, _, code = rule.partition("=")
    if set(marks.split(",")) <= set(arguments):
        print("error: this is to fail", file=sys.stderr)
        sys.exit(int(code))
"""


@dataclass(frozen=True)
class Recorder:
    """A project folder with the real job scripts and a recording stand-in for `python`."""

    project: Path
    site: Path
    records: Path

    def calls(self) -> list[dict[str, Any]]:
        """What was called, in the order of the calls."""
        found = [json.loads(file.read_text()) for file in self.records.glob("*.json")]
        return sorted(found, key=lambda record: record["began"])

    def log(self, job: str) -> str:
        """The log of a job, by the number or the name of the task."""
        (file,) = (self.project / "slurm" / "logs").glob(f"*-{job}.log")
        return file.read_text()

    @classmethod
    def below(cls, folder: Path) -> Recorder:
        """Make one in an empty folder."""
        project = folder / "the project's; folder"
        shutil.copytree(
            PROJECT / "slurm", project / "slurm", ignore=shutil.ignore_patterns("*.log", "__pycache__")
        )
        programs, records = folder / "bin", folder / "records"
        programs.mkdir()
        records.mkdir()
        python = programs / "python"
        python.write_text(
            RECORDING_PYTHON.format(python=sys.executable, folder=str(records), project=str(PROJECT))
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        site = project / "slurm" / "site.env"
        site.write_text(site.read_text() + f"prepare_node() {{ PATH='{programs}':$PATH; }}\n")
        return cls(project, site, records)
