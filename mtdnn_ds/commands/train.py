"""`train`: train a recipe. What is checked and done is said in api.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def run(
    *,
    recipe: str,
    deepspeed_config: str,
    output_dir: str | None,
    resume: str,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Train `recipe` (a file) with `overrides`; returns the exit code.

    Collective: every rank of a launcher runs this.
    """
    from mtdnn_ds import api, dist
    from mtdnn_ds.monitor.console import configure_logging
    from mtdnn_ds.runs.folder import run_folder_of

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    if output_dir:
        folder = Path(output_dir)
    else:
        folder = run_folder_of(resume) or Path("runs") / Path(recipe).stem

    api.train_recipe(recipe, deepspeed_config, folder, resume=resume, overrides=overrides)
    return 0
