"""One rank that counts what `engine.step()` asks of torch, by ZeRO stage: `python step_calls.py FILE`.

The model has as many tensors as BERT-large and narrow layers, so the counts are BERT-large's. FILE gets
{stage: {"tensors": ..., "calls": ..., "items": ...}} of one step after the first two, with the shipped JSON
as it is on a GPU: bf16, and at stage 0 autocast.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.processes import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig

from mtdnn_ds.config.deepspeed import load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.probe import batch_of_lengths
from mtdnn_ds.train.engine import free_memory, start_distributed, start_engine, stop_distributed, stop_engine

STAGES = (0, 1, 2, 3)
NUM_LAYERS = 24

# Operations that start no kernel: views, memory that nothing is written to, marks of a profiler.
NO_KERNELS = frozenset(
    (
        *("view", "_unsafe_view", "_reshape_alias", "as_strided", "alias", "detach", "lift_fresh", "set_"),
        *("transpose", "t", "permute", "expand", "squeeze", "unsqueeze"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "unbind"),
        *("empty", "empty_like", "empty_strided", "new_empty", "resize_", "is_pinned"),
        *("_record_function_enter_new", "_record_function_exit"),
    )
)
ITEM = "_local_scalar_dense"


class Count(TorchDispatchMode):
    """Operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_name[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def encoder(folder: Path) -> PackedEncoder:
    """BERT-large's layers, 64 wide, without the pooler."""
    config = BertConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
    )
    config.save_pretrained(folder)
    loaded = load_encoder(str(folder), attention="grouped", random_init=True, dropout="none")
    loaded.pooler.requires_grad_(False)
    return loaded


def deepspeed_config(stage: int) -> dict[str, Any]:
    """The shipped configuration of a stage, as a run on a GPU has it."""
    path = str(ROOT / f"ds_configs/zero{stage}.json")
    recipe = Recipe.model_validate({"encoder": {"path": "x"}, "tasks": ["cola"], "train": {"steps": 1}})
    resolved = resolve_deepspeed(
        load_deepspeed_json(path),
        recipe,
        device_type="cuda",
        fast_bf16=True,
        fp16_supported=True,
        world_size=1,
    )
    return resolved.config


def counts(stage: int, folder: Path) -> dict[str, int]:
    """Of the third step: the first ones make what is kept."""
    model = encoder(folder)
    batch = batch_of_lengths(np.array([3, 5, 9]))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [each for each in parameters if (each.dim() > 1) == is_matrix],
            "weight_decay": 0.01 * is_matrix,
            "lr_factor": 1.0,
        }
        for is_matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    engine = start_engine(model, optimizer, deepspeed_config(stage))

    for _ in range(3):
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(batch).float().square().sum(), scale_wrt_gas=False)
        with Count() as count:
            engine.step()
    stop_engine(engine)

    calls = sum(number for name, number in count.by_name.items() if name not in (*NO_KERNELS, ITEM))
    return {"tensors": len(parameters), "calls": calls, "items": count.by_name[ITEM]}


def main(file: Path) -> None:
    start_distributed()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            found[stage] = counts(stage, Path(folder))
            free_memory()
    file.write_text(json.dumps(found))
    stop_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
