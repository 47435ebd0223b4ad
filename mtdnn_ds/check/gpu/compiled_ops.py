"""Compiles DeepSpeed's optimizers beside the parts: `python -m mtdnn_ds.check.gpu.compiled_ops`.

They take a minute each, and part optimizers, the last one, has not the time for it. Trains nothing.
"""

from __future__ import annotations

import os

import torch

from mtdnn_ds.check.gpu.bench import first_line
from mtdnn_ds.config.choices import OPTIMIZERS
from mtdnn_ds.monitor.console import configure_logging, speaking
from mtdnn_ds.train.optimizer import build_optimizer

NICENESS = 10  # the parts come first; nor does it take more than a quarter of the cores


@speaking()
def main() -> None:
    """Every optimizer that is compiled on first use, as far as it can be here, and its form for offload."""
    configure_logging("warning", 0)
    os.nice(NICENESS)
    os.environ.setdefault("MAX_JOBS", str(max(1, len(os.sched_getaffinity(0)) // 4)))
    for name, facts in OPTIMIZERS.items():
        if not facts.needs_compiler:
            continue
        for offloaded in (False, True) if facts.has_deepspeed_cpu_form else (False,):
            device = "cpu" if offloaded or not torch.cuda.is_available() else "cuda"
            group = {"params": [torch.nn.Parameter(torch.zeros(1, device=device))], "weight_decay": 0.0}
            try:
                build_optimizer(name, [group], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, offloaded=offloaded)
            except Exception as error:  # whatever a builder raises; part optimizers will say so too
                print(f"{name}: {first_line(error)}", flush=True)


if __name__ == "__main__":
    main()
