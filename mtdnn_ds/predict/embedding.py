"""Embeddings: what the encoder makes of texts, first token or mean over all. Answers nothing, reads no file.

They are those that transformers' AutoModel gives.

Shape legend: R rows, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import ConfigError, DataError, did_you_mean
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.sources.lines import RowProblem
from mtdnn_ds.model.attention_layout import padded_group, unpad_group
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.pooler import MeanPooler
from mtdnn_ds.predict.inputs import TaskInput, read_as, rows_of
from mtdnn_ds.predict.passes import lanes_of, micro_batches
from mtdnn_ds.predict.sets import Tokenizing, set_of_rows, truncated_rows
from mtdnn_ds.predict.views import View, parsed, views_of
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.readback import Readback, waiting_bytes

Pooling = Literal["cls", "mean"]


def embed(
    loaded: LoadedRun,
    tokenizing: Tokenizing,
    texts: Sequence[Any],
    pooling: Pooling = "cls",
    *,
    layer: int = -1,
    task: str | None = None,
) -> np.ndarray:
    """(R, D) float32, one row a text. See MultiTaskModel.embed. Raises ConfigError and DataError."""
    rows = rows_of(texts)
    view_of: dict[tuple[str, ...], View] = {}
    members: dict[tuple[str, ...], list[tuple[int, CheckedRow]]] = {}
    problems = []
    for number, row in enumerate(rows):
        columns = tuple(row)
        if columns not in view_of:
            view_of[columns] = embedding_view(loaded, columns, task=task)

        one = parsed([view_of[columns]], number + 1, row)
        if isinstance(one, RowProblem):
            problems.append(f"text {number + 1}: {one.detail}")
        else:
            members.setdefault(columns, []).append((number, one[0]))
    if problems:
        raise DataError(problems[:10])

    found = np.zeros((len(rows), loaded.model.encoder.hidden_size), dtype=np.float32)
    for columns, own in members.items():
        numbers, checked = [number for number, _ in own], [row for _, row in own]
        states, _ = embed_checked(loaded, tokenizing, view_of[columns], checked, pooling=pooling, layer=layer)
        found[numbers] = states
    return found


def embedding_view(
    loaded: LoadedRun, columns: Sequence[str], *, task: str | None, chosen: Sequence[str] = ()
) -> View:
    """How a row's one or two texts become a sequence; `chosen`: the text columns that the user has named.

    Raises ConfigError if none of its columns holds texts, and if `task` is needed, unknown or has no effect.
    """
    number = _number_of(loaded, task)
    reading = None
    for kind in ("text", "pair"):
        reads = TaskInput(kind=kind, texts=())
        reading = reading or read_as(number, reads, columns, chosen)
    if reading is None:
        given = ", ".join(f"'{name}'" for name in columns)
        raise ConfigError(
            f"an input of {given}: none of these is known to hold texts; "
            "name one column or two with --text_columns"
        )

    lanes = lanes_of(len(loaded.specs), loaded.settings.sharing)
    (view,) = views_of(
        [reading],
        loaded.specs,
        lane_of=dict(enumerate(lanes)),
        word_prefix="",
        truncates_left=False,
        is_list=frozenset(),
    )
    return view


def _number_of(loaded: LoadedRun, task: str | None) -> int:
    """The number of the task whose encoder embeds; 0 where all tasks share it."""
    mode, names = loaded.settings.sharing.mode, [spec.name for spec in loaded.specs]
    if mode == "hard":
        if task is not None:
            raise ConfigError(
                f"--task {task}: has no effect, all tasks of this model share one encoder; leave it out"
            )
        return 0

    if task is None:
        raise ConfigError(
            f"--task: missing; {mode} sharing has several encoders: name the task whose encoder embeds"
        )
    if task not in names:
        raise ConfigError(f"--task {task}: the model has no task '{task}'{did_you_mean(task, names)}")
    return names.index(task)


def embed_checked(
    loaded: LoadedRun,
    tokenizing: Tokenizing,
    view: View,
    rows: Sequence[CheckedRow],
    *,
    pooling: Pooling,
    layer: int,
    max_tokens: int | None = None,
) -> tuple[np.ndarray, int]:
    """(R, D) float32, and how many rows lost tokens to encoder.max_length.

    `max_tokens`: of a micro-batch, the training run's if None. Raises ConfigError.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"--pooling {pooling}: must be one of {', '.join(get_args(Pooling))}")

    settings, net = loaded.settings, loaded.model
    lanes = lanes_of(len(loaded.specs), settings.sharing)
    part = set_of_rows(view, rows, loaded.layout, lanes, tokenizing)
    batches = micro_batches(
        [part],
        loaded.layout,
        lanes,
        settings.sharing,
        filler_ids=settings.filler_ids,
        max_tokens=max_tokens or settings.max_tokens_per_micro_batch,
        group_costs=settings.group_costs,
    )

    found = np.zeros((len(rows), net.encoder.hidden_size), dtype=np.float32)
    readback = Readback(most_bytes=waiting_bytes(loaded.device))
    encoders: list[PackedEncoder] = getattr(net.encoder, "encoders", [net.encoder])
    with torch.inference_mode():
        for batch in batches:
            own, encoder = batch, encoders[0]
            if batch.parts:  # soft sharing: a part for each copy of the encoder
                own, encoder = batch.parts[view.lane], encoders[view.lane]

            own = own.to(loaded.device)
            states_SD = _pooled(_hidden(encoder, own, layer), own, pooling)
            rows_S = batch.example_rows[own.sequence_examples]
            readback.add("states", states_SD.float(), partial(found.__setitem__, rows_S))
        readback.read()
    return found, int(truncated_rows(part, tokenizing.max_length).sum())


