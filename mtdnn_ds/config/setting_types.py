"""What sections of a recipe are made of: the base of their models, and kinds of numbers and texts. No setting (recipe.py)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mtdnn_ds.config.paths import usable_path

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, AfterValidator(usable_path)]

LARGEST = (
    2**32
)  # of every whole number: steps times examples of a step, at most 2^20, then fit 64 bits with room


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no other types than those asked for, nothing that is not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_too_large(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(
                f"is a number of {len(str(abs(value)))} digits; whole numbers go up to {LARGEST:,}"
            )
        return value
