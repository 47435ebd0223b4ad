"""PackedEncoder: an unmodified Hugging Face encoder that runs on packed tokens. Neither heads nor attention.

Weights keep Hugging Face's names below `model.`; only the pooler moves out, because it has to see the first
token of each sequence, not of the packed row. load_encoder loads and checks it, by means of hf_model.py
and probe.py.

Shape legend: T packed tokens, S sequences, K supervised rows, D hidden, E word embeddings,
L longest sequence.
"""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention import HF_ATTENTION_NAME, register_packed_attention
from mtdnn_ds.model.attention_choice import cpu_backend
from mtdnn_ds.model.attention_layout import Backend, attention_layout, padded_group, unpad_group
from mtdnn_ds.model.dropout.counter_dropout import refuse_other_randomness, start_pass, use_counter_dropout
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys, dropout_keys
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.dropout.word_dropout import DropoutMode, replace_dropout
from mtdnn_ds.model.fused_norms import fuse_layer_norms
from mtdnn_ds.model.heads.pooler import take_pooler
from mtdnn_ds.model.hf_model import (
    attention_dropout_of,
    hidden_dropout_of,
    load_hf_model,
    position_limits,
    position_table,
    set_checkpointing,
)
from mtdnn_ds.model.probe import (
    batch_of_lengths,
    hidden_one_by_one,
    probe_batch,
    relative_difference,
    unused_parameters,
)

# Largest difference in float32 between packed and unpacked hidden states that rounding explains; they are of
# order 1.
PROBE_TOLERANCE = 1e-4


class PackedEncoder(nn.Module):
    """An encoder and its pooler. `notes`: sentences that a run says once, at start."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        pooler: nn.Module,
        attention: Backend,
        packs: bool,
        position_offset: int,
        max_positions: int,
    ) -> None:
        """`packs` false: the model runs on padded input with its own attention.

        `position_offset`: position id of a sequence's first token; `max_positions`: most tokens of a
        sequence, sys.maxsize where the encoder sets no limit.
        """
        super().__init__()
        self.model = model
        self.pooler = pooler
        self.attention: Backend = attention
        self.packs = packs
        self.position_offset = position_offset
        self.max_positions = max_positions
        self.notes: tuple[str, ...] = ()

        self.running = Replayed()
        self._accepts_token_types = "token_type_ids" in signature(model.forward).parameters
        self._has_token_types = (getattr(model.config, "type_vocab_size", 0) or 0) > 1

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def embedding_size(self) -> int:
        """Width of the word embeddings, E."""
        embeddings = self.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings.embedding_dim

    @property
    def hidden_dropout(self) -> float:
        """The encoder's own dropout of hidden states, the default before a head."""
        return hidden_dropout_of(self.config)

    @property
    def attention_dropout(self) -> float:
        """The encoder's own dropout of attention probabilities."""
        return attention_dropout_of(self.config)

    def forward(
        self, batch: PackedBatch, noise_TE: Tensor | None = None, keys: DropoutKeys | None = None
    ) -> Tensor:
        """Hidden states of all tokens, (T, D).

        `noise_TE` is added to their word embeddings, `keys` are for counter dropout.
        """
        if self.packs:
            return self._hidden_packed(batch, noise_TE, keys)
        return self._hidden_padded(batch, noise_TE, keys)

    def pooled(self, hidden_TD: Tensor, batch: PackedBatch, sequences_K: Tensor) -> Tensor:
        """What sequence heads read of the given sequences, (K, D)."""
        first_token_K = batch.cu_seqlens[:-1].index_select(0, sequences_K)
        return self.pooler(hidden_TD.index_select(0, first_token_K)[:, None])

    def _hidden_packed(self, batch: PackedBatch, noise_TE: Tensor | None, keys: DropoutKeys | None) -> Tensor:
        """All tokens as one row (1, T): every layer is token-wise but attention, which reads the layout."""
        layout = attention_layout(batch, self.attention, keys, self.running)
        if keys is not None:
            start_pass(self.running, keys.of_token_T[None], keys.of_pass)

        noise_1TE = None if noise_TE is None else noise_TE[None]
        inputs = self._words(batch.input_ids[None], noise_1TE)
        inputs |= self._token_types(self._types(batch)[None])
        positions_1T = (batch.position_ids + self.position_offset)[None]
        return self.model(**inputs, position_ids=positions_1T, packed_layout=layout)[0][0]

    def _hidden_padded(self, batch: PackedBatch, noise_TE: Tensor | None, keys: DropoutKeys | None) -> Tensor:
        """A row for each sequence, (S, L), as Hugging Face has it: for models that cannot be packed."""
        group, packed_to_padded = padded_group(batch)
        places_SL = group.padded_to_packed  # T for padding, which is a row added at the end
        if keys is not None:
            start_pass(self.running, _with_zero(keys.of_token_T)[places_SL], keys.of_pass)

        padding_id = batch.input_ids.new_full((1,), self.config.pad_token_id or 0)
        ids_SL = torch.cat([batch.input_ids, padding_id])[places_SL]
        noise_SLE = None if noise_TE is None else _with_zero(noise_TE)[places_SL]
        inputs = self._words(ids_SL, noise_SLE)
        inputs |= self._token_types(_with_zero(self._types(batch))[places_SL])
        is_token_SL = (places_SL < batch.input_ids.numel()).long()

        hidden_SLD = self.model(**inputs, attention_mask=is_token_SL)[0]
        return unpad_group(hidden_SLD, group, packed_to_padded)

    def _words(self, ids: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """What the model is told of its tokens: their ids, or their word embeddings with `noise` added."""
        if noise is None:
            return {"input_ids": ids}
        embeddings = self.model.get_input_embeddings()(ids)
        return {"inputs_embeds": embeddings + noise.to(embeddings.dtype)}

    def _types(self, batch: PackedBatch) -> Tensor:
        """(T,): token types, 0 for an encoder whose table has no second one (RoBERTa's)."""
        if self._has_token_types:
            return batch.token_type_ids
        return torch.zeros_like(batch.token_type_ids)

    def _token_types(self, types: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": types} if self._accepts_token_types else {}


def _with_zero(rows: Tensor) -> Tensor:
    """(T, ...) -> (T + 1, ...): a row of zeros at the end."""
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])


