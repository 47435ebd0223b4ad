"""Teachers: the finished runs that a recipe's `distillation` names, checked against the run that learns from them. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, UserError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.load import FinishedRun, find_run
from mtdnn_ds.tasks.layout import FORMS, Answer, terms_of_spec
from mtdnn_ds.tasks.spec import TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A finished run, and the tasks it teaches: as it was trained on them, over the learner's rows."""

    found: FinishedRun
    specs: tuple[TaskSpec, ...]


def find_teachers(recipe: Recipe, specs: Sequence[TaskSpec]) -> tuple[Teacher, ...]:
    """The teachers of a run with these tasks; none if its recipe names none. Raises ConfigError with every problem."""
    settings = recipe.distillation
    problems: list[str] = []
    found: list[FinishedRun] = []
    seen: set[Path] = set()
    for path in settings.teachers or ():
        if Path(path).resolve() in seen:
            problems.append(
                f"distillation.teachers: {path} stands twice, which would count it twice; name it once"
            )
            continue
        seen.add(Path(path).resolve())
        try:
            found.append(
                find_run(
                    path,
                    settings.checkpoint,
                    run_setting="distillation.teachers:",
                    checkpoint_setting="distillation.checkpoint",
                )
            )
        except UserError as error:
            problems += error.problems
    wanted = [spec for spec in specs if settings.tasks is None or spec.name in settings.tasks]
    teachers = [Teacher(found=run, specs=_taught(run, wanted, problems)) for run in found]
    if found and len(found) == len(settings.teachers or ()):
        known = {spec.name for run in found for spec in run.specs}
        problems += _untaught(
            [spec.name for spec in wanted if spec.name not in known],
            known,
            named=settings.tasks is not None,
            total=len(wanted),
        )
    if problems:
        raise ConfigError(problems)
    return tuple(teachers)


def answer_of(spec: TaskSpec) -> Answer | None:
    """What a task's outputs can teach, or None."""
    forms = [form for _, form, _ in terms_of_spec(spec)]
    return FORMS[forms[0]].answer if len(forms) == 1 and forms[0] in FORMS else None


def _taught(run: FinishedRun, wanted: Sequence[TaskSpec], problems: list[str]) -> tuple[TaskSpec, ...]:
    """The run's own specs of the wanted tasks that it has, over the learner's rows."""
    theirs = {spec.name: spec for spec in run.specs}
    taught = []
    for spec in wanted:
        teacher = theirs.get(spec.name)
        if teacher is None:
            continue
        where = f"distillation.teachers: {run.folder.path}: task '{spec.name}'"
        without = "leave the task out of distillation.tasks"
        if spec.kind != teacher.kind:
            problems.append(
                f"{where} is a {teacher.kind} there and a {spec.kind} here; {without}, or rename it"
            )
        elif spec.labels != teacher.labels:
            problems.append(
                f"{where} has the labels {', '.join(teacher.labels)} there and {', '.join(spec.labels)} here; write them in the same order, or {without}"
            )
        elif answer_of(spec) is None or answer_of(teacher) != answer_of(spec):
            loss = f" with objective={spec.objective}" if spec.objective else ""
            problems.append(
                f"{where}: a {spec.kind}{loss} cannot be distilled, only tasks that score classes, choices or numbers; {without}"
            )
        else:
            taught.append(replace(teacher, splits=spec.splits))
    return tuple(taught)


def _untaught(names: Sequence[str], known: set[str], *, named: bool, total: int) -> list[str]:
    """Problems of tasks that no teacher has: those that the recipe names, or all of them."""
    has = f"they have {', '.join(sorted(known))}"
    if named:
        return [
            f"distillation.tasks: no teacher has the task '{name}' ({has}); leave it out" for name in names
        ]
    return (
        [f"distillation.teachers: they have none of the run's tasks ({has}); name other runs"]
        if len(names) == total
        else []
    )
