"""A run's saves as its recipe says: when one is complete, which step is safe, what a failed one means.

Writes nothing itself (checkpoint/save.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.save import Also, PendingSave, begin_save, complete_save
from mtdnn_ds.files import SaveFailed

log = logging.getLogger(__name__)

OnError = Literal["stop", "continue"]


class Saver:
    """Saves the checkpoints of a run as its recipe says, and knows which step is safe.

    Every method is collective: all ranks must call it.
    """

    def __init__(
        self,
        engine: Any,
        checkpoints: Path,
        *,
        keep_last: int,
        on_error: OnError,
        in_background: bool,
        step: int,
    ) -> None:
        """`step`: of the checkpoint that the run went on from, 0 for a new run."""
        self._engine, self._checkpoints, self._keep_last = engine, checkpoints, keep_last
        self._on_error, self._in_background = on_error, in_background
        self._pending: PendingSave | None = None
        self._began = 0.0  # perf_counter of the pending one
        self.saved_step = step  # of the newest checkpoint that is whole
        self.longest_seconds = 0.0  # from the beginning of a save to its end

    def save(self, *, step: int, run_state: dict[str, Any], also: Also = (), must: bool = False) -> None:
        """Save `step`; what is still being written is completed first.

        `must`: SaveFailed whatever the recipe says, and wait for it.
        """
        self.wait()
        try:
            self._begin(step, run_state, also)
            if must or not self._in_background:
                self._complete()
        except SaveFailed as error:
            self._failed(error, must=must)

    def poll(self) -> None:
        """Between two steps: complete what all ranks have written.

        One small reduction while something is, else nothing.
        """
        if self._pending is None:
            return
        if not dist.any_rank(not self._pending.writer.is_done(), self._engine.device):
            self.wait()

    def wait(self) -> None:
        """Complete what is being written."""
        try:
            if self._pending is not None:
                self._complete()
        except SaveFailed as error:
            self._failed(error, must=False)

    def _begin(self, step: int, run_state: dict[str, Any], also: Also) -> None:
        began = perf_counter()
        pending = begin_save(
            self._engine,
            self._checkpoints,
            step=step,
            run_state=run_state,
            keep_last=self._keep_last,
            also=also,
            in_background=self._in_background,
        )
        self._pending, self._began = pending, began

    def _complete(self) -> None:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        for note in complete_save(pending):
            log.info(note)

        self.saved_step = pending.step
        self.longest_seconds = max(self.longest_seconds, perf_counter() - self._began)

    def _failed(self, error: SaveFailed, *, must: bool) -> None:
        if must or self._on_error == "stop":
            raise error
        for problem in error.problems:
            log.info(f"{problem}; going on (train.on_save_error=continue), and saving again at the next time")
