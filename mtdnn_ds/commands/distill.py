"""`distill`: store what a recipe's teachers answer on its training examples, and score them on its dev splits, before any training."""

from __future__ import annotations

from collections.abc import Mapping

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.tasks.resolve import resolve_tasks


def run(*, recipe: str, log_level: str, overrides: Mapping[str, str]) -> int:
    """Run the teachers of `recipe` (a file) with `overrides`; returns the exit code. Collective under a launcher."""
    settings = load_recipe(recipe, overrides)
    if settings.distillation.teachers is None:
        raise ConfigError(f"{recipe}: distillation.teachers is missing; name the run folders to learn from")
    specs = resolve_tasks(settings)

    from mtdnn_ds import dist
    from mtdnn_ds.train.progress import Progress, configure_logging, format_results
    from mtdnn_ds.train.teachers import find_teachers

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    find_teachers(settings, specs)  # wrong ones are refused before the process group starts

    from mtdnn_ds.train.distillation import find_lessons, taught
    from mtdnn_ds.train.engine import start_distributed, stop_distributed
    from mtdnn_ds.train.results import task_results
    from mtdnn_ds.train.setup import prepare_run_data
    from mtdnn_ds.train.teacher_scores import teacher_scores

    device = start_distributed()
    say = Progress(num_steps=0, is_main=dist.is_main()).say
    data = prepare_run_data(settings, specs, say)
    lessons = find_lessons(settings, data, say)
    taught(settings, data, lessons, device=device, say=say)
    for title, of_teacher, evaluation in teacher_scores(data, lessons, device=device):
        say(f"\ndev metrics of {title}:")
        say(format_results(task_results(of_teacher, evaluation, best={}), evaluation.average))
    tasks = sorted({task for lesson in lessons for task in lesson.keys})
    say(f"\nthe teachers' answers for {', '.join(tasks)} are ready in {settings.data.cache_dir}")
    stop_distributed()
    return 0
