"""Freezing named parts of a model: which parameters a part has. The names and their checks are config/freeze.py's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.freeze import freeze_problems, layers_of
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.sharing import hard_name


def freeze(model: MultiTaskNet, parts: Sequence[str]) -> tuple[str, ...]:
    """Takes the parameters of `parts` out of training, in place; returns a note on how much that is. Raises ConfigError for unknown parts.

    A parameter that encoder and heads share (a tied decoder) belongs to the encoder; of an encoder with copies a part is frozen in all
    of them, and low-rank changes of it stay in training.
    """
    if not parts:
        return ()
    encoder = model.encoder.first if isinstance(model.encoder, CopiedEncoder) else model.encoder
    layers = encoder_layers(encoder.model)
    problems = freeze_problems(
        parts, num_layers=None if layers is None else len(layers[1]), heads=tuple(model.heads)
    )
    if layers is None and any(layers_of(part) is not None for part in parts):
        problems.append(
            f"train.freeze: {type(encoder.model).__name__} has no list of layers to name; freeze encoder or embeddings"
        )
    frozen = [prefix for part in parts for prefix in _prefixes(part, None if layers is None else layers[0])]
    named = dict(model.named_parameters())
    for prefix in frozen:
        own = [parameter for name, parameter in named.items() if (hard_name(name) or "").startswith(prefix)]
        if not own:
            problems.append(
                f"train.freeze: {type(encoder.model).__name__} has no parameters {prefix}*; name another part"
            )
        for parameter in own:
            parameter.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    if not problems and not trained:
        problems.append("train.freeze: nothing is left to train; name fewer parts")
    if problems:
        raise ConfigError(problems)
    total = sum(parameter.numel() for parameter in named.values())
    return (f"train.freeze: {', '.join(parts)}; {trained:,} of {total:,} parameters are trained",)


def encoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Name and modules of the encoder's layers, None where layers share their weights or have no list."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    lists = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    return next(lists, None)


def _prefixes(part: str, layers: str | None) -> Iterator[str]:
    """How the names of a part's parameters in MultiTaskNet begin."""
    numbers = layers_of(part)
    if numbers is not None:
        yield from (f"encoder.model.{layers}.{number}." for number in numbers)
    else:
        yield {
            "embeddings": "encoder.model.embeddings.",
            "encoder": "encoder.model.",
            "pooler": "encoder.pooler.",
        }.get(part, f"{part}.")
