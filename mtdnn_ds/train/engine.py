"""The process group and the DeepSpeed engine in it: start and end. Takes no step (step/optimizer_step.py)."""

from __future__ import annotations

import atexit
import gc
import inspect
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from mtdnn_ds import dist
from mtdnn_ds.config.launch import free_port, take_place
from mtdnn_ds.faults.rendezvous import own_store
from mtdnn_ds.faults.shared_memory import remove_own_segments
from mtdnn_ds.runs.device import keep_freed_memory, make_deterministic, share_threads, take_device

# Other ranks wait in a collective while rank 0 tokenizes; DeepSpeed's own limit of 10 minutes would end a
# first run on large data.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


def start_distributed(timeout: timedelta = COLLECTIVE_TIMEOUT) -> torch.device:
    """Join the process group (NCCL on CUDA, gloo on CPUs). Collective: all ranks must call this. Returns this
    rank's device.
    """
    import deepspeed

    take_place()
    dist.fill_environment(free_port())
    device = take_device()
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        _skip_shared_memory_op(deepspeed)
    else:
        make_deterministic()
    atexit.register(remove_own_segments)  # what is left of them, also by ranks of this node that were killed

    backend = "gloo" if on_cpu else "nccl"
    if not torch.distributed.is_initialized():
        _join_own_store(backend, device, timeout)
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)

    share_threads()  # also beside GPUs: offloaded optimizer states step on the CPU
    if on_cpu:
        keep_freed_memory()
    return device


def _join_own_store(backend: str, device: torch.device, timeout: timedelta) -> None:
    """Join by the store of the run's own rendezvous, where there is one; else DeepSpeed's start joins."""
    own = own_store(dist.rank(), dist.world_size(), timeout)
    if own is None:
        return

    bound_device = None
    if device.type == "cuda" and dist.world_size() > 1:  # as DeepSpeed does
        bound_device = device
    with own as store:
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=dist.rank(),
            world_size=dist.world_size(),
            timeout=timeout,
            device_id=bound_device,
        )


def _skip_shared_memory_op(deepspeed: Any) -> None:
    # DeepSpeed builds (55 s) and starts a shared-memory all-reduce on CPUs that only inference uses, and
    # leaves its 70 MB a rank in /dev/shm behind. Its own switch is private, so it is only used where it still
    # exists.
    compatible = getattr(getattr(deepspeed, "ops", None), "__compatible_ops__", None)
    if isinstance(compatible, dict) and "deepspeed_shm_comm" in compatible:
        compatible["deepspeed_shm_comm"] = False


def stop_distributed() -> None:
    """Leave the process group; another one may be joined after it. Collective: all ranks must call this,
    last.
    """
    if torch.distributed.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # which also forgets the groups that DeepSpeed keeps by name


def start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine around `model`. Collective: all ranks must call this."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    for module, parameter in getattr(model, "borrowed", ()):
        # ZeRO-3 then gathers it for this module too.
        deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def stop_engine(engine: Any) -> None:
    """Undo what the engine has tied to the process.

    With the last reference to it, `free_memory` then gives its memory to another engine.
    """
    # Its hooks on parameters are known to autograd alone, which no search for cycles looks into.
    engine.destroy()
    if engine.zero_optimization_stage() == 3:
        _forget_zero3_modules()


def free_memory() -> None:
    """Give back what nothing refers to any more. Engine and model refer to each other, so Python would not do
    it soon.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_zero3_modules() -> None:
    # DeepSpeed 0.19.8 leaves the model on a list (runtime/zero/parameter_offload.py:315) and in a cache keyed
    # by modules (runtime/zero/partitioned_param_coordinator.py:633). Both are private, so they are only
    # touched where they still exist.
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    getattr(parameter_offload, "FWD_MODULE_STACK", []).clear()

    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    release = getattr(coordinator, "_PartitionedParameterCoordinator__params_to_release", None)
    if not inspect.isfunction(release):
        return
    cached: Any = inspect.getclosurevars(release).nonlocals.get("func")
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()
