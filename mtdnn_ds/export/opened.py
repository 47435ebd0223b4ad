"""A run opened to be exported: its model once in memory, and what its folder says of it. Writes nothing.

Memory: the weights take the place of the freshly built model's instead of being copied into it; those of
best/NAME stay in their memory-mapped file until they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mtdnn_ds.checkpoint.weights import BEST
from mtdnn_ds.config.encoder_path import WEIGHTS_FILE, resolve_encoder_path
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.recipe import EncoderSettings
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import SpecialTokens, load_tokenizer, special_tokens
from mtdnn_ds.export.plain import plain_config
from mtdnn_ds.export.samples import prepared_splits
from mtdnn_ds.files import file_sha256
from mtdnn_ds.runs.load import FinishedRun, LoadedRun, find_run, load_run
from mtdnn_ds.runs.setup import recipe_sharing
from mtdnn_ds.tasks.sharing import Sharing


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
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
class SourceRun:
    """Everything that exports read of a run."""

    loaded: LoadedRun  # in evaluation mode
    weights: dict[str, Tensor]  # the model's own, float32
    sharing: Sharing
    config: PreTrainedConfig
    tokenizer: Any  # padding and truncation off
    specials: SpecialTokens
    prepared: dict[str, dict[str, PreparedSplit]]
    facts: RunFacts


def open_run(run_dir: str, checkpoint: str) -> SourceRun:
    """The run in `run_dir` with its `checkpoint` on the CPU.

    Raises ConfigError and CheckpointError in the words of the command line.
    """
    found = find_run(run_dir, checkpoint, needs_data=False)
    if found.recipe.encoder.trust_remote_code:
        raise ConfigError(
            f"--run_dir {run_dir}: its encoder came with trust_remote_code, so its folders would need its "
            "repository's own code; such a run is not exported"
        )
    loaded = load_run(found, device=torch.device("cpu"), takes_weights_over=True)
    loaded.model.eval()

    tokenizer = load_tokenizer(
        resolve_encoder_path(found.recipe.encoder.tokenizer or found.recipe.encoder.path)
    )
    specials = special_tokens(tokenizer)  # switches padding and truncation off
    tokenizer.model_max_length = min(tokenizer.model_max_length, loaded.model.encoder.max_positions)
    prepared = prepared_splits(found.recipe, found.specs)
    return SourceRun(
        loaded=loaded,
        weights=dict(loaded.model.state_dict()),
        sharing=recipe_sharing(found.recipe),
        config=plain_config(loaded.model.encoder.config),
        tokenizer=tokenizer,
        specials=specials,
        prepared=prepared,
        facts=_facts(found, checkpoint, prepared),
    )


def _facts(
    found: FinishedRun, checkpoint: str, prepared: Mapping[str, Mapping[str, PreparedSplit]]
) -> RunFacts:
    encoder = found.recipe.encoder
    about = _json(found.weights_folder / BEST) or _json(found.weights_folder / "run_state.json")
    step = about.get("step")

    states = [_json(path) for path in sorted(found.folder.checkpoints.glob("step_*/run_state.json"))]
    plans = [state["plan"]["fingerprint"] for state in states if "fingerprint" in state.get("plan", {})]
    rows = {}
    for task, splits in prepared.items():
        rows[task] = {name: split.num_rows for name, split in splits.items()}

    return RunFacts(
        run=found.folder.path.resolve().name,
        checkpoint=checkpoint,
        step=step,
        metrics=_metrics(found, step),
        seed=found.recipe.train.seed,
        plan_fingerprint=plans[-1] if plans else None,
        encoder=_encoder_name(encoder.path),
        encoder_sha256=_encoder_sha256(encoder),
        environment=_json(found.folder.path / "environment.json"),
        rows=rows,
    )


def _encoder_name(path: str) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    return folder.resolve().name


def _encoder_sha256(encoder: EncoderSettings) -> str | None:
    """Of the weights that the run began with, as far as they are known or still there."""
    if encoder.sha256:
        return encoder.sha256

    file = Path(resolve_encoder_path(encoder.path)) / WEIGHTS_FILE
    if encoder.random_init or not file.is_file():
        return None
    return file_sha256(file)


def _metrics(found: FinishedRun, step: int | None) -> dict[str, dict[str, float]]:
    """Of every task, from the evaluation after `step`, the last where it was evaluated several times."""
    result: dict[str, dict[str, float]] = {}
    if not found.folder.metrics.is_file():
        return result

    for text in found.folder.metrics.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the line that a killed run was writing
            continue
        if "eval" in line and line.get("step") == step:
            result = line["eval"]
    return result


def _json(path: Path) -> dict[str, Any]:
    """The file's object; empty if there is no such file. Raises CheckpointError."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        return {}
    return value
