"""Which plain transformers class a task becomes, its weights and config. Writes and compares nothing.

Shape legend: D hidden, E width of the word embeddings, V vocabulary, C outputs of a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.linear_bank import in_scale
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.sharing import merged_encoder_state
from mtdnn_ds.tasks.kinds import PLAIN_CLASSES
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.sharing import Sharing
from mtdnn_ds.tasks.spec import TaskSpec

ENCODER = "AutoModel"
# Names of the layers of plain classes that stand for our pooler and our head, outside their encoder.
_POOLERS = ("classifier.dense.", "pooler.dense.", "pre_classifier.", "sequence_summary.summary.")
_HEADS = ("classifier.out_proj.", "classifier.", "qa_outputs.")
_DROPOUTS = ("classifier_dropout", "cls_dropout", "classifier_dropout_prob", "seq_classif_dropout")


def auto_class(spec: TaskSpec | None) -> str:
    """The class of transformers that loads the encoder (None) or a task that has a plain class."""
    if spec is None:
        return ENCODER
    return ENCODER + PLAIN_CLASSES[spec.kind]


def why_not_plain(spec: TaskSpec) -> str | None:
    """Why no plain class computes what the task's head does, whatever the encoder; None where one does."""
    if spec.custom is not None:
        return f"its kind '{spec.kind}' is one of its maker's own"
    if spec.head == "san":
        return "transformers has no stochastic answer network (head: san)"
    if spec.kind == "similarity":
        return (
            "it has no head: its scores are cosines of mean-pooled embeddings, "
            "which --format sentence-transformers exports"
        )
    if spec.kind == "conversational_span":
        return "transformers has no class with both a span and an answer type"
    return None


def plain_config(
    encoder: PreTrainedConfig, spec: TaskSpec | None = None, *, dropout: float | None = None
) -> PreTrainedConfig:
    """The encoder's config as transformers has it, and with what a task adds.

    `dropout`: before the task's head.
    """
    # Through a dict, which leaves out what only runs have, such as the attention's implementation.
    config = type(encoder).from_dict(encoder.to_dict())
    config.dtype = "float32"
    if spec is None:
        return config

    if spec.labels and spec.kind != "ranking":
        config.id2label = dict(enumerate(spec.labels))
        config.label2id = {label: index for index, label in enumerate(spec.labels)}
        config.problem_type = None
        if spec.kind == "classification":
            config.problem_type = "single_label_classification"
    elif spec.kind in ("regression", "ranking"):
        config.id2label, config.label2id = {0: spec.name}, {spec.name: 0}
        config.problem_type = "regression"
    if dropout is not None:
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    return config


def plain_model(
    spec: TaskSpec | None,
    weights: Mapping[str, Tensor],
    net: MultiTaskNet,
    layout: HeadLayout,
    sharing: Sharing,
    config: PreTrainedConfig,
    *,
    of: str | None = None,
) -> PreTrainedModel | str:
    """The encoder (`spec` None) or a task as a plain model on the memory of `weights`; to be saved, not run.

    `of`: the task whose encoder it is, where they are not shared. `net` gives the structure only. Where no
    plain class of this encoder computes the same: why, as the end of a sentence.
    """
    head, owners, is_masked_lm = None, [of] if of else [], False
    if spec is not None:
        reason = why_not_plain(spec) or _no_class(spec, config)
        if reason is not None:
            return reason
        head, is_masked_lm = _head_weights(spec, weights, layout), spec.kind == "masked_lm"
        owners.append(spec.name)

    with quiet_transformers(), torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto_class(spec)).from_config(config)
    encoder = merged_encoder_state(weights, sharing, owners)

    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        found = _weight(name, tensor, model, encoder, head, is_masked_lm=is_masked_lm)
        if found is None or found.shape != tensor.shape:
            return f"{type(model).__name__} has a layer {name}, which our model has not"
        state[name] = found

    if spec is not None:
        reason = _other_activation(state, spec, net, config, model)
        if reason is not None:
            return reason
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _no_class(spec: TaskSpec, config: PreTrainedConfig) -> str | None:
    """Why this encoder has no plain class for the task, or None."""
    own_class = PLAIN_CLASSES[spec.kind]  # ForMaskedLM is in MODEL_FOR_MASKED_LM_MAPPING
    in_capitals = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", own_class).upper()
    if type(config) in getattr(transformers, f"MODEL_{in_capitals}_MAPPING"):
        return None
    return f"transformers has no Model{own_class} for {config.model_type}"


