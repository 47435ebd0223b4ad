"""Chunks of documents: stretches of at most so many tokens, the same in every epoch. Integers only, no token is read.

Positions count the tokens of all documents end to end; a chunk never crosses a document's end.

Shape legend: D documents, N sentences, E chunks.
"""

from __future__ import annotations

import numpy as np


def cut_chunks(
    bounds: np.ndarray, document_begins: np.ndarray, document_ends: np.ndarray, *, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """(begin (E,), end (E,)) of the chunks in order. `bounds` (N + 1,): where sentences begin, and where the last one ends.

    A chunk takes whole sentences as long as they fit into `room` tokens; a sentence that is longer than that is cut, and what is left
    of it begins the next chunk. Example: one document of sentences of 3, 3, 9 tokens, room 7: chunks of 6 (two sentences), 7 and 2.
    """
    begins: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    at, stop = (
        document_begins[document_begins < document_ends],
        document_ends[document_begins < document_ends],
    )
    while at.size:  # the next chunk of every document that is not used up
        limit = np.minimum(at + room, stop)
        whole = bounds[np.searchsorted(bounds, limit, side="right") - 1]  # the last sentence end that fits
        end = np.where(whole > at, whole, limit)
        begins.append(at)
        ends.append(end)
        at, stop = end[end < stop], stop[end < stop]
    nothing = np.zeros(0, dtype=np.int64)
    begin_E, end_E = np.concatenate([nothing, *begins]), np.concatenate([nothing, *ends])
    order = np.argsort(begin_E)
    return begin_E[order], end_E[order]
