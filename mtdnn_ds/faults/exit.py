"""The last thing a process does when it must end from a thread: say why, clean up, exit with a code. Ends no other process."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

from mtdnn_ds.faults.shared_memory import remove_own_segments

_leaving = threading.RLock()  # taken once: the first reason is the one that counts


def leave(code: int, text: str, *, speaks: bool) -> None:
    """End this process with `code`, whatever its main thread waits in; `speaks`: say `text`. Never returns."""
    with _leaving:
        # The main thread may hang in a write and hold the stream's lock, so the streams are flushed aside and the text goes past them.
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
