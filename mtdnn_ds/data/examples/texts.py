"""Examples of one sequence and one label: classification, regression, and users' own kinds.

One row is one example.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.tasks.spec import TaskSpec


class TextExamples:
    """One text or a pair in a sequence of at most `max_length` tokens."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.spec, self.split, self.max_length = spec, split, max_length
        self.num_examples, self.rows = split.num_rows, np.arange(split.num_rows)
        self.lengths = split.lengths(max_length).astype(np.int64)

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        input_ids, token_type_ids, lengths = self.split.gather(examples_B, self.max_length)
        every = np.arange(len(examples_B))
        extra = {}
        if self.spec.head == "san":
            extra["segments"] = self._segments(examples_B)
        targets = TargetRows(rows=every, labels=self.split.labels[examples_B], examples=every, extra=extra)
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=every,
            targets=[targets],
        )

    def _segments(self, examples_B: np.ndarray) -> np.ndarray:
        """(B, 4) int64: start and length of text a and of text b, as truncated, within their sequence."""
        template = self.split.specials.pair
        whole_a, whole_b = self.split.texts(examples_B, 0), self.split.texts(examples_B, 1)
        first, second = self.split.truncated(whole_a, whole_b, self.max_length)
        assert second is not None

        start_a_B = np.full_like(first.length, len(template.prefix))
        start_b_B = start_a_B + first.length + len(template.middle)
        return np.stack([start_a_B, first.length, start_b_B, second.length], axis=1)

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """Class ids, scores, or what a user's own kind makes of the outputs."""
        (own,) = outputs
        if self.spec.custom is not None:
            predictions = self.spec.custom.predictions(own.values)
        elif self.spec.labels:
            predictions = own.values.argmax(axis=1)
        else:
            predictions = own.values[:, 0]
        return Decoded(predictions=predictions, references=own.labels)

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[example])
