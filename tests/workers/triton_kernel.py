"""The kernel of counter dropout without a GPU: `run CASES RESULTS` has Triton's interpreter run it on CPU
tensors, `compile RESULTS` compiles it for GPUs. Not a test file.

Triton reads TRITON_INTERPRET when it is imported, and torch may have imported it long before a test begins:
so this is a process of its own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

if sys.argv[1:2] == ["run"]:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mtdnn_ds.model.dropout import counter_masks, triton_masks
from mtdnn_ds.model.dropout.triton_masks import drop_elements

WARP_SIZE = 32
COMPILED = ((80, "bf16", False), (90, "bf16", True), (90, "fp16", False), (90, "fp32", False))


def run(case: dict[str, Any]) -> dict[str, Tensor]:
    """The output and the gradient of the input, of the named function on its arguments."""
    function = getattr(counter_masks, case["function"], drop_elements)
    input = case["input"].clone().requires_grad_()
    output = function(input, *case["arguments"])
    output.backward(case["gradient"])
    return {"output": output.detach(), "gradient": input.grad}


def checked_by_torch() -> Tensor:
    """torch's own checks of the operation (schema, shapes, compiled graphs); its compiled gradient."""
    starts, levels = torch.tensor([5, -7]), torch.tensor([100, 30_000], dtype=torch.int32)
    operation = torch.ops.mtdnn_ds.counter_dropout.default
    torch.library.opcheck(operation, (torch.ones(2, 6), starts, 300, None))
    torch.library.opcheck(operation, (torch.ones(2, 6), starts, 0, levels))

    input = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
    compiled = torch.compile(
        lambda input: drop_elements(input * 2, starts, 30_000), backend="aot_eager", fullgraph=True
    )
    compiled(input).square().sum().backward()
    return input.grad


def assembly() -> dict[str, str]:
    """PTX of the kernel for Ampere and Hopper, by architecture, dtype and whether rows have own levels."""
    texts = {}
    for capability, dtype, by_row in COMPILED:
        signature = {
            "input": f"*{dtype}",
            "starts": "*i64",
            "levels": "*i32" if by_row else "i32",
            "output": f"*{dtype}",
            "num_rows": "i32",
            "width": "i32",
            **dict.fromkeys(("LEVELS_BY_ROW", "ROWS", "WORDS"), "constexpr"),
        }
        constants = {"LEVELS_BY_ROW": by_row, "ROWS": 2, "WORDS": 128}
        # Pointers and width are multiples of 16, as they are for hidden states.
        divisible = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 3, 5)}
        source = ASTSource(
            fn=triton_masks._kernel, signature=signature, constexprs=constants, attrs=divisible
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, WARP_SIZE))
        assert compiled.asm["cubin"]
        texts[f"sm_{capability} {dtype} {by_row}"] = compiled.asm["ptx"]
    return texts


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        torch.save(assembly(), sys.argv[2])
    else:
        counter_masks.runs_kernel = lambda input: True  # as on a GPU that can
        cases = torch.load(sys.argv[2])
        results = {name: run(case) for name, case in cases.items()}
        results["compiled"] = {"gradient": checked_by_torch()}
        torch.save(results, sys.argv[3])
