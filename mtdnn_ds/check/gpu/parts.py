"""The parts of doctor --gpu, in the order of what matters most, and how long each of them may take.

Neighbours with one `process` share it (imports take seconds), and what is kept in it, until one of them ends
badly. The limits add up to less than nine minutes, so an allocation of ten is enough whatever hangs.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_SECONDS = 540.0
"""What the limits of PARTS together stay below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part. `function`: MODULE:FUNCTION, called with a Bench."""

    name: str
    title: str
    function: str
    limit_seconds: float  # imports included, where it is the first of its process
    process: str


def _part(name: str, function: str, process: str, limit_seconds: float, title: str) -> Part:
    return Part(
        name=name,
        title=title,
        function=f"mtdnn_ds.check.gpu.{function}",
        limit_seconds=limit_seconds,
        process=process,
    )


PARTS: tuple[Part, ...] = (
    _part("machine", "ceilings:look", "small", 40, "Machine, versions, and what it can reach"),
    _part("attention", "attention:look", "small", 45, "Attention back ends against softmax written out"),
    _part("precision", "precision:look", "small", 70, "ZeRO and precision against fp32 on the CPU"),
    _part("counter", "counter:look", "small", 15, "Dropout from counters, CPU and GPU"),
    _part("large", "large:look_eager", "large", 75, "BERT-large, eager, beside a padded loop"),
    _part("kernels", "kernels:look_eager", "large", 20, "Kernels of a step, eager"),
    _part("saves", "restart:look_at_saves", "large", 30, "Checkpoints of BERT-large"),
    _part("large compiled", "large:look_compiled", "compiled", 80, "BERT-large, compiled layers"),
    _part("kernels compiled", "kernels:look_compiled", "compiled", 15, "Kernels of a step, compiled layers"),
    _part("kinds", "kinds:look", "last", 55, "Kinds of tasks, regularisers, sharing; waits for the GPU"),
    _part("resume", "restart:look", "last", 30, "Killed and resumed"),
    _part("predict", "prediction:look", "last", 25, "predict"),
    _part("optimizers", "precision:look_at_optimizers", "last", 35, "Optimizers and offload"),
)
"""What waits for a compiler comes last."""
