"""PackedEncoder: an unmodified Hugging Face encoder that runs on packed tokens. Not the heads, not the choice of a back end.

Weights keep Hugging Face's names below `model.`; only the pooler moves out, because it has to see the first token of each
sequence, not of the packed row.

Shape legend: T packed tokens, S sequences, K supervised rows, D hidden, E word embeddings, L longest sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention import (
    HF_ATTENTION_NAME,
    Backend,
    attention_layout,
    padded_group,
    register_packed_attention,
    unpad,
)
from mtdnn_ds.model.dropout.counter_dropout import refuse_other_randomness, start_pass, use_counter_dropout
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys, dropout_keys
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.dropout.word_dropout import DropoutMode, replace_dropout
from mtdnn_ds.model.fused_norms import fuse_layer_norms
from mtdnn_ds.model.heads.pooler import take_pooler
from mtdnn_ds.model.probe import (
    batch_of_lengths,
    hidden_one_by_one,
    probe_batch,
    relative_difference,
    unused_parameters,
)
from mtdnn_ds.model.seeded import derived_seed

# Largest difference in float32 between packed and unpacked hidden states that rounding explains; they are of order 1.
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
        super().__init__()
        self.model = model
        self.pooler = pooler
        self.attention: Backend = attention
        self.packs = packs  # False: the model runs on padded input with its own attention
        self.position_offset = position_offset  # position id of a sequence's first token
        self.max_positions = (
            max_positions  # most tokens of a sequence; sys.maxsize where the encoder sets no limit
        )
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
        """The encoder's own dropout of hidden states, the default before a head. Encoders name it differently."""
        names = ("hidden_dropout_prob", "hidden_dropout", "dropout")
        return next(
            (
                float(getattr(self.config, name))
                for name in names
                if getattr(self.config, name, None) is not None
            ),
            0.0,
        )

    @property
    def attention_dropout(self) -> float:
        """The encoder's own dropout of attention probabilities."""
        return float(
            getattr(self.config, "attention_probs_dropout_prob", None)
            or getattr(self.config, "attention_dropout", None)
            or 0.0
        )

    def forward(
        self, batch: PackedBatch, noise_TE: Tensor | None = None, keys: DropoutKeys | None = None
    ) -> Tensor:
        """Hidden states of all tokens, (T, D); `noise_TE` is added to their word embeddings, `keys` are for counter dropout."""
        return self.hidden(batch, noise_TE, keys)

    def pooled(self, hidden_TD: Tensor, batch: PackedBatch, sequences_K: Tensor) -> Tensor:
        """What sequence heads read of the given sequences, (K, D)."""
        first_token_K = batch.cu_seqlens[:-1].index_select(0, sequences_K)
        return self.pooler(hidden_TD.index_select(0, first_token_K)[:, None])

    def hidden(
        self, batch: PackedBatch, noise_TE: Tensor | None = None, keys: DropoutKeys | None = None
    ) -> Tensor:
        """Hidden states of all tokens, (T, D); `noise_TE` is added to their word embeddings, `keys` are for counter dropout."""
        types = batch.token_type_ids if self._has_token_types else torch.zeros_like(batch.token_type_ids)
        if self.packs:
            optional = {"token_type_ids": types[None]} if self._accepts_token_types else {}
            positions = batch.position_ids + self.position_offset
            words = self._words(batch.input_ids[None], None if noise_TE is None else noise_TE[None])
            layout = attention_layout(batch, self.attention, keys, self.running)
            if keys is not None:
                start_pass(self.running, keys.of_token_T[None], keys.of_pass)
            return self.model(**words, position_ids=positions[None], packed_layout=layout, **optional)[0][0]
        group, packed_to_padded = padded_group(batch)
        padding_id = batch.input_ids.new_full((1,), self.config.pad_token_id or 0)
        ids_SL = torch.cat([batch.input_ids, padding_id])[group.padded_to_packed]
        is_token_SL = (group.padded_to_packed < batch.input_ids.numel()).long()
        optional = (
            {"token_type_ids": torch.cat([types, types.new_zeros(1)])[group.padded_to_packed]}
            if self._accepts_token_types
            else {}
        )
        noise_SLE = (
            None
            if noise_TE is None
            else torch.cat([noise_TE, noise_TE.new_zeros(1, noise_TE.shape[1])])[group.padded_to_packed]
        )
        if keys is not None:
            start_pass(
                self.running,
                torch.cat([keys.of_token_T, keys.of_token_T.new_zeros(1)])[group.padded_to_packed],
                keys.of_pass,
            )
        hidden_SLD = self.model(**self._words(ids_SL, noise_SLE), attention_mask=is_token_SL, **optional)[0]
        return unpad(hidden_SLD, group, packed_to_padded)

    def _words(self, ids: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """What the model is told of its tokens: their ids, or their word embeddings with `noise` added."""
        if noise is None:
            return {"input_ids": ids}
        embeddings = self.model.get_input_embeddings()(ids)
        return {"inputs_embeds": embeddings + noise.to(embeddings.dtype)}


def load_encoder(
    path: str,
    *,
    attention: Backend,
    gradient_checkpointing: bool = False,
    random_init: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    dropout: DropoutMode = "model",
    dtype: torch.dtype = torch.float32,
    fused_layer_norm: bool = False,
) -> PackedEncoder:
    """The encoder in `path` (a folder or a hub name, see resolve_encoder_path), on the CPU, in training mode.

    `seed` draws the weights that the checkpoint does not have (all of them with `random_init`); the global generators are left
    as they are. Before it is returned, the encoder is compared on two short sequences with Hugging Face's own forward: one
    that cannot be packed runs padded and a note says why. Raises ConfigError when it cannot be loaded, or not run exactly.
    """
    model, missing = _load_model(
        path, random_init=random_init, seed=seed, trust_remote_code=trust_remote_code, dropout=dropout
    )
    pooler, notes = take_pooler(model, missing=missing, seed=seed)
    if random_init:
        notes = ("encoder.random_init: every weight is drawn from the seed; the checkpoint's are not used",)
    table = _position_table(model)
    offset = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    limit = getattr(model.config, "max_position_embeddings", None) if table is None else table.num_embeddings
    encoder = PackedEncoder(
        model=model,
        pooler=pooler,
        attention="padded"
        if attention == "padded"
        else "grouped",  # until the checks below are done: they run on the CPU
        packs=False,
        position_offset=offset,
        max_positions=limit - offset if limit and limit > 0 else sys.maxsize,
    ).eval()
    notes += _pack_if_exact(encoder, path, has_position_table=table is not None)
    notes += _freeze_unused(encoder)
    lost_dropout = encoder.attention_dropout if encoder.packs and attention == "varlen" else 0.0
    if lost_dropout:
        notes += (
            f"attention back end varlen has no dropout: the encoder's attention dropout of {lost_dropout} is not applied",
        )
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


def _load_model(
    path: str, *, random_init: bool, seed: int, trust_remote_code: bool, dropout: str
) -> tuple[PreTrainedModel, Collection[str]]:
    """The Hugging Face model in float32, and the names of the parameters that its checkpoint lacks."""
    missing: Collection[str] = ()
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "encoder"))
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            _refuse_other_architectures(config, path)
            if dropout == "none":
                _zero_dropout(config)
            if random_init:
                model = AutoModel.from_config(
                    config, trust_remote_code=trust_remote_code, dtype=torch.float32
                )
            else:
                model, report = AutoModel.from_pretrained(
                    path,
                    config=config,
                    trust_remote_code=trust_remote_code,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                missing = report["missing_keys"]
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"encoder.path={path}: transformers cannot load it: {error}") from error
    lost = sorted(name for name in missing if not name.startswith("pooler."))
    if lost:
        raise ConfigError(
            f"encoder.path={path}: the checkpoint lacks {len(lost)} weights of {type(model).__name__}, among them {lost[0]}"
        )
    if dropout == "none":
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model, missing