def load_encoder(
    path: str,
    *,
    attention: Backend = "grouped",
    gradient_checkpointing: bool = False,
    random_init: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    dropout: DropoutMode = "model",
    dtype: torch.dtype = torch.float32,
    fused_layer_norm: bool = False,
) -> PackedEncoder:
    """The encoder in `path` (a folder or a hub name, see resolve_encoder_path), on the CPU, in training mode.

    `seed` draws the weights that the checkpoint does not have (all of them with `random_init`); the global
    generators are left as they are. Before it is returned, the encoder is compared on two short sequences
    with Hugging Face's own forward: one that cannot be packed runs padded and a note says why. Raises
    ConfigError when it cannot be loaded, or not run exactly.
    """
    model, missing = load_hf_model(
        path, random_init=random_init, seed=seed, trust_remote_code=trust_remote_code, dropout=dropout
    )
    pooler, notes = take_pooler(model, missing=missing, seed=seed)
    if random_init:
        notes = ("encoder.random_init: every weight is drawn from the seed; the checkpoint's are not used",)

    # The checks run in evaluation mode on the CPU, so until they are done attention does too.
    position_offset, max_positions = position_limits(model)
    encoder = PackedEncoder(
        model=model,
        pooler=pooler,
        attention=cpu_backend(attention),
        packs=False,
        position_offset=position_offset,
        max_positions=max_positions,
    ).eval()
    notes += _pack_if_exact(encoder, path)
    notes += _freeze_unused(encoder)

    # From here on it is what training runs.
    if dropout == "counter":
        _count_dropout(encoder)
    else:
        replace_dropout(encoder)
    encoder.attention = attention
    if fused_layer_norm:
        fuse_layer_norms(encoder)
    set_checkpointing(model, gradient_checkpointing, context_fn=encoder.running.checkpoint_contexts)
    encoder.notes = notes
    return encoder.to(dtype).train()


