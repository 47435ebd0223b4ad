"""One rank that counts what the end of an optimizer step asks of torch, by ZeRO stage: `python step_calls.py
FILE`.

The model has as many tensors as BERT-large and narrow layers, so the counts are BERT-large's. FILE gets
{stage: {"tensors": ..., "calls": ..., "reads": ...}} of one step after the first two, with the shipped JSON
as it is on a GPU: bf16, and at stage 0 autocast. A read is what a GPU has to be waited for: the one of
train/step/step_read.py, and each `.item()` of a tensor that is not on the host since then.
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
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import BertConfig

from mtdnn_ds.config.deepspeed import load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.probe import batch_of_lengths
from mtdnn_ds.train.engine import free_memory, start_distributed, start_engine, stop_distributed, stop_engine
from mtdnn_ds.train.step.optimizer_step import gradient_norm
from mtdnn_ds.train.step.step_read import StepRead

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
    """Operations of torch by name, and reads. `on_host`: tensors that a GPU's run has on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.reads = 0
        self.on_host = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        is_on_host = bool(inputs) and all(each in self.on_host for each in inputs)
        self.by_name[name] += 1
        self.reads += name == ITEM and not is_on_host

        outputs = func(*args, **(kwargs or {}))
        if is_on_host:
            self.mark(outputs)
        return outputs

    def mark(self, tensors: Any) -> None:
        for each in tree_leaves(tensors):
            if isinstance(each, torch.Tensor):
                self.on_host[each] = True

    def watch(self, read: StepRead) -> None:
        """Counts the reads of train/step/step_read.py, whose results are on the host."""
        with_norms = StepRead.with_norms.__get__(read)

        def counted(norms_G: torch.Tensor) -> torch.Tensor:
            reads = self.reads + 1  # what follows the transfer in there is looked at on the host
            found = with_norms(norms_G)
            self.reads = reads
            self.mark(found)
            return found

        read.with_norms = counted  # type: ignore[method-assign]


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
    read = StepRead(engine)

    for _ in range(3):
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(batch).float().square().sum(), scale_wrt_gas=False)
        read.expect(torch.zeros(2, 9))
        with Count() as count:  # as train/step/optimizer_step.py has it
            count.watch(read)
            if not read.joins:
                read.with_norms(gradient_norm(engine))
            engine.step()
            float(engine.get_global_grad_norm() or 0)
    stop_engine(engine)

    calls = sum(number for name, number in count.by_name.items() if name not in (*NO_KERNELS, ITEM))
    return {"tensors": len(parameters), "calls": calls, "reads": count.reads}


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
