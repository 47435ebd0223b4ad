"""What every family of examples offers, and the records that go in and out. No kind is known here.

An example is what the plan counts and packing never parts: one or several sequences of tokens, and targets
for its task's terms.

Shape legend: E examples of a split, B examples asked for, S their sequences, T their tokens, K supervised
rows, C outputs of a term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetRows:
    """Targets of one term; rows of one example are neighbours, examples in the order asked for."""

    rows: np.ndarray  # (K,) index into the S sequences or the T tokens, as the term's head reads
    labels: np.ndarray  # (K,) float32; NaN where unknown
    examples: np.ndarray  # (K,) index into B, never falling
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # (K, ...) each


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Sequences end to end, those of one example next to each other, and targets."""

    input_ids: np.ndarray  # (T,) int64
    token_type_ids: np.ndarray  # (T,) int64
    lengths: np.ndarray  # (S,) tokens of each sequence
    examples: np.ndarray  # (S,) index into B, never falling
    targets: Sequence[TargetRows]  # one for each of the task's terms, in their order


@dataclass(frozen=True, kw_only=True, slots=True)
class TermOutputs:
    """A term's outputs for all examples of a split, in their order.

    Example e has rows offsets[e] : offsets[e + 1].
    """

    values: np.ndarray  # (K, C) float32
    labels: np.ndarray  # (K,) float32, the targets' labels
    offsets: np.ndarray  # (E + 1,) int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What metrics compare: a prediction and a reference for each row, or whatever the kind scores."""

    predictions: Sequence[Any] | np.ndarray
    references: Sequence[Any] | np.ndarray


class Examples(Protocol):
    """The examples of one split of one task. Pure: the same numbers give the same arrays, on any rank."""

    @property
    def split(self) -> PreparedSplit: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: tokens of each example, all its sequences together; the same in every epoch.

        Special tokens are included.
        """
        ...

    @property
    def rows(self) -> np.ndarray:
        """(E,) int64: the row of the split that each example was made of."""
        ...

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        """Sequences and targets of the given examples.

        `epochs_B` says how often each has been drawn before; objectives that mask use it.
        """
        ...

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """Predictions of every row from the outputs of each of the task's terms."""
        ...

    def source_row(self, example: int) -> int:
        """The line or row of the source that an example was made of."""
        ...
