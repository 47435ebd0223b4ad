"""`evaluate`: score a checkpoint or a best model of a run on every dev split. Trains nothing and needs no DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import CheckpointError, ConfigError, did_you_mean
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.tasks.resolve import resolve_tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtdnn_ds.train.run_folder import RunFolder


def run(*, run_dir: str, checkpoint: str, log_level: str) -> int:
    """Evaluate `checkpoint` (latest, step_N, best/TASK, best/average) of `run_dir` in float32. Collective under a launcher."""
    from mtdnn_ds import dist
    from mtdnn_ds.train.progress import Progress, configure_logging, format_results
    from mtdnn_ds.train.run_folder import RunFolder

    folder = RunFolder(Path(run_dir))
    if not folder.recipe.is_file():
        raise ConfigError(f"--run_dir {run_dir}: not a run folder (recipe.yaml is missing); give the --output_dir of a training run")
    weights_folder = find_weights(folder, checkpoint)
    recipe = load_recipe(str(folder.recipe), {})
    # Scored in float32 on any machine: back ends that need half precision or CUDA change no weights.
    encoder = recipe.encoder.model_copy(update={"attention": "auto", "fused_layer_norm": False})
    recipe = recipe.model_copy(update={"encoder": encoder})
    specs = resolve_tasks(recipe)

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    import torch

    from mtdnn_ds.train.engine import start_distributed, stop_distributed
    from mtdnn_ds.train.evaluate import evaluate
    from mtdnn_ds.train.results import task_results
    from mtdnn_ds.train.setup import loader_settings, prepare_run_data, run_model
    from mtdnn_ds.train.weights import read_weights

    device = start_distributed()
    say = Progress(num_steps=0, is_main=dist.is_main()).say
    data = prepare_run_data(recipe, specs, say)
    model = run_model(recipe, data, device=device, compute_dtype=torch.float32)
    load_weights(model, read_weights(weights_folder), weights_folder)
    model.to(device)
    settings = loader_settings(recipe, hidden_size=model.encoder.hidden_size, rank=dist.rank(), world_size=dist.world_size(), device=device)
    result = evaluate(model, specs, data.layout, data.examples, settings, device)
    if not result.metrics:
        raise ConfigError(f"--run_dir {run_dir}: none of its tasks has a dev split; there is nothing to evaluate")
    say(f"dev metrics of {weights_folder}:")
    say(format_results(task_results(data, result, best={}), result.average))
    stop_distributed()
    return 0


def find_weights(folder: RunFolder, checkpoint: str) -> Path:
    """The folder that `--checkpoint` names. Raises CheckpointError listing what there is."""
    from mtdnn_ds.train.checkpoint import find_checkpoint, open_checkpoint
    from mtdnn_ds.train.weights import WEIGHTS

    if checkpoint == "latest":
        found = find_checkpoint(folder.checkpoints)
        if found is None:
            raise CheckpointError(f"{folder.checkpoints}: no checkpoint there yet; train first, or give --checkpoint best/average")
        return found.path
    known = {f"best/{path.parent.name}": path.parent for path in sorted(folder.best.glob(f"*/{WEIGHTS}"))}
    known |= {path.name: path for path in sorted(folder.checkpoints.glob("step_*"))}
    if checkpoint not in known:
        raise CheckpointError(f"--checkpoint {checkpoint}: not in {folder.path}{did_you_mean(checkpoint, [*known, 'latest'])}")
    if checkpoint.startswith("step_"):
        open_checkpoint(known[checkpoint])
    return known[checkpoint]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put `weights` into `model`, all of them. Raises CheckpointError naming what does not fit."""
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not part of this model" for name in weights if name not in expected]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(expected[name].shape)} in the model"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    if wrong:
        raise CheckpointError([f"{folder}: {line}" for line in wrong[:8]])
    model.load_state_dict(weights)
