"""A recipe made small: the same tasks, mixture, objective and optimizer on an encoder of the same kind with
two narrow layers. Runs nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mtdnn_ds.config.choices import OPTIMIZERS
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import InitSettings, Recipe, TrainSettings
from mtdnn_ds.model.hf_config import encoder_config

log = logging.getLogger(__name__)

# Every encoder's config answers to these names, by itself or through transformers' attribute_map.
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
MAX_EXAMPLES_PER_STEP = 32


def small_recipe(recipe: Recipe, folder: Path, *, steps: int) -> Recipe:
    """`recipe` on a small random encoder that is written to `folder`, for `steps` steps in float32 without
    dropout.

    What changes no property that is verified (earlier weights, teachers, frozen parts, cadence) is left out,
    and said.
    """
    _say_left_out(recipe)

    encoder_changes = {
        "path": str(write_small_encoder(recipe, folder)),
        "tokenizer": None,
        "sha256": None,
        "random_init": True,
        "attention": "auto",
        "fused_layer_norm": False,
    }
    optimizer = recipe.optimizer
    if OPTIMIZERS[optimizer.name].needs_compiler:
        optimizer = optimizer.model_copy(update={"name": "adamw"})
    examples_per_step = min(recipe.batch.examples_per_step, MAX_EXAMPLES_PER_STEP)

    changes = {
        "encoder": recipe.encoder.model_copy(update=encoder_changes),
        "init": InitSettings(),
        "heads": None,
        "distillation": type(recipe.distillation)(),
        "optimizer": optimizer,
        "schedule": recipe.schedule.model_copy(update={"name": "constant", "warmup": 0.0}),
        "batch": recipe.batch.model_copy(update={"examples_per_step": examples_per_step}),
        "train": TrainSettings(steps=steps, seed=recipe.train.seed, dropout="none", keep_last=steps),
    }
    return recipe.model_copy(update=changes)


def _say_left_out(recipe: Recipe) -> None:
    settings = {
        "init.run": recipe.init.run,
        "heads": recipe.heads,
        "distillation": recipe.distillation.teachers,
        "train.freeze": recipe.train.freeze,
    }
    left_out = [name for name, value in settings.items() if value]
    if left_out:
        log.info(f"left out of the small runs: {', '.join(left_out)} (they belong to the large encoder)")
    if OPTIMIZERS[recipe.optimizer.name].cuda_only:
        log.info(f"optimizer.name={recipe.optimizer.name}: adamw in the small runs")


def write_small_encoder(recipe: Recipe, folder: Path) -> Path:
    """Config and tokenizer of a small encoder of the recipe's architecture, without weights.

    Raises ConfigError if it cannot be made small.
    """
    from mtdnn_ds.data.cache.tokenize import load_tokenizer

    settings = recipe.encoder
    config = encoder_config(settings)
    for name, value in SMALL.items():
        if getattr(config, name, None) is None:
            raise ConfigError(
                f"encoder.path={settings.path}: its config has no {name}, so verify cannot make it small"
            )
        setattr(config, name, value)
    config.save_pretrained(folder)

    tokenizer_path = resolve_encoder_path(settings.tokenizer or settings.path)
    tokenizer = load_tokenizer(tokenizer_path, trust_remote_code=settings.trust_remote_code)
    tokenizer.save_pretrained(folder)
    return folder
