"""Bench: what a part of doctor --gpu gets, and how it tells what it found. Measures nothing itself."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Of one process: its device, a folder to write to, and `emit`, which makes a row known at once."""

    device: torch.device
    is_rehearsal: bool  # everything small
    scratch: Path  # shared by all processes of a run
    emit: Callable[[Row], None]
    kept: dict[str, Any] = field(default_factory=dict)  # what later parts of this process go on with

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU to look at."""
        return self.device.type == "cuda"

    def sized(self, real: int, small: int) -> int:
        """A size: of the real thing, or of a rehearsal."""
        return small if self.is_rehearsal else real

    def tried(self, name: str, function: Callable[[], Row]) -> Row:
        """Emit what `function` finds; what it raises is a row too, and the part goes on.

        Raises what it raised where the GPU can then do no more: the part ends, and the next one gets a new
        process.
        """
        try:
            row = function()
        except ConfigError as error:  # something that cannot be here
            row = Row(name=name, status="note", what="; ".join(error.problems))
        except Exception as error:  # whatever a driver or kernel raises is a finding
            traceback.print_exc()
            row = Row(name=name, status="failed", what=first_line(error))
            self.emit(row)
            self._refuse_a_dead_gpu()
            return row
        self.emit(row)
        return row

    def _refuse_a_dead_gpu(self) -> None:
        """After an illegal access every later call raises too."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """`RuntimeError: no kernel`."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
