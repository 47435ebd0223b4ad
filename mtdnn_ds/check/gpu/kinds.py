"""Part kinds: a mixture of every kind of task, every regulariser, every way of sharing; waits for the GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.kind_files import texts_of, write_kinds
from mtdnn_ds.check.gpu.results import Figure, Row
from mtdnn_ds.check.gpu.syncs import counting_syncs
from mtdnn_ds.check.tiny_encoder import write_tiny_encoder
from mtdnn_ds.check.tiny_runs import OPTIMIZER, TINY_STEPS, losses_of, trained
from mtdnn_ds.train.engine import start_distributed

DEEPSPEED: dict[str, object] = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}

# name -> settings
VARIANTS: Mapping[str, dict[str, str]] = {
    "all kinds": {},
    "SMART": {"regularizer.name": "smart"},
    "SMART with its proximal term": {"regularizer.name": "smart", "regularizer.proximal_factor": "1.0"},
    "FreeLB": {"regularizer.name": "freelb"},
    "R-Drop": {"regularizer.name": "r_drop"},
    "soft sharing": {"sharing.mode": "soft"},
    "low-rank sharing": {"sharing.mode": "low_rank"},
    "adaptive loss scales": {"loss.scale": "uncertainty"},
    "recomputed activations": {"encoder.gradient_checkpointing": "true"},
}

# A copy of the encoder for each of the others too is much.
TASKS_THAT_SHARE = ("classes", "scores", "ranking")


def look(bench: Bench) -> None:
    """Each variant on all tasks; of sharing on some. Then the places where any of them waited."""
    start_distributed()
    recipe = _recipe(bench.scratch / "kinds")
    waited: dict[str, Counter[str]] = {}  # place -> variant -> waits
    for name, settings in VARIANTS.items():
        bench.tried(name, partial(_variant, bench, name, recipe, settings, waited))

    for place, by_variant in sorted(waited.items(), key=lambda item: -item[1].total()):
        figures = {"waits_a_step": by_variant.total() / (TINY_STEPS - 1) / len(by_variant)}
        bench.emit(Row(name=f"waits at {place}", figures=figures, what=", ".join(by_variant)))


def _recipe(folder: Path) -> dict[str, Any]:
    kinds = write_kinds(folder / "files")
    encoder = write_tiny_encoder(folder / "encoder", texts_of(folder / "files"))
    return {
        **kinds,
        "encoder": {"path": str(encoder), "random_init": True, "max_length": 48, "compile": "never"},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 39, "max_tokens_per_micro_batch": 1024},
        "optimizer": {"name": OPTIMIZER, "lr": 1e-3},
        "train": {"steps": TINY_STEPS},
        "data": {"cache_dir": str(folder / "cache")},
    }


def _variant(
    bench: Bench,
    name: str,
    recipe: Mapping[str, Any],
    settings: dict[str, str],
    waited: dict[str, Counter[str]],
) -> Row:
    """Steps of a variant; where it waited is added to `waited`."""
    if "sharing.mode" in settings:
        tasks = {task: recipe["tasks"][task] for task in TASKS_THAT_SHARE}
        recipe = {**recipe, "tasks": tasks, "plugins": []}

    folder = bench.scratch / "kinds" / "_".join(name.split())
    with counting_syncs(bench.device) as syncs:
        losses = losses_of(trained(folder, recipe, DEEPSPEED, settings))

    figures: dict[str, Figure] = {
        "tasks": len(recipe["tasks"]),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }
    what = "waits for the GPU: needs CUDA"
    if bench.on_cuda:
        figures["waits_a_step"] = syncs.a_step(TINY_STEPS)
        what = syncs.summary(TINY_STEPS)
    for place, number in syncs.places.items():
        waited.setdefault(place, Counter())[name] += number

    is_good = bool(np.isfinite(losses).all()) and len(losses) == TINY_STEPS
    return Row(name=name, status="ok" if is_good else "failed", figures=figures, what=what)
