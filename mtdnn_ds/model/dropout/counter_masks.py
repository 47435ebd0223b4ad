"""Dropout masks from counters: functions of (seed, step, sequence, layer, position, pass). No module.

No generator has a part in them. A token's key starts a SplitMix64 stream (counter_hash.py); a module's stream
number moves the start, and the word at counter (head << 20) + column // 4 holds the draws of four
neighbouring columns, 16 bits each, the lowest first:

    pass key       mix(mix(mix(seed) + step) + number of the pass)
    token key      word(mix(sequence key + pass key), position)
    row start      token key + stream + (head << 20) * GOLDEN; in attention the token is the query
    draw (row, c)  16 bits at 16 (c mod 4) of mix(row start + (c // 4) * GOLDEN), as an integer from -2^15
    dropped        draw < round(p 2^16) - 2^15

Everything is integer arithmetic modulo 2^64, so CPUs and GPUs have the same masks. Nothing waits. On GPUs one
Triton kernel does it all where it can run (triton_masks.py), and else what stands here, pass by pass.

Shape legend: T tokens, S sequences, R rows, K supervised rows, N heads, L longest sequence, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.counter_hash import GOLDEN, LAST_SHIFT, ROUNDS, mix_word
from mtdnn_ds.model.dropout.word_dropout import LEVELS

HEAD_BITS = 20  # room for the blocks of 4 columns of one head
# Words hashed at a time on CPUs: with their temporaries they stay in the second-level cache, which is two to
# three times as fast.
_CHUNK_WORDS = 2**16
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutKeys:
    """What the masks of one pass over a micro-batch begin with."""

    of_token_T: Tensor  # (T,) int64
    of_pass: int  # for what belongs to no token; equal on every rank


def dropout_keys(batch: PackedBatch, *, seed: int, number: int = 0) -> DropoutKeys:
    """Keys of pass `number` over `batch` in its step."""
    assert batch.sequence_keys is not None, (
        "a micro-batch for counter dropout has a key for each sequence (data/batches/collate.py)"
    )
    of_pass = mix_word(mix_word(mix_word(seed) + batch.step) + number)
    keys_S = mix_(batch.sequence_keys + signed(of_pass))

    starts_T = torch.repeat_interleave(keys_S, batch.cu_seqlens.diff(), output_size=batch.input_ids.numel())
    keys_T = mix_(starts_T.add_(batch.position_ids * signed(GOLDEN)))
    return DropoutKeys(of_token_T=keys_T, of_pass=of_pass)


def mix_(words: Tensor, scratch: Tensor | None = None) -> Tensor:
    """SplitMix64's step on a tensor of int64, in place. `scratch`: a tensor of that shape to work in."""
    if scratch is None:
        scratch = torch.empty_like(words)

    words.add_(signed(GOLDEN))
    for shift, factor in ROUNDS:
        words.bitwise_xor_(_shifted(words, shift, scratch)).mul_(signed(factor))
    return words.bitwise_xor_(_shifted(words, LAST_SHIFT, scratch))


def _shifted(words: Tensor, shift: int, out: Tensor) -> Tensor:
    torch.bitwise_right_shift(words, shift, out=out)
    return out.bitwise_and_(2 ** (64 - shift) - 1)  # int64 shifts the sign in: cut it off


def signed(word: int) -> int:
    """A word as int64 has it."""
    return (word + 2**63) % 2**64 - 2**63


def dropped_levels(p: float) -> int:
    """Of 2^16 draws, how many drop an element at probability `p` in [0, 1)."""
    return min(round(p * LEVELS), LEVELS - 1)


def counter_dropout(input: Tensor, p: float, keys: Tensor, stream: int) -> Tensor:
    """(..., D) -> the same with elements dropped and the others scaled up; `keys` (...): of the rows."""
    return _drop(input, p, keys.flatten() + signed(stream))


def attention_dropout(scores_SNLL: Tensor, p: float, keys_SL: Tensor, stream: int) -> Tensor:
    """The same for attention probabilities; `keys_SL` are those of the queries."""
    heads_N = torch.arange(scores_SNLL.shape[1], device=keys_SL.device) * signed(GOLDEN << HEAD_BITS)
    starts_SNL = keys_SL[:, None, :] + heads_N.add_(signed(stream))[:, None]
    return _drop(scores_SNLL, p, starts_SNL.flatten())


def _drop(input: Tensor, p: float, starts_R: Tensor) -> Tensor:
    if runs_kernel(input):
        from mtdnn_ds.model.dropout.triton_masks import drop_elements

        return drop_elements(input, starts_R, dropped_levels(p))

    mask = scaled_mask(starts_R, p, input.shape[-1], input.dtype)
    return input * mask.view(input.shape)


