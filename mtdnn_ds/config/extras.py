"""Packages that only some verbs need, and the extra of mtdnn_ds that brings them. Imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from mtdnn_ds.config.errors import ConfigError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("fastapi", "uvicorn"),
}
"""Extra -> what can be imported once it is installed."""


def require_extra(extra: str, what: str) -> None:
    """Raises ConfigError if a package of `extra` is missing; `what` needs it, in the user's words."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if not missing:
        return

    packages = (
        f"the packages {', '.join(missing)} are" if len(missing) > 1 else f"the package {missing[0]} is"
    )
    raise ConfigError(f"{what}: {packages} missing; install with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """What a user types to get the packages of `extra`."""
    return f"pip install 'mtdnn_ds[{extra}]'"
