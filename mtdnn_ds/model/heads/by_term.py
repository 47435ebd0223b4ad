"""Rows of a head grouped by their term, for heads with parameters per term. It has no parameters.

Never waits for the device.

Shape legend: K supervised rows, M terms of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsByTerm:
    """An order of rows in which those of one term are neighbours: `sizes[m]` rows of term m.

    Example: terms (1, 0, 1) with sizes (1, 2) have order (1, 0, 2) and back (1, 0, 2).
    """

    order: Tensor  # (K,) int64: row `order[i]` stands in place i
    back: Tensor  # (K,) int64, its inverse
    sizes: tuple[int, ...]  # (M,), on the host: shapes on a GPU would have to be waited for

    @property
    def present(self) -> tuple[int, ...]:
        """Terms with rows, or the first one where there are none: something of the head is in every graph."""
        return tuple(term for term, size in enumerate(self.sizes) if size) or (0,)


def rows_by_term(term_ids_K: Tensor, sizes: Sequence[int]) -> RowsByTerm:
    """`sizes`: rows of each of the head's terms, in the order of their ids."""
    assert sum(sizes) == term_ids_K.numel(), (sizes, term_ids_K.numel())
    order = torch.argsort(term_ids_K, stable=True)
    return RowsByTerm(order=order, back=torch.argsort(order), sizes=tuple(sizes))
