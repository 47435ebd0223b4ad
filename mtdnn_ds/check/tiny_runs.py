"""Runs of seconds on a tiny random encoder and generated tasks, through the real trainer and a real DeepSpeed
engine. For doctor --gpu.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from mtdnn_ds import dist
from mtdnn_ds.check.tiny_encoder import write_tiny_encoder
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed, load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.sources import generated_words
from mtdnn_ds.runs.device import probe_device
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.trainer import train

TINY_STEPS = 4
OPTIMIZER = "adamw"
"""What small runs train with, where nothing is asked of the optimizer: it compiles nothing."""


def tiny_run(folder: Path, deepspeed: Mapping[str, object], overrides: Mapping[str, str]) -> RunFolder:
    """Train TINY_STEPS steps in `folder`, which must not exist yet.

    Collective: all ranks must call this with equal arguments.
    """
    return trained(folder, tiny_recipe(folder.parent), deepspeed, overrides)


def trained(
    folder: Path,
    recipe: Mapping[str, object],
    deepspeed: Mapping[str, object],
    overrides: Mapping[str, str],
    *,
    resume: str = "none",
) -> RunFolder:
    """Train a recipe in `folder`/run. Collective: all ranks must call this with equal arguments."""

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(recipe)))
        (folder / "deepspeed.json").write_text(json.dumps(deepspeed))

    dist.on_main(write)
    loaded = load_recipe(str(folder / "recipe.yaml"), overrides)
    resolved = resolved_json(folder / "deepspeed.json", loaded)
    specs = training_only(resolve_tasks(loaded))
    train(loaded, specs, resolved, output_dir=folder / "run", resume=resume, quiet=True)
    return RunFolder(folder / "run")


def training_only(specs: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
    """Without dev splits: checks read losses, and dev splits can be large."""
    return tuple(replace(spec, splits={"train": spec.splits["train"]}) for spec in specs)


def resolved_json(path: Path, recipe: Recipe) -> ResolvedDeepSpeed:
    """A DeepSpeed JSON for `recipe` on this machine and this number of ranks."""
    device = probe_device()
    return resolve_deepspeed(
        load_deepspeed_json(str(path)),
        recipe,
        device_type=device.type,
        fast_bf16=device.fast_bf16,
        fp16_supported=device.fp16,
        world_size=dist.world_size(),
        source=path.name,
    )


def losses_of(run: RunFolder) -> np.ndarray:
    """The losses of a run's steps, (steps,) float64, on every rank. Collective: all ranks must call this."""

    def read() -> list[float]:
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    return np.array(dist.on_main(read))


def tiny_recipe(shared: Path) -> dict[str, object]:
    """Three generated tasks on a tiny encoder. Encoder and cache are kept in `shared`, for several runs.

    Collective.
    """

    def write() -> None:
        if not (shared / "encoder").is_dir():
            write_tiny_encoder(shared / "encoder", [" ".join(_words())])

    dist.on_main(write)
    return {
        "encoder": {
            "path": str(shared / "encoder"),
            "random_init": True,
            "max_length": 32,
            "compile": "never",  # which on CUDA takes longer than the run
        },
        "tasks": ["quickstart_sentiment", "quickstart_entailment", "quickstart_similarity"],
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 256},
        "optimizer": {"name": OPTIMIZER, "lr": 1e-3},
        "train": {"steps": TINY_STEPS, "dropout": "none"},
        "data": {"cache_dir": str(shared / "cache")},
    }


def _words() -> list[str]:
    """Every word of the generated tasks' vocabulary."""
    tables = [value for name, value in vars(generated_words).items() if name.isupper()]
    return sorted(word for table in tables for word in _strings_in(table))


def _strings_in(value: object) -> Iterator[str]:
    """The strings of nested tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings_in([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _strings_in(part)
