"""Python packages that only some verbs need: the extras of pyproject.toml, asked for by name. Imports none of them."""

from __future__ import annotations

import importlib.util

from mtdnn_ds.config.errors import ConfigError

EXTRAS = {
    "serve": ("fastapi", "uvicorn"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}


def require_extra(extra: str, what: str) -> None:
    """Raise ConfigError, about `what` the user asked for, unless every package of `extra` is installed."""
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what}: {', '.join(missing)} not installed; run: pip install 'mtdnn_ds[{extra}]'")
