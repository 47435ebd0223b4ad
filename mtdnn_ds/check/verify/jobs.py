"""Small runs in real process groups: what a launcher does, for the runs of verify.

Knows nothing of what they are compared for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtdnn_ds.config.launch import free_port
from mtdnn_ds.config.load import resolved_values
from mtdnn_ds.config.recipe import Recipe

SECONDS_PER_GROUP = 1800.0
PROJECT_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run: where it is written, what it trains, under which DeepSpeed JSON, going on from which
    checkpoint.
    """

    name: str
    recipe: Recipe
    deepspeed: dict[str, Any]
    resume: str = "none"
    kind: str = "train"  # or "hidden": hidden states against transformers' own


def run_group(jobs: Sequence[Job], folder: Path, world_size: int) -> str:
    """Do `jobs` one after the other on `world_size` ranks; returns "" or, if a rank failed, the end of what
    it said.

    Each run is written to folder/NAME. All processes have ended when this returns.
    """
    file = folder / f"jobs_{world_size}_{jobs[0].name}.json"
    file.write_text(json.dumps([_entry(job, folder) for job in jobs]))

    port = free_port()
    outputs = [tempfile.TemporaryFile("w+") for _ in range(world_size)]  # noqa: SIM115  # closed below
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mtdnn_ds.check.verify.worker", str(file)],
            env=rank_environment(rank, world_size, port),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for rank, output in enumerate(outputs)
    ]

    try:
        return _wait(processes, outputs)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for output in outputs:
            output.close()


def _wait(processes: Sequence[subprocess.Popen[bytes]], outputs: Sequence[Any]) -> str:
    """Until all have ended, or one has failed: what it said at the end."""
    deadline = time.monotonic() + SECONDS_PER_GROUP
    while any(process.poll() is None for process in processes):
        if any(process.poll() not in (None, 0) for process in processes):
            break  # the others would wait for it
        if time.monotonic() > deadline:
            return f"no end after {SECONDS_PER_GROUP:.0f} s"
        time.sleep(0.05)

    failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
    if not failed:
        return ""
    outputs[failed[0]].seek(0)
    return f"rank {failed[0]}: " + "\n".join(outputs[failed[0]].read().strip().splitlines()[-12:])


def _entry(job: Job, folder: Path) -> dict[str, str]:
    """Writes the job's recipe and JSON; returns what worker.py is told of it."""
    recipe, deepspeed = folder / f"{job.name}.yaml", folder / f"{job.name}.json"
    recipe.write_text(yaml.safe_dump(resolved_values(job.recipe)))
    deepspeed.write_text(json.dumps(job.deepspeed))
    return {
        "kind": job.kind,
        "recipe": str(recipe),
        "deepspeed": str(deepspeed),
        "output_dir": str(folder / job.name),
        "resume": job.resume,
    }


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher sets for one rank of a run on this node."""
    # Runs of their own, wherever verify itself was started.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_"))
    }
    threads_per_rank = max(1, len(os.sched_getaffinity(0)) // world_size)
    python_path = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]

    return {
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_per_rank)),
        "PYTHONPATH": os.pathsep.join(python_path),
    }
