"""Teachers: the finished runs that `distillation` names, checked against the learner. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, UserError
from mtdnn_ds.config.recipe import DistillationSettings, Recipe
from mtdnn_ds.runs.load import FinishedRun, find_run
from mtdnn_ds.tasks.layout import FORMS, Answer, terms_of_spec
from mtdnn_ds.tasks.spec import TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A finished run, and the tasks it teaches: as it was trained on them, over the learner's rows."""

    run: FinishedRun
    specs: tuple[TaskSpec, ...]


def find_teachers(recipe: Recipe, specs: Sequence[TaskSpec]) -> tuple[Teacher, ...]:
    """The teachers of a run with these tasks; none if its recipe names none.

    Raises ConfigError with every problem.
    """
    settings = recipe.distillation
    problems: list[str] = []
    runs = _find_runs(settings, problems)

    wanted = [spec for spec in specs if settings.tasks is None or spec.name in settings.tasks]
    teachers = [Teacher(run=run, specs=_specs_of(run, wanted, problems)) for run in runs]

    if runs and len(runs) == len(settings.teachers or ()):
        known = {spec.name for run in runs for spec in run.specs}
        without = [spec.name for spec in wanted if spec.name not in known]
        is_named = settings.tasks is not None
        problems += _without_teacher(without, known, named=is_named, total=len(wanted))
    if problems:
        raise ConfigError(problems)
    return tuple(teachers)


def answer_of(spec: TaskSpec) -> Answer | None:
    """What a task's outputs can teach, or None."""
    forms = [form for _, form, _ in terms_of_spec(spec)]
    if len(forms) != 1 or forms[0] not in FORMS:
        return None
    return FORMS[forms[0]].answer


def _find_runs(settings: DistillationSettings, problems: list[str]) -> list[FinishedRun]:
    """The runs that can be read, each once; what is wrong with the others is added to `problems`."""
    runs: list[FinishedRun] = []
    known: set[Path] = set()
    for path in settings.teachers or ():
        if Path(path).resolve() in known:
            problems.append(
                f"distillation.teachers: {path} stands twice, which would count it twice; name it once"
            )
            continue
        known.add(Path(path).resolve())

        try:
            run = find_run(
                path,
                settings.checkpoint,
                run_setting="distillation.teachers:",
                checkpoint_setting="distillation.checkpoint",
            )
        except UserError as error:
            problems += error.problems
        else:
            runs.append(run)
    return runs


def _specs_of(run: FinishedRun, wanted: Sequence[TaskSpec], problems: list[str]) -> tuple[TaskSpec, ...]:
    """The run's own specs of the wanted tasks that it has and can teach, over the learner's rows."""
    theirs = {spec.name: spec for spec in run.specs}
    specs = []
    for spec in wanted:
        if spec.name not in theirs:
            continue

        teacher = theirs[spec.name]
        problem = _difference(spec, teacher)
        if problem is None:
            specs.append(replace(teacher, splits=spec.splits))
        else:
            problems.append(f"distillation.teachers: {run.folder.path}: task '{spec.name}'{problem}")
    return tuple(specs)


def _difference(spec: TaskSpec, teacher: TaskSpec) -> str | None:
    """Why a task cannot be learnt from a teacher's task of its name, to follow that name; or None."""
    without = "leave the task out of distillation.tasks"
    if spec.kind != teacher.kind:
        return f" is a {teacher.kind} there and a {spec.kind} here; {without}, or rename it"

    if spec.labels != teacher.labels:
        return (
            f" has the labels {', '.join(teacher.labels)} there and {', '.join(spec.labels)} here; "
            f"write them in the same order, or {without}"
        )

    if answer_of(spec) is None or answer_of(teacher) != answer_of(spec):
        loss = f" with objective={spec.objective}" if spec.objective else ""
        return (
            f": a {spec.kind}{loss} cannot be distilled, only tasks that score classes, choices or numbers; "
            f"{without}"
        )
    return None


def _without_teacher(names: Sequence[str], known: set[str], *, named: bool, total: int) -> list[str]:
    """Problems of tasks that no teacher has: those that the recipe names, or all of them."""
    has = f"they have {', '.join(sorted(known))}"
    if named:
        return [
            f"distillation.tasks: no teacher has the task '{name}' ({has}); leave it out" for name in names
        ]
    if len(names) == total:
        return [f"distillation.teachers: they have none of the run's tasks ({has}); name other runs"]
    return []
