"""The best span of each window, and the best window of each row, from scores of tokens.

Numbers only; no text.

Every start and end within reach of each other is compared, so the result is at least as good as that of the n
best starts and ends.

Shape legend: E windows, K their tokens with all special ones, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.data.ragged import places_within, ragged_ranges, starts_of


@dataclass(frozen=True, kw_only=True, slots=True)
class BestSpans:
    """One span for each window: its first and last token, counted within the context, and its score."""

    first: np.ndarray  # (E,) int64; -1 for a window without context tokens
    last: np.ndarray  # (E,)
    scores: np.ndarray  # (E,) float32, start + end; -inf without a span


def best_spans(
    scores_K2: np.ndarray,
    offsets: np.ndarray,
    context_starts_E: np.ndarray,
    context_lengths_E: np.ndarray,
    max_answer_tokens: int,
) -> BestSpans:
    """The span of at most `max_answer_tokens` context tokens with the highest start + end score.

    Window e has rows offsets[e] : offsets[e + 1] of `scores_K2` (start, end), its context begins at
    `context_starts_E[e]` among them. Of equal spans the one that ends first, and of those the shortest.
    Raises TrainingError if a score is not finite.
    """
    if not np.isfinite(scores_K2).all():
        raise TrainingError(
            "predicted scores of spans are not finite: the model has diverged; lower optimizer.lr"
        )

    tokens = ragged_ranges(offsets[:-1] + context_starts_E, context_lengths_E)
    place = places_within(context_lengths_E)
    start, end = scores_K2[tokens, 0], scores_K2[tokens, 1]

    # The best span that ends at each token: of one token, then of two, and so on.
    best, distance = start + end, np.zeros(len(tokens), dtype=np.int64)
    for length in range(1, min(max_answer_tokens, int(context_lengths_E.max(initial=0)))):
        score = start[:-length] + end[length:]
        better = np.flatnonzero((score > best[length:]) & (place[length:] >= length)) + length
        best[better] = score[better - length]
        distance[better] = length

    filled = context_lengths_E > 0
    result = BestSpans(
        first=np.full(len(filled), -1),
        last=np.full(len(filled), -1),
        scores=np.full(len(filled), -np.inf, dtype=np.float32),
    )
    if len(tokens):
        at = first_best(best, context_lengths_E[filled])
        result.last[filled] = place[at]
        result.first[filled] = place[at] - distance[at]
        result.scores[filled] = best[at]
    return result


def first_best(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Index of the highest value of each run of `values`, the first of equals.

    `lengths` are those of the runs, at least 1 each.
    """
    starts = starts_of(lengths)
    is_best = np.flatnonzero(values == np.repeat(np.maximum.reduceat(values, starts), lengths))
    return is_best[np.searchsorted(is_best, starts)]
