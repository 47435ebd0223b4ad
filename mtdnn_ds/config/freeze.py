"""The names of parts in train.freeze: which there are, and what is wrong with a list of them. Knows no
parameter (model/freeze.py does)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mtdnn_ds.config.errors import did_you_mean

WHOLE_PARTS = ("embeddings", "encoder", "pooler", "heads")
_LAYERS = re.compile(r"encoder\.layer\.(\d+)(?:-(\d+))?")


def layers_of(part: str) -> range | None:
    """The layers that `encoder.layer.3` or `encoder.layer.0-5` (the last included) means; None of others."""
    match = _LAYERS.fullmatch(part)
    if match is None:
        return None
    first, last = match[1], match[2] or match[1]
    return range(int(first), int(last) + 1)


def freeze_problems(
    parts: Sequence[str], *, num_layers: int | None = None, heads: Sequence[str] | None = None
) -> list[str]:
    """One line for each entry that names no part.

    Layers and heads are looked up only if the encoder's and the run's are given.
    """
    problems = []
    for part in dict.fromkeys(parts):
        if parts.count(part) > 1:
            problems.append(f"train.freeze: '{part}' is named twice; name it once")
    for part in dict.fromkeys(parts):
        problem = _part_problem(part, num_layers, heads)
        if problem is not None:
            problems.append(f"train.freeze: {problem}")
    if {"encoder", "pooler", "heads"} <= set(parts):
        problems.append("train.freeze: encoder, pooler and heads are everything; leave something to train")
    return problems


def _part_problem(part: str, num_layers: int | None, heads: Sequence[str] | None) -> str | None:
    layers = layers_of(part)
    if layers is not None:
        if not layers:
            return f"{part}: runs backwards; write the lower layer first"
        if num_layers is not None and layers[-1] >= num_layers:
            return (
                f"{part}: the encoder has {num_layers} layers, encoder.layer.0 to "
                f"encoder.layer.{num_layers - 1}"
            )
        return None

    if part.startswith("heads.") and heads is not None:
        head = part.removeprefix("heads.")
        if head in heads:
            return None
        return f"this run has no head '{head}'{did_you_mean(head, heads)}"
    if part not in WHOLE_PARTS and not re.fullmatch(r"heads\.\w+", part):
        return f"unknown part '{part}'{did_you_mean(part, _known_parts(num_layers, heads))}"
    return None


def _known_parts(num_layers: int | None, heads: Sequence[str] | None) -> list[str]:
    layers = "encoder.layer.N" if num_layers is None else f"encoder.layer.0-{num_layers - 1}"
    return [*WHOLE_PARTS, layers, *(f"heads.{head}" for head in heads or ("NAME",))]
