"""`train`: check everything that can be checked, all problems in one message, then hand over to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.tasks.resolve import resolve_tasks

Result = TypeVar("Result")


class Problems:
    """Runs checks that may raise ConfigError and raises all of their problems together."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def check(self, function: Callable[[], Result]) -> Result | None:
        """`function()`, or None if it refused."""
        try:
            return function()
        except ConfigError as error:
            self._problems += [problem for problem in error.problems if problem not in self._problems]
            return None

    def refuse(self) -> None:
        """Raise ConfigError if any check has refused."""
        if self._problems:
            raise ConfigError(self._problems)


def run(*, recipe: str, deepspeed_config: str, output_dir: str | None, resume: str, log_level: str, overrides: Mapping[str, str]) -> int:
    """Train `recipe` (a file) with `overrides`; returns the exit code. Collective: every rank of a launcher runs this."""
    from mtdnn_ds import dist
    from mtdnn_ds.train.progress import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    from mtdnn_ds.config.deepspeed import load_deepspeed_json, resolve_deepspeed
    from mtdnn_ds.train.run_folder import refuse_used_folder

    folder = Path(output_dir) if output_dir else Path("runs") / Path(recipe).stem
    problems = Problems()
    settings = problems.check(lambda: load_recipe(recipe, overrides))
    json = problems.check(lambda: load_deepspeed_json(deepspeed_config))
    problems.check(lambda: refuse_used_folder(folder, resume))
    specs = None
    if settings is not None:
        specs = problems.check(lambda: resolve_tasks(settings))
        problems.check(lambda: resolve_encoder_path(settings.encoder.path))
        if settings.encoder.tokenizer:
            problems.check(lambda: resolve_encoder_path(settings.encoder.tokenizer))
    resolved = None
    if settings is not None and json is not None:
        from mtdnn_ds.train.device import probe_device

        device = probe_device()
        resolved = problems.check(
            lambda: resolve_deepspeed(
                json,
                settings,
                device_type=device.type,
                fast_bf16=device.fast_bf16,
                fp16_supported=device.fp16,
                world_size=dist.world_size(),
                source=deepspeed_config,
            )
        )
    problems.refuse()
    assert settings is not None and specs is not None and resolved is not None

    from mtdnn_ds.train.engine import stop_distributed
    from mtdnn_ds.train.trainer import train

    train(settings, specs, resolved, output_dir=folder, resume=resume)
    stop_distributed()
    return 0
