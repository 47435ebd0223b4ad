"""Losses of tiny runs on the CPU, for those of the GPU to be held against: a process that sees no GPU.

`python -m mtdnn_ds.check.gpu.reference FOLDER` writes them; `losses_of_the_cpu` asks for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from mtdnn_ds.check.verify.jobs import rank_environment
from mtdnn_ds.config.launch import free_port
from mtdnn_ds.files import replace_file

NAME = "cpu_losses.json"
PLAIN: dict[str, object] = {"zero_optimization": {"stage": 0}}

# What is trained in fp32 without ZeRO: name -> settings of the recipe.
RUNS: dict[str, dict[str, str]] = {"plain": {}, "counter": {"train.dropout": "counter"}}


def losses_of_the_cpu(scratch: Path) -> dict[str, np.ndarray]:
    """Of each of RUNS, (steps,) float64. Computed once in a scratch folder.

    Raises RuntimeError with what the process said, if it ended badly.
    """
    file = scratch / NAME
    if not file.exists():
        environment = {
            **rank_environment(0, 1, free_port()),
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        words = [sys.executable, "-m", "mtdnn_ds.check.gpu.reference", str(scratch)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the runs on the CPU failed: {done.stderr.strip()[-2000:]}")
    return {name: np.array(losses) for name, losses in json.loads(file.read_text()).items()}


def main(scratch: Path) -> None:
    """Train each of RUNS."""
    from mtdnn_ds.check.tiny_runs import losses_of, tiny_run

    found = {
        name: losses_of(tiny_run(scratch / f"cpu_{name}", PLAIN, overrides)).tolist()
        for name, overrides in RUNS.items()
    }
    replace_file(scratch / NAME, json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and libraries may wait for each other


if __name__ == "__main__":
    main(Path(sys.argv[1]))
