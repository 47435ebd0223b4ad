"""Which rank this process is, as srun or mpirun say it, in the variables that torchrun and deepspeed set. No
torch; joins nothing.

RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE, CROSS_RANK (of the node), CROSS_SIZE (nodes), MASTER_ADDR,
MASTER_PORT. A launcher that sets RANK itself is left alone, and so is a plain python inside salloc or sbatch:
it is a run of one process.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

from mtdnn_ds.config.errors import ConfigError

# Ports below those that Linux gives out by itself (from 32768), eight for each job: jobs and steps beside
# each other, and a job that comes back while sockets of its last start still linger, meet on different ones.
FIRST_PORT, NUM_PORTS, PORTS_PER_JOB = 10_000, 20_000, 8
FIRST_EPHEMERAL_PORT = 32_768


def take_place(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK and the others from what srun or mpirun has set. Raises ConfigError where that is not enough
    to find the other ranks."""
    if "RANK" in environment:
        return
    place = _of_mpi(environment) or _of_srun(environment)
    if place is None:
        return
    for name, value in place.items():
        environment.setdefault(name, value)  # MASTER_ADDR and MASTER_PORT may be the user's


def rank_of(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank in what a launcher has started, also where `take_place` refuses; 0 without a
    launcher."""
    ranks = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((int(environment[name]) for name in ranks if environment.get(name, "").isdigit()), 0)


def free_port() -> int:
    """A port of this host that nobody listens on, below those that Linux gives to outgoing connections: no
    such connection takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(FIRST_PORT + NUM_PORTS, FIRST_EPHEMERAL_PORT)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port


def _of_srun(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The place of one of several tasks of an srun step; None for anything else."""
    # sbatch gives its script SLURM_PROCID and SLURM_NTASKS too, but only a step's task has
    # SLURM_STEP_NUM_TASKS.
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks < 2 or "SLURM_PROCID" not in environment:
        return None
    node, tasks = int(environment["SLURM_NODEID"]), tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(num_tasks),
        "LOCAL_SIZE": str(tasks[node]),
        "CROSS_RANK": str(node),
        "CROSS_SIZE": str(len(tasks)),
        "MASTER_ADDR": environment.get("MASTER_ADDR")
        or _address(first_host(environment["SLURM_STEP_NODELIST"])),
        "MASTER_PORT": str(step_port(environment)),
    }


def tasks_per_node(text: str) -> list[int]:
    """SLURM's short form of a number for each node: "2(x3),1" is [2, 2, 2, 1]."""
    tasks: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    return tasks


def first_host(node_list: str) -> str:
    """The first host of SLURM's short form: "n[007-012,20],m1" gives "n007". Rank 0 is there."""
    # Cut at the first comma outside of brackets, then take the first number of each bracket.
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", node_list)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def step_port(environment: Mapping[str, str]) -> int:
    """A port that all tasks of a step agree on without talking."""
    job, step, start = (
        int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return FIRST_PORT + (job * PORTS_PER_JOB + (step + start) % PORTS_PER_JOB) % NUM_PORTS


def _address(host: str) -> str:
    """`host`, or the address that SLURM knows it by where its name means nothing to this node."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        pass

    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", host], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""

    address = re.search(r"\bNodeAddr=(\S+)", shown)
    if address is None:
        raise ConfigError(
            f"the node of rank 0 is {host}, a name that this node cannot look up, and scontrol gives no "
            "address for it; set MASTER_ADDR to its address"
        )
    return address[1]


def _of_mpi(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The place of one of several processes of mpirun (Open MPI; MPICH's and Intel's hydra); None for
    anything else."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    variables = tuple(f"OMPI_COMM_WORLD_{name}" for name in names)
    if variables[0] not in environment:
        # srun --mpi=pmi2 sets PMI_RANK too, but nothing local: it is left to _of_srun.
        variables = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if any(name not in environment for name in variables):
        return None

    rank, size, local_rank, local_size = (int(environment[name]) for name in variables)
    if size < 2:
        return None
    if "MASTER_ADDR" not in environment:
        raise ConfigError(
            f"mpirun started {size} processes, and MASTER_ADDR does not say where rank 0 is: set "
            "MASTER_ADDR to the first host's name and MASTER_PORT to a "
            "free port there, for all ranks (Open MPI: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500; "
            "MPICH, Intel: mpirun -genv MASTER_ADDR HOST ...)"
        )

    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(size),
        "LOCAL_SIZE": str(local_size),
        "MASTER_PORT": "29500",
    }
