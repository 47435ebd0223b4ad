"""What sections of a recipe are made of: the base of their models, and kinds of numbers and texts. No setting
(recipe.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mtdnn_ds.config.paths import usable_path

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, AfterValidator(usable_path)]

# Of every whole number: steps times examples of a step, at most 2^20, then fit 64 bits with room.
LARGEST = 2**32


class UnknownSetting(Exception):
    """A setting is read whose value is not known, because what the recipe says of it is wrong
    (config/partial.py)."""


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no other types than those asked for, nothing that is not
    finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_too_large(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(
                f"is a number of {len(str(abs(value)))} digits; whole numbers go up to {LARGEST:,}"
            )
        return value

    if not TYPE_CHECKING:  # a type checker would take every name for a setting

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise UnknownSetting(name)
            return super().__getattr__(name)


def as_far_as_known(lines: Iterator[str]) -> Iterator[str]:
    """The problems that a check of a recipe finds before it reads a setting whose value is not known."""
    try:
        yield from lines
    except UnknownSetting:
        return
