"""Part counter: dropout masks from counters have the same bits on CPU and GPU, and a run the same losses.

Shape legend: T packed tokens, S sequences, N heads, L longest sequence, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.precision import compared
from mtdnn_ds.check.gpu.reference import PLAIN, RUNS, losses_of_the_cpu
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.gpu.workload import glue_like_batch
from mtdnn_ds.model.dropout.counter_masks import (
    attention_dropout,
    counter_dropout,
    dropout_keys,
    row_counter_dropout,
    row_words,
)
from mtdnn_ds.train.engine import start_distributed

DROPOUT, STREAM, SEED = 0.1, 0x1234_5678_9ABC, 7
WIDTH, NUM_HEADS, LONGEST = 1000, 4, 32  # columns: no multiple of 16
LOSS_TOLERANCE = 1e-4


def look(bench: Bench) -> None:
    """Masks first, then a run with them."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, draw in DRAWS.items():
            name = f"{name}, {str(dtype).removeprefix('torch.')}"
            bench.tried(name, partial(_same, bench, name, draw, dtype))

    start_distributed()
    expected = losses_of_the_cpu(bench.scratch)["counter"]
    name = "train.dropout=counter, fp32"
    bench.tried(name, partial(compared, bench, name, PLAIN, RUNS["counter"], expected, LOSS_TOLERANCE))


def _same(bench: Bench, name: str, draw: Callable[..., Tensor], dtype: torch.dtype) -> Row:
    batch = glue_like_batch(bench.sized(4096, 256), seed=3)
    keyed = replace(batch, sequence_keys=torch.arange(batch.num_sequences) * 0x1357_9BDF, step=5)
    theirs = draw(keyed, dtype)
    ours = draw(keyed.to(bench.device), dtype).cpu()
    num_differing = int((ours != theirs).sum())
    figures = {"values": theirs.numel(), "zeros": int((theirs == 0).sum()), "differing": num_differing}
    return Row(name=name, status="failed" if num_differing else "ok", figures=figures)


def _hidden(batch: PackedBatch, dtype: torch.dtype) -> Tensor:
    keys_T = dropout_keys(batch, seed=SEED).of_token_T
    return counter_dropout(_ones(batch, len(keys_T), WIDTH, dtype=dtype), DROPOUT, keys_T, STREAM)


def _attention(batch: PackedBatch, dtype: torch.dtype) -> Tensor:
    keys_T = dropout_keys(batch, seed=SEED).of_token_T
    keys_SL = keys_T[: len(keys_T) // LONGEST * LONGEST].view(-1, LONGEST)
    ones_SNLL = _ones(batch, len(keys_SL), NUM_HEADS, LONGEST, LONGEST, dtype=dtype)
    return attention_dropout(ones_SNLL, DROPOUT, keys_SL, STREAM)


def _rows(batch: PackedBatch, dtype: torch.dtype) -> Tensor:
    keys_T = dropout_keys(batch, seed=SEED, number=1).of_token_T
    terms_T = torch.arange(len(keys_T), device=keys_T.device) % 3
    p_T = 0.05 * (1 + terms_T).to(torch.float32)
    return row_counter_dropout(_ones(batch, len(keys_T), WIDTH, dtype=dtype), p_T, keys_T, terms_T, STREAM)


def _words(batch: PackedBatch, dtype: torch.dtype) -> Tensor:
    """The words themselves: `dtype` has no part in them."""
    keys_T = dropout_keys(batch, seed=SEED).of_token_T
    return row_words(keys_T, torch.zeros_like(keys_T), STREAM, width=16)


def _ones(batch: PackedBatch, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(shape, device=batch.input_ids.device, dtype=dtype)


DRAWS: Mapping[str, Callable[[PackedBatch, torch.dtype], Tensor]] = {
    "hidden states": _hidden,
    "attention": _attention,
    "rows with a probability of their own": _rows,
    "words": _words,
}
