"""`compare`: a recipe's tasks alone, in sequence and together (experiments/compare.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError


def run(
    *,
    recipe: str,
    seeds: str,
    deepspeed_config: str,
    output_dir: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Run the experiment; returns the exit code. Collective under a launcher.

    Raises ConfigError with every problem before the first run.
    """
    if not seeds.isdecimal() or int(seeds) < 1:
        raise ConfigError(f"--seeds {seeds}: must be a whole number, at least 1")

    from mtdnn_ds import dist
    from mtdnn_ds.experiments.compare import Comparison, compare
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    comparison = Comparison(
        recipe=recipe, num_seeds=int(seeds), deepspeed_config=deepspeed_config, overrides=overrides
    )
    compare(comparison, Path(output_dir or f"runs/compare_{Path(recipe).stem}"))
    return 0