def scaled_mask(starts_R: Tensor, p: float, width: int, dtype: torch.dtype) -> Tensor:
    """(R, width): 0 where an element is dropped, else 1 / (1 - p'), p' being p rounded to 2^-16."""
    levels = dropped_levels(p)
    mask = torch.empty((len(starts_R), width), dtype=dtype, device=starts_R.device)
    for rows, draws in _draws(starts_R, width):
        torch.ge(draws, levels - LEVELS // 2, out=mask[rows])
    return mask.mul_(LEVELS / (LEVELS - levels))


def row_counter_dropout(rows_KD: Tensor, p_K: Tensor, keys_K: Tensor, terms_K: Tensor, stream: int) -> Tensor:
    """Dropout with a probability for each row.

    Rows of one token that belong to several terms have masks of their own.
    """
    levels_K1 = (p_K.float() * LEVELS).round()[:, None].clamp_(max=LEVELS - 1)
    starts_K = keys_K + signed(stream) + terms_K * signed(GOLDEN << HEAD_BITS)

    if runs_kernel(rows_KD):
        from mtdnn_ds.model.dropout.triton_masks import drop_elements

        return drop_elements(rows_KD, starts_K, levels_K1.flatten().int())

    mask_KD = torch.empty(rows_KD.shape, dtype=torch.float32, device=rows_KD.device)
    for rows, draws in _draws(starts_K, rows_KD.shape[1]):
        torch.ge(draws, levels_K1[rows] - LEVELS // 2, out=mask_KD[rows])
    return rows_KD * (mask_KD * (LEVELS / (LEVELS - levels_K1))).to(rows_KD.dtype)


def row_words(keys_K: Tensor, terms_K: Tensor, stream: int, width: int) -> Tensor:
    """(K, width) int64: uniform words, for draws that 16 bits are too few for."""
    starts_K = keys_K + signed(stream) + terms_K * signed(GOLDEN << HEAD_BITS)
    return mix_(starts_K[:, None] + torch.arange(width, device=keys_K.device) * signed(GOLDEN))


def _draws(starts_R: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Draws (rows, width) int16 of all rows, some of them at a time; a part is overwritten by the next."""
    blocks = (width + 3) // 4
    assert blocks < 2**HEAD_BITS, width
    offsets = torch.arange(blocks, device=starts_R.device) * signed(GOLDEN)
    num_rows = len(starts_R)
    at_once = max(num_rows, 1)
    if starts_R.device.type == "cpu":
        at_once = max(1, _CHUNK_WORDS // max(blocks, 1))
    words, scratch = (starts_R.new_empty((min(at_once, num_rows), blocks)) for _ in range(2))

    for first in range(0, num_rows, at_once):
        part = starts_R[first : first + at_once]
        own = torch.add(part[:, None], offsets, out=words[: len(part)])
        yield slice(first, first + at_once), mix_(own, scratch[: len(part)]).view(torch.int16)[:, :width]


# The kernel


def runs_kernel(input: Tensor) -> bool:
    """Whether triton_masks.py drops the elements of this tensor."""
    if input.device.type != "cuda" or input.dtype not in KERNEL_DTYPES:
        return False
    return _device_runs_kernel(input.device)


@torch.compiler.assume_constant_result
def _device_runs_kernel(device: torch.device) -> bool:
    return kernel_obstacle(device) is None


@cache
def kernel_obstacle(device: torch.device) -> str | None:
    """Why the kernel cannot run on this GPU, or None; it is tried once, on one row."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"

    try:
        from mtdnn_ds.model.dropout.triton_masks import drop_elements

        start = torch.zeros(1, dtype=torch.int64, device=device)
        drop_elements(torch.ones(1, 4, device=device), start, LEVELS // 2)
    except Exception as error:
        # Triton is not installed, its first kernel found no C compiler or no headers of Python, or it does
        # not know this GPU: the slow way runs everywhere, and the run says why it is taken.
        return f"{type(error).__name__}: {error}"
    return None


def kernel_notes(device_type: str) -> tuple[str, ...]:
    """What a run says at start where its masks take the slow way."""
    if device_type != "cuda":
        return ()
    obstacle = kernel_obstacle(torch.device("cuda", torch.cuda.current_device()))
    if obstacle is None:
        return ()
    return (
        "train.dropout=counter: masks are computed pass by pass, which is slower than the Triton kernel "
        f"(it does not run here: {obstacle})",
    )
