"""The names of parts in train.freeze: which there are, and what is wrong with a list of them. Knows no
parameter (model/freeze.py does)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mtdnn_ds.config.errors import did_you_mean

WHOLE_PARTS = ("embeddings", "encoder", "pooler", "heads")
_LAYERS = re.compile(r"encoder\.layer\.(\d+)(?:-(\d+))?")


def layers_of(part: str) -> range | None:
    """The layers that `encoder.layer.3` or `encoder.layer.0-5` (the last one included) means; None for other
    parts."""
    match = _LAYERS.fullmatch(part)
    return None if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)


def freeze_problems(
    parts: Sequence[str], *, num_layers: int | None = None, heads: Sequence[str] | None = None
) -> list[str]:
    """One line for each entry that names no part. Layers and heads are looked up only if the encoder's and
    the run's are given."""
    known = (
        *WHOLE_PARTS[:1],
        _all_layers(num_layers),
        *WHOLE_PARTS[1:],
        *(f"heads.{head}" for head in heads or ("NAME",)),
    )
    problems = [
        f"train.freeze: '{part}' is named twice; name it once"
        for part in dict.fromkeys(parts)
        if parts.count(part) > 1
    ]
    for part in dict.fromkeys(parts):
        layers = layers_of(part)
        if layers is not None and not layers:
            problems.append(f"train.freeze: {part}: runs backwards; write the lower layer first")
        elif layers is not None and num_layers is not None and layers[-1] >= num_layers:
            problems.append(
                f"train.freeze: {part}: the encoder has {num_layers} layers, encoder.layer.0 to "
                f"encoder.layer.{num_layers - 1}"
            )
        elif part.startswith("heads.") and heads is not None and part.removeprefix("heads.") not in heads:
            problems.append(
                "train.freeze: this run has no head "
                f"'{part.removeprefix('heads.')}'{did_you_mean(part.removeprefix('heads.'), heads)}"
            )
        elif layers is None and part not in WHOLE_PARTS and not re.fullmatch(r"heads\.\w+", part):
            problems.append(f"train.freeze: unknown part '{part}'{did_you_mean(part, known)}")
    if {"encoder", "pooler", "heads"} <= set(parts):
        problems.append("train.freeze: encoder, pooler and heads are everything; leave something to train")
    return problems


def _all_layers(num_layers: int | None) -> str:
    return "encoder.layer.N" if num_layers is None else f"encoder.layer.0-{num_layers - 1}"
