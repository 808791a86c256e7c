"""Where a process stands among those that train together."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from train.distributed import Place, World, choose_device, find_place, interface_towards, join

SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


def test_alone_without_any_launcher() -> None:
    assert find_place({}) == Place()


def test_torchrun_s_variables() -> None:
    found = find_place(
        {
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
            "MASTER_ADDR": "h",
            "MASTER_PORT": "9",
        }
    )
    assert found == Place(5, 8, 1, "h", 9, 4)


def test_srun_s_variables_need_no_name_to_resolve() -> None:
    found = find_place(SRUN)
    assert (found.rank, found.size, found.local_rank, found.processes_here) == (3, 4, 1, 2)
    assert found.address == "10.0.0.7"
    assert 20000 <= found.port < 40000


def test_one_node_meets_on_loopback() -> None:
    assert find_place({**SRUN, "SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"


def test_ports_of_jobs_and_steps_differ() -> None:
    ports = [
        find_place({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in range(5000, 6000)
        for step in range(4)
    ]
    assert len(set(ports)) == len(ports)


def test_an_address_and_port_that_are_set_count() -> None:
    found = find_place({**SRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7777"})
    assert (found.address, found.port) == ("127.0.0.1", 7777)


def test_a_batch_script_of_several_tasks_trains_alone() -> None:
    """sbatch sets SLURM_PROCID and SLURM_NTASKS in the script itself; only srun starts several processes."""
    assert (
        find_place({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"})
        == Place()
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({**SRUN, "SLURM_PROCID": "first"}, "no number"),
        ({key: value for key, value in SRUN.items() if key != "SLURM_LAUNCH_NODE_IPADDR"}, "set MASTER_ADDR"),
    ],
)
def test_incomplete_variables_are_explained(variables: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_place(variables)


def test_loopback_is_reached_through_its_interface() -> None:
    assert interface_towards("127.0.0.1") in ("lo", "lo0")
    assert interface_towards("not an address") is None


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto", 0).type == "cpu"
    with pytest.raises(InputError, match="no usable GPU"):
        choose_device("cuda", 0)


def test_one_process_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SRUN, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join("cpu") as world:
        assert isinstance(world, World)
        assert (world.first, world.largest(3.0), world.share("x")) == (True, 3.0, "x")
        with pytest.raises(InputError, match="broken"):
            world.agree("broken")
        world.agree(None)
