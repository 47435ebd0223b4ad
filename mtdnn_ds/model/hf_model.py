"""An encoder as Hugging Face has it: loading, dropout, positions, checkpointing. Nothing here is packed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.seeded import derived_seed

# How configs call the encoder's own dropout of hidden states.
HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout")


def load_hf_model(
    path: str, *, random_init: bool, seed: int, trust_remote_code: bool, dropout: DropoutMode
) -> tuple[PreTrainedModel, Collection[str]]:
    """The Hugging Face model in float32, and the names of the parameters that its checkpoint lacks.

    `seed` draws those (all of them with `random_init`). Raises ConfigError when the model cannot be loaded,
    is no encoder, or its checkpoint lacks more than a pooler.
    """
    missing: Collection[str] = ()
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "encoder"))
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            _refuse_other_architectures(config, path)
            if dropout == "none":
                _zero_dropout(config)

            settings = {"trust_remote_code": trust_remote_code, "dtype": torch.float32}
            if random_init:
                model = AutoModel.from_config(config, **settings)
            else:
                model, report = AutoModel.from_pretrained(
                    path, config=config, output_loading_info=True, **settings
                )
                missing = report["missing_keys"]
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"encoder.path={path}: transformers cannot load it: {error}") from error

    lost = sorted(name for name in missing if not name.startswith("pooler."))
    if lost:
        raise ConfigError(
            f"encoder.path={path}: the checkpoint lacks {len(lost)} weights of {type(model).__name__}, among "
            f"them {lost[0]}"
        )

    # Layers whose probability is no setting of the config.
    if dropout == "none":
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model, missing


def _refuse_other_architectures(config: PreTrainedConfig, path: str) -> None:
    """Only encoders trained with masked (or ELECTRA's replaced) tokens sum a text up in its first token."""
    is_remote = bool(getattr(config, "auto_map", None))
    is_masked_lm = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if config.is_encoder_decoder or not (is_remote or is_masked_lm):
        raise ConfigError(
            f"encoder.path={path}: model type '{config.model_type}' is not a masked-language-model encoder; "
            "use BERT, RoBERTa, ELECTRA, DeBERTa, ..."
        )


def _zero_dropout(config: PreTrainedConfig) -> None:
    for name, value in config.to_dict().items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and ("dropout" in name or name == "layerdrop"):
            setattr(config, name, 0.0)


def hidden_dropout_of(config: PreTrainedConfig) -> float:
    """The encoder's own dropout of hidden states."""
    values = [getattr(config, name, None) for name in HIDDEN_DROPOUT]
    return next((float(value) for value in values if value is not None), 0.0)


def attention_dropout_of(config: PreTrainedConfig) -> float:
    """The encoder's own dropout of attention probabilities."""
    bert = getattr(config, "attention_probs_dropout_prob", None)
    others = getattr(config, "attention_dropout", None)
    return float(bert or others or 0.0)


def head_size_of(config: PreTrainedConfig) -> int | None:
    """Width of an attention head; None where the config does not tell."""
    num_heads = getattr(config, "num_attention_heads", None)
    if num_heads is None:
        return None
    return int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """The absolute position embeddings, None where the encoder has none."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


def position_limits(model: PreTrainedModel) -> tuple[int, int]:
    """Position id of a sequence's first token, and the most tokens of a sequence.

    That is sys.maxsize where the encoder sets no limit.

    RoBERTa's table has a padding_idx, and its positions begin after it; BERT's has none.
    """
    table = position_table(model)
    if table is None:
        first, limit = 0, getattr(model.config, "max_position_embeddings", None)
    else:
        first = 0 if table.padding_idx is None else table.padding_idx + 1
        limit = table.num_embeddings

    if not limit or limit < 0:
        return first, sys.maxsize
    return first, limit - first


def set_checkpointing(model: PreTrainedModel, wanted: bool, **settings: Any) -> None:
    """Switches the recomputation of layers in the backward pass on or off.

    `settings` go to torch.utils.checkpoint. Raises ConfigError where it is wanted and the model has none.
    """
    if wanted and not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"encoder.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
        )

    name = "activation_checkpointing"
    if not hasattr(model, f"{name}_enable"):
        name = "gradient_checkpointing"  # as transformers before 5.23 calls it
    if wanted:
        enable = getattr(model, f"{name}_enable")
        enable(**{f"{name}_kwargs": {"use_reentrant": False, **settings}})
    elif getattr(model, f"is_{name}"):  # switched on by the checkpoint's config
        getattr(model, f"{name}_disable")()


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
