"""`train`: check everything that can be checked, then hand over to the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtdnn_ds.config.stages import is_staged
from mtdnn_ds.train.preflight.checks import checked_stages


def run(
    *,
    recipe: str,
    deepspeed_config: str,
    output_dir: str | None,
    resume: str,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Train `recipe` (a file) with `overrides`; returns the exit code. Collective: every rank of a launcher runs this."""
    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging
    from mtdnn_ds.runs.folder import refuse_used_folder, run_folder_of

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    folder = Path(output_dir) if output_dir else run_folder_of(resume) or Path("runs") / Path(recipe).stem
    checked = checked_stages(
        recipe,
        deepspeed_config,
        overrides,
        world_size=dist.world_size(),
        goes_on=lambda stage: (
            resume != "none" and any((folder / stage.folder / "checkpoints").glob("step_*"))
        ),
        also=lambda: refuse_used_folder(folder, resume, staged=is_staged(recipe)),
    )

    from mtdnn_ds.train.engine import stop_distributed
    from mtdnn_ds.train.stages import stage_run, train_stages
    from mtdnn_ds.train.trainer import train

    first, only = checked[0]
    if first.name:
        train_stages(
            [stage_run(stage, run.specs, run.deepspeed, folder) for stage, run in checked], output_dir=folder
        )
    else:
        train(only.recipe, only.specs, only.deepspeed, output_dir=folder, resume=resume)
    stop_distributed()
    return 0
