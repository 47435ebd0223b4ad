"""Reading pickled files: the one place of this package that does, and it runs no code of theirs.

Only tensors, plain values and the classes of ALLOWED come out. A pickle may name any function and have it
called. torch's `weights_only` reader calls none but those on a list: its own (tensors, collections) and
ALLOWED, which is all that DeepSpeed 0.19.8 adds to the checkpoints of ZeRO 0-3 in fp32, bf16, fp16 and
autocast.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds.config.errors import CheckpointError

ALLOWED = (  # module, class; each holds numbers and has no method that unpickling would call
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load(path: Path, *, mmap: bool = False, map_location: Any = "cpu") -> Any:
    """What torch.save wrote to `path`. `mmap`: tensors stay in the file until they are read.

    Raises CheckpointError naming what is refused.
    """
    with safe_loads(path):
        return torch.load(path, map_location=map_location, mmap=mmap or None, weights_only=True)


@contextmanager
def safe_loads(where: Path) -> Iterator[None]:
    """Every torch.load of the block, DeepSpeed's own too, reads with `weights_only`, whatever it asks for.

    For this process and its children. `where`, a file or a folder of checkpoint files, is named in the
    CheckpointError of a refusal. Not for two threads at a time.
    """
    before = {name: os.environ.get(name) for name in (FORCE, FORCE_NOT)}
    os.environ.pop(FORCE_NOT, None)
    os.environ[FORCE] = "1"

    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    except pickle.UnpicklingError as error:
        files = [where] if where.is_file() else sorted(where.glob("*.pt"))
        raise CheckpointError([*refusals(files)] or _refusal(where, str(error))) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def refusals(files: Iterable[Path]) -> list[str]:
    """What would be refused of these checkpoint files, in words.

    Reads their lists of names only: quick for any size.
    """
    problems = []
    with torch.serialization.safe_globals(_allowed()):
        for file in files:
            # A file that is no checkpoint may make the readers of zip and pickle raise anything.
            try:
                names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except Exception as error:
                problems.append(
                    f"{file}: is no file of a checkpoint ({_first_line(error)}); give another checkpoint"
                )
                continue
            problems += [_words(file, name) for name in sorted(names)]
    return problems


def _allowed() -> list[Any]:
    return [getattr(importlib.import_module(module), name) for module, name in ALLOWED]


def _refusal(where: Path, text: str) -> str:
    name = re.search(r"GLOBAL (\S+)", text)
    if name is None:
        return f"{where}: holds what no checkpoint of a run holds, so it is not read; give another checkpoint"
    return _words(where, name[1])


def _words(file: Path, name: str) -> str:
    return (
        f"{file}: asks for {name}, which no checkpoint of a run holds and which could run code; "
        "it was not loaded. Give a checkpoint of your own run, "
        "or export that model with the program that wrote it"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