def _refuse_other_architectures(config: PreTrainedConfig, path: str) -> None:
    """Only encoders trained with masked tokens (or ELECTRA's replaced ones) sum a sequence up in its first token."""
    is_remote = bool(getattr(config, "auto_map", None))
    if config.is_encoder_decoder or not (is_remote or type(config) in MODEL_FOR_MASKED_LM_MAPPING):
        raise ConfigError(
            f"encoder.path={path}: model type '{config.model_type}' is not a masked-language-model encoder; use BERT, RoBERTa, ELECTRA, DeBERTa, ..."
        )


def _zero_dropout(config: PreTrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if (
            ("dropout" in name or name == "layerdrop")
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
        ):
            setattr(config, name, 0.0)


def _position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """The absolute position embeddings. RoBERTa's have a padding_idx, and its positions begin after it; BERT's have none."""
    tables = (
        module for name, module in model.named_modules() if name.split(".")[-1] == "position_embeddings"
    )
    return next((table for table in tables if isinstance(table, nn.Embedding)), None)


def _pack_if_exact(encoder: PackedEncoder, path: str, *, has_position_table: bool) -> tuple[str, ...]:
    """Lets the encoder run packed if its hidden states then equal Hugging Face's; else padded, with a note."""
    model, batch = encoder.model, probe_batch(encoder.model)
    try:
        theirs = hidden_one_by_one(model, batch)
        with torch.no_grad():
            difference = relative_difference(encoder.hidden(batch), theirs)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"encoder.path={path}: {type(model).__name__} cannot run on (input_ids, attention_mask): {error}"
        ) from error
    if not difference < PROBE_TOLERANCE:
        raise ConfigError(
            f"encoder.path={path}: padding changes the hidden states of {type(model).__name__} by {difference:.1e}"
        )
    obstacle = _packing_obstacle(encoder, has_position_table=has_position_table)
    if obstacle is None:
        theirs_name = model.config._attn_implementation
        register_packed_attention()
        model.set_attn_implementation(HF_ATTENTION_NAME)
        encoder.packs = True
        try:
            with torch.no_grad():
                difference = relative_difference(encoder.hidden(batch), theirs)
            obstacle = (
                None
                if difference < PROBE_TOLERANCE
                else f"packing would change its hidden states by {difference:.1e}"
            )
        except (TypeError, ValueError, RuntimeError) as error:
            obstacle = f"its layers do not pass our layout on to attention ({error})"
        if obstacle is not None:
            model.set_attn_implementation(theirs_name)
            encoder.packs = False
    if obstacle is not None:
        return (
            f"{type(model).__name__} runs on padded input with its own attention, which is slower: {obstacle}",
        )
    return ()


