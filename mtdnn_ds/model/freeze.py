"""Freezing named parts of a model: the parameters of a part. Not the parts' names (config/freeze.py)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.freeze import freeze_problems, layers_of
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.sharing import hard_name


def freeze(model: MultiTaskNet, parts: Sequence[str]) -> tuple[str, ...]:
    """Takes the parameters of `parts` out of training, in place; returns a note on how much that is.

    A parameter that encoder and heads share (a tied decoder) belongs to the encoder; of an encoder with
    copies a part is frozen in all of them, and low-rank changes of it stay in training. Raises ConfigError
    for unknown parts.
    """
    if not parts:
        return ()

    encoder = model.encoder.first if isinstance(model.encoder, CopiedEncoder) else model.encoder
    encoder_name = type(encoder.model).__name__
    list_name, num_layers = None, None
    layers = encoder_layers(encoder.model)
    if layers is not None:
        list_name, num_layers = layers[0], len(layers[1])

    problems = freeze_problems(parts, num_layers=num_layers, heads=tuple(model.heads))
    if layers is None and any(layers_of(part) is not None for part in parts):
        problems.append(
            f"train.freeze: {encoder_name} has no list of layers to name; freeze encoder or embeddings"
        )

    named = dict(model.named_parameters())
    prefixes = [prefix for part in parts for prefix in _prefixes(part, list_name)]
    for prefix in prefixes:
        own = [parameter for name, parameter in named.items() if (hard_name(name) or "").startswith(prefix)]
        if not own:
            problems.append(f"train.freeze: {encoder_name} has no parameters {prefix}*; name another part")
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
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    return None


_PREFIXES = {
    "embeddings": "encoder.model.embeddings.",
    "encoder": "encoder.model.",
    "pooler": "encoder.pooler.",
}


def _prefixes(part: str, list_name: str | None) -> list[str]:
    """How names of a part's parameters begin in MultiTaskNet; `list_name`: of the list of layers."""
    numbers = layers_of(part)
    if numbers is not None:
        return [f"encoder.model.{list_name}.{number}." for number in numbers]
    return [_PREFIXES.get(part, f"{part}.")]
