"""`verify`: a recipe's promises, measured with small runs on its own tasks and machine, as a certificate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtdnn_ds.config.deepspeed import load_deepspeed_json
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.train.preflight.checks import checked_tasks


def run(
    *,
    recipe: str,
    deepspeed_config: str,
    max_ranks: str,
    certificate: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Print the certificate of `recipe`; returns 1 if a promise does not hold.

    Starts its own processes: call it without a launcher.
    """
    if not max_ranks.isdigit() or int(max_ranks) < 1:
        raise ConfigError(f"--max_ranks {max_ranks}: must be a whole number, at least 1")
    own_json = load_deepspeed_json(deepspeed_config)
    stages = [stage for stage, _ in checked_tasks(recipe, overrides)]
    if certificate is not None and not Path(certificate).absolute().parent.is_dir():
        raise ConfigError(f"--certificate {certificate}: its folder does not exist")

    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, 0)  # type: ignore[arg-type]

    from mtdnn_ds.check.verify.certificate import certificate_json
    from mtdnn_ds.check.verify.stages import verify_stages

    results = verify_stages(stages, own_json, recipe_name=recipe, max_ranks=int(max_ranks))
    if certificate is not None:
        Path(certificate).write_text(certificate_json(results, recipe))
    return int(any(result.holds is False for result in results))
