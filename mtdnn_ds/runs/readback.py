"""Readback: outputs wait on their device, and many micro-batches' come to the host in one transfer.

Each transfer from a GPU waits until the GPU has done all its work, so one for each micro-batch leaves it idle
between them. Not what becomes of the outputs.

Shape legend: K rows of one micro-batch, C their columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MOST_WAITING_BYTES = 256 * 2**20  # of a GPU's memory


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """Rows on the device, and who takes them on the host."""

    rows_KC: Tensor
    take: Callable[[np.ndarray], None]


class Readback:
    """Rows of several names, each name with columns of its own, until `read` has them taken.

    They are read earlier, all that wait, once they hold `most_bytes`; while a name is read, its rows are on
    the device twice.
    """

    def __init__(self, *, most_bytes: int) -> None:
        """`most_bytes`: see waiting_bytes; 0: rows are taken at once."""
        self._most_bytes = most_bytes
        self._waiting: dict[str, list[_Waiting]] = {}
        self._num_bytes = 0

    def add(self, name: str, rows_KC: Tensor, take: Callable[[np.ndarray], None]) -> None:
        """`take` gets the rows as an array on the host, after those of this name that were added before."""
        self._waiting.setdefault(name, []).append(_Waiting(rows_KC=rows_KC, take=take))
        self._num_bytes += rows_KC.numel() * rows_KC.element_size()
        if self._num_bytes >= self._most_bytes:
            self.read()

    def read(self) -> None:
        """Everything that waits is taken."""
        waiting, self._waiting, self._num_bytes = self._waiting, {}, 0
        for of_name in waiting.values():
            rows = to_host([each.rows_KC for each in of_name])
            first = 0
            for each in of_name:
                end = first + len(each.rows_KC)
                each.take(rows[first:end])
                first = end


def waiting_bytes(device: torch.device) -> int:
    """How much may wait on a device: nothing on the CPU, where nothing has to be transferred."""
    return 0 if device.type == "cpu" else MOST_WAITING_BYTES


def to_host(parts: list[Tensor]) -> np.ndarray:
    """The rows of all parts, in one transfer."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.cpu().numpy()