def _head_weights(spec: TaskSpec, weights: Mapping[str, Tensor], layout: HeadLayout) -> dict[str, Tensor]:
    """Weights of the head of the task's first term: its own rows of a bank, or the whole masked-LM head."""
    task = layout.task_names.index(spec.name)
    term = layout.terms[layout.terms_of(task)[0]]
    prefix = f"heads.{term.head}."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if term.head == "masked_lm":
        return own
    of_task = {name: tensor[term.columns.start : term.columns.stop] for name, tensor in own.items()}
    if spec.score_scale is not None:
        scaled = in_scale(of_task["weight"], of_task["bias"], theirs=spec.score_scale, ours=None)
        of_task["weight"], of_task["bias"] = scaled
    return of_task


def _weight(
    name: str,
    like: Tensor,
    model: PreTrainedModel,
    encoder: Mapping[str, Tensor],
    head: Mapping[str, Tensor] | None,
    *,
    is_masked_lm: bool,
) -> Tensor | None:
    """Our weight for the plain model's `name`."""
    prefix = f"{model.base_model_prefix}."
    if head is None or name.startswith(prefix):
        own = name.removeprefix(prefix) if head is not None else name
        if not own.startswith("pooler."):
            return encoder.get(f"model.{own}")
        in_ours = own.replace("pooler.", "pooler.dense.", 1)  # ALBERT's is a linear layer itself
        return encoder.get(own, encoder.get(in_ours))

    if is_masked_lm:
        return _masked_lm_weight(name, like, model, encoder, head)
    for start in _POOLERS:
        if name.startswith(start):
            return encoder.get(f"pooler.dense.{name.removeprefix(start)}")
    for start in _HEADS:
        if name.startswith(start):
            return head.get(name.removeprefix(start))
    return None


def _masked_lm_weight(
    name: str, like: Tensor, model: PreTrainedModel, encoder: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> Tensor | None:
    """Our weight for the plain model's `name`, by its shape and by 'norm' in the name.

    So are they told apart when a checkpoint's own head is taken over (model/heads/masked_lm.py).
    """
    kind = name.split(".")[-1]
    if "norm" in name.lower():
        return head.get(f"norm.{kind}")

    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    if like.shape == embedding.weight.shape:
        path = next(own for own, module in model.base_model.named_modules() if module is embedding)
        return encoder.get(f"model.{path}.weight")

    if like.ndim == 2:
        return head.get("dense.weight")
    return head.get("bias" if like.shape == head["bias"].shape else "dense.bias")


def _other_activation(
    state: Mapping[str, Tensor],
    spec: TaskSpec,
    net: MultiTaskNet,
    config: PreTrainedConfig,
    model: PreTrainedModel,
) -> str | None:
    """What differs where a plain class has an activation of its own, which no config changes."""
    names = [name for name in state if not name.startswith(f"{model.base_model_prefix}.")]

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    fixed: str | None = None
    if spec.kind == "masked_lm":
        if has("lm_head.") or has("generator_predictions."):
            fixed = "gelu"
        ours: Any = net.heads["masked_lm"].activation
    else:
        # RobertaClassificationHead is tanh, ElectraClassificationHead gelu, DistilBERT's pre_classifier relu.
        if has("classifier.dense."):
            fixed = "gelu" if config.model_type in ("electra", "convbert", "roformer") else "tanh"
        elif has("pre_classifier."):
            fixed = "relu"
        first = net.encoder if isinstance(net.encoder, PackedEncoder) else net.encoder.first
        ours = getattr(first.pooler, "activation", None)

    if fixed is None or ours is None or type(ours) is type(transformers.activations.ACT2FN[fixed]):
        return None
    return (
        f"{type(model).__name__} has {fixed} before its last layer, "
        f"and this model was trained with {type(ours).__name__}"
    )
