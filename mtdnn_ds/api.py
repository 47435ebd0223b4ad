"""What the command line does, from Python: train a recipe, evaluate a run, export it. The same code and the same checks; nothing of its own.

One process, as in a notebook, or every rank of a launcher that runs a script. Each call ends as a command does: no process group
stays behind, and what a command refuses is raised as a UserError with all problems.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtdnn_ds.cli import shipped_file
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.launch import take_place
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.yaml_text import dump_yaml

if TYPE_CHECKING:
    from mtdnn_ds.export.run import Exported
    from mtdnn_ds.runs.evaluate import Evaluation

DEEPSPEED_JSON = "ds_configs/zero2.json"


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    output_dir: str | Path,
    *,
    deepspeed_config: str | Path | Mapping[str, Any] | None = None,
    resume: str = "none",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Train `recipe` and return its run folder, `output_dir`. Collective: every rank of a launcher calls this.

    `recipe`: a YAML file, what stands in one, or a Recipe. `deepspeed_config`: a JSON file or what stands in one; default: ZeRO 2.
    `settings` go over the recipe's: {"train.steps": 100}. Raises UserErrors as the command `train` says them, and Stopped.
    """
    from mtdnn_ds.commands.train import run
    from mtdnn_ds.config.load import resolved_values

    with _as_a_command(), tempfile.TemporaryDirectory(prefix="mtdnn_ds-") as folder:
        written = Path(folder)
        if isinstance(recipe, Recipe):
            recipe = resolved_values(recipe)
        if isinstance(recipe, Mapping):
            (written / "recipe.yaml").write_text(dump_yaml(dict(recipe)), encoding="utf-8")
            recipe = written / "recipe.yaml"
        if isinstance(deepspeed_config, Mapping):
            (written / "deepspeed.json").write_text(json.dumps(deepspeed_config), encoding="utf-8")
            deepspeed_config = written / "deepspeed.json"
        with _naming({written / "recipe.yaml": "recipe", written / "deepspeed.json": "deepspeed_config"}):
            run(
                recipe=str(recipe),
                deepspeed_config=str(deepspeed_config or shipped_file(DEEPSPEED_JSON)),
                output_dir=str(output_dir),
                resume=resume,
                log_level="warning",
                overrides={
                    name: value if isinstance(value, str) else json.dumps(value)
                    for name, value in (settings or {}).items()
                },
            )
    return Path(output_dir)


def evaluate(run_dir: str | Path, *, checkpoint: str = "best/average") -> Evaluation:
    """Scores of a run's `checkpoint` (best/average, best/TASK, step_N, latest) on every dev split. Collective like `train`.

    `.metrics`: task -> metric -> value; `.scores`: task -> its score; `.average`: of the scores.
    """
    from mtdnn_ds.commands.evaluate import evaluated

    with _as_a_command():
        return evaluated(str(run_dir), checkpoint, lambda text: None)


def export(
    run_dir: str | Path,
    output_dir: str | Path | None = None,
    *,
    task: str | None = None,
    checkpoint: str = "best",
    format: str = "hf",
) -> list[Exported]:
    """Write the run's whole model and every task, or one `task`, as folders for other programs; each is compared with the run first.

    `format`: hf, onnx, sentence-transformers or all. What each of the others means is said in docs/export.md. In one process.
    """
    from mtdnn_ds.export.run import export_run

    return export_run(
        str(run_dir),
        None if output_dir is None else str(output_dir),
        task=task,
        checkpoint=checkpoint,
        format=format,
    )


@contextmanager
def _naming(names: Mapping[Path, str]) -> Iterator[None]:
    """Refusals that name one of the files say what the caller knows it by."""
    try:
        yield
    except ConfigError as error:
        problems = error.problems
        for path, name in names.items():
            problems = tuple(problem.replace(str(path), name) for problem in problems)
        raise ConfigError(problems) from error


@contextmanager
def _as_a_command() -> Iterator[None]:
    """This process takes its place among the ranks, and whatever happens is in no process group after it."""
    take_place()
    try:
        yield
    except BaseException:
        from mtdnn_ds.train.engine import stop_distributed

        stop_distributed()
        raise
