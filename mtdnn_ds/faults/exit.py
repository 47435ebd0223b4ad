"""How a process ends: exit codes that a job script acts on, and ending at once from a thread.

Ends no other process. The other exit codes are 0, 1, 2 and 130 (docs/resume.md).
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

from mtdnn_ds.faults.shared_memory import remove_own_segments

STOPPED = 85  # stopped on request, everything saved: the same command with --resume auto goes on
LOST = 75  # a rank is lost or hangs: the same command with --resume auto goes on from the last checkpoint

_exiting = threading.RLock()  # taken once: the first reason is the one that counts


def exit_now(code: int, text: str, *, speaks: bool) -> None:
    """End this process with `code`, whatever its main thread waits in; `speaks`: say `text`.

    Never returns.
    """
    with _exiting:
        # The main thread may hang in a write and hold the stream's lock: so the streams are flushed on a
        # thread of their own, and the text goes past them.
        flush = threading.Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(timeout=1.0)

        if speaks:
            with suppress(OSError):  # nobody reads any more
                os.write(2, f"{text}\n".encode())

        remove_own_segments()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
