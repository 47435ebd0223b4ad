"""MultiTaskModel: one encoder and the fused heads of all tasks in a single forward. Not the losses, not the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.model.attention import resolve_backend
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.heads import FusedSequenceHead
from mtdnn_ds.tasks.layout import HeadLayout


class MultiTaskModel(nn.Module):
    """Packed micro-batch in, logits of all tasks out.

    Everything happens in one forward, because ZeRO-3 gathers parameters by hooks on it; and every parameter is in the graph of
    every micro-batch, because ZeRO needs a gradient for each on every rank.
    """

    def __init__(self, *, encoder: PackedEncoder, head: FusedSequenceHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits (K, C), float32: row k belongs to the sequence batch.sequence.rows[k], columns to tasks as in the HeadLayout."""
        _, pooled_KD = self.encoder(batch)
        return self.head(pooled_KD, batch.sequence.task_ids).float()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says once, at start."""
        return self.encoder.notes


def build_model(
    *,
    encoder_path: str,
    layout: HeadLayout,
    task_dropout: Sequence[float | None],
    attention: str = "auto",
    device_type: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    random_init: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    dropout: Literal["model", "none"] = "model",
    fused_layer_norm: bool = False,
    first_score: Sequence[float] | None = None,
) -> MultiTaskModel:
    """The whole model on the CPU, in training mode; equal on every rank for equal arguments.

    `encoder_path` is resolved (see resolve_encoder_path); `device_type` and `compute_dtype` are those of the training run, which
    decide the attention back end. A task's dropout of None means the encoder's own hidden dropout; dropout "none" overrides all.
    `first_score`: what each regression answers before it is trained (FusedSequenceHead). Raises ConfigError.
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
        encoder.notes = (reason, *encoder.notes)
    head = FusedSequenceHead(
        hidden_size=encoder.hidden_size,
        layout=layout,
        dropout_N=[0.0 if dropout == "none" else encoder.hidden_dropout if own is None else own for own in task_dropout],
        initializer_range=getattr(encoder.config, "initializer_range", 0.02),
        seed=seed,
        first_score_N=first_score,
    )
    head.to(parameter_dtype)
    return MultiTaskModel(encoder=encoder, head=head).train()


def parameter_groups(model: MultiTaskModel, weight_decay: float, head_lr_factor: float = 1.0) -> list[dict[str, Any]]:
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
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(head, plain): [] for head in (False, True) for plain in (False, True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head = head_lr_factor != 1.0 and name.startswith(("head.", "encoder.pooler."))
            is_plain = name in normalisation or name.split(".")[-1].endswith("bias") or "layernorm" in name.lower()
            groups[is_head, is_plain].append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_plain else weight_decay, "lr_factor": head_lr_factor if is_head else 1.0}
        for (is_head, is_plain), parameters in groups.items()
        if parameters
    ]