def _pooled(hidden_TD: Tensor, batch: PackedBatch, pooling: Pooling) -> Tensor:
    """(S, D)."""
    if pooling == "cls":
        return hidden_TD.index_select(0, batch.cu_seqlens[:-1].long())
    every_S = torch.arange(batch.num_sequences, device=hidden_TD.device)
    return MeanPooler()(hidden_TD.float(), batch.cu_seqlens, every_S)


def _hidden(encoder: PackedEncoder, batch: PackedBatch, layer: int) -> Tensor:
    """(T, D) of a layer, as transformers counts hidden_states: 0 are the embeddings, the last the output."""
    with _layer_output(encoder, layer) as seen:
        last_TD = encoder(batch)
    if seen is None:
        return last_TD

    (states,) = seen
    if encoder.packs:
        return states[0]
    group, packed_to_padded = padded_group(batch)
    return unpad_group(states, group, packed_to_padded)


@contextmanager
def _layer_output(encoder: PackedEncoder, layer: int) -> Iterator[list[Tensor] | None]:
    """Keeps what a layer gives (for 0 what the first gets) in the forward inside; None for the last layer."""
    num_layers = int(encoder.config.num_hidden_layers)
    if not -num_layers - 1 <= layer <= num_layers:
        raise ConfigError(
            f"--layer {layer}: the encoder has layers 0 (embeddings) to {num_layers}, "
            f"or -{num_layers + 1} to -1"
        )
    layer %= num_layers + 1
    if layer == num_layers:
        yield None
        return

    lists = [each for each in encoder.model.modules() if isinstance(each, nn.ModuleList)]
    stack = next((each for each in lists if len(each) == num_layers), None)
    if stack is None:
        raise ConfigError(
            f"--layer {layer}: {type(encoder.model).__name__} has no list of layers; "
            "only the last one (-1) can be read"
        )

    seen: list[Tensor] = []

    def keep_input(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    if layer == 0:
        hook = stack[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    else:
        hook = stack[layer - 1].register_forward_hook(keep_output)
    try:
        yield seen
    finally:
        hook.remove()
