"""One rank that trains a run and kills itself (SIGKILL) at a chosen point: `python train_and_die.py JOB.json
POINT`.

POINT: `before_step_8` (every rank dies before it begins step 8), or one of SAVE_POINTS (rank 0 dies inside
the second checkpoint).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from mtdnn_ds import dist
from mtdnn_ds.faults.heartbeat import on_heartbeat
from mtdnn_ds.monitor.console import speaking
from mtdnn_ds.train import trainer
from mtdnn_ds.train.preflight.checks import checked_run

# What mtdnn_ds/faults/heartbeat.py announces there. Of the second checkpoint alone, once it is begun.
SAVE_POINTS = {
    "before_shards": "before its shards",
    "inside_a_shard": "writing mp_rank_00_model_states.pt",
    "after_shards": "all shards written",
    "inside_manifest": "writing the manifest",
    "before_rename": "before the rename",
    "before_latest": "before latest",
    "inside_latest": "inside latest",
    "inside_pruning": "removing step_",
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(text: str) -> None:
    """Make this rank die where it comes to `text`."""
    on_heartbeat(lambda place: die() if place == text else None)


def die_in_second_save(point: str) -> None:
    """Make rank 0 die at one of SAVE_POINTS of its second checkpoint."""
    begun = 0

    def second_save_dies(place: str) -> None:
        nonlocal begun
        if place.endswith(SAVE_POINTS["before_shards"]):
            begun += 1
        if begun == 2 and SAVE_POINTS[point] in place and dist.is_main():
            die()

    if point not in SAVE_POINTS:
        raise ValueError(point)
    on_heartbeat(second_save_dies)


@speaking()
def main(job_file: str, point: str) -> None:
    job = json.loads(Path(job_file).read_text())
    checked = checked_run(
        job["recipe"], job["deepspeed_config"], job.get("overrides", {}), world_size=dist.world_size()
    )

    if point.startswith("before_step_"):
        die_at(f"step {point.removeprefix('before_step_')}, beginning")
    else:
        die_in_second_save(point)

    trainer.train(
        checked.recipe,
        checked.specs,
        checked.deepspeed,
        output_dir=Path(job["output_dir"]),
        resume=job.get("resume", "none"),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
