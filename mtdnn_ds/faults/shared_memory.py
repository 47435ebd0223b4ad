"""Removing what DeepSpeed leaves in /dev/shm: this run's segments on this node, never another run's.

DeepSpeed 0.19.8 (shm.cpp:94 and 348-368 in csrc/cpu/comm):
deepspeed_allreduce_buffer_<uid>_<MASTER_ADDR>_<MASTER_PORT>_<rank>, 66 MiB each. The address and port are
those at which the run's ranks meet: no other run has them at the same time. train/engine.py keeps DeepSpeed
from making them where it can; where it cannot, they are removed when a process ends, also those of ranks that
were killed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def remove_own_segments(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove the segments of all of this run's ranks on this node; returns their names.

    At the end only: a rank that starts would miss them.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port or not folder.is_dir():
        return []

    own = re.compile(rf"deepspeed_allreduce_buffer_{os.getuid()}_{re.escape(address)}_{re.escape(port)}_\d+")
    removed = []
    for path in folder.iterdir():
        if own.fullmatch(path.name):
            try:
                path.unlink()
                removed.append(path.name)
            except FileNotFoundError:  # another rank of the node was faster
                pass
    return removed
