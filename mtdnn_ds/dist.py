"""Process-group helpers: this rank's place, and collectives over plain values. Starts no process and knows no
model.

Every function works without a process group too (one process, rank 0 of 1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

Value = TypeVar("Value")

_local_rank: int | None = None  # where LOCAL_RANK no longer says it


def rank() -> int:
    """Global rank of this process; from the launcher's environment before the group exists."""
    if _started():
        return torch_dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run; from the launcher's environment before the group exists."""
    if _started():
        return torch_dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Rank of this process on its node."""
    if _local_rank is not None:
        return _local_rank
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Number of processes of the run on this node; torchrun has a name of its own for it."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")


def use_device(index: int) -> None:
    """Let DeepSpeed, which takes LOCAL_RANK for the number of this rank's GPU, use GPU `index`.

    `local_rank()` stays what it was.
    """
    global _local_rank
    _local_rank = local_rank()
    os.environ["LOCAL_RANK"] = str(index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # it insists that both are equal
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(index)


def is_main() -> bool:
    """Whether this process writes the run folder and speaks."""
    return rank() == 0


def fill_environment(port: int) -> None:
    """Describe a run of one process in the environment when no launcher has described one; `port`: a free
    one."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    defaults = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
    }
    for name, value in {**defaults, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        os.environ.setdefault(name, value)


def barrier() -> None:
    """Wait for all ranks. Collective: all ranks must call this."""
    if world_size() > 1:
        torch_dist.barrier()


def broadcast(value: Value) -> Value:
    """Rank 0's `value` on every rank. Collective: all ranks must call this."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Value) -> list[Value]:
    """Every rank's `value`, in rank order, on every rank. Collective: all ranks must call this."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Value]) -> Value:
    """`function()` of rank 0 on every rank; what it raises there is raised everywhere. Collective: all ranks
    must call this."""
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_main():
        try:
            outcome = (function(), None)
        except Exception as error:  # handed to the other ranks, which would wait forever otherwise
            outcome = (None, error)
    value, problem = broadcast(outcome)
    if problem is not None:
        raise problem
    return value


def on_all(function: Callable[[], None]) -> None:
    """`function()` on every rank; what it raises on any of them is raised on all. Collective: all ranks must
    call this."""
    problem: Exception | None = None
    try:
        function()
    except Exception as error:  # the other ranks would wait forever otherwise
        problem = error
    problems = [theirs for theirs in gather(problem) if theirs is not None]
    if problems:
        raise problem or problems[0]


def sum_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over ranks, in place. Collective: all ranks must call this."""
    if world_size() > 1:
        torch_dist.all_reduce(tensor)
    return tensor


def any_rank(here: bool, device: torch.device) -> bool:
    """Whether it is so on any rank. Collective: all ranks must call this."""
    if world_size() == 1:
        return here
    return bool(sum_tensor(torch.tensor([float(here)], device=device)))


def _started() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()
