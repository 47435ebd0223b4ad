"""Training examples with teachers' answers: their targets have soft ones beside the labels.

Knows no teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mtdnn_ds.data.cache.soft_targets import RowsByExample
from mtdnn_ds.data.examples.base import Decoded, Examples, Gathered, TermOutputs
from mtdnn_ds.data.ragged import places_within

SOFT = "soft"  # key of TargetRows.extra and Targets.extra


class DistilledExamples:
    """`base`, whose only term's targets have extra["soft"] (K, O) float32.

    NaN in rows that `soft` lacks (tokens that no teacher read).
    """

    def __init__(self, base: Examples, soft: RowsByExample) -> None:
        assert len(soft.offsets) == base.num_examples + 1, (len(soft.offsets), base.num_examples)
        self.base, self.soft = base, soft
        self.split, self.num_examples, self.lengths = base.split, base.num_examples, base.lengths
        self.rows = base.rows

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        gathered = self.base.gather(examples_B, epochs_B)
        (own,) = gathered.targets

        place_K = places_within(np.bincount(own.examples, minlength=len(examples_B)))
        examples_K = examples_B[own.examples]
        row_K = self.soft.offsets[examples_K] + place_K
        known_K = row_K < self.soft.offsets[examples_K + 1]

        soft_KO = np.full((len(row_K), self.soft.values.shape[1]), np.nan, dtype=np.float32)
        soft_KO[known_K] = self.soft.values[row_K[known_K]]
        return replace(gathered, targets=[replace(own, extra={**own.extra, SOFT: soft_KO})])

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        return self.base.decode(outputs)

    def source_row(self, example: int) -> int:
        return self.base.source_row(example)
