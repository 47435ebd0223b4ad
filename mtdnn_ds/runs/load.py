"""A finished run as a model: run folder + checkpoint -> recipe, tasks, weights in a MultiTaskNet.

Trains nothing, no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import find_checkpoint, open_checkpoint
from mtdnn_ds.checkpoint.weights import WEIGHTS, read_weights
from mtdnn_ds.config.errors import CheckpointError, ConfigError, did_you_mean
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.folder import RunFolder, refuse_staged_folder
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mtdnn_ds.data.batches.loader import LoaderSettings
    from mtdnn_ds.model.multitask import MultiTaskNet
    from mtdnn_ds.tasks.layout import HeadLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """What a run folder says of itself, and the weights that were asked for."""

    folder: RunFolder
    recipe: Recipe  # the run's own, to be computed on any machine, in any number format
    specs: tuple[TaskSpec, ...]
    weights_folder: Path  # best/NAME or checkpoints/step_N


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A finished run's model on a device, and how micro-batches for it are cut."""

    recipe: Recipe  # its own
    specs: tuple[TaskSpec, ...]
    layout: HeadLayout
    model: MultiTaskNet
    settings: LoaderSettings
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its weights, which it computes in."""
        return next(self.model.parameters()).dtype


def find_run(
    run_dir: str,
    checkpoint: str,
    *,
    run_setting: str = "--run_dir",
    checkpoint_setting: str = "--checkpoint",
    overrides: Mapping[str, str] | None = None,
    needs_data: bool = True,
) -> FinishedRun:
    """The run in `run_dir` with its `checkpoint` (latest, step_N, best/TASK, best/average). Reads no weights.

    `overrides`: settings that differ from the run's own, as where its data are now. Without `needs_data`,
    files of the run's data may be gone.

    Raises ConfigError and CheckpointError in the words of the settings that named the two.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.recipe.is_file():
        raise ConfigError(
            f"{run_setting} {run_dir}: not a run folder (recipe.yaml is missing); "
            "give the --output_dir of a training run"
        )
    refuse_staged_folder(folder, run_setting)
    weights_folder = find_weights(folder, checkpoint, checkpoint_setting)

    recipe = load_recipe(str(folder.recipe), overrides or {})
    # Back ends that need half precision or CUDA change no weights.
    encoder = recipe.encoder.model_copy(update={"attention": "auto", "fused_layer_norm": False})
    recipe = recipe.model_copy(update={"encoder": encoder})
    return FinishedRun(
        folder=folder,
        recipe=recipe,
        specs=resolve_tasks(recipe, needs_files=needs_data),
        weights_folder=weights_folder,
    )


def load_run(
    found: FinishedRun,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    takes_weights_over: bool = False,
) -> LoadedRun:
    """The run's model with its weights; needs none of the run's data. See build_run."""
    return build_run(
        found.recipe,
        found.specs,
        lambda: read_weights(found.weights_folder),
        found.weights_folder,
        device=device,
        dtype=dtype,
        takes_weights_over=takes_weights_over,
    )


def build_run(
    recipe: Recipe,
    specs: tuple[TaskSpec, ...],
    read: Callable[[], dict[str, Tensor]],
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    takes_weights_over: bool = False,
) -> LoadedRun:
    """The recipe's model with the weights that `read` gives; `folder` names them in messages.

    It computes in `dtype` on `device`; None: in float32.

    With `takes_weights_over` they take the place of the freshly built model's instead of being copied into
    it, so that memory holds them once. Raises CheckpointError if the weights do not fit.
    """
    import torch  # with transformers, seconds: a wrong folder is refused before

    from mtdnn_ds.runs.setup import RunData, loader_settings, run_model
    from mtdnn_ds.tasks.layout import head_layout

    if dtype is None:
        dtype = torch.float32
    layout = head_layout(specs)
    data = RunData(specs=specs, layout=layout, examples={})
    model = run_model(recipe, data, device=device, compute_dtype=dtype)

    if takes_weights_over:
        forget_weights(model)
    weights = read()
    if takes_weights_over:
        for name in list(weights):  # one by one: a run in bf16 is not kept in both precisions
            weights[name] = weights[name].float().contiguous()
    load_weights(model, weights, folder, assign=takes_weights_over)

    settings = loader_settings(
        recipe,
        hidden_size=model.encoder.hidden_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        device=device,
    )
    return LoadedRun(
        recipe=recipe,
        specs=specs,
        layout=layout,
        model=model.to(device=device, dtype=dtype),
        settings=settings,
        device=device,
    )


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], folder: Path, *, assign: bool = False
) -> None:
    """Put `weights` into `model`, all of them; with `assign` as they are, without a copy.

    Raises CheckpointError naming what does not fit.
    """
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

    model.load_state_dict(weights, assign=assign)


def forget_weights(model: nn.Module) -> None:
    """Parameters without memory in place of the model's, to be assigned."""
    import torch
    from torch import nn

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)


def best_folders(folder: RunFolder, tasks: Sequence[str], otherwise: Path) -> dict[Path, list[str]]:
    """Which of `tasks` have which weights as their best: {folder of weights: tasks}, each file once.

    best/TASK of tasks that were best in one step are one file. A task that was never evaluated has those of
    `otherwise`.
    """
    first_of_file: dict[tuple[int, int], Path] = {}
    groups: dict[Path, list[str]] = {}
    for task in tasks:
        own = folder.best / task
        if not (own / WEIGHTS).is_file():
            groups.setdefault(otherwise, []).append(task)
            continue

        file = (own / WEIGHTS).stat()
        if file.st_nlink > 1:
            own = first_of_file.setdefault((file.st_dev, file.st_ino), own)
        groups.setdefault(own, []).append(task)
    return groups


def checkpoint_folders(folder: RunFolder) -> dict[str, Path]:
    """Every name that --checkpoint knows in a run, but for `latest`, with its folder. Opens none of them."""
    best = {f"best/{path.parent.name}": path.parent for path in sorted(folder.best.glob(f"*/{WEIGHTS}"))}
    return best | {path.name: path for path in sorted(folder.checkpoints.glob("step_*"))}


def find_weights(folder: RunFolder, checkpoint: str, setting: str) -> Path:
    """The folder that `checkpoint` names. Raises CheckpointError listing what there is."""
    if checkpoint == "latest":
        found = find_checkpoint(folder.checkpoints)
        if found is None:
            raise CheckpointError(
                f"{folder.checkpoints}: no checkpoint there yet; train first, or give {setting} best/average"
            )
        return found.path

    known = checkpoint_folders(folder)
    if checkpoint not in known:
        raise CheckpointError(
            f"{setting} {checkpoint}: not in {folder.path}{did_you_mean(checkpoint, [*known, 'latest'])}"
        )
    if checkpoint.startswith("step_"):
        open_checkpoint(known[checkpoint])
    return known[checkpoint]
