"""One rank that trains staged recipes: `python stages_and_die.py JOBS.json [STAGE [STEP]]`.

With a STAGE every rank kills itself (SIGKILL) when that stage is about to begin, or before its step STEP.
Each job: recipe, deepspeed_config, output_dir, and optionally overrides and resume. Prints what a job was
refused for, and which models are alive when a stage begins.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from mtdnn_ds import dist
from mtdnn_ds.config.errors import UserError
from mtdnn_ds.faults.heartbeat import on_heartbeat
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.monitor.console import speaking
from mtdnn_ds.train import stages
from mtdnn_ds.train.engine import stop_distributed
from mtdnn_ds.train.preflight.checks import checked_stages


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(stage_to_die: str | None, step_to_die: int | None) -> None:
    stage = ""

    def watched(place: str) -> None:
        nonlocal stage
        if place.startswith("stage "):
            stage = place.removeprefix("stage ").removesuffix(", beginning")
            if dist.is_main():
                alive = sum(isinstance(item, MultiTaskNet) for item in gc.get_objects())
                print(f"models alive before {stage}: {alive}", flush=True)
            if stage == stage_to_die and step_to_die is None:
                die()
        elif stage == stage_to_die and place == f"step {step_to_die}, beginning":
            die()

    on_heartbeat(watched)


@speaking()
def main(jobs_file: str, stage_to_die: str | None = None, step_to_die: str | None = None) -> None:
    watch(stage_to_die, None if step_to_die is None else int(step_to_die))
    for job in json.loads(Path(jobs_file).read_text()):
        folder = Path(job["output_dir"])
        if dist.is_main():
            print(f"== {folder.name}", flush=True)

        try:
            checked = checked_stages(
                job["recipe"], job["deepspeed_config"], job.get("overrides", {}), world_size=dist.world_size()
            )
            runs = [stages.stage_run(stage, run.specs, run.deepspeed, folder) for stage, run in checked]
            stages.train_stages(runs, output_dir=folder)
        except UserError as error:
            if dist.is_main():
                print("\n".join(f"refused: {problem}" for problem in error.problems), flush=True)

    stop_distributed()


if __name__ == "__main__":
    main(*sys.argv[1:])
