"""Examples of one sequence and one label: classification, regression, and kinds of the user's own. One row is one example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.prepared import PreparedSplit
from mtdnn_ds.tasks.spec import TaskSpec


class TextExamples:
    """One text or a pair in a sequence of at most `max_length` tokens."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.spec, self.split, self.max_length = spec, split, max_length
        self.num_examples = split.num_rows
        self.lengths = split.lengths(max_length).astype(np.int64)

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        input_ids, token_type_ids, lengths = self.split.gather(examples_B, self.max_length)
        every = np.arange(len(examples_B))
        targets = TargetRows(rows=every, labels=self.split.labels[examples_B], examples=every)
        return Gathered(input_ids=input_ids, token_type_ids=token_type_ids, lengths=lengths, examples=every, targets=[targets])

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        (own,) = outputs
        if self.spec.custom is not None:
            predictions = np.asarray(self.spec.custom.predict(own.values))
        else:
            predictions = own.values.argmax(axis=1) if self.spec.labels else own.values[:, 0]
        return Decoded(predictions=predictions, references=own.labels)

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[example])
