"""A real SLURM cluster of two nodes on this machine: munge, slurmctld and two slurmd, in one folder. For
tests and by hand; not a test file.

    python tests/helpers/slurm_cluster.py start FOLDER
        prints the line that makes sbatch, squeue and scancel talk to it
    python tests/helpers/slurm_cluster.py stop FOLDER
        ends its jobs and daemons, and waits until they are gone

It runs as whoever starts it (root or not), on ports of its own, beside any other SLURM of the machine. The
nodes share the machine's processors: nothing is bound to a core, and a step may have more tasks than
processors.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_started: list[
    subprocess.Popen[bytes]
] = []  # daemons of this process; those of an earlier one are found in /proc

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PACKAGES = "munge slurmctld slurmd slurm-client"  # of Debian and Ubuntu

# ReturnToService 2: a node whose slurmd was killed serves again as soon as a new one reports.
# KillWait: how long a cancelled job has between SIGTERM and SIGKILL.
# Time-outs: short enough that a test of a lost node need not wait five minutes.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SlurmdParameters=config_overrides
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ReturnToService=2
KillWait=20
MinJobAge=3600
SlurmdTimeout=20
SlurmctldTimeout=20
InactiveLimit=0
Waittime=0
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing_programs() -> list[str]:
    """What a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def start(folder: Path, cpus_per_node: int = 4) -> dict[str, str]:
    """Start the cluster in `folder` (made, and private); returns the environment in which SLURM's commands
    talk to it.
    """
    lacking = missing_programs()
    if lacking:
        raise RuntimeError(f"not installed: {', '.join(lacking)}; apt-get install {PACKAGES}")
    for name in ("", "munge", "state", *(f"spool_{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    (folder / "slurm.conf").write_text(_conf(folder, cpus_per_node))
    _start_daemons(folder)
    environment = environment_of(folder)
    wait_until(lambda: _idle_nodes(environment) == len(NODES), "both nodes are idle", folder=folder)
    return environment


def stop(folder: Path) -> None:
    """End the jobs and the daemons of the cluster in `folder`; returns when every process of it is gone."""
    environment = environment_of(folder)
    if _processes(folder):
        run = {"env": environment, "capture_output": True, "text": True, "check": False}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--user", getpass.getuser()], timeout=10, **run)  # type: ignore[call-overload]
            wait_until(
                lambda: not subprocess.run(["squeue", "--noheader"], timeout=10, **run).stdout.strip(),  # type: ignore[call-overload]
                "all jobs have ended",
                timeout_seconds=150,
                fails=False,
            )
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _processes(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        wait_until(
            lambda: not _processes(folder), "all processes have ended", timeout_seconds=75, fails=False
        )
    _reap()
    assert not _processes(folder), f"processes of {folder} are left: {_processes(folder)}"


@contextmanager
def running_cluster(folder: Path, cpus_per_node: int = 4) -> Iterator[dict[str, str]]:
    """The cluster's environment, while it runs."""
    try:
        yield start(folder, cpus_per_node)
    finally:
        stop(folder)


def environment_of(folder: Path) -> dict[str, str]:
    """This process's environment without an outer job's or launcher's variables, and with this cluster."""
    foreign = ("SLURM_", "SBATCH_", "SRUN_", "OMPI_", "PMI_")
    places = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_SIZE",
        "CROSS_RANK",
        "CROSS_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and name not in places
    }
    return {**kept, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}


def start_node(folder: Path, node: str) -> None:
    """Start the slurmd of one node: at the beginning, or after it was killed."""
    _daemon(folder, ["slurmd", "-D", "-N", node])


def node_daemon(folder: Path, node: str) -> int:
    """Process id of a node's slurmd."""
    return int((folder / f"slurmd_{node}.pid").read_text())


def wait_until(
    condition: Callable[[], bool],
    what: str,
    timeout_seconds: float = 300,
    folder: Path | None = None,
    fails: bool = True,
) -> None:
    """Poll `condition`; a TimeoutError says `what` was awaited, with the ends of the logs in `folder`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        _reap()
        if time.monotonic() > deadline:
            if not fails:
                return
            logs = [] if folder is None else sorted(folder.glob("*.log"))
            ends = "".join(f"\n== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
            raise TimeoutError(f"not within {timeout_seconds:g} s: {what}{ends}")
        time.sleep(0.1)


def _path() -> str:
    # Where distributions put daemons, and not everybody looks.
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _conf(folder: Path, cpus_per_node: int) -> str:
    host = socket.gethostname().split(".")[0]
    controller_port, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus_per_node} "
        f"RealMemory=1000 State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    return CONF.format(
        host=host,
        folder=folder,
        user=getpass.getuser(),
        controller_port=controller_port,
        nodes=nodes,
        names=",".join(NODES),
    )


def _start_daemons(folder: Path) -> None:
    munge = folder / "munge"
    files = {
        name: f"--{name}={munge / name.split('-')[0]}"
        for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    }
    # --force: munge minds folders that others may write to above its own, such as /tmp.
    _daemon(folder, ["munged", "--foreground", "--force", *files.values()])
    wait_until((munge / "socket").exists, "munge listens", folder=folder)
    _daemon(folder, ["slurmctld", "-D", "-c"])
    for node in NODES:
        start_node(folder, node)


def _daemon(folder: Path, command: list[str]) -> None:
    with (folder / f"{command[0]}.out").open("ab") as output:
        _started.append(
            subprocess.Popen(
                command,
                env=environment_of(folder),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )


def _idle_nodes(environment: dict[str, str]) -> int:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return asked.stdout.split().count("idle")


def _processes(folder: Path) -> list[int]:
    """Every live process that was started with this cluster's configuration: daemons, steps, and what jobs
    have started.
    """
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _reap() -> None:
    """Collect those daemons of this process that have ended."""
    _started[:] = [daemon for daemon in _started if daemon.poll() is None]


def _free_ports(number: int) -> list[int]:
    listeners = [socket.socket() for _ in range(number)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("start", "stop"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[1]).absolute()
    if arguments[0] == "stop":
        stop(folder)
        return 0
    try:
        start(folder)
    except BaseException:
        stop(folder)
        raise
    print(f"export SLURM_CONF={folder / 'slurm.conf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
