"""Places from srun's and mpirun's variables, a GPU for each rank, and the shell scripts' form.

Starts no cluster (faults/test_slurm.py does).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from helpers.processes import ROOT

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.launch import first_host, rank_of, step_port, take_place, tasks_per_node
from mtdnn_ds.runs.device import gpu_index

BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NODELIST": "n[1-2]",
}
TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "99",  # of the job, not of the step
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "localhost,n[1-2]",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def added(environment: dict[str, str]) -> dict[str, str]:
    filled = dict(environment)
    take_place(filled)
    return {name: value for name, value in filled.items() if environment.get(name) != value}


def test_a_task_of_srun_finds_its_place() -> None:
    assert added(TASK) == {
        "RANK": "6",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "7",
        "LOCAL_SIZE": "1",
        "CROSS_RANK": "2",
        "CROSS_SIZE": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "10057",  # 10,000 + 7 * 8 + 1
    }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SCRIPT,
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},
        {**TASK, "RANK": "0", "WORLD_SIZE": "2"},
        {**MPI, "OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=[
        "no launcher",
        "a batch script",
        "a step of one task",
        "torchrun in a task",
        "mpirun of one process",
    ],
)
def test_everything_else_is_left_alone(environment: dict[str, str]) -> None:
    assert added(environment) == {}


def test_what_the_user_says_of_rank_0_stands() -> None:
    filled = {**TASK, "MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "5000"}
    take_place(filled)
    assert (filled["MASTER_ADDR"], filled["MASTER_PORT"]) == ("10.0.0.5", "5000")


def test_an_unknown_first_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str, port: None) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("PATH", "")  # no scontrol
    with pytest.raises(
        ConfigError,
        match=r"node of rank 0 is n007, a name that this node cannot look up.*set MASTER_ADDR to its address",
    ):
        take_place({**TASK, "SLURM_STEP_NODELIST": "n[007-009]"})


@pytest.mark.parametrize(
    "variables", [MPI, HYDRA, {**MPI, **TASK}], ids=["Open MPI", "MPICH", "Open MPI started through srun"]
)
def test_processes_of_mpirun_need_the_address_of_rank_0(variables: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError,
        match="mpirun started 4 processes, and MASTER_ADDR does not say where rank 0 is: set MASTER_ADDR",
    ):
        take_place(dict(variables))
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "MASTER_PORT": "29500"}
    assert added({**variables, "MASTER_ADDR": "n1"}) == place
    assert rank_of(variables) == 3  # the refusal is said once, by rank 0


def test_short_forms_of_slurm() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("16") == [16]
    assert [
        first_host(text)
        for text in ("n1", "n1,n2", "n[007-012,20],m1", "rack[1-2]node[3,5-9].x", "m1,n[1-2]")
    ] == [
        "n1",
        "n1",
        "n007",
        "rack1node3.x",
        "m1",
    ]


def test_ports_of_jobs_steps_and_starts_differ() -> None:
    ports = {
        step_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": "0"})
        for job in range(40_000, 42_500)
        for step in range(8)
    }
    assert len(ports) == 20_000 and min(ports) >= 10_000 and max(ports) < 32_768
    job = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}
    assert step_port(job) != step_port({**job, "SLURM_RESTART_COUNT": "1"})


def test_each_rank_has_a_gpu_of_its_own() -> None:
    assert [gpu_index(rank, 4, num_visible=4, named="") for rank in range(4)] == [0, 1, 2, 3]
    assert [gpu_index(rank, 4, num_visible=1, named=name) for rank, name in enumerate("0123")] == [
        0,
        0,
        0,
        0,
    ]  # srun --gpus-per-task=1
    for rank in range(2):  # every rank of the node refuses, so that rank 0 says it
        with pytest.raises(
            ConfigError,
            match="2 processes on this node, and 1 GPUs: each needs its own; start one process for each GPU",
        ):
            gpu_index(rank, 2, num_visible=1, named="")


@pytest.mark.slow  # not for its time: few machines have shellcheck, which .ci/run installs
def test_shell_scripts_pass_shellcheck() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("shellcheck is missing, and .ci/run installs it")
        pytest.skip("needs shellcheck")
    of_a_bundle = ROOT / "mtdnn_ds/bundle/install_and_run.sh"
    paths = (*Path(ROOT / "launchers").glob("*.s*"), ROOT / ".ci/run", of_a_bundle)
    scripts = [str(path) for path in paths]
    assert len(scripts) == 4
    checked = subprocess.run([program, *scripts], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
