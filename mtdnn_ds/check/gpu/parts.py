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
    _part("machine", "ceilings:look", "small", 34, "Machine, versions, and what it can reach"),
    _part("attention", "attention:look", "small", 40, "Attention back ends against softmax written out"),
    _part("precision", "precision:look", "small", 60, "ZeRO and precision against fp32 on the CPU"),
    _part("counter", "counter:look", "small", 30, "Dropout from counters, CPU and GPU"),
    _part("large", "large:look_eager", "large", 65, "BERT-large, eager, beside a padded loop"),
    _part("saves", "restart:look_at_saves", "large", 45, "Checkpoints of BERT-large"),
    _part("kernels", "kernels:look_eager", "large", 35, "Kernels of a step, eager"),
    _part("large compiled", "large:look_compiled", "compiled", 70, "BERT-large, compiled layers"),
    _part("kernels compiled", "kernels:look_compiled", "compiled", 40, "Kernels of a step, compiled layers"),
    _part("kinds", "kinds:look", "last", 45, "Kinds of tasks, regularisers, sharing; waits for the GPU"),
    _part("resume", "restart:look", "last", 25, "Killed and resumed"),
    _part("predict", "prediction:look", "last", 20, "predict"),
    _part("optimizers", "precision:look_at_optimizers", "last", 30, "Optimizers and offload"),
)
"""What waits for a compiler comes last. Where a part ended badly the next one is the first of its process:
each of BERT-large's has room for a start, estimated at 20 to 30 s.
"""
