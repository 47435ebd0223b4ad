"""Replayed: what modules of an encoder read of the running micro-batch beside their input. Not the values.

Hugging Face's layers pass tensors to each other and nothing else, so hooks and dropouts inside them find such
values here. With gradient checkpointing a layer runs a second time in the backward pass, on CUDA in another
thread and perhaps after other micro-batches: it then sees what it saw the first time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Replayed:
    """Values by name.

    Names may be given other values, but no value may change: a checkpointed layer keeps a shallow copy.
    """

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a checkpointed layer's forward and of its repetition.

        They are `context_fn` of torch.utils.checkpoint.
        """
        return nullcontext(), _AsBefore(self)


class _AsBefore(AbstractContextManager[None]):
    """Within it, the values are those of the moment when it was made.

    Can be entered again: a graph may go backward twice.
    """

    def __init__(self, running: Replayed) -> None:
        self.running = running
        self.kept = dict(running.values)

    def __enter__(self) -> None:
        self.present = self.running.values
        self.running.values = dict(self.kept)

    def __exit__(self, *_: object) -> None:
        # Also by an exception: a repetition that has all it needs ends with one.
        self.running.values = self.present
