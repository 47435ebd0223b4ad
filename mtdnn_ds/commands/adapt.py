"""`adapt`: how much data a new task needs, beside the plain encoder (experiments/adapt.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError

if TYPE_CHECKING:
    from mtdnn_ds.experiments.adapt import Amount


def run(
    *,
    run_dir: str,
    task: str,
    fractions: str,
    samplings: str,
    checkpoint: str,
    epochs: str,
    min_steps: str,
    head_of: str | None,
    recipe: str | None,
    deepspeed_config: str,
    output_dir: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Run the experiment; returns the exit code. Collective under a launcher.

    Raises ConfigError with every problem before the first run.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.adapt import Adaptation, adapt
    from mtdnn_ds.monitor.console import configure_logging

    adaptation = Adaptation(
        run_dir=run_dir,
        checkpoint=checkpoint,
        task=task,
        head_of=head_of,
        amount=amount_of(fractions=fractions, samplings=samplings, epochs=epochs, min_steps=min_steps),
        recipe=recipe or str(Path(run_dir) / "recipe.yaml"),
        deepspeed_config=deepspeed_config,
        overrides=overrides,
    )
    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    adapt(adaptation, Path(output_dir or f"runs/adapt_{task}"))
    return 0


def amount_of(*, fractions: str, samplings: str, epochs: str, min_steps: str) -> Amount:
    """The flags as numbers. Raises ConfigError with every one that is wrong."""
    from mtdnn_ds.experiments.adapt import Amount

    problems: list[str] = []
    parts = fractions.split(",")
    shares = [_fraction(part, problems) for part in parts]
    if len(set(shares)) < len(shares):
        problems.append(f"--fractions {fractions}: a number stands twice")

    amount = Amount(
        fractions=tuple(shares),
        samplings=_whole_number("samplings", samplings, problems),
        epochs=_positive("epochs", epochs, "a number above 0", problems),
        min_steps=_whole_number("min_steps", min_steps, problems),
    )
    if problems:
        raise ConfigError(problems)
    return amount


def _fraction(text: str, problems: list[str]) -> float:
    return _positive(
        "fractions", text, "numbers above 0 and at most 1, e.g. 0.001,0.01,0.1,1", problems, most=1
    )


def _positive(name: str, text: str, what: str, problems: list[str], *, most: float = math.inf) -> float:
    """The number; NaN, and a problem, if it is none, not above 0 or above `most`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most or math.isinf(value):
        problems.append(f"--{name} {text}: must be {what}")
    return value


def _whole_number(name: str, text: str, problems: list[str]) -> int:
    """The number; 0, and a problem, if it is no whole one above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        problems.append(f"--{name} {text}: must be a whole number, at least 1")
    return value