def _packing_obstacle(encoder: PackedEncoder, *, has_position_table: bool) -> str | None:
    config = encoder.config
    if not encoder.model._supports_attention_backend:
        return "its attention does not go through transformers' attention interface"
    if not has_position_table or "position_ids" not in signature(encoder.model.forward).parameters:
        return "it has no absolute position embeddings that can be told where each packed sequence begins"
    local = [
        name
        for name in ("sliding_window", "local_attention", "attention_window")
        if getattr(config, name, None)
    ]
    return f"its config asks for local attention ({local[0]})" if local else None


def _count_dropout(encoder: PackedEncoder) -> None:
    """Dropout from counters in every layer. Raises ConfigError where it cannot be, found in two passes over a few short sequences."""
    use_counter_dropout(encoder, prefix="encoder", running=encoder.running)

    def run() -> None:
        for batch in (probe_batch(encoder.model), batch_of_lengths(np.array([2, 2, 4, 6]))):
            keyed = replace(batch, sequence_keys=torch.arange(batch.num_sequences))
            encoder.pooled(
                encoder(keyed, None, dropout_keys(keyed, seed=0)), keyed, torch.arange(batch.num_sequences)
            )

    encoder.train()
    refuse_other_randomness(type(encoder.model).__name__, run)


def _freeze_unused(encoder: PackedEncoder) -> tuple[str, ...]:
    """Parameters without a part in the output would have no gradient, which breaks ZeRO: they are frozen, and a note says so."""
    batch = probe_batch(encoder.model)
    with torch.enable_grad():
        pooled = encoder.pooled(encoder(batch), batch, torch.arange(batch.num_sequences))
    unused = unused_parameters(encoder, pooled)
    for name in unused:
        encoder.get_parameter(name).requires_grad_(False)
    return (
        (
            f"{len(unused)} parameters of the encoder have no part in its output and stay frozen, among them {unused[0]}",
        )
        if unused
        else ()
    )


def set_checkpointing(model: PreTrainedModel, wanted: bool, **settings: Any) -> None:
    """Switches the recomputation of layers in the backward pass on or off; `settings` go to torch.utils.checkpoint."""
    if wanted and not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"encoder.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
        )
    if wanted:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, **settings}
        )
    elif model.is_activation_checkpointing:  # switched on by the checkpoint's config
        model.activation_checkpointing_disable()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the table of missing and unexpected weights (we check them ourselves) and the progress bar."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
