"""One rank of a process group that trains several runs one after the other: `python train_jobs.py JOBS.json`.

Each job: recipe, deepspeed_config, output_dir, and optionally overrides and resume.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mtdnn_ds import dist
from mtdnn_ds.monitor.console import speaking
from mtdnn_ds.train.engine import stop_distributed
from mtdnn_ds.train.preflight.checks import checked_run
from mtdnn_ds.train.trainer import train


@speaking()
def main(jobs_file: str) -> None:
    for job in json.loads(Path(jobs_file).read_text()):
        if dist.is_main():
            print(f"== {Path(job['output_dir']).name}", flush=True)

        resume, overrides = job.get("resume", "none"), job.get("overrides", {})
        checked = checked_run(
            job["recipe"],
            job["deepspeed_config"],
            overrides,
            world_size=dist.world_size(),
            goes_on=resume != "none",
        )

        train(
            checked.recipe,
            checked.specs,
            checked.deepspeed,
            output_dir=Path(job["output_dir"]),
            resume=resume,
        )

    stop_distributed()


if __name__ == "__main__":
    main(sys.argv[1])
