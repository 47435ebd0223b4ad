"""`train`: check everything that can be checked, then hand over to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtdnn_ds.commands.checks import checked_run


def run(*, recipe: str, deepspeed_config: str, output_dir: str | None, resume: str, log_level: str, overrides: Mapping[str, str]) -> int:
    """Train `recipe` (a file) with `overrides`; returns the exit code. Collective: every rank of a launcher runs this."""
    from mtdnn_ds import dist
    from mtdnn_ds.train.progress import configure_logging
    from mtdnn_ds.train.run_folder import refuse_used_folder, run_folder_of

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    folder = Path(output_dir) if output_dir else run_folder_of(resume) or Path("runs") / Path(recipe).stem
    checked = checked_run(
        recipe,
        deepspeed_config,
        overrides,
        world_size=dist.world_size(),
        goes_on=resume != "none" and any((folder / "checkpoints").glob("step_*")),
        also=lambda: refuse_used_folder(folder, resume),
    )

    from mtdnn_ds.train.engine import stop_distributed
    from mtdnn_ds.train.trainer import train

    train(checked.recipe, checked.specs, checked.deepspeed, output_dir=folder, resume=resume)
    stop_distributed()
    return 0
