"""`evaluate`: score a checkpoint or a best model of a run on every dev split. Trains nothing and needs no DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError

if TYPE_CHECKING:
    from mtdnn_ds.runs.evaluate import Evaluation


def run(*, run_dir: str, checkpoint: str, log_level: str) -> int:
    """Evaluate `checkpoint` (latest, step_N, best/TASK, best/average) of `run_dir` in float32. Collective under a launcher."""
    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import Progress, configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    evaluated(run_dir, checkpoint, Progress(num_steps=0, is_main=dist.is_main()).say)
    return 0


def evaluated(run_dir: str, checkpoint: str, say: Callable[[str], None]) -> Evaluation:
    """The evaluation, which it also says as a table. Collective; joins and leaves a process group."""
    from mtdnn_ds.monitor.console import format_results
    from mtdnn_ds.runs.load import find_run, load_run
    from mtdnn_ds.tasks.glue import glue_table

    found = find_run(run_dir, checkpoint)

    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.evaluate import evaluate
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed
    from mtdnn_ds.train.results import task_results

    device = start_distributed()
    with watching(found.recipe.train.stall_timeout):
        data = prepare_run_data(found.recipe, found.specs, say)
        loaded = load_run(found, device=device)
        result = evaluate(loaded.model, data.specs, data.layout, data.examples, loaded.settings, device)
        if not result.metrics:
            raise ConfigError(
                f"--run_dir {run_dir}: none of its tasks has a dev split; there is nothing to evaluate"
            )
        say(f"dev metrics of {found.weights_folder}:")
        say(format_results(task_results(data, result, best={}), result.average))
        if table := glue_table(result.metrics):
            say(f"\nGLUE, on the dev sets:\n{table}")
    stop_distributed()
    return result
