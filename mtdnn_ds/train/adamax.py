"""AdamaxW: torch's Adamax with decoupled weight decay. Not the groups (model/multitask.py), not AdamW.

    w <- (1 - lr wd) w, then Adamax's own step without decay

MT-DNN's authors decay so (Adamax of https://github.com/namisan/mt-dnn). torch.optim.Adamax adds wd w to the
gradient instead. Adamax divides by the largest gradient seen, and those of a fine-tuned encoder are far
smaller than 0.01 w: every step would then shrink weights by nearly lr, whatever wd is (Loshchilov and Hutter
2019, arXiv:1711.05101, section 2, of Adam).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AdamaxW(torch.optim.Adamax):
    """Element-wise, so ZeRO may hand it flat parts of many parameters.

    State and groups have torch's names, hence checkpoints of either can be loaded.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if decay and parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * decay)

        # torch's step would add the decay to the gradients.
        try:
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss
