"""The Triton kernel of counter dropout, without a GPU: in Triton's interpreter it gives the products of the
PyTorch passes and of a NumPy reference bit for bit, and compiled for GPUs it rounds as torch does.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import ROOT
from torch import Tensor

from mtdnn_ds.model.dropout import counter_masks
from mtdnn_ds.model.dropout.counter_masks import (
    attention_dropout,
    counter_dropout,
    dropped_levels,
    kernel_notes,
    kernel_obstacle,
    row_counter_dropout,
    scaled_mask,
)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton, which requirements-dev.txt has for Linux",
)

WIDTHS, ROWS, PROBABILITIES = (1, 3, 4, 64, 1000, 1024), (1, 7), (0.1, 0.5)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of 2^16, row by row. The last factor, 65,536, is no number of float16, so it has a case of its own.
LEVELS = [0, 1, 6554, 32768, 40000, 6554, 65534]

Results = dict[str, dict[str, Tensor]]


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def starts(num: int, seed: int = 0) -> Tensor:
    """Any 64 bits: of these, about half are negative."""
    return torch.empty(num, dtype=torch.int64).random_(
        -(2**63), None, generator=torch.Generator().manual_seed(seed)
    )


def case(
    function: str, input: Tensor, *arguments: Any, gradient: Tensor | None = None, seed: int = 1
) -> dict[str, Any]:
    """A call for the worker, with the gradient of its output."""
    if gradient is None:
        gradient = numbers(*input.shape, seed=seed, dtype=input.dtype)
    return {"function": function, "input": input, "arguments": arguments, "gradient": gradient}


def all_cases() -> dict[str, dict[str, Any]]:
    cases = {}
    for width in WIDTHS:
        for rows in ROWS:
            for name, dtype in DTYPES.items():
                input = numbers(rows, width, seed=width, dtype=dtype)
                for p in PROBABILITIES:
                    cases[f"{width} {rows} {name} {p}"] = case(
                        "kernel", input, starts(rows), dropped_levels(p)
                    )
                levels = torch.tensor(LEVELS[:rows], dtype=torch.int32)
                cases[f"{width} {rows} {name} rows"] = case("kernel", input, starts(rows), levels)

    for name, (function, input, arguments) in PUBLIC.items():
        cases[name] = case(function.__name__, input, *arguments)

    # What lies in memory in another order, is repeated, or is empty
    flat = numbers(5, 7, seed=4)
    cases["transposed"] = case("kernel", flat.T, starts(7), 6554, gradient=numbers(5, 7, seed=5).T)
    cases["expanded"] = case(
        "kernel", flat[:, :1].expand(5, 6).clone(), starts(5), 6554, gradient=torch.ones(1).expand(5, 6)
    )
    cases["strided starts"] = case("kernel", flat, starts(10)[::2], 6554)
    cases["no rows"] = case("kernel", torch.ones(0, 8), starts(0), 6554)
    cases["no columns"] = case("kernel", torch.ones(3, 0), starts(3), 6554)
    # Of 2^16 elements one is kept: the first row that has any
    many = starts(512)
    some = int(scaled_mask(many, 1.0, 1024, torch.float32).any(dim=1).int().argmax())
    cases["all but one"] = case("kernel", torch.ones(1, 1024), many[some : some + 1], 65535)
    cases["no number"] = case(
        "kernel", torch.tensor([[torch.inf, -torch.inf, torch.nan, -1.0] * 4]), starts(1), 32768
    )
    return cases


PUBLIC: dict[str, tuple[Callable[..., Tensor], Tensor, tuple[Any, ...]]] = {
    "hidden states": (
        counter_dropout,
        numbers(5, 8, 31, seed=1),
        (0.3, starts(40).view(5, 8), 2**63 + 12345),
    ),
    "attention": (attention_dropout, numbers(2, 3, 17, 17, seed=2), (0.1, starts(34).view(2, 17), 99)),
    "heads": (
        row_counter_dropout,
        numbers(4, 33, seed=3),
        (torch.tensor([0.0, 0.25, 0.1, 0.25]), starts(4), torch.tensor([0, 2, 1, 2]), 5),
    ),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, Any]]:
    return all_cases()


def work(*arguments: str, cache: Path) -> None:
    """tests/workers/triton_kernel.py in a new interpreter."""
    left_out = {"TRITON_INTERPRET": None, "PYTHONPATH": None}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TRITON_CACHE_DIR": str(cache)}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tests/workers/triton_kernel.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, dict[str, Any]]) -> Results:
    """What the kernel makes of all cases, in Triton's interpreter."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(cases, folder / "cases.pt")
    work("run", str(folder / "cases.pt"), str(folder / "results.pt"), cache=folder)
    results: Results = torch.load(folder / "results.pt")
    return results


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32 if values.element_size() == 4 else torch.int16)


