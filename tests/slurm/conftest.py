"""The cluster that the tests of this folder share, and a project folder whose `python` only records what it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing_programs, running_cluster
from slurm_recorder import PROJECT, Recorder


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    if missing := missing_programs():
        pytest.skip(
            f"SLURM is not installed (no {', '.join(missing)}): apt-get install --no-install-recommends "
            "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
        )
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Cluster:
    """Two idle nodes n1 and n2 of 4 cores and 2 (fake) GPUs each."""
    session_cluster.reset()
    return session_cluster


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """This machine's site.env: the interpreter that runs the tests, one thread each, gloo on loopback."""
    file = tmp_path / "this machine's site.env"
    folder = Path(sys.executable).parent
    text = (PROJECT / "slurm" / "site.env").read_text()
    file.write_text(
        text
        + f"prepare_node() {{ PATH='{folder}':$PATH; export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo; }}\n"
    )
    return file


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder.below(tmp_path)
