"""One rank of verify's runs: `python -m mtdnn_ds.check.verify.worker JOBS.json`.

Compares nothing but hidden states with transformers'.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtdnn_ds.check.tiny_runs import resolved_json, training_only
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.monitor.console import configure_logging
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.engine import start_distributed, stop_distributed
from mtdnn_ds.train.trainer import train

if TYPE_CHECKING:
    from mtdnn_ds.batch import PackedBatch
    from mtdnn_ds.model.encoder import PackedEncoder
    from mtdnn_ds.runs.setup import RunData

log = logging.getLogger(__name__)

HIDDEN = "hidden.json"


def main(jobs_file: str) -> None:
    """Do every job of the file. Collective: all ranks run this."""
    configure_logging("error", 0)
    for job in json.loads(Path(jobs_file).read_text()):
        recipe = load_recipe(job["recipe"], {})
        specs = training_only(resolve_tasks(recipe))
        if job["kind"] == "hidden":
            compare_hidden_states(recipe, specs, Path(job["output_dir"]))
        else:
            deepspeed = resolved_json(Path(job["deepspeed"]), recipe)
            output_dir = Path(job["output_dir"])
            train(recipe, specs, deepspeed, output_dir=output_dir, resume=job["resume"], quiet=True)
    stop_distributed()


def compare_hidden_states(recipe: Recipe, specs: tuple[TaskSpec, ...], output_dir: Path) -> None:
    """Packed hidden states of the first step's sequences against transformers' own model in float64, each
    sequence alone. Writes the largest difference to `output_dir`; None where the encoder is not one model.
    """
    from mtdnn_ds.model.encoder import PackedEncoder
    from mtdnn_ds.runs.setup import prepare_run_data, run_model

    device = start_distributed()
    data = prepare_run_data(recipe, specs)
    model = run_model(recipe, data, device=device, compute_dtype=torch.float32).eval()
    difference = None
    if isinstance(model.encoder, PackedEncoder):
        difference = _largest_difference(recipe, data, model.encoder.to(device), device)

    output_dir.mkdir(parents=True)
    (output_dir / HIDDEN).write_text(json.dumps({"difference": difference}))


@torch.no_grad()
def _largest_difference(recipe: Recipe, data: RunData, encoder: PackedEncoder, device: torch.device) -> float:
    from mtdnn_ds.data.batches.loader import TrainLoader
    from mtdnn_ds.runs.setup import build_plan, loader_settings

    theirs = _transformers_model(recipe, encoder)
    takes_types = encoder._accepts_token_types and encoder._has_token_types
    settings = loader_settings(recipe, hidden_size=encoder.hidden_size, rank=0, world_size=1, device=device)
    plan = build_plan(recipe, data)
    largest = 0.0
    with TrainLoader(plan, data.train_sets, data.layout, settings, first_step=1, last_step=1) as loader:
        for batch in next(iter(loader)).micro_batches:
            ours_TD = encoder(batch.to(device)).cpu().double()
            theirs_TD = _unpacked_states(theirs, batch, takes_types)
            largest = max(largest, float((ours_TD - theirs_TD).abs().max()))
    return largest


def _transformers_model(recipe: Recipe, encoder: PackedEncoder) -> torch.nn.Module:
    """transformers' own model in float64 with the encoder's weights."""
    from transformers import AutoModel

    model = AutoModel.from_config(
        copy.deepcopy(encoder.config),  # from_config would put its attention into ours
        attn_implementation="eager",
        trust_remote_code=recipe.encoder.trust_remote_code,
    )
    model.load_state_dict(encoder.model.state_dict(), strict=False)  # ours keeps the pooler elsewhere
    return model.double().eval()


def _unpacked_states(model: torch.nn.Module, batch: PackedBatch, takes_types: bool) -> torch.Tensor:
    """(T, D): each sequence alone, laid end to end."""
    lengths = batch.cu_seqlens.diff().tolist()
    ids_of, types_of = batch.input_ids.split(lengths), batch.token_type_ids.split(lengths)
    states = []
    for ids, types in zip(ids_of, types_of, strict=True):
        optional = {"token_type_ids": types[None]} if takes_types else {}
        mask = torch.ones_like(ids)[None]
        states.append(model(input_ids=ids[None], attention_mask=mask, **optional)[0][0])
    return torch.cat(states)


if __name__ == "__main__":
    main(sys.argv[1])
