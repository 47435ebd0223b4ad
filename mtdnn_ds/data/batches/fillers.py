"""Filler sequences, which belong to no example: their lengths, and how many tokens a step has of them.

An encoder without examples in a micro-batch (each copy of it, with soft sharing) reads one, so that every
parameter stays in every graph; and where tokens are to be a multiple of a number, fillers make up the rest.
No target refers to them, so they change no loss.
"""

from __future__ import annotations

import numpy as np

from mtdnn_ds.data.batches.packing import Packing
from mtdnn_ds.tasks.sharing import Sharing


def filler_lengths(tokens: int, *, longest: int, filler_size: int, pad_tokens_to: int) -> list[int]:
    """Lengths of the fillers beside examples of so many `tokens` in all.

    `filler_size`: of the one that stands in for examples. What fills up to a multiple of `pad_tokens_to`
    comes in sequences of at most `longest`, so that it changes no shape but the number of tokens. Example: 0
    tokens, a filler_size of 2, a longest of 5 and a multiple of 16 give [2, 5, 5, 4].
    """
    fillers = []
    if not tokens:
        fillers, tokens = [filler_size], filler_size

    whole, rest = divmod(-tokens % pad_tokens_to, longest)
    return fillers + [longest] * whole + [rest] * (rest > 0)


def num_filler_tokens(
    packing: Packing,
    lengths_B: np.ndarray,
    task_ids_B: np.ndarray,
    sharing: Sharing,
    *,
    filler_size: int,
    pad_tokens_to: int,
) -> int:
    """Tokens of all fillers of a step, on all ranks."""
    copy_B = np.zeros_like(task_ids_B)
    if sharing.mode == "soft":
        copy_B = np.asarray(sharing.group_of_task)[task_ids_B]

    num_tokens = 0
    for members in (members for of_rank in packing.micro_batches for members in of_rank):
        tokens_of_copies = np.bincount(
            copy_B[members], weights=lengths_B[members], minlength=sharing.num_copies
        )
        for tokens in tokens_of_copies.astype(int).tolist():
            lengths = filler_lengths(
                tokens, longest=pad_tokens_to, filler_size=filler_size, pad_tokens_to=pad_tokens_to
            )
            num_tokens += sum(lengths)
    return num_tokens
