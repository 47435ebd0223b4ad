"""A GPU that is none: real code runs on it, its tensors have shapes and devices but no values.

Not a test file. The device is torch's Python backend (PrivateUse1) under FakeTensorMode: no kernel runs, and
an operation that mixes devices fails as on a GPU. Tensors of the CPU stay real. What would make the host wait
for a GPU, or copy to one without going on, is recorded with the place in the code that asked for it. What
kernels, or libraries below torch's operations, do by themselves is not seen.

`register` changes torch for the whole process: only in a process of its own (workers/run_fake_gpu.py).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from helpers.processes import ROOT

NAME = "fakegpu"

# What a place of the code may be in: ours, and the library whose encoders it runs.
PLACES = (f"{ROOT}/mtdnn_ds/", "/site-packages/transformers/")

# Operations that the host waits for on a GPU, because they return one of its numbers, or because their values
# decide the size of what they return.
NUMBERS = ("_local_scalar_dense", "equal")
SIZED_BY_VALUES = (
    "nonzero",
    "masked_select",
    "bincount",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")

_TENSOR, _GENERATOR, _MODULE_TO = torch.tensor, torch.Generator, nn.Module.to


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a step should not do. `place`: the innermost file and function of PLACES that runs."""

    kind: str  # "sync" or "blocking copy"
    operation: str
    place: str
    line: int


def register() -> torch.device:
    """Make the device known to torch, for the rest of this process; once."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    return torch.device(NAME, 0)


class _Backend(backend_registration._DummyBackendModule):
    """torch.fakegpu: what autocast, and checkpoints that keep a generator's state, ask for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class FakeGpu:
    """The device, which is there while `running`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._findings: list[Finding] = []
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code inside may use the device; of this thread, and of the backward passes that it starts."""

        def module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            if args != (self.device,) or kwargs:
                return _MODULE_TO(module, *args, **kwargs)
            return self._move(module)

        with (
            patch.object(torch, "tensor", self._tensor),
            patch.object(torch, "Generator", self._generator),
            patch.object(nn.Module, "to", module_to),
            patch.dict(sys.modules, {"flash_attn": flash_attn_stand_in()}),
            self._mode,
            _Dispatch(self),
        ):
            yield

    def take_findings(self) -> list[Finding]:
        """What was found since the last call."""
        found, self._findings = self._findings, []
        return found

    def note(self, kind: str, operation: str) -> None:
        """Record what the running code does."""
        place, line = innermost_place()
        self._findings.append(Finding(kind=kind, operation=operation, place=place, line=line))

    def faked(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU without its values; others as they are."""
        if isinstance(tensor, FakeTensor):
            return tensor
        return self._mode.from_tensor(tensor)

    # What does not pass torch's dispatcher, or not as on a GPU

    def _tensor(self, data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        if not _is_ours(device):
            return _TENSOR(data, device=device, **settings)
        self.note("blocking copy", "torch.tensor")
        with unset_fake_temporarily():
            made = _TENSOR(data, **settings)
        return self.faked(made).to(self.device, non_blocking=True)

    def _generator(self, device: Any = "cpu") -> torch.Generator:
        return _GENERATOR("cpu" if _is_ours(device) else device)

    def _move(self, module: nn.Module) -> nn.Module:
        moved: dict[int, Tensor] = {}  # a tensor that two modules have stays one
        for own in module.modules():
            for store in (own._parameters, own._buffers):
                for name, value in store.items():
                    if value is not None:
                        store[name] = moved.setdefault(id(value), self._moved(value))
        return module

    def _moved(self, value: Tensor) -> Tensor:
        if value.device == self.device:
            return value
        fake = self.faked(value.detach()).to(self.device, non_blocking=True)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(fake, requires_grad=value.requires_grad)
        return fake


class _Dispatch(TorchDispatchMode):
    """Every operation: of the CPU computed, of the device recorded and handed on to FakeTensorMode."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.device == self.gpu.device for tensor in tensors)
        to_device = _is_ours(kwargs.get("device"))

        if not on_device and not to_device and not any(isinstance(each, FakeTensor) for each in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)

        # In inference mode operations that are made of others come whole.
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)

        args, kwargs = tree_map_only(Tensor, self.gpu.faked, (args, kwargs))
        name = func.overloadpacket.__name__
        if on_device:
            return self._on_device(name, func, args, kwargs)
        if name == "_to_copy" and not kwargs.get("non_blocking", False):
            self.gpu.note("blocking copy", "to")
        return func(*args, **kwargs)

    def _on_device(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name in NUMBERS:
            self.gpu.note("sync", name)
            return 1.0 if name == "_local_scalar_dense" else True
        if name in SIZED_BY_VALUES:
            self.gpu.note("sync", name)
            return _largest(name, args[0])
        if name == "_to_copy" and kwargs.get("device") == torch.device("cpu"):
            return self._to_host(args[0], kwargs)

        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.gpu.note("sync", f"{name} without output_size")
            kwargs = {**kwargs, "output_size": args[0].numel()}
        if name == "segment_reduce" and kwargs.get("lengths") is not None and not kwargs.get("unsafe"):
            self.gpu.note("sync", f"{name} that checks its lengths")
        if name == "copy_" and not any(args[2:]) and args[0].device != args[1].device:
            is_ours = args[0].device == self.gpu.device
            self.gpu.note("blocking copy" if is_ours else "sync", name)
        if name in INDEXING:
            args = (args[0], self._counted(name, args[1]), *args[2:])
        return func(*args, **kwargs)

    def _to_host(self, tensor: Tensor, kwargs: Any) -> Tensor:
        if not kwargs.get("non_blocking", False):
            self.gpu.note("sync", "to cpu")
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)

    def _counted(self, name: str, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """A mask is counted on the host before it selects; indices of the host are copied to the device."""
        counted: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.device != self.gpu.device and index.dim() > 0:
                self.gpu.note("blocking copy", f"{name} by indices of the host")
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                counted.append(index)
                continue
            self.gpu.note("sync", f"{name} by a mask")
            counted += [index.new_zeros(index.numel(), dtype=torch.int64)] * index.dim()
        return counted


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _largest(name: str, input: Tensor) -> Any:
    """The most that an operation can return whose result's size is not known, so that the step goes on."""
    size = input.numel()
    if name == "nonzero":
        return input.new_zeros((size, input.dim()), dtype=torch.int64)
    if name in ("masked_select", "bincount"):
        return input.new_zeros(size)
    places = input.new_zeros(size, dtype=torch.int64)
    return input.flatten(), places, places


def innermost_place() -> tuple[str, int]:
    """File and function of PLACES that runs, and the line; a backward pass has none."""
    for frame in reversed(traceback.extract_stack()):
        for root in PLACES:
            if root in frame.filename:
                package, inner = root.rstrip("/").split("/")[-1], frame.filename.split(root)[-1]
                return f"{package}/{inner} {frame.name}", frame.lineno or 0
    return "backward, or a test", 0


def flash_attn_stand_in() -> ModuleType:
    """A module `flash_attn` whose function asks of its inputs what flash-attn asks, and has its shapes."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        **settings: Any,
    ) -> Tensor:
        for tensor in (q, k, v):
            assert tensor.device.type == NAME and tensor.dtype in (torch.float16, torch.bfloat16), tensor
            assert tensor.dim() == 3 and tensor.stride(-1) == 1, tensor
        for starts in (cu_seqlens_q, cu_seqlens_k):
            assert starts.device.type == NAME and starts.dtype == torch.int32, starts
        assert isinstance(max_seqlen_q, int) and isinstance(max_seqlen_k, int)
        return q + k + v

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module
