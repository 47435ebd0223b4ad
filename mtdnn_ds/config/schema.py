"""The recipe's schema as a list of dotted names with types, defaults and descriptions. Reads the models,
never a recipe."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import Recipe

TASK_NAME = "NAME"  # stands for a task in `tasks.NAME.dropout`

# What the same thing is called by Hugging Face's TrainingArguments and in papers.
_FAMILIAR_NAMES = {
    "learning_rate": "optimizer.lr",
    "max_grad_norm": "optimizer.gradient_clipping",
    "batch_size": "batch.examples_per_step",
    "train_batch_size": "batch.examples_per_step",
    "max_seq_length": "encoder.max_length",
    "max_seq_len": "encoder.max_length",
    "model_name_or_path": "encoder.path",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "eval_steps": "train.eval_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_last",
    "warmup_ratio": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "lr_scheduler_type": "schedule.name",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldDoc:
    """One setting as --help and the documentation show it."""

    name: str
    type: str
    default: str
    description: str


def field_docs() -> tuple[FieldDoc, ...]:
    """Every setting of a recipe, in the order of the models."""
    return tuple(
        FieldDoc(
            name=name,
            type=_type_words(field.annotation, field.metadata),
            default=_default_words(field),
            description=field.description or "",
        )
        for name, field in _fields(Recipe, ())
    )


def annotation_at(path: Sequence[str]) -> Any | None:
    """The type a setting takes, e.g. of ("train", "steps"); None where there is no such setting.

    A mapping takes any name.
    """
    annotation: Any = Recipe
    for part in path:
        annotation = _child(annotation, part)
        if annotation is None:
            return None
    return annotation


def section_of(path: Sequence[str]) -> type[BaseModel] | None:
    """The model of a section, of ("train",) or ("tasks", "cola"), or of a whole recipe, (); None for anything
    else."""
    return _model_in(member_types(annotation_at(path)))


def member_types(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type: `float | None` -> (float, NoneType).

    Annotated is looked through; a Literal is one alternative.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return member_types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in member_types(part))
    return (annotation,)


def unknown_setting(path: Sequence[str]) -> str:
    """`unknown setting 'train.setps'; did you mean 'train.steps'?`

    Where nothing is close, the settings of the same section are listed.
    """
    name = ".".join(path)
    settings = [_in_task(doc.name, path) for doc in field_docs()]
    siblings: list[str] = []
    if len(path) > 1:
        siblings = [setting for setting in settings if setting.split(".")[:-1] == list(path[:-1])]

    close: list[str] = []
    if path[-1] in _FAMILIAR_NAMES:
        close = [_FAMILIAR_NAMES[path[-1]]]
    close = close or difflib.get_close_matches(name, siblings, n=1)
    close = close or [setting for setting in settings if setting.split(".")[-1] == path[-1]]
    if not close and not siblings:
        sections = list(Recipe.model_fields) if len(path) == 1 else []
        close = difflib.get_close_matches(name, [*sections, *settings], n=1)

    if close:
        return f"unknown setting '{name}'; did you mean '{close[0]}'?"
    return f"unknown setting '{name}'{did_you_mean(name, siblings or Recipe.model_fields)}"


def _in_task(setting: str, path: Sequence[str]) -> str:
    if path[0] == "tasks" and len(path) > 2:
        return setting.replace(f"tasks.{TASK_NAME}.", f"tasks.{path[1]}.")
    return setting


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        members = member_types(field.annotation)
        section = _model_in(members)
        named_sections = _model_in([_value_type(member) for member in members])

        if section is not None:
            yield from _fields(section, here)
        elif named_sections is not None:
            yield from _fields(named_sections, (*here, TASK_NAME))
        else:
            yield ".".join(here), field


def _child(annotation: Any, part: str) -> Any | None:
    for member in member_types(annotation):
        if _is_model(member) and part in member.model_fields:
            return member.model_fields[part].annotation
        if get_origin(member) is dict:
            return _value_type(member)
    return None


def _value_type(member: Any) -> Any | None:
    """What a mapping holds under its names; None of anything else."""
    if get_origin(member) is not dict:
        return None
    return get_args(member)[1]


def _model_in(members: Iterable[Any]) -> type[BaseModel] | None:
    return next((member for member in members if _is_model(member)), None)


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner: list[Any] = []
        for extra in arguments[1:]:
            inner += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        return _type_words(arguments[0], [*inner, *metadata])

    if origin in (Union, types.UnionType):
        return " | ".join(_type_words(part, metadata) for part in arguments if part is not types.NoneType)
    if origin is Literal:
        return " | ".join(arguments)
    if origin is dict:
        return f"{{NAME: {_type_words(arguments[1])}}}"
    if origin in (list, tuple):
        return f"list of {_type_words(arguments[0])}"

    words = {str: "text", int: "whole number", float: "number", bool: "true | false"}[annotation]
    return " ".join([words, *_bounds(metadata)])


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for bound in metadata:
        if isinstance(bound, annotated_types.Gt):
            yield f"> {bound.gt}"
        elif isinstance(bound, annotated_types.Ge):
            yield f">= {bound.ge}"
        elif isinstance(bound, annotated_types.Lt):
            yield f"< {bound.lt}"
        elif isinstance(bound, annotated_types.Le):
            yield f"<= {bound.le}"


def _default_words(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value)
