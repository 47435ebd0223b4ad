"""Verify, from a recipe's stages to their certificates: makes each small, has its promises measured, and says
the results.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds.check.tiny_runs import training_only
from mtdnn_ds.check.verify.certificate import Result, certificate
from mtdnn_ds.check.verify.checks import verify_recipe
from mtdnn_ds.check.verify.small import small_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import Stage
from mtdnn_ds.runs.setup import prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

log = logging.getLogger(__name__)

STEPS = 4


def verify_stages(
    stages: Sequence[Stage], own_json: dict[str, Any] | None, *, recipe_name: str, max_ranks: int
) -> list[Result]:
    """Measure the promises of every stage, and say each certificate.

    `own_json`: the user's DeepSpeed JSON. Starts its own processes: call it without a launcher. The small
    runs are kept, and it is said where, unless every promise holds.
    """
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mtdnn_ds_verify_"))
    results: list[Result] = []
    is_good = False

    try:
        for stage in stages:
            if stage.name:
                log.info(f"\n== stage {stage.name}")
            found = _verify(stage.recipe, own_json, folder / (stage.name or "recipe"), max_ranks)
            name = f"{recipe_name} {stage.name}".strip()
            log.info(certificate(found, name, time.monotonic() - begin))
            results += found
        is_good = all(result.holds is not False for result in results)
    finally:
        if is_good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            log.info(f"the small runs are kept in {folder}")

    return results


def _verify(recipe: Recipe, own_json: dict[str, Any] | None, folder: Path, max_ranks: int) -> list[Result]:
    small = small_recipe(recipe, folder / "encoder", steps=STEPS)
    longest = _longest_example(small)

    max_length = min(small.encoder.max_length, max(8, longest))
    encoder = small.encoder.model_copy(update={"max_length": max_length})
    small = small.model_copy(update={"encoder": encoder})

    # Tokens of a micro-batch that hold a whole step, and that cut it up.
    budgets = (longest * small.batch.examples_per_step, max(longest, max_length))
    return verify_recipe(small, own_json, folder, max_ranks=_num_devices(max_ranks), budgets=budgets)


def _longest_example(recipe: Recipe) -> int:
    """Tokens of the longest training example; prepares the data."""
    batch = recipe.batch.model_copy(update={"max_tokens_per_micro_batch": 2**30})
    roomy = recipe.model_copy(update={"batch": batch})
    data = prepare_run_data(roomy, training_only(resolve_tasks(roomy)))
    return max(int(examples.lengths.max()) for examples in data.train_sets)


def _num_devices(wanted: int) -> int:
    """Ranks that there are devices for: GPUs are not shared."""
    if not torch.cuda.is_available():
        return wanted
    return min(wanted, torch.cuda.device_count())
