"""`verify`: a recipe's promises, measured with small runs on its own tasks and machine. Prints a certificate."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mtdnn_ds.config.deepspeed import load_deepspeed_json
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import load_runs

STEPS = 4


def run(
    *,
    recipe: str,
    deepspeed_config: str,
    max_ranks: str,
    certificate: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Print the certificate of `recipe`; returns 1 if a promise does not hold. Starts its own processes: call it without a launcher."""
    ranks = _ranks(max_ranks)
    own_json = load_deepspeed_json(deepspeed_config)
    stages = load_runs(recipe, overrides)
    if certificate is not None and not Path(certificate).absolute().parent.is_dir():
        raise ConfigError(f"--certificate {certificate}: its folder does not exist")

    from mtdnn_ds.check.verify.certificate import certificate as text_of
    from mtdnn_ds.check.verify.certificate import certificate_json
    from mtdnn_ds.check.verify.checks import verify_recipe
    from mtdnn_ds.check.verify.small import small_recipe
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, 0)  # type: ignore[arg-type]
    begin, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="mtdnn_ds_verify_"))
    results, good = [], False
    try:
        for stage in stages:
            name = stage.name or "recipe"
            if stage.name:
                print(f"\n== stage {stage.name}", flush=True)
            small = small_recipe(stage.recipe, folder / name / "encoder", steps=STEPS, say=_say)
            longest = _longest_example(small, _say)
            small = small.model_copy(
                update={
                    "encoder": small.encoder.model_copy(
                        update={"max_length": min(small.encoder.max_length, max(8, longest))}
                    )
                }
            )
            budgets = (longest * small.batch.examples_per_step, max(longest, small.encoder.max_length))
            found = verify_recipe(
                small, own_json, folder / name, max_ranks=_devices(ranks), budgets=budgets, say=_say
            )
            print(text_of(found, f"{recipe} {stage.name}".strip(), time.monotonic() - begin), flush=True)
            results += found
        good = all(result.holds is not False for result in results)
    finally:
        if good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"the small runs are kept in {folder}")
    if certificate is not None:
        Path(certificate).write_text(certificate_json(results, recipe))
    return 0 if good else 1


def _ranks(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--max_ranks {text}: must be a whole number, at least 1")
    return int(text)


def _devices(wanted: int) -> int:
    """Ranks that there are devices for: GPUs are not shared."""
    import torch

    return min(wanted, torch.cuda.device_count()) if torch.cuda.is_available() else wanted


def _longest_example(recipe: Recipe, say: Callable[[str], None]) -> int:
    """Tokens of the longest training example; prepares the data."""
    from mtdnn_ds.check.verify.worker import training_only
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.tasks.resolve import resolve_tasks

    roomy = recipe.model_copy(
        update={"batch": recipe.batch.model_copy(update={"max_tokens_per_micro_batch": 2**30})}
    )
    data = prepare_run_data(roomy, training_only(resolve_tasks(roomy)), say)
    return max(int(examples.lengths.max()) for examples in data.train_sets)


def _say(text: str) -> None:
    print(text, flush=True)
