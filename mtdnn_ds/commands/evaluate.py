"""`evaluate`: score a checkpoint or a best model of a run on every dev split. Trains nothing."""

from __future__ import annotations


def run(*, run_dir: str, checkpoint: str, log_level: str) -> int:
    """Evaluate `checkpoint` (latest, step_N, best/TASK, best/average) of `run_dir`; returns the exit code.

    Collective under a launcher. Needs no DeepSpeed engine.
    """
    from mtdnn_ds import api, dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    api.evaluate_run(run_dir, checkpoint)
    return 0
