"""A real SLURM of two virtual nodes on this one machine, without systemd and with nothing outside one folder.

Every process of the cluster, and every job it starts, carries `SLURM_CONF=<folder>/slurm.conf` in its environment;
that is how the last sweep finds what is left. All waits have a limit.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,defer
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=2
BatchStartTimeout=10
MinJobAge=3600
MaxArraySize=1001
TreeWidth=65533
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=short Nodes=ALL MaxTime=5 State=UP
PartitionName=closed Nodes=ALL State=DOWN
"""


def missing_programs() -> list[str]:
    """The programs of SLURM and munge that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH_PATH) is None]


def wait_until(condition: Callable[[], object], seconds: float, what: str, interval: float = 0.2) -> None:
    """Poll `condition` until it is true; AssertionError naming `what` after `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds:.0f} s for {what}"
        time.sleep(interval)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below the range from which the kernel takes ports for outgoing connections."""
    ports: list[int] = []
    start = 20000 + secrets.randbelow(10000)
    for port in range(start, start + 2000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"no {count} free ports from {start} on")


def process_is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which nobody in a container may collect for seconds, does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


@dataclass(frozen=True)
class Task:
    """One job or array task as squeue tells it."""

    state: str
    node: str
    job_id: str


@dataclass
class Cluster:
    """The running cluster. `environment` is what a user's shell would have."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def run(
        self,
        command: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 180,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as a user of the cluster would, stdout and stderr apart."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """Submit; the job's id."""
        return self.run(["sbatch", "--parsable", *arguments], cwd=cwd, environment=environment).stdout.strip()

    def tasks(self, job: str) -> dict[str, Task]:
        """The tasks of a job by name (`12` or `12_3`)."""
        listing = self.run(["squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i|%T|%N|%A"]).stdout
        rows = (line.split("|") for line in listing.splitlines())
        return {name: Task(state, node, job_id) for name, state, node, job_id in rows}

    def states(self, job: str) -> dict[str, str]:
        return {name: task.state for name, task in self.tasks(job).items()}

    def wait(self, *jobs: str, seconds: float = 180) -> dict[str, str]:
        """Wait until every task of the jobs has ended; their states by name."""

        def states() -> dict[str, str]:
            return {name: state for job in jobs for name, state in self.states(job).items()}

        try:
            wait_until(lambda: set(states().values()) <= ENDED, seconds, f"jobs {', '.join(jobs)}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {states()}") from None
        return states()

    def processes(self) -> list[int]:
        """Every live process that belongs to this cluster: daemons, steps, jobs and what those left behind."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and process_is_alive(int(entry.name)):
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def pid(self, daemon: str) -> int:
        """Process id of `slurmctld` or `slurmd-<node>`."""
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def start_node(self, node: str) -> None:
        self.run(["slurmd", "-N", node, "-f", self.configuration])

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until every node is up and without work."""

        def idle() -> bool:
            listing = self.run(["sinfo", "-h", "-N", "-t", "idle", "-o", "%N %T"], check=False).stdout
            return sorted(set(listing.splitlines())) == [f"{node} idle" for node in NODES]

        wait_until(idle, seconds, f"idle nodes (logs in {self.folder / 'log'})")

    def reset(self) -> None:
        """Back to two idle nodes without jobs, whatever a test left."""
        self.run(["scancel", "--quiet", "--state=PENDING"], check=False)
        self.run(["scancel", "--quiet", "--state=RUNNING"], check=False)
        self.run(["scancel", "--quiet", "--state=SUSPENDED"], check=False)
        for node in NODES:
            if not process_is_alive(self.pid(f"slurmd-{node}")):
                self.start_node(node)
            state = self.run(["sinfo", "-h", "-n", node, "-o", "%T"]).stdout.strip()
            if not state.startswith(("idle", "alloc", "mix", "comp")):
                self.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        self.wait_idle()

    def stop(self) -> None:
        """Cancel jobs and wait, then slurmd, slurmctld and munged by pid file, then sweep what is left."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            for state in ("PENDING", "RUNNING", "SUSPENDED"):
                self.run(["scancel", "--quiet", f"--state={state}"], check=False, timeout=10)
            alive = ["squeue", "-h", "-t", "R,CG,S,CF"]
            wait_until(
                lambda: not self.run(alive, check=False, timeout=10).stdout.strip(), 10, "cancelled jobs"
            )
        daemons = [*(self.folder / "run" / f"slurmd-{node}.pid" for node in NODES)]
        for pid_file in [
            *daemons,
            self.folder / "run" / "slurmctld.pid",
            self.folder / "munge" / "munged.pid",
        ]:
            with contextlib.suppress(OSError, ValueError, AssertionError):
                pid = int(pid_file.read_text())
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not process_is_alive(pid), 3, pid_file.name, interval=0.05)  # type: ignore[misc]
        for _ in range(3):
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, yield it when both nodes are idle, and leave no process and no file behind."""
    # Not pytest's folder: the path of a socket has to be short, and munge's own user has to enter it.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    # What the shell that runs the tests knows of another SLURM is none of this one's business.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))
    }
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH_PATH}
    cluster = Cluster(folder, environment)
    try:
        _start_munge(cluster)
        _start_slurm(cluster)
        yield cluster
    finally:
        cluster.stop()


def _start_munge(cluster: Cluster) -> None:
    munge = cluster.folder / "munge"
    munge.mkdir(mode=0o755)
    key = munge / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    command: list[str | Path] = ["munged", "--key-file", key, "--socket", munge / "socket"]
    for option, name in (("--pid-file", "munged.pid"), ("--log-file", "munged.log"), ("--seed-file", "seed")):
        command += [option, munge / name]
    if os.geteuid() == 0:
        shutil.chown(munge, "munge", "munge")
        shutil.chown(key, "munge", "munge")
        command = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *command]
    cluster.run(command)
    wait_until((munge / "socket").exists, 30, "munge's socket")


def _start_slurm(cluster: Cluster) -> None:
    folder = cluster.folder
    for name in ("state", "spool", "run", "log", "dev"):
        (folder / name).mkdir()
    for number in range(2):
        (folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    text = CONFIGURATION.format(folder=folder, ports=free_ports(3), user=user)
    cluster.configuration.write_text(text)
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/dev/nvidia[0-1]\n")
    cluster.run(["slurmctld", "-f", cluster.configuration])
    for node in NODES:
        cluster.start_node(node)
    cluster.wait_idle()
