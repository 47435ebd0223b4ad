"""How far a file is read: a bar where stdout is a terminal, else a plain line at most every ten seconds. Rank 0 only; writes no file."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm


class Bar:
    """Rows done of all rows. Must be closed."""

    def __init__(
        self,
        num_rows: int,
        *,
        done: int = 0,
        is_main: bool = True,
        stream: TextIO | None = None,
        seconds: float = 10.0,
    ) -> None:
        self._num_rows, self._first, self._is_main = num_rows, done, is_main
        self._stream, self._seconds = stream or sys.stdout, seconds
        self._began = self._said_at = time.monotonic()
        shows = is_main and self._stream.isatty()
        self._bar = (
            tqdm(total=num_rows, initial=done, file=self._stream, unit="row", dynamic_ncols=True)
            if shows
            else None
        )

    def update(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self._is_main and (now := time.monotonic()) - self._said_at >= self._seconds:
            self._said_at = now
            speed = (done - self._first) / (now - self._began)
            print(f"{done:,} of {self._num_rows:,} rows  {speed:,.0f} rows/s", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
