"""Examples of similarity: two texts, each in a sequence of its own, and their score. One row is one example.

    cosine        a score y stands for the cosine (y - low) / (high - low), with score_range [low, high]:
                  low for cosine 0, high for cosine 1
    contrastive   labels are 1 (similar) and 0 (different)

Shape legend: R rows of the split, B examples asked for, S their sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.tasks.spec import TaskSpec


class PairExamples:
    """Pairs of sequences of at most `max_length` tokens each."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.spec, self.split, self.max_length = spec, split, max_length
        self.num_examples, self.rows = split.num_rows, np.arange(split.num_rows)

        template = split.specials.single
        kept_R2 = np.minimum(split.text_lengths().reshape(-1, 2), room_for_texts(template, max_length))
        self.lengths = (kept_R2 + template.num_special).sum(axis=1)

        low, high = (0.0, 1.0) if spec.objective == "contrastive" else spec.options["score_range"]
        self._low, self._high = float(low), float(high)
        self._targets_R = (split.labels - self._low) / (self._high - self._low)
        self._check_labels()

    def _check_labels(self) -> None:
        labels_R, low, high = self.split.labels, self._low, self._high
        if self.spec.objective == "contrastive":
            fits_R = np.isin(labels_R, (0, 1))
            rule = (
                "contrastive labels are 1 (similar) and 0 (different); "
                "write them so, or choose objective: cosine"
            )
        else:
            fits_R = np.abs(self._targets_R) <= 1
            rule = (
                f"cosines stand for scores of {2 * low - high:g} to {high:g}; "
                f"set tasks.{self.spec.name}.score_range ({low:g}, {high:g}) to your lowest and highest score"
            )

        wrong = np.flatnonzero(~fits_R & ~np.isnan(labels_R))
        if wrong.size:
            first = f"the first is {labels_R[wrong[0]]:g} in row {self.source_row(wrong[0])}"
            raise DataError(
                f"{self.split.task}/{self.split.split}: {wrong.size:,} of {len(labels_R):,} labels "
                f"do not fit, {first}: {rule}"
            )

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        rows_S, numbers_S = np.repeat(examples_B, 2), np.tile([0, 1], len(examples_B))
        texts, _ = self.split.truncated(self.split.texts(rows_S, numbers_S), None, self.max_length)
        input_ids, token_type_ids, lengths = self.split.assemble(texts, None)

        examples_S = np.repeat(np.arange(len(examples_B)), 2)
        targets = TargetRows(rows=np.arange(len(rows_S)), labels=self._targets_R[rows_S], examples=examples_S)
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=examples_S,
            targets=[targets],
        )

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """Scores that the cosines stand for, as in the source; for contrastive the cosines themselves."""
        (own,) = outputs
        # Both rows of a pair hold its cosine (losses/forms.py).
        cosines_R = own.values[::2, 0].astype(np.float64)
        scores_R = self._low + cosines_R * (self._high - self._low)
        return Decoded(predictions=scores_R, references=self.split.labels)

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[example])
