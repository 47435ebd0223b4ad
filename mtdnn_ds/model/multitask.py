"""MultiTaskNet: one encoder and the heads of all tasks in a single forward. Not the losses, not the engine.

Shape legend: T packed tokens, K supervised rows of a head, D hidden, E word embeddings, C columns of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds.batch.packed import PackedBatch, Targets
from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.model.attention_choice import choose_backend
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.dropout.counter_dropout import STREAM
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys, dropout_keys, kernel_notes
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.heads.build import build_head, head_settings, reads_pooled, tie_to_copy
from mtdnn_ds.model.heads.masked_lm import MaskedLMHead, build_masked_lm_head
from mtdnn_ds.model.hf_model import head_size_of
from mtdnn_ds.model.sharing import share_encoder
from mtdnn_ds.tasks.layout import BANKS, HeadLayout
from mtdnn_ds.tasks.sharing import HARD, Sharing
from mtdnn_ds.tasks.spec import TaskSpec

Outputs = dict[str, Tensor]


class MultiTaskNet(nn.Module):
    """Packed micro-batch in, outputs of all forms out.

    Everything happens in one forward, because ZeRO-3 gathers parameters by hooks on it; and every parameter
    is in the graph of every micro-batch, because ZeRO needs a gradient for each on every rank.
    """

    def __init__(
        self,
        *,
        encoder: PackedEncoder | CopiedEncoder,
        heads: Mapping[str, nn.Module],
        layout: HeadLayout,
        dropout_seed: int | None = None,
    ) -> None:
        """`heads`: one module for each of `layout.heads`, in that order: every forward's order on every rank.

        `dropout_seed`: dropout masks come from counters and this seed; `encoder` and `heads` must have been
        built for it.
        """
        super().__init__()
        assert tuple(heads) == layout.heads, (tuple(heads), layout.heads)
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.layout = layout
        self.reads = {term.head: term.reads for term in layout.terms}
        self.dropout_seed = dropout_seed

        for name, head in heads.items():
            setattr(head, STREAM, stream_of(f"heads.{name}"))

    def forward(
        self, batch: PackedBatch, within: Callable[[MultiTaskNet, PackedBatch], Any] | None = None
    ) -> Any:
        """{form: (K, C)} of every form in `batch.targets`; or what `within(self, batch)` returns.

        `within` is computed inside this forward, and may call `outputs` several times (regularisers do):
        under ZeRO-3 that works only inside the engine's forward.
        """
        if within is not None:
            return within(self, batch)
        return self.outputs(batch)

    def outputs(self, batch: PackedBatch, noise_TE: Tensor | None = None, *, number: int = 0) -> Outputs:
        """Outputs (K, C) float32 of each form, rows as in its targets and columns as in the HeadLayout.

        `noise_TE` is added to the word embeddings. `number`: of the pass over this micro-batch; with dropout
        from counters, passes of one number have the same masks.
        """
        keys = None
        if self.training and self.dropout_seed is not None:
            keys = dropout_keys(batch, seed=self.dropout_seed, number=number)
        return self.read(self.encoder(batch, noise_TE, keys), batch, keys)

    def read(self, hidden_TD: Tensor, batch: PackedBatch, keys: DropoutKeys | None = None) -> Outputs:
        """All heads on the hidden states of a micro-batch."""
        outputs: Outputs = {}
        for name, head in self.heads.items():
            forms = self.layout.forms_of(name)
            targets = [batch.targets[form] for form in forms]

            # A head runs once, on the rows of all its forms end to end.
            outputs_KC = self._call(name, head, hidden_TD, batch, targets, keys).float()
            parts = outputs_KC.split([of_form.num_rows for of_form in targets])
            outputs.update(zip(forms, parts, strict=True))
        return outputs

    def _call(
        self,
        name: str,
        head: nn.Module,
        hidden_TD: Tensor,
        batch: PackedBatch,
        targets: Sequence[Targets],
        keys: DropoutKeys | None,
    ) -> Tensor:
        """A head's outputs for the rows of all its forms.

        Heads take plain tensors: ZeRO-3's hooks look for those.
        """
        rows_K = torch.cat([of_form.rows for of_form in targets])
        term_ids_K = torch.cat([of_form.term_ids for of_form in targets])

        if name == "masked_lm":
            return head(hidden_TD.index_select(0, rows_K))
        if name == "embedding":
            return head(hidden_TD, batch.cu_seqlens, rows_K)
        if name == "san":
            first_K = batch.cu_seqlens[:-1].index_select(0, rows_K)
            segments_K4 = targets[0].extra["segments"] if rows_K.numel() else rows_K.new_zeros((0, 4))
            keys_K = _keys_of(keys, first_K)
            sizes = self._rows_by_term(name, batch)
            return head(hidden_TD, first_K, segments_K4, term_ids_K, sizes, batch.max_seqlen, keys_K)

        if self.reads[name] == "sequence":
            states_KD = self.encoder.pooled(hidden_TD, batch, rows_K)
            keys_K = _keys_of(keys, batch.cu_seqlens[:-1].index_select(0, rows_K))
        else:
            states_KD = hidden_TD.index_select(0, rows_K)
            keys_K = _keys_of(keys, rows_K)
        if name in BANKS:
            return head(states_KD, term_ids_K, keys_K)
        return head(states_KD, term_ids_K, self._rows_by_term(name, batch), keys_K)

    def _rows_by_term(self, name: str, batch: PackedBatch) -> list[int]:
        """Rows of each of a head's terms, on the host: units of heads with parameters per term are rows."""
        terms = enumerate(self.layout.terms)
        return [int(batch.unit_counts[index]) for index, term in terms if term.head == name]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says once, at start."""
        notes = self.encoder.notes
        for head in self.heads.values():
            notes += getattr(head, "notes", ())
        return notes

    @property
    def borrowed(self) -> tuple[tuple[nn.Module, nn.Parameter], ...]:
        """Parameters that a module reads although another one owns them: ZeRO-3 has to be told."""
        return tuple(
            (head, head.tied_weight) for head in self.heads.values() if isinstance(head, MaskedLMHead)
        )


def _keys_of(keys: DropoutKeys | None, tokens_K: Tensor) -> Tensor | None:
    return None if keys is None else keys.of_token_T.index_select(0, tokens_K)


def build_model(
    *,
    encoder_path: str,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    attention: str = "auto",
    device_type: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    random_init: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    dropout: DropoutMode = "model",
    fused_layer_norm: bool = False,
    first_score: Mapping[str, float] | None = None,
    sharing: Sharing = HARD,
) -> MultiTaskNet:
    """The whole model on the CPU, in training mode; equal on every rank for equal arguments.

    The one builder that turns a recipe's settings into plain arguments of the modules. `encoder_path` is
    resolved (see resolve_encoder_path); `device_type` and `compute_dtype` are those of the training run,
    which decide the attention back end. `dropout` "none" overrides the dropout of all tasks, and "counter"
    draws its masks from `seed` and what the micro-batches say of their sequences. `first_score`: task -> what
    its regression answers before it is trained. Raises ConfigError.
    """
    encoder = load_encoder(
        encoder_path,
        gradient_checkpointing=gradient_checkpointing,
        random_init=random_init,
        seed=seed,
        trust_remote_code=trust_remote_code,
        dropout=dropout,
        dtype=parameter_dtype,
        fused_layer_norm=fused_layer_norm,
    )
    backend, notes = choose_backend(
        attention,
        device_type,
        compute_dtype,
        head_size=head_size_of(encoder.config),
        attention_dropout=encoder.attention_dropout,
        dropout=dropout,
    )
    if encoder.packs:  # else it is not used: the model runs its own attention
        encoder.attention = backend
        encoder.notes = (*notes, *encoder.notes)
    if dropout == "counter":
        encoder.notes += kernel_notes(device_type)

    settings = head_settings(specs, layout, encoder, dropout=dropout, seed=seed)
    heads: dict[str, nn.Module] = {}
    for name in layout.heads:
        if name == "masked_lm":
            path = None if random_init else encoder_path
            head: nn.Module = build_masked_lm_head(
                encoder, path, seed=seed, trust_remote_code=trust_remote_code
            )
        else:
            head = build_head(name, specs, layout, settings, first_score or {})
        heads[name] = head.to(parameter_dtype)

    # A pooler that no head reads would have no gradient, which breaks ZeRO.
    if not any(reads_pooled(layout, name) for name in layout.heads):
        encoder.pooler.requires_grad_(False)

    shared = share_encoder(encoder, sharing, seed=seed)
    if isinstance(shared, CopiedEncoder) and "masked_lm" in heads:
        tie_to_copy(heads["masked_lm"], shared, sharing, layout)

    dropout_seed = seed if dropout == "counter" else None
    return MultiTaskNet(encoder=shared, heads=heads, layout=layout, dropout_seed=dropout_seed).train()


def parameter_groups(
    model: MultiTaskNet, weight_decay: float, head_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in optimizer groups, each in the model's own order.

    No decay on biases and on the parameters of normalisation layers, as BERT was trained (Devlin et al. 2019,
    appendix A.2, and https://github.com/google-research/bert/blob/eedf571/optimization.py#L65). With a
    `head_lr_factor` other than 1, pooler and heads have groups of their own, whose "lr_factor" multiplies the
    learning rate. A group without parameters is left out.
    """
    normalisation = set()
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            normalisation |= {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}

    # The order of the groups is that of the optimizer's state in checkpoints.
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (is_head, is_plain): [] for is_head in (False, True) for is_plain in (False, True)
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.split(".")[-1].endswith("bias")
        is_plain = is_bias or name in normalisation or "layernorm" in name.lower()
        is_head = head_lr_factor != 1.0 and (name.startswith("heads.") or ".pooler." in name)
        groups[is_head, is_plain].append(parameter)

    settings = []
    for (is_head, is_plain), parameters in groups.items():
        if parameters:
            settings.append(
                {
                    "params": parameters,
                    "weight_decay": 0.0 if is_plain else weight_decay,
                    "lr_factor": head_lr_factor if is_head else 1.0,
                }
            )
    return settings
