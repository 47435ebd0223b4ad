"""`distill`: store what a recipe's teachers answer on its training examples, and score them.

Trains nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.train.preflight.checks import Problems, checked_tasks

if TYPE_CHECKING:
    import torch

    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.tasks.spec import TaskSpec

log = logging.getLogger(__name__)


def run(*, recipe: str, log_level: str, overrides: Mapping[str, str]) -> int:
    """Run the teachers of `recipe` (a file) with `overrides`; returns the exit code.

    Collective under a launcher.
    """
    runs = [
        (stage.recipe, specs)
        for stage, specs in checked_tasks(recipe, overrides)
        if stage.recipe.distillation.teachers is not None
    ]
    if not runs:
        raise ConfigError(f"{recipe}: distillation.teachers is missing; name the run folders to learn from")

    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging
    from mtdnn_ds.train.distillation.teachers import find_teachers

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    problems = Problems()
    for settings, specs in runs:
        problems.check(partial(find_teachers, settings, specs))
    problems.refuse()

    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    device = start_distributed()
    with watching(runs[0][0].train.stall_timeout):
        for settings, specs in runs:
            _store_and_score(settings, specs, device)
    stop_distributed()
    return 0


def _store_and_score(settings: Recipe, specs: Sequence[TaskSpec], device: torch.device) -> None:
    """Collective: all ranks must call this."""
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs, with_soft_targets
    from mtdnn_ds.train.distillation.teacher_scores import teacher_scores
    from mtdnn_ds.train.results import format_results, task_results

    data = prepare_run_data(settings, specs)
    outputs = find_teacher_outputs(settings, data)
    with_soft_targets(settings, data, outputs, device=device)

    for title, of_teacher, evaluation in teacher_scores(data, outputs, device=device):
        log.info(f"\ndev metrics of {title}:")
        log.info(format_results(task_results(of_teacher, evaluation, best={}), evaluation.average))

    answered = [spec.name for spec in specs if any(spec.name in output.keys for output in outputs)]
    log.info(f"\nthe teachers' answers for {', '.join(answered)} are ready in {settings.data.cache_dir}")
