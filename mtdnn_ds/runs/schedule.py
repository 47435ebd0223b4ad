"""Learning-rate schedules: a pure function of the step, so that nothing of them needs saving.

Not DeepSpeed's. With K steps, W of them warm-up, and k the step about to be done (1-based), x = (k - 1 - W) /
(K - W) in [0, 1):

    warm-up (k <= W)   k / W
    linear             1 - x                            as Hugging Face's, but no step has rate 0
    cosine             (1 + cos(pi x)) / 2
    polynomial         (1 - x) ** power
    constant           1

each scaled to run from 1 down to final_lr_ratio.
"""

from __future__ import annotations

import math
from typing import Literal

Name = Literal["linear", "cosine", "polynomial", "constant"]


def num_warmup_steps(warmup: float, total_steps: int) -> int:
    """`warmup` below 1 is a fraction of all steps (rounded up), 1 and above a number of steps."""
    if warmup < 1:
        return math.ceil(round(warmup * total_steps, 6))
    return int(warmup)


def learning_rate(
    step: int,
    *,
    name: Name,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    final_lr_ratio: float,
    power: float,
) -> float:
    """Learning rate of step `step` (1-based)."""
    if step <= warmup_steps:
        return peak * step / warmup_steps

    progress = (step - 1 - warmup_steps) / max(total_steps - warmup_steps, 1)
    remaining = {
        "linear": lambda: 1 - progress,
        "cosine": lambda: (1 + math.cos(math.pi * progress)) / 2,
        "polynomial": lambda: (1 - progress) ** power,
        "constant": lambda: 1.0,
    }[name]()
    return peak * (final_lr_ratio + (1 - final_lr_ratio) * remaining)
