"""An encoder's Hugging Face config, or the refusal that says why there is none. Reads no weights."""

from __future__ import annotations

from typing import Any

from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import EncoderSettings


def encoder_config(settings: EncoderSettings) -> Any:
    """The PreTrainedConfig of `encoder.path`. Raises ConfigError where transformers cannot load it."""
    from transformers import AutoConfig

    path = resolve_encoder_path(settings.path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"encoder.path={settings.path}: transformers cannot load it: {error}") from error
