"""MultiTaskNet: one encoder and the heads of all tasks in a single forward. Not the losses, not the engine.

Shape legend: T packed tokens, K supervised rows of a head, D hidden, C columns of a head, M terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds.batch.packed import PackedBatch, Targets
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.model.attention import counter_backend, resolve_backend
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.dropout.counter_dropout import STREAM
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys, dropout_keys
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.heads.custom import build_custom_heads
from mtdnn_ds.model.heads.linear_bank import LinearBank
from mtdnn_ds.model.heads.masked_lm import MaskedLMHead, build_masked_lm_head
from mtdnn_ds.model.heads.mean_pooler import MeanPooler
from mtdnn_ds.model.heads.san import PREDICTION_DROPOUT, SanBank
from mtdnn_ds.model.sharing import share_encoder
from mtdnn_ds.tasks.layout import BANKS, HeadLayout
from mtdnn_ds.tasks.sharing import HARD, Sharing
from mtdnn_ds.tasks.spec import TaskSpec

Outputs = dict[str, Tensor]


class MultiTaskNet(nn.Module):
    """Packed micro-batch in, outputs of all forms out.

    Everything happens in one forward, because ZeRO-3 gathers parameters by hooks on it; and every parameter is in the graph of
    every micro-batch, because ZeRO needs a gradient for each on every rank.
    """

    def __init__(
        self,
        *,
        encoder: PackedEncoder | CopiedEncoder,
        heads: Mapping[str, nn.Module],
        layout: HeadLayout,
        dropout_seed: int | None = None,
    ) -> None:
        """`heads`: one module for each of `layout.heads`, in that order, which is the order of every forward on every rank.

        `dropout_seed`: dropout masks come from counters and this seed; `encoder` and `heads` must have been built for it.
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
        """{form: (K, C)} of every form in `batch.targets`; or what `within(self, batch)` returns, computed inside this forward.

        `within` may call `outputs` several times (regularisers do): under ZeRO-3 that works only inside the engine's forward.
        """
        return self.outputs(batch) if within is None else within(self, batch)

    def outputs(self, batch: PackedBatch, noise_TE: Tensor | None = None, *, number: int = 0) -> Outputs:
        """Outputs (K, C) float32 of each form: row k belongs to row k of its targets, columns to terms as in the HeadLayout.

        `noise_TE` is added to the word embeddings. `number`: of the pass over this micro-batch; with dropout from counters, passes of
        one number have the same masks.
        """
        counts = self.training and self.dropout_seed is not None
        keys = dropout_keys(batch, seed=self.dropout_seed or 0, number=number) if counts else None
        return self.read(self.encoder(batch, noise_TE, keys), batch, keys)

    def read(self, hidden_TD: Tensor, batch: PackedBatch, keys: DropoutKeys | None = None) -> Outputs:
        """All heads on the hidden states of a micro-batch."""
        outputs: Outputs = {}
        for name, head in self.heads.items():
            forms = self.layout.forms_of(name)
            targets = [batch.targets[form] for form in forms]
            sizes = [of_form.num_rows for of_form in targets]
            parts = self._call(name, head, hidden_TD, batch, targets, keys).float().split(sizes)
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
        """A head's outputs for the rows of all its forms end to end. Heads take plain tensors: ZeRO-3's hooks look for those."""
        rows_K = torch.cat([of_form.rows for of_form in targets])
        term_ids_K = torch.cat([of_form.term_ids for of_form in targets])
        # Rows of each of the head's terms, on the host; for heads with parameters per term, whose units are their rows.
        sizes = [
            int(batch.unit_counts[index]) for index, term in enumerate(self.layout.terms) if term.head == name
        ]
        if name == "san":
            segments_K4 = targets[0].extra["segments"] if rows_K.numel() else rows_K.new_zeros((0, 4))
            first_K = batch.cu_seqlens[:-1].index_select(0, rows_K)
            return head(
                hidden_TD,
                first_K,
                segments_K4,
                term_ids_K,
                sizes,
                batch.max_seqlen,
                _of_tokens(keys, first_K),
            )
        if name == "masked_lm":
            return head(hidden_TD.index_select(0, rows_K))
        if name == "embedding":
            return head(hidden_TD, batch.cu_seqlens, rows_K)
        if self.reads[name] == "sequence":
            states_KD = self.encoder.pooled(hidden_TD, batch, rows_K)
            keys_K = _of_tokens(keys, batch.cu_seqlens[:-1].index_select(0, rows_K))
        else:
            states_KD, keys_K = hidden_TD.index_select(0, rows_K), _of_tokens(keys, rows_K)
        return (
            head(states_KD, term_ids_K, keys_K)
            if name in BANKS
            else head(states_KD, term_ids_K, sizes, keys_K)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says once, at start."""
        return (
            *self.encoder.notes,
            *(note for head in self.heads.values() for note in getattr(head, "notes", ())),
        )

    @property
    def borrowed(self) -> tuple[tuple[nn.Module, nn.Parameter], ...]:
        """Parameters that a module reads in its forward although another one owns them: ZeRO-3 has to be told."""
        return tuple(
            (head, head.tied_weight) for head in self.heads.values() if isinstance(head, MaskedLMHead)
        )


def _of_tokens(keys: DropoutKeys | None, tokens_K: Tensor) -> Tensor | None:
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

    `encoder_path` is resolved (see resolve_encoder_path); `device_type` and `compute_dtype` are those of the training run, which
    decide the attention back end. A task's dropout of None means the encoder's own hidden dropout; dropout "none" overrides all, and
    "counter" draws its masks from `seed` and what the micro-batches say of their sequences.
    `first_score`: task -> what its regression answers before it is trained. Raises ConfigError.
    """
    backend, reason = resolve_backend(attention, device_type, compute_dtype)
    encoder = load_encoder(
        encoder_path,
        attention=backend,
        gradient_checkpointing=gradient_checkpointing,
        random_init=random_init,
        seed=seed,
        trust_remote_code=trust_remote_code,
        dropout=dropout,
        dtype=parameter_dtype,
        fused_layer_norm=fused_layer_norm,
    )
    if encoder.packs:
        if dropout == "counter":
            encoder.attention, reason = counter_backend(attention, backend, reason, encoder.attention_dropout)
        encoder.notes = (reason, *encoder.notes)
    task_dropout = [
        0.0 if dropout == "none" else encoder.hidden_dropout if spec.dropout is None else spec.dropout
        for spec in specs
    ]
    heads: dict[str, nn.Module] = {
        name: build_masked_lm_head(
            encoder, None if random_init else encoder_path, seed=seed, trust_remote_code=trust_remote_code
        )
        if name == "masked_lm"
        else _build_head(
            name,
            specs,
            layout,
            encoder=encoder,
            task_dropout=task_dropout,
            dropout=dropout,
            seed=seed,
            first_score=first_score or {},
        )
        for name in layout.heads
    }
    for head in heads.values():
        head.to(parameter_dtype)
    if not any(_reads_pooled(layout, name) for name in layout.heads):
        encoder.pooler.requires_grad_(False)  # no head reads it: without a gradient it would break ZeRO
    shared = share_encoder(encoder, sharing, seed=seed)
    if isinstance(shared, CopiedEncoder) and "masked_lm" in heads:
        _tie_to_its_copy(heads["masked_lm"], shared, sharing, layout)
    return MultiTaskNet(
        encoder=shared, heads=heads, layout=layout, dropout_seed=seed if dropout == "counter" else None
    ).train()


def _tie_to_its_copy(head: nn.Module, encoder: CopiedEncoder, sharing: Sharing, layout: HeadLayout) -> None:
    """With soft sharing, the decoder is tied to the word embeddings of the copy that the masked tokens run through."""
    tasks = [term.task for term in layout.terms if term.head == "masked_lm"]
    copies = {sharing.copy_of(task) for task in tasks}
    if len(copies) > 1:
        names = ", ".join(layout.task_names[task] for task in tasks)
        raise ConfigError(
            f"sharing.groups: the masked_lm tasks {names} share a decoder tied to one copy's word embeddings; put them into one group"
        )
    embedding = encoder.encoders[copies.pop()].model.get_input_embeddings()
    assert isinstance(head, MaskedLMHead) and isinstance(embedding, nn.Embedding)
    head.tie(embedding)


def _reads_pooled(layout: HeadLayout, head: str) -> bool:
    return head not in ("san", "embedding") and any(
        term.head == head and term.reads == "sequence" for term in layout.terms
    )


def _build_head(
    name: str,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    *,
    encoder: PackedEncoder,
    task_dropout: Sequence[float],
    dropout: DropoutMode,
    seed: int,
    first_score: Mapping[str, float],
) -> nn.Module:
    dropout_M = [task_dropout[term.task] for term in layout.terms]
    columns = {index: term.columns for index, term in enumerate(layout.terms) if term.head == name}
    initializer_range = getattr(encoder.config, "initializer_range", 0.02)
    if name in BANKS:
        return LinearBank(
            hidden_size=encoder.hidden_size,
            num_columns=layout.num_columns(name),
            dropout_M=dropout_M,
            initializer_range=initializer_range,
            seed=seed,
            purpose=f"{name}_head",
            first_bias={
                term.first_column: first_score[specs[term.task].name]
                for term in layout.terms
                if term.head == name and term.form == "score" and specs[term.task].name in first_score
            },
        )
    if name == "embedding":
        return MeanPooler()
    if name == "san":
        return SanBank(
            hidden_size=encoder.hidden_size,
            columns=columns,
            num_terms_of_run=len(layout.terms),
            dropout_M=dropout_M,
            prediction_dropout=0.0 if dropout == "none" else PREDICTION_DROPOUT,
            initializer_range=initializer_range,
            seed=seed,
        )
    owners = [specs[layout.terms[term].task] for term in columns]
    custom = owners[0].custom
    assert custom is not None and custom.head is not None
    return build_custom_heads(
        custom.head,
        kind=custom.name,
        tasks=[spec.name for spec in owners],
        hidden_size=encoder.hidden_size,
        columns=columns,
        dropout_M=dropout_M,
        dropout=dropout,
        seed=seed,
    )


def parameter_groups(
    model: MultiTaskNet, weight_decay: float, head_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in optimizer groups, with and without `weight_decay`, each in the model's own order.

    No decay on biases and on the parameters of normalisation layers, as BERT was trained (Devlin et al. 2019, appendix A.2, and
    https://github.com/google-research/bert/blob/eedf571/optimization.py#L65). With a `head_lr_factor` other than 1, pooler and heads
    have groups of their own, whose "lr_factor" multiplies the learning rate. A group without parameters is left out.
    """
    normalisation = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (head, plain): [] for head in (False, True) for plain in (False, True)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head = head_lr_factor != 1.0 and (name.startswith("heads.") or ".pooler." in name)
            is_plain = (
                name in normalisation or name.split(".")[-1].endswith("bias") or "layernorm" in name.lower()
            )
            groups[is_head, is_plain].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if is_plain else weight_decay,
            "lr_factor": head_lr_factor if is_head else 1.0,
        }
        for (is_head, is_plain), parameters in groups.items()
        if parameters
    ]
