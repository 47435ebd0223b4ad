"""train.dropout: counter. Dropout modules with masks from keys of the running micro-batch. No hashing.

Masks depend on (seed, step, sequence, layer, position, pass) alone (model/dropout/counter_masks.py), so
ranks, micro-batches, ZeRO stages and recomputed layers do not change them. A layer is known by its module's
name; a module that runs several times in a pass (ALBERT's shared layers) counts its runs.

Shape legend: T packed tokens, S sequences, L longest sequence, N heads, D columns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.counter_hash import GOLDEN, mix_word, stream_of
from mtdnn_ds.model.dropout.counter_masks import attention_dropout, counter_dropout, mix_, signed
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.dropout.word_dropout import WordDropout

STREAM = "dropout_stream"  # attribute of modules that draw masks


class CounterDropout(nn.Module):
    """Dropout on what rows of the running keys belong to.

    That is hidden states, attention probabilities, or a table of weights.
    """

    def __init__(self, p: float, *, name: str, running: Replayed) -> None:
        super().__init__()
        self.p = p
        self.name = name
        self.running = running
        self.table_rows = 0  # known after the first pass over a table

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input

        keys: Tensor = self.running.values["keys"]
        stream = next_stream(self, self.running)

        # Hidden states: a row for each key
        if input.shape[:-1] == keys.shape:
            return counter_dropout(input, self.p, keys, stream)

        # Attention probabilities (S, N, L, L) of keys (S, L)
        if input.dim() == 4 and keys.dim() == 2:
            num_sequences, length = keys.shape
            if input.shape == (num_sequences, input.shape[1], length, length):
                return attention_dropout(input, self.p, keys, stream)

        # A table's rows are no sequence's own, so one mask for the whole step
        if input.dim() == 2 and self._is_table(len(input)):
            start = signed(mix_word(self.running.values["of_pass"]))
            row_keys = mix_(torch.arange(len(input), device=input.device) * signed(GOLDEN) + start)
            return counter_dropout(input, self.p, row_keys, stream)

        raise ConfigError(
            f"train.dropout=counter: {self.name} drops elements of a tensor of shape {tuple(input.shape)}, "
            "whose rows are no tokens; set train.dropout to model or none"
        )

    def _is_table(self, num_rows: int) -> bool:
        """Whether rows are those of a table of weights: as many whatever the micro-batch.

        DeBERTa drops elements of its relative positions.
        """
        self.table_rows = self.table_rows or num_rows
        return num_rows == self.table_rows

    def extra_repr(self) -> str:
        return f"p={self.p}"


def next_stream(module: nn.Module, running: Replayed) -> int:
    """The stream of this run of a module in the running pass."""
    stream: int = getattr(module, STREAM)
    runs: int = running.values.get(stream, 0)
    running.values[stream] = runs + 1
    if runs == 0:
        return stream
    return mix_word(stream + runs)


def start_pass(running: Replayed, keys: Tensor, of_pass: int) -> None:
    """From now on, modules draw masks for rows with these keys, (1, T), (S, L) or, in heads, (K,)."""
    running.values = {"keys": keys, "of_pass": of_pass}


def use_counter_dropout(module: nn.Module, *, prefix: str, running: Replayed) -> None:
    """Puts a CounterDropout in place of every nn.Dropout below `module`.

    Every module gets the stream of its name.
    """
    for name, parent in list(module.named_modules()):
        setattr(parent, STREAM, stream_of(f"{prefix}.{name}"))
        for own, child in list(parent.named_children()):
            if type(child) in (nn.Dropout, WordDropout):
                full = ".".join(part for part in (prefix, name, own) if part)
                replacement = CounterDropout(child.p, name=full, running=running)
                setattr(replacement, STREAM, stream_of(full))
                setattr(parent, own, replacement)


def refuse_other_randomness(what: str, run: Callable[[], Any]) -> None:
    """Raises ConfigError if `run` draws random numbers of its own.

    `run` is the forward pass of `what` in training mode on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        before = _generator_states()
        with torch.no_grad():
            run()
        after = _generator_states()
    if before != after:
        raise ConfigError(
            f"train.dropout=counter: {what} draws random numbers outside torch.nn.Dropout, which would "
            "depend on ranks and micro-batches; set train.dropout to model or none"
        )


def _generator_states() -> tuple[bytes, str]:
    return torch.get_rng_state().numpy().tobytes(), str(random.getstate())
