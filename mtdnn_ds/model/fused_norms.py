"""NVIDIA apex's layer normalisation in place of torch's. It has no parameters of its own."""

from __future__ import annotations

import torch
from torch import nn

from mtdnn_ds.config.errors import ConfigError


def fuse_layer_norms(module: nn.Module) -> None:
    """Puts NVIDIA apex's FusedLayerNorm in place of every nn.LayerNorm, with the same parameters.

    Raises ConfigError without apex or CUDA.
    """
    try:
        from apex.normalization import FusedLayerNorm
    except ImportError as error:
        raise ConfigError(
            "encoder.fused_layer_norm: NVIDIA apex is not installed (PyPI's 'apex' is another project: "
            f"build https://github.com/NVIDIA/apex), or set it to false: {error}"
        ) from error
    if not torch.cuda.is_available():
        raise ConfigError("encoder.fused_layer_norm: it needs CUDA; set it to false")

    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.LayerNorm:
                fused = FusedLayerNorm(
                    norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine
                )
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(parent, name, fused)
