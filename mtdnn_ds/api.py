"""What the command line does, from Python: train a recipe, evaluate a run, export it.

Parses and prints nothing.

`train`, `evaluate` and `export` are for programs: one process, as in a notebook, or every rank of a launcher
that runs a script. Each call ends as a command does: no process group stays behind, and what a command
refuses is raised as a UserError with all problems. The verbs call `train_recipe`, `evaluate_run` and
`export`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.launch import take_place
from mtdnn_ds.config.precision import Dtype
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.shipped import shipped_file

if TYPE_CHECKING:
    from mtdnn_ds.export.run import ExportedFolder
    from mtdnn_ds.runs.evaluate import Evaluation

DEEPSPEED_JSON = "ds_configs/zero2.json"

log = logging.getLogger(__name__)


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    output_dir: str | Path,
    *,
    deepspeed_config: str | Path | Mapping[str, Any] | None = None,
    resume: str = "none",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Train `recipe` and return its run folder, `output_dir`.

    Collective: every rank of a launcher calls this.

    `recipe`: a YAML file, what stands in one, or a Recipe. `deepspeed_config`: a JSON file or what stands in
    one; default: ZeRO 2. `settings` go over the recipe's: {"train.steps": 100}. Raises UserErrors as the
    command `train` says them, and Stopped.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging, speaking

    overrides = {name: _as_text(value) for name, value in (settings or {}).items()}
    with _in_a_program(), speaking():
        configure_logging("warning", dist.rank())
        train_recipe(
            _recipe_source(recipe),
            _json_source(deepspeed_config),
            Path(output_dir),
            resume=resume,
            overrides=overrides,
        )
    return Path(output_dir)


def evaluate(run_dir: str | Path, *, checkpoint: str = "best/average", dtype: Dtype = "auto") -> Evaluation:
    """Scores of a run's `checkpoint` (best/average, best/TASK, step_N, latest) on every dev split.

    `dtype`: the number format that it computes in, as MultiTaskModel.from_pretrained has it.

    `.metrics`: task -> metric -> value; `.scores`: task -> its score; `.average`: of the scores. Collective
    like `train`.
    """
    with _in_a_program():
        return evaluate_run(str(run_dir), checkpoint, dtype)


def export(
    run_dir: str | Path,
    output_dir: str | Path | None = None,
    *,
    task: str | None = None,
    checkpoint: str = "best",
    format: str = "hf",
) -> list[ExportedFolder]:
    """Write the run's whole model and every task, or one `task`, as folders for other programs.

    Each is compared with the run first. `format`: hf, onnx, sentence-transformers or all. What each of the
    others means is said in docs/export.md. In one process.
    """
    from mtdnn_ds.export.run import export_run

    folder = None if output_dir is None else str(output_dir)
    return export_run(str(run_dir), folder, task=task, checkpoint=checkpoint, format=format)


def train_recipe(
    recipe: str, deepspeed_config: str, output_dir: Path, *, resume: str, overrides: Mapping[str, str]
) -> None:
    """Check everything that can be checked, then train. Collective: every rank calls this.

    `recipe`, `deepspeed_config`: files, or a GivenText. `overrides`: settings as raw text. Raises UserErrors,
    and Stopped; the process group is left at the end only, so that a failing rank waits for nobody.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.config.stages import is_staged
    from mtdnn_ds.runs.folder import refuse_used_folder
    from mtdnn_ds.train.preflight.checks import checked_stages

    def goes_on(folder: str) -> bool:
        checkpoints = output_dir / folder / "checkpoints"
        return resume != "none" and any(checkpoints.glob("step_*"))

    checked = checked_stages(
        recipe,
        deepspeed_config,
        overrides,
        world_size=dist.world_size(),
        goes_on=goes_on,
        also=lambda: refuse_used_folder(output_dir, resume, staged=is_staged(recipe)),
    )

    from mtdnn_ds.train.engine import stop_distributed
    from mtdnn_ds.train.stages import stage_run, train_stages
    from mtdnn_ds.train.trainer import train

    first, only = checked[0]
    if first.name:
        runs = [stage_run(stage, run.specs, run.deepspeed, output_dir) for stage, run in checked]
        train_stages(runs, output_dir=output_dir)
    else:
        train(only.recipe, only.specs, only.deepspeed, output_dir=output_dir, resume=resume)
    stop_distributed()


def evaluate_run(run_dir: str, checkpoint: str, dtype: str) -> Evaluation:
    """The evaluation of a run, in the number format `dtype`, which is also logged as a table.

    Collective; joins and leaves a process group. Raises ConfigError and CheckpointError.
    """
    from mtdnn_ds.runs.load import find_run, load_run
    from mtdnn_ds.tasks.glue import glue_table

    found = find_run(run_dir, checkpoint)

    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.evaluate import evaluate
    from mtdnn_ds.runs.number_format import answering_dtype
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed
    from mtdnn_ds.train.results import format_results, task_results

    device = start_distributed()
    with watching(found.recipe.train.stall_timeout):
        data = prepare_run_data(found.recipe, found.specs)
        loaded = load_run(found, device=device, dtype=answering_dtype(dtype, device))
        result = evaluate(loaded.model, data, loaded.settings, device)
        if not result.metrics:
            raise ConfigError(
                f"--run_dir {run_dir}: none of its tasks has a dev split; there is nothing to evaluate"
            )

        log.info(f"dev metrics of {found.weights_folder}:")
        log.info(format_results(task_results(data, result, best={}), result.average))
        glue = glue_table(result.metrics)
        if glue:
            log.info(f"\nGLUE, on the dev sets:\n{glue}")
    stop_distributed()
    return result


@contextmanager
def _in_a_program() -> Iterator[None]:
    """This process takes its place among the ranks, and whatever happens is in no process group after it."""
    take_place()
    try:
        yield
    except BaseException:
        from mtdnn_ds.train.engine import stop_distributed

        stop_distributed()
        raise


def _recipe_source(recipe: str | Path | Mapping[str, Any] | Recipe) -> str:
    from mtdnn_ds.config.load import resolved_values
    from mtdnn_ds.config.text_files import GivenText
    from mtdnn_ds.config.yaml_text import dump_yaml

    if isinstance(recipe, Recipe):
        recipe = resolved_values(recipe)
    if isinstance(recipe, Mapping):
        return GivenText("recipe", dump_yaml(dict(recipe)))
    return str(recipe)


def _json_source(deepspeed_config: str | Path | Mapping[str, Any] | None) -> str:
    from mtdnn_ds.config.text_files import GivenText

    if isinstance(deepspeed_config, Mapping):
        return GivenText("deepspeed_config", json.dumps(deepspeed_config))
    return str(deepspeed_config or shipped_file(DEEPSPEED_JSON))


def _as_text(value: Any) -> str:
    """A setting as a flag would have it."""
    return value if isinstance(value, str) else json.dumps(value)
