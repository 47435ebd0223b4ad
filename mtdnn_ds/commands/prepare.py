"""`prepare`: tokenize every split of a recipe's tasks into the cache, once, before any GPU is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import DataError
from mtdnn_ds.tasks.saved_datasets import choices_made
from mtdnn_ds.train.preflight.checks import checked_tasks

if TYPE_CHECKING:
    from mtdnn_ds.data.cache.prepared_split import PreparedSplit


def run(*, recipe: str, overrides: Mapping[str, str]) -> int:
    """Prepare `recipe` (a file) with `overrides`; returns the exit code.

    Raises ConfigError, or DataError with the problems of all splits.
    """
    stages = checked_tasks(recipe, overrides)
    tokenizer_paths = [
        resolve_encoder_path(stage.recipe.encoder.tokenizer or stage.recipe.encoder.path)
        for stage, _ in stages
    ]
    choices = [line for stage, specs in stages for line in choices_made(stage.recipe, specs)]
    for line in dict.fromkeys(choices):
        print(line)

    # Tokenizers and Arrow, only once the recipe is known to be right.
    from mtdnn_ds.data.cache.build import prepare

    splits: dict[tuple[str, str, str], PreparedSplit] = {}  # stages share most of theirs
    problems: dict[str, None] = {}
    for (stage, specs), tokenizer_path in zip(stages, tokenizer_paths, strict=True):
        try:
            prepared = prepare(
                specs,
                tokenizer_path=tokenizer_path,
                cache_dir=stage.recipe.data.cache_dir,
                on_bad_row=stage.recipe.data.on_bad_row,
                trust_remote_code=stage.recipe.encoder.trust_remote_code,
            )
        except DataError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        for of_task in prepared.values():
            for split in of_task.values():
                splits[split.task, split.split, split.fingerprint] = split
    if problems:
        raise DataError(list(problems))

    folders = dict.fromkeys(stage.recipe.data.cache_dir for stage, _ in stages)
    print(f"{_summary(list(splits.values()))}, ready in {', '.join(folders)}")
    return 0


def _summary(splits: list[PreparedSplit]) -> str:
    rows = sum(split.num_rows for split in splits)
    left_out = sum(sum(split.skipped.values()) for split in splits)
    num_tasks = len({split.task for split in splits})
    return f"{len(splits)} splits of {num_tasks} tasks, {rows:,} rows ({left_out:,} left out)"
