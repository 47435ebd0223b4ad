"""`evaluate`: score a checkpoint or a best model of a run on every dev split. Trains nothing."""

from __future__ import annotations

from mtdnn_ds.commands.model_flags import refuse_dtype
from mtdnn_ds.config.errors import ConfigError


def run(*, run_dir: str, checkpoint: str, dtype: str, log_level: str) -> int:
    """Evaluate `checkpoint` (latest, step_N, best/TASK, best/average) of `run_dir`; returns the exit code.

    Collective under a launcher. Needs no DeepSpeed engine.
    """
    problems = refuse_dtype(dtype)
    if problems:
        raise ConfigError(problems)

    from mtdnn_ds import api, dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    api.evaluate_run(run_dir, checkpoint, dtype)
    return 0
