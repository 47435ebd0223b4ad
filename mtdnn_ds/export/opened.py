"""A run opened to be exported: its model once in memory, and what its folder says of how it came about. Writes nothing.

Memory: the weights take the place of the freshly built model's instead of being copied into it; those of best/NAME stay in their
memory-mapped file until they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.weights import BEST, file_sha256, read_weights
from mtdnn_ds.config.encoder_path import WEIGHTS_FILE, resolve_encoder_path
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import SpecialTokens, load_tokenizer, special_tokens
from mtdnn_ds.export.plain import plain_config
from mtdnn_ds.export.samples import prepared_splits
from mtdnn_ds.runs.load import FinishedRun, LoadedRun, find_run, load_weights
from mtdnn_ds.runs.setup import RunData, loader_settings, recipe_sharing, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.sharing import Sharing


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a run folder says of a model. Plain values."""

    run: str  # name of its folder
    checkpoint: str
    step: int | None
    metrics: dict[
        str, dict[str, float]
    ]  # task -> metric -> value on dev rows, of the evaluation at that step
    seed: int
    plan_fingerprint: str | None
    encoder: str  # as the recipe names it; of a folder of this machine its last name
    encoder_sha256: str | None  # of its model.safetensors
    environment: dict[str, Any]
    rows: dict[str, dict[str, int]]  # task -> split -> rows, as far as the run's cache knows


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Everything that exports read."""

    loaded: LoadedRun  # in evaluation mode
    weights: dict[str, Tensor]  # the model's own, float32
    sharing: Sharing
    config: PreTrainedConfig
    tokenizer: Any  # padding and truncation off
    specials: SpecialTokens
    prepared: dict[str, dict[str, PreparedSplit]]
    facts: Facts


def open_run(run_dir: str, checkpoint: str) -> Opened:
    """The run in `run_dir` with its `checkpoint` on the CPU. Raises ConfigError and CheckpointError in the words of the command line."""
    found = find_run(run_dir, checkpoint, needs_data=False)
    if found.recipe.encoder.trust_remote_code:
        raise ConfigError(
            f"--run_dir {run_dir}: its encoder came with trust_remote_code, so its folders would need its repository's own code; such a run is not exported"
        )
    loaded = _load(found)
    path = resolve_encoder_path(found.recipe.encoder.tokenizer or found.recipe.encoder.path)
    tokenizer = load_tokenizer(path)
    specials = special_tokens(tokenizer)  # switches padding and truncation off
    tokenizer.model_max_length = min(tokenizer.model_max_length, loaded.model.encoder.max_positions)
    prepared = prepared_splits(found.recipe, found.specs)
    return Opened(
        loaded=loaded,
        weights=dict(loaded.model.state_dict()),
        sharing=recipe_sharing(found.recipe),
        config=plain_config(loaded.model.encoder.config),
        tokenizer=tokenizer,
        specials=specials,
        prepared=prepared,
        facts=_facts(found, checkpoint, prepared),
    )


def _load(found: FinishedRun) -> LoadedRun:
    layout, device = head_layout(found.specs), torch.device("cpu")
    data = RunData(specs=found.specs, layout=layout, examples={})
    model = run_model(found.recipe, data, device=device, compute_dtype=torch.float32)
    forget_weights(model)
    weights = read_weights(found.weights_folder)
    for name in list(weights):  # one by one: a run in bf16 is not kept in both precisions
        weights[name] = weights[name].float().contiguous()
    load_weights(model, weights, found.weights_folder, assign=True)
    hidden_size = model.encoder.hidden_size
    settings = loader_settings(
        found.recipe, hidden_size=hidden_size, rank=dist.rank(), world_size=dist.world_size(), device=device
    )
    return LoadedRun(
        recipe=found.recipe,
        specs=found.specs,
        layout=layout,
        model=model.eval(),
        settings=settings,
        device=device,
    )


def forget_weights(model: nn.Module) -> None:
    """Parameters without memory in place of the model's, to be assigned."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
                )


def _facts(found: FinishedRun, checkpoint: str, prepared: Mapping[str, Mapping[str, PreparedSplit]]) -> Facts:
    encoder = found.recipe.encoder
    about = _json(found.weights_folder / BEST) or _json(found.weights_folder / "run_state.json")
    step = about.get("step")
    states = [_json(path) for path in sorted(found.folder.checkpoints.glob("step_*/run_state.json"))]
    plans = [state["plan"]["fingerprint"] for state in states if "fingerprint" in state.get("plan", {})]
    file = Path(resolve_encoder_path(encoder.path)) / WEIGHTS_FILE
    return Facts(
        run=found.folder.path.resolve().name,
        checkpoint=checkpoint,
        step=step,
        metrics=_metrics(found, step),
        seed=found.recipe.train.seed,
        plan_fingerprint=plans[-1] if plans else None,
        encoder=Path(encoder.path).expanduser().resolve().name
        if Path(encoder.path).expanduser().is_dir()
        else encoder.path,
        encoder_sha256=encoder.sha256
        or (file_sha256(file) if file.is_file() and not encoder.random_init else None),
        environment=_json(found.folder.path / "environment.json"),
        rows={
            task: {split: rows.num_rows for split, rows in splits.items()}
            for task, splits in prepared.items()
        },
    )


def _metrics(found: FinishedRun, step: int | None) -> dict[str, dict[str, float]]:
    """Of every task, from the evaluation after `step`, the last where it was evaluated several times."""
    result: dict[str, dict[str, float]] = {}
    if found.folder.metrics.is_file():
        for text in found.folder.metrics.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the line that a killed run was writing
                continue
            if "eval" in line and line.get("step") == step:
                result = line["eval"]
    return result


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return value if isinstance(value, dict) else {}
