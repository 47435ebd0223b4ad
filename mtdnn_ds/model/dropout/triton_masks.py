"""Dropout from counters as one Triton kernel: hash, draw and multiply in one pass. Not where it is chosen.

The masks are those of counter_masks.py bit for bit, and so are the products: float32, bfloat16 and float16
are multiplied in float32 by a factor that has been rounded to their own format. Nothing of the size of the
input is kept for the backward pass, which hashes again. Only counter_masks.py imports this file, and only
where tensors lie on a GPU: without Triton the import fails.

Widths that are no multiple of 16 (odd lengths in attention) are read and hashed element by element, others
four elements at a time.

Shape legend: R rows, W columns; in the kernel a tile of R rows, B words and the 4 columns of each word.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtdnn_ds.counter_hash import GOLDEN, LAST_SHIFT, ROUNDS
from mtdnn_ds.model.dropout.word_dropout import LEVELS

# Triton's kernels read no other globals than constants.
_GOLDEN = tl.constexpr(GOLDEN)
_FIRST_SHIFT, _FIRST_FACTOR = (tl.constexpr(number) for number in ROUNDS[0])
_SECOND_SHIFT, _SECOND_FACTOR = (tl.constexpr(number) for number in ROUNDS[1])
_LAST_SHIFT = tl.constexpr(LAST_SHIFT)
_LEVELS = tl.constexpr(LEVELS)

# Words of a program: 1,024 elements, 8 for each thread of Triton's default of 4 warps.
_TILE_WORDS = 256
# Every number of words along a row is a kernel of its own to compile, so there are five.
_FEWEST_WORDS, _MOST_WORDS = 8, 128


# Of numbers that are 1 or a multiple of 16 kernels of their own are compiled: only `width` gains by that.
@triton.jit(do_not_specialize=["levels", "num_rows"])
def _kernel(  # type: ignore[no-untyped-def]  # Triton would compile the annotations
    input,
    starts,
    levels,
    output,
    num_rows,
    width,
    LEVELS_BY_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """`levels`: how many of 2^16 draws drop an element, a number, or with LEVELS_BY_ROW (R,) int32."""
    row_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word_B = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    is_row_R = row_R < num_rows

    # SplitMix64's word of each block of 4 columns. Unsigned, so that shifts bring in zeros.
    start_R = tl.load(starts + row_R, mask=is_row_R, other=0).to(tl.uint64, bitcast=True)
    mixed_RB = start_R[:, None] + (word_B + 1).to(tl.uint64)[None, :] * _GOLDEN
    mixed_RB = (mixed_RB ^ (mixed_RB >> _FIRST_SHIFT)) * _FIRST_FACTOR
    mixed_RB = (mixed_RB ^ (mixed_RB >> _SECOND_SHIFT)) * _SECOND_FACTOR
    mixed_RB = mixed_RB ^ (mixed_RB >> _LAST_SHIFT)

    # 16 bits for each column, the lowest first. They count from -2^15, which is the top bit turned over.
    place_4 = tl.arange(0, 4)
    draw_RB4 = (mixed_RB[:, :, None] >> (16 * place_4).to(tl.uint64)[None, None, :]).to(tl.int32) & 0xFFFF
    draw_RB4 = draw_RB4 ^ 0x8000

    if LEVELS_BY_ROW:
        levels_R11 = tl.load(levels + row_R, mask=is_row_R, other=0)[:, None, None]
    else:
        levels_R11 = levels
    # Rounded once from a quotient of whole numbers below 2^17, which float64 in between would not change.
    factor = tl.div_rn(1.0 * _LEVELS, (-levels_R11 + _LEVELS).to(tl.float32))
    factor = factor.to(output.dtype.element_ty).to(tl.float32)

    column_B4 = word_B[:, None] * 4 + place_4[None, :]
    inside_RB4 = is_row_R[:, None, None] & (column_B4 < width)[None, :, :]
    offset_RB4 = row_R[:, None, None] * width + column_B4[None, :, :]  # int64: may pass 2^31
    value_RB4 = tl.load(input + offset_RB4, mask=inside_RB4, other=0.0).to(tl.float32)

    # A product also where elements are dropped: zeros keep their sign, and what is no number stays none.
    product_RB4 = value_RB4 * tl.where(draw_RB4 >= levels_R11, factor, 0.0)
    tl.store(output + offset_RB4, product_RB4.to(output.dtype.element_ty), mask=inside_RB4)


# torch.compile takes this as one operation. torch.library.custom_op says the same in fewer lines, and costs
# the host 34 us for each call with a gradient where this costs 9 (a CPU, no elements); a step has hundreds.
torch.library.define(
    "mtdnn_ds::counter_dropout",
    "(Tensor input, Tensor starts_R, int levels, Tensor? levels_R) -> Tensor",
)


@torch.library.impl("mtdnn_ds::counter_dropout", ("CUDA", "CPU"))
def _launch(input: Tensor, starts_R: Tensor, levels: int, levels_R: Tensor | None) -> Tensor:
    """On a GPU, or on a CPU in Triton's interpreter. With `levels_R` there, `levels` is not read."""
    input, starts_R = input.contiguous(), starts_R.contiguous()
    output = torch.empty_like(input)
    if not output.numel():
        return output

    num_rows, width = starts_R.numel(), input.shape[-1]
    num_words = triton.cdiv(width, 4)
    words = min(max(triton.next_power_of_2(num_words), _FEWEST_WORDS), _MOST_WORDS)
    rows = _TILE_WORDS // words
    grid = (triton.cdiv(num_rows, rows), triton.cdiv(num_words, words))

    given: int | Tensor = levels
    if levels_R is not None:
        given = levels_R.contiguous()
    with torch.cuda.device_of(input):  # Triton starts kernels on the current device
        _kernel[grid](
            input,
            starts_R,
            given,
            output,
            num_rows,
            width,
            LEVELS_BY_ROW=levels_R is not None,
            ROWS=rows,
            WORDS=words,
            enable_fp_fusion=False,  # nothing is added to the product; unsaid, Triton 3.9 warns
        )
    return output


@torch.library.register_fake("mtdnn_ds::counter_dropout")
def _fake(input: Tensor, starts_R: Tensor, levels: int, levels_R: Tensor | None) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


class _DropElements(torch.autograd.Function):
    """The gradient has the elements dropped that the input had: the same kernel from the same starts."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, starts_R: Tensor, levels: int, levels_R: Tensor | None) -> Tensor:
        ctx.save_for_backward(starts_R, levels_R)
        ctx.levels = levels
        return torch.ops.mtdnn_ds.counter_dropout.default(input, starts_R, levels, levels_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        starts_R, levels_R = ctx.saved_tensors
        return _DropElements.apply(gradients[0], starts_R, ctx.levels, levels_R), None, None, None


def drop_elements(input: Tensor, starts_R: Tensor, levels: int | Tensor) -> Tensor:
    """`input` (..., W) of R rows, with elements dropped and the others scaled up, in its own dtype.

    `starts_R` (R,) int64: of each row's stream. `levels`: of 2^16 draws, how many drop an element, below
    2^16; one number, or (R,) int32. float32, bfloat16 or float16. Never waits for the device.
    """
    assert starts_R.numel() * input.shape[-1] == input.numel(), (starts_R.shape, input.shape)
    if isinstance(levels, Tensor):
        return _DropElements.apply(input, starts_R, 0, levels)
    return _DropElements.apply(input, starts_R, levels, None)
