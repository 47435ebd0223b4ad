"""`distill`: store what a recipe's teachers answer on its training examples, and score them on its dev splits, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.train.preflight.checks import Problems, checked_tasks


def run(*, recipe: str, log_level: str, overrides: Mapping[str, str]) -> int:
    """Run the teachers of `recipe` (a file) with `overrides`; returns the exit code. Collective under a launcher."""
    runs = [
        (stage.recipe, specs)
        for stage, specs in checked_tasks(recipe, overrides)
        if stage.recipe.distillation.teachers is not None
    ]
    if not runs:
        raise ConfigError(f"{recipe}: distillation.teachers is missing; name the run folders to learn from")

    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import Progress, configure_logging
    from mtdnn_ds.train.distillation.teachers import find_teachers

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    problems = Problems()
    for settings, specs in runs:
        problems.check(partial(find_teachers, settings, specs))
    problems.refuse()

    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs, with_soft_targets
    from mtdnn_ds.train.distillation.teacher_scores import teacher_scores
    from mtdnn_ds.train.engine import start_distributed, stop_distributed
    from mtdnn_ds.train.results import format_results, task_results

    device = start_distributed()
    say = Progress(num_steps=0, is_main=dist.is_main()).say
    with watching(runs[0][0].train.stall_timeout):
        for settings, specs in runs:
            data = prepare_run_data(settings, specs, say)
            teacher_outputs = find_teacher_outputs(settings, data)
            with_soft_targets(settings, data, teacher_outputs, device=device)
            for title, of_teacher, evaluation in teacher_scores(data, teacher_outputs, device=device):
                say(f"\ndev metrics of {title}:")
                say(format_results(task_results(of_teacher, evaluation, best={}), evaluation.average))
            tasks = [spec.name for spec in specs if any(spec.name in one.keys for one in teacher_outputs)]
            say(f"\nthe teachers' answers for {', '.join(tasks)} are ready in {settings.data.cache_dir}")
    stop_distributed()
    return 0
