"""Processes that train one network together: under torchrun, under srun, or a single one.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun sets SLURM_PROCID, SLURM_STEP_NUM_TASKS
and SLURM_LOCALID; the rendezvous then follows from the job, without resolving a node's name:

- address: MASTER_ADDR if set; else 127.0.0.1 if the step runs on one node; else SLURM_LAUNCH_NODE_IPADDR, the address
  of the node that ran srun, which in a batch job is the first one, where rank 0 runs;
- port: MASTER_PORT if set; else 20000 + (job id * 16 + step) modulo 20000, so that the tasks of an array, each of which
  has its own job id, do not collide on a shared node.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import InputError
from pipeline.text import first_line

TIMEOUT = timedelta(minutes=30)
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Place:
    """A process's rank among those that train together, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    processes_here: int = 1


def find_place(environment: Mapping[str, str]) -> Place:
    """The process's place, from the variables that torchrun or srun set; a single process without either.

    Raises:
        InputError: incomplete or contradictory variables.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return Place(
                int(environment["RANK"]),
                int(environment["WORLD_SIZE"]),
                int(environment.get("LOCAL_RANK", "0")),
                environment["MASTER_ADDR"],
                int(environment["MASTER_PORT"]),
                int(environment.get("LOCAL_WORLD_SIZE", "1")),
            )
        # A batch script sees SLURM_PROCID as well; only srun sets the step's number of tasks.
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            if int(environment.get("SLURM_STEP_NUM_NODES", "1")) == 1:
                address = "127.0.0.1"
            else:
                address = environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
            address = environment.get("MASTER_ADDR") or address
            if not address:
                raise InputError(
                    "several nodes, and srun gave no SLURM_LAUNCH_NODE_IPADDR: set MASTER_ADDR to the first's"
                )
            job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
            return Place(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
                address,
                int(environment.get("MASTER_PORT") or 20000 + (job * 16 + step) % 20000),
                # "2(x3),1": tasks per node; the first entry is close enough to share out cores by.
                int(re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]),  # type: ignore[index]
            )
    except KeyError as error:
        raise InputError(f"started as one of several processes, but {error.args[0]} is not set") from error
    except ValueError as error:
        raise InputError(
            f"started as one of several processes, but a variable holds no number: {error}"
        ) from error
    return Place()


def interface_towards(address: str) -> str | None:
    """Name of the network interface that reaches an address (no packet is sent); None if it cannot be determined."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            own = probe.getsockname()[0]
        except OSError:
            return None
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
                if found == own or (found.startswith("127.") and own.startswith("127.")):
                    return name
    return None


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from this one."""

    place: Place
    device: torch.device
    control: Any = None  # a gloo group for small messages that must not wait for the GPU

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return float(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes of a CPU tensor."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.control)
        return tensor

    def share(self, value: Any) -> Any:
        """The first process's value, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def agree(self, error: str | None) -> None:
        """End every process if there is an error in any, so that none waits for one that has ended (see `fail`)."""
        errors: list[str | None] = [error]
        if self.size > 1:
            errors = [None] * self.size
            dist.all_gather_object(errors, error, group=self.control)
        if found := [text for text in dict.fromkeys(errors) if text]:
            self.fail("\n".join(found))

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """End every process, by `agree`, if any leaves the block with an InputError."""
        error = None
        try:
            yield
        except InputError as found:
            error = str(found)
        self.agree(error)

    def fail(self, error: str) -> NoReturn:
        """End every process with an error that all of them know: InputError in the first, which prints it."""
        if self.first:
            raise InputError(*error.split("\n"))  # in which names are escaped
        sys.exit(1)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device to train on: "auto" is this process's GPU if there is one.

    Raises:
        InputError: a GPU was asked for and cannot be used.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        if wanted in ("auto", "cuda"):
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device(wanted)
    if wanted == "auto":
        return torch.device("cpu")
    raise InputError(
        f"--device {wanted}: torch finds no usable GPU here; --device cpu or auto trains without one"
    )


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the other processes, if any, until the block ends.

    Args:
        device: as for `choose_device`.

    Raises:
        InputError: the processes could not meet (the message names address and port), or an unusable device.
    """
    place = find_place(os.environ)
    chosen = choose_device(device, place.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if place.size == 1:
        yield World(place, chosen)
        return
    if interface := interface_towards(place.address):
        # Otherwise gloo looks up the host's own name, which need not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.size,
            timeout=TIMEOUT,
        )
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"process {place.rank} of {place.size} could not meet the others at {place.address}:{place.port}: "
            f"{first_line(error)}; set MASTER_ADDR and MASTER_PORT to an address that every node reaches"
        ) from error
    try:
        yield World(place, chosen, control)
    finally:
        dist.destroy_process_group()