def _pack_if_exact(encoder: PackedEncoder, path: str) -> tuple[str, ...]:
    """Lets the encoder run packed if its hidden states then are Hugging Face's; else padded, with a note."""
    model, batch = encoder.model, probe_batch(encoder.model)
    try:
        theirs = hidden_one_by_one(model, batch)
        difference = _difference(encoder, batch, theirs)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"encoder.path={path}: {type(model).__name__} cannot run on (input_ids, attention_mask): {error}"
        ) from error
    if not difference < PROBE_TOLERANCE:
        raise ConfigError(
            f"encoder.path={path}: padding changes the hidden states of {type(model).__name__} by "
            f"{difference:.1e}"
        )

    obstacle = _packing_obstacle(encoder) or _try_packing(encoder, batch, theirs)
    if obstacle is None:
        return ()
    return (
        f"{type(model).__name__} runs on padded input with its own attention, which is slower: {obstacle}",
    )


def _packing_obstacle(encoder: PackedEncoder) -> str | None:
    """What is known to stand in the way of packing, from the model's class and config."""
    if not encoder.model._supports_attention_backend:
        return "its attention does not go through transformers' attention interface"

    takes_positions = "position_ids" in signature(encoder.model.forward).parameters
    if position_table(encoder.model) is None or not takes_positions:
        return "it has no absolute position embeddings that can be told where each packed sequence begins"

    for name in ("sliding_window", "local_attention", "attention_window"):
        if getattr(encoder.config, name, None):
            return f"its config asks for local attention ({name})"
    return None


def _try_packing(encoder: PackedEncoder, batch: PackedBatch, theirs_TD: Tensor) -> str | None:
    """Switches packing on; off again, with the reason, where hidden states then differ from `theirs_TD`."""
    model = encoder.model
    their_attention = model.config._attn_implementation
    register_packed_attention()
    model.set_attn_implementation(HF_ATTENTION_NAME)
    encoder.packs = True
    try:
        difference = _difference(encoder, batch, theirs_TD)
        if difference < PROBE_TOLERANCE:
            return None
        obstacle = f"packing would change its hidden states by {difference:.1e}"
    except (TypeError, ValueError, RuntimeError) as error:
        obstacle = f"its layers do not pass our layout on to attention ({error})"

    model.set_attn_implementation(their_attention)
    encoder.packs = False
    return obstacle


@torch.no_grad()
def _difference(encoder: PackedEncoder, batch: PackedBatch, theirs_TD: Tensor) -> float:
    return relative_difference(encoder(batch), theirs_TD)


def _freeze_unused(encoder: PackedEncoder) -> tuple[str, ...]:
    """Freezes parameters that have no part in the output: without a gradient they would break ZeRO."""
    batch = probe_batch(encoder.model)
    with torch.enable_grad():
        pooled = encoder.pooled(encoder(batch), batch, torch.arange(batch.num_sequences))

    unused = unused_parameters(encoder, pooled)
    if not unused:
        return ()
    for name in unused:
        encoder.get_parameter(name).requires_grad_(False)
    return (
        f"{len(unused)} parameters of the encoder have no part in its output and stay frozen, among them "
        f"{unused[0]}",
    )


def _count_dropout(encoder: PackedEncoder) -> None:
    """Dropout from counters in every layer.

    Raises ConfigError where it cannot be, found in two passes over a few short sequences.
    """
    use_counter_dropout(encoder, prefix="encoder", running=encoder.running)

    def run() -> None:
        for batch in (probe_batch(encoder.model), batch_of_lengths(np.array([2, 2, 4, 6]))):
            sequences = torch.arange(batch.num_sequences)
            keyed = replace(batch, sequence_keys=sequences)
            hidden_TD = encoder(keyed, None, dropout_keys(keyed, seed=0))
            encoder.pooled(hidden_TD, keyed, sequences)

    encoder.train()
    refuse_other_randomness(type(encoder.model).__name__, run)
