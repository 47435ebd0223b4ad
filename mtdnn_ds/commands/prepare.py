"""`prepare`: tokenize every split of a recipe's tasks into the cache, once, before any GPU is held."""

from __future__ import annotations

from collections.abc import Mapping

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.tasks.resolve import resolve_tasks


def run(*, recipe: str, overrides: Mapping[str, str]) -> int:
    """Prepare `recipe` (a file) with `overrides`; returns the exit code. Raises ConfigError, or DataError with the problems of all splits."""
    settings = load_recipe(recipe, overrides)
    specs = resolve_tasks(settings)
    tokenizer_path = resolve_encoder_path(settings.encoder.tokenizer or settings.encoder.path)
    from mtdnn_ds.data.cache import prepare  # tokenizers and Arrow, only once the recipe is known to be right

    prepared = prepare(
        specs,
        tokenizer_path=tokenizer_path,
        cache_dir=settings.data.cache_dir,
        on_bad_row=settings.data.on_bad_row,
        trust_remote_code=settings.encoder.trust_remote_code,
    )
    splits = [split for of_task in prepared.values() for split in of_task.values()]
    left_out = sum(sum(split.skipped.values()) for split in splits)
    rows = sum(split.num_rows for split in splits)
    print(f"{len(splits)} splits of {len(prepared)} tasks, {rows:,} rows ({left_out:,} left out), ready in {settings.data.cache_dir}")
    return 0
