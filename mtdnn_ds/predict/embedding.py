"""Embeddings: what the encoder makes of texts, its first token's hidden state or the mean over all tokens, as AutoModel gives them.

Shape legend: R rows, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import ConfigError, DataError, did_you_mean
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.sources.lines import RowProblem
from mtdnn_ds.model.attention import padded_group, unpad
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.mean_pooler import MeanPooler
from mtdnn_ds.predict.inputs import TaskInput, read_as, rows_of
from mtdnn_ds.predict.model import MultiTaskModel, Pooling
from mtdnn_ds.predict.passes import micro_batches
from mtdnn_ds.predict.sets import set_of_rows, truncated_rows
from mtdnn_ds.predict.views import View, parsed, views_of


def embed(
    model: MultiTaskModel,
    texts: Sequence[Any],
    pooling: Pooling = "cls",
    *,
    layer: int = -1,
    task: str | None = None,
) -> np.ndarray:
    """(R, D) float32, one row a text. See MultiTaskModel.embed."""
    rows = rows_of(texts)
    view_of: dict[tuple[str, ...], View] = {}
    members: dict[tuple[str, ...], list[tuple[int, CheckedRow]]] = {}
    problems = []
    for number, row in enumerate(rows):
        columns = tuple(row)
        if columns not in view_of:
            view_of[columns] = embedding_view(model, columns, task=task)
        one = parsed([view_of[columns]], number + 1, row)
        if isinstance(one, RowProblem):
            problems.append(f"text {number + 1}: {one.detail}")
        else:
            members.setdefault(columns, []).append((number, one[0]))
    if problems:
        raise DataError(problems[:10])
    found = np.zeros((len(rows), model.net.encoder.hidden_size), dtype=np.float32)
    for columns, own in members.items():
        checked = [row for _, row in own]
        found[[number for number, _ in own]] = embed_checked(
            model, view_of[columns], checked, pooling=pooling, layer=layer
        )[0]
    return found


def embedding_view(
    model: MultiTaskModel, columns: Sequence[str], *, task: str | None, chosen: Sequence[str] = ()
) -> View:
    """How a row's one or two texts become a sequence. Raises ConfigError if its columns are none, or `task` is needed or has no effect."""
    shares = model.sharing.mode == "hard"
    names = [spec.name for spec in model.specs]
    if task is not None and (shares or task not in names):
        raise ConfigError(
            f"--task {task}: has no effect, all tasks of this model share one encoder; leave it out"
            if shares
            else f"--task {task}: the model has no task '{task}'{did_you_mean(task, names)}"
        )
    if task is None and not shares:
        raise ConfigError(
            f"--task: missing; {model.sharing.mode} sharing has several encoders: name the task whose encoder embeds"
        )
    number = 0 if task is None else names.index(task)
    kinds = (TaskInput(kind="text", texts=()), TaskInput(kind="pair", texts=()))
    reading = next(
        (found for reads in kinds if (found := read_as(number, reads, columns, chosen)) is not None), None
    )
    if reading is None:
        given = ", ".join(f"'{name}'" for name in columns)
        raise ConfigError(
            f"an input of {given}: none of these is known to hold texts; name one column or two with --text_columns"
        )
    (view,) = views_of(
        [reading], model.specs, lane_of=dict(enumerate(model.lanes)), word_prefix="", truncates_left=False, is_list=frozenset()
    )  # fmt: skip
    return view


def embed_checked(
    model: MultiTaskModel,
    view: View,
    rows: Sequence[CheckedRow],
    *,
    pooling: Pooling,
    layer: int,
    max_tokens: int | None = None,
) -> tuple[np.ndarray, int]:
    """(R, D) float32, and how many rows lost tokens to encoder.max_length."""
    if pooling not in get_args(Pooling):
        raise ConfigError(f"--pooling {pooling}: must be one of {', '.join(get_args(Pooling))}")
    part = set_of_rows(view, rows, model.layout, model.lanes, model.tokenizing)
    found = np.zeros((len(rows), model.net.encoder.hidden_size), dtype=np.float32)
    batches = micro_batches(
        [part], model.layout, model.lanes, model.sharing, filler_ids=model.settings.filler_ids,
        max_tokens=max_tokens or model.settings.max_tokens_per_micro_batch,
    )  # fmt: skip
    encoders: list[PackedEncoder] = getattr(model.net.encoder, "encoders", [model.net.encoder])
    with torch.inference_mode():
        for batch in batches:
            own = batch.parts[view.lane] if batch.parts else batch
            encoder = encoders[view.lane] if batch.parts else encoders[0]
            own = own.to(model.device)
            states_SD = _pooled(_hidden(encoder, own, layer), own, pooling)
            found[batch.example_rows[own.sequence_examples]] = states_SD.float().cpu().numpy()
    return found, int(truncated_rows(part, model.tokenizing.max_length).sum())


def _pooled(hidden_TD: Tensor, batch: PackedBatch, pooling: Pooling) -> Tensor:
    if pooling == "cls":
        return hidden_TD.index_select(0, batch.cu_seqlens[:-1].long())
    return MeanPooler()(
        hidden_TD.float(), batch.cu_seqlens, torch.arange(batch.num_sequences, device=hidden_TD.device)
    )


def _hidden(encoder: PackedEncoder, batch: PackedBatch, layer: int) -> Tensor:
    """(T, D) of one layer, counted as transformers counts hidden_states: 0 are the embeddings, the last is the output."""
    with _layer_output(encoder, layer) as seen:
        last_TD = encoder(batch)
    if seen is None:
        return last_TD
    (states,) = seen
    if encoder.packs:
        return states[0]
    group, packed_to_padded = padded_group(batch)
    return unpad(states, group, packed_to_padded)


@contextmanager
def _layer_output(encoder: PackedEncoder, layer: int) -> Iterator[list[Tensor] | None]:
    """Keeps what a layer gives (what the first one gets, for 0) of the forward inside; None for the last one's."""
    num_layers = int(encoder.config.num_hidden_layers)
    if not -num_layers - 1 <= layer <= num_layers:
        raise ConfigError(
            f"--layer {layer}: the encoder has layers 0 (embeddings) to {num_layers}, or -{num_layers + 1} to -1"
        )
    layer %= num_layers + 1
    if layer == num_layers:
        yield None
        return
    stack = next(
        (
            each
            for each in encoder.model.modules()
            if isinstance(each, nn.ModuleList) and len(each) == num_layers
        ),
        None,
    )
    if stack is None:
        raise ConfigError(
            f"--layer {layer}: {type(encoder.model).__name__} has no list of layers; only the last one (-1) can be read"
        )
    seen: list[Tensor] = []
    if layer == 0:
        hook = stack[0].register_forward_pre_hook(
            lambda module, inputs, kwargs: _keep(seen, inputs, kwargs), with_kwargs=True
        )
    else:
        hook = stack[layer - 1].register_forward_hook(lambda module, inputs, output: _keep(seen, output, {}))
    try:
        yield seen
    finally:
        hook.remove()


def _keep(seen: list[Tensor], values: Any, named: dict[str, Any]) -> None:
    states = values if isinstance(values, Tensor) else (values[0] if values else named["hidden_states"])
    seen.append(states)
