"""One rank that trains a run and kills itself (SIGKILL) at a chosen point: `python train_and_die.py JOB.json POINT`.

POINT: `before_step_8` (every rank dies before it begins step 8), or one of SAVE_POINTS (rank 0 dies inside the second checkpoint).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds import dist
from mtdnn_ds.checkpoint import find as checkpoint
from mtdnn_ds.checkpoint import save as saving
from mtdnn_ds.checkpoint.shard_writer import ShardWriter
from mtdnn_ds.train import trainer
from mtdnn_ds.train.preflight.checks import checked_run

SAVE_POINTS = (
    "before_shards",
    "inside_a_shard",
    "after_shards",
    "inside_manifest",
    "before_rename",
    "before_latest",
    "inside_latest",
    "inside_pruning",
)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(value: Any, target: Any, *_: Any, **__: Any) -> None:
    target.write(memoryview(b"half a shard"))
    die()


def arm(point: str) -> None:
    """Make this rank die at `point`, from now on."""
    if point == "before_shards":
        ShardWriter.in_place_of = die
    elif point == "inside_a_shard":
        torch.save = half_a_file
    elif point == "after_shards":
        saving._check_shards = die
    elif point == "inside_manifest":
        checkpoint.replace_file = die
    elif point == "before_rename":
        saving.os.replace = lambda source, target: (
            die() if str(target).endswith("step_6") else os.rename(source, target)
        )
    elif point == "before_latest":
        saving.replace_file = lambda path, text: die() if path.name == "latest" else path.write_text(text)
    elif point == "inside_latest":
        checkpoint.flush = lambda path: die() if path.name == ".latest.new" else None
    elif point == "inside_pruning":
        saving.shutil.rmtree = lambda path, **_: die() if Path(path).name == ".partial_step_3" else None
    else:
        raise ValueError(point)


def die_in_second_save(point: str) -> None:
    """Make rank 0 die at one of SAVE_POINTS of its second checkpoint."""
    save, saves = saving.begin_save, []

    def second_save_dies(*arguments: Any, **keywords: Any) -> Any:
        saves.append(1)
        if len(saves) == 2 and dist.is_main():
            arm(point)
        return save(*arguments, **keywords)

    saving.begin_save = second_save_dies


def main(job_file: str, point: str) -> None:
    job = json.loads(Path(job_file).read_text())
    checked = checked_run(
        job["recipe"], job["deepspeed_config"], job.get("overrides", {}), world_size=dist.world_size()
    )
    if point.startswith("before_step_"):
        last = int(point.removeprefix("before_step_"))
        one_step = trainer._one_step
        trainer._one_step = lambda run, batches, loader: (
            die() if batches.step == last else one_step(run, batches, loader)
        )
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