def mask_of(start: Tensor, levels: int | Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The PyTorch passes' mask."""
    if isinstance(levels, int):
        return scaled_mask(start, levels / 65536, width, dtype)
    rows = [scaled_mask(start[k : k + 1], int(own) / 65536, width, dtype) for k, own in enumerate(levels)]
    return torch.cat(rows)


# A reference in NumPy, from the docstring of model/dropout/counter_masks.py


def reference_mask(start: Tensor, levels: int | Tensor, width: int) -> np.ndarray:
    """(R, width) float32: the factor of each element, before it is rounded to another format."""
    column = np.arange(width, dtype=np.uint64)
    word = start.numpy().view(np.uint64)[:, None] + (column // np.uint64(4) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word = word ^ (word >> np.uint64(31))
    draw = (word >> (np.uint64(16) * (column % np.uint64(4)))).astype(np.uint16).view(np.int16).astype(int)

    levels_R = np.broadcast_to(np.asarray(levels), len(start)).astype(int)[:, None]
    return np.where(draw < levels_R - 2**15, 0.0, 65536 / (65536 - levels_R)).astype(np.float32)


# The kernel, run


@needs_triton
@pytest.mark.parametrize("levels", ["0.1", "0.5", "rows"])
@pytest.mark.parametrize("width", WIDTHS)
def test_products_equal_the_passes_and_the_reference_bit_for_bit(
    cases: dict[str, dict[str, Any]], interpreted: Results, width: int, levels: str
) -> None:
    for rows in ROWS:
        for dtype in ("float32", "float16"):
            name = f"{width} {rows} {dtype} {levels}"
            start, own = cases[name]["arguments"]
            passes = mask_of(start, own, width, DTYPES[dtype])
            reference = reference_mask(start, own, width).astype(dtype)
            for which, given in (("output", cases[name]["input"]), ("gradient", cases[name]["gradient"])):
                ours = interpreted[name][which]
                assert torch.equal(bits(ours), bits(given.detach() * passes)), (name, which)
                product = given.detach().numpy().astype(np.float32) * reference.astype(np.float32)
                assert np.array_equal(ours.numpy(), product.astype(dtype)), (name, which)


@needs_triton
@pytest.mark.parametrize("width", WIDTHS)
def test_products_in_bfloat16_differ_by_the_interpreters_rounding_alone(
    cases: dict[str, dict[str, Any]], interpreted: Results, width: int
) -> None:
    """The interpreter cuts bits off where GPUs round; test_the_compiled_kernel_rounds_as_torch_does is about
    those. Where nothing is rounded, all bits are equal.
    """
    for rows in ROWS:
        for levels in ("0.1", "0.5", "rows"):
            name = f"{width} {rows} bfloat16 {levels}"
            start, own = cases[name]["arguments"]
            theirs = cases[name]["input"].detach() * mask_of(start, own, width, torch.bfloat16)
            ours = interpreted[name]["output"]
            assert torch.equal(ours == 0, theirs == 0), name
            if levels == "0.5":
                assert torch.equal(bits(ours), bits(theirs))
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-6, atol=0)


@needs_triton
@pytest.mark.parametrize("name", list(PUBLIC))
def test_every_user_of_masks_has_the_same_from_the_kernel(interpreted: Results, name: str) -> None:
    function, input, arguments = PUBLIC[name]
    input = input.clone().requires_grad_()
    output = function(input, *arguments)
    output.backward(numbers(*input.shape, seed=1))
    assert torch.equal(bits(interpreted[name]["output"]), bits(output.detach()))
    assert input.grad is not None and torch.equal(bits(interpreted[name]["gradient"]), bits(input.grad))
    assert 0 < int((output == 0).sum()) < output.numel() / 2


@needs_triton
def test_any_layout_and_nothing_at_all(cases: dict[str, dict[str, Any]], interpreted: Results) -> None:
    for name in ("transposed", "expanded", "strided starts"):
        given, (start, own) = cases[name], cases[name]["arguments"]
        mask = mask_of(start, own, given["input"].shape[1], torch.float32)
        assert torch.equal(interpreted[name]["output"], given["input"].detach() * mask), name
        assert torch.equal(interpreted[name]["gradient"], given["gradient"] * mask), name
    for name, shape in (("no rows", (0, 8)), ("no columns", (3, 0))):
        assert interpreted[name]["output"].shape == interpreted[name]["gradient"].shape == shape

    kept = interpreted["all but one"]["output"]
    assert torch.equal(kept, mask_of(*cases["all but one"]["arguments"], 1024, torch.float32))
    assert set(kept.unique().tolist()) == {0.0, 65536.0}

    # A dropped infinity is no number, and zero keeps its sign, as in the passes
    given = cases["no number"]
    theirs = given["input"].detach() * mask_of(*given["arguments"], 16, torch.float32)
    ours = interpreted["no number"]["output"]
    assert torch.equal(ours.isnan(), theirs.isnan()) and int(ours.isnan().sum()) > 4
    assert torch.equal(torch.signbit(ours[:, 3::4]), torch.signbit(theirs[:, 3::4]))


@needs_triton
def test_torch_compile_takes_it_as_one_operation_with_its_gradient(interpreted: Results) -> None:
    input = torch.linspace(-1, 1, 12).view(2, 6)
    mask = scaled_mask(torch.tensor([5, -7]), 30_000 / 65536, 6, torch.float32)
    torch.testing.assert_close(
        interpreted["compiled"]["gradient"], 8 * input * mask**2, msg="the derivative of (2 x m)^2"
    )


# The kernel, compiled


@needs_triton
def test_the_compiled_kernel_rounds_as_torch_does(tmp_path: Path) -> None:
    work("compile", str(tmp_path / "assembly.pt"), cache=tmp_path)
    texts: dict[str, str] = torch.load(tmp_path / "assembly.pt")
    assert len(texts) == 4
    for name, text in texts.items():
        assert "div.rn.f32" in text and "div.full" not in text, name
        assert ".ftz" not in text and "fma.rn.f32" not in text, f"{name}: no subnormal is lost"
        if "bf16" in name:
            assert "cvt.rn.bf16" in text and "cvt.rz.bf16" not in text, name
        if "fp16" in name:
            assert "cvt.rn.f16" in text and "cvt.rz.f16" not in text, name
        # Two words for the 8 elements of a thread; a hash has two products, and a word's place one
        assert text.count("mul.lo.s64") <= 6, f"{name}: a word is hashed once for its four columns"


def test_the_factor_is_rounded_once_on_either_way() -> None:
    """The kernel divides in float32, the passes in float64 and round."""
    levels = np.arange(65536)
    ours = np.float32(65536) / (65536 - levels).astype(np.float32)
    assert np.array_equal(ours, (65536 / (65536 - levels)).astype(np.float32))


# Where it is chosen


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel_obstacle.cache_clear()
    yield monkeypatch
    kernel_obstacle.cache_clear()


def test_a_run_is_told_why_its_masks_take_the_slow_way(gpu: pytest.MonkeyPatch) -> None:
    slow = "train.dropout=counter: masks are computed pass by pass, which is slower than the Triton kernel "
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernel_notes("cuda") == (
        f"{slow}(it does not run here: it needs a GPU of compute capability 8.0 (Ampere) or newer)",
    )

    kernel_obstacle.cache_clear()
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu.setitem(sys.modules, "mtdnn_ds.model.dropout.triton_masks", None)
    (note,) = kernel_notes("cuda")
    assert note.startswith(f"{slow}(it does not run here: ModuleNotFoundError: import of mtdnn_ds.model")
    assert kernel_notes("cpu") == ()


def test_cpus_need_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "mtdnn_ds.model.dropout.triton_masks"):
        monkeypatch.setitem(sys.modules, name, None)
    again = runpy.run_path(str(counter_masks.__file__))
    for function, input, arguments in PUBLIC.values():
        assert torch.equal(again[function.__name__](input, *arguments), function(input, *arguments))
