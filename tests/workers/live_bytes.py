"""One rank that starts a run, takes no step and says how many bytes its tensors take: `python live_bytes.py
JOB.json`.

Counted are the storages of all tensors that are alive, each once: weights, gradients and optimizer states
with all their copies.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from mtdnn_ds import dist
from mtdnn_ds.train.engine import start_distributed, stop_distributed
from mtdnn_ds.train.preflight.checks import checked_run
from mtdnn_ds.train.start import start_run


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    checked = checked_run(job["recipe"], job["deepspeed_config"], {}, world_size=dist.world_size())
    run = start_run(
        checked.recipe,
        checked.specs,
        checked.deepspeed,
        device=start_distributed(),
        output_dir=Path(job["output_dir"]),
        resume="none",
        evaluate_after=(),
    )

    gc.collect()
    tensors = (item for item in gc.get_objects() if isinstance(item, torch.Tensor))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if dist.is_main():
        print(f"bytes alive: {sum(storages.values())}", flush=True)

    if run.monitor is not None:
        run.monitor.close(succeeded=True)
    stop_distributed()


if __name__ == "__main__":
    main(sys.argv[1])
