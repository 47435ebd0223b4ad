"""Prefetch: the items of an iterable, made ahead in a background thread. Not what they are (loader.py)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Made(Generic[Item]):
    item: Item


@dataclass(frozen=True, slots=True)
class _Ended:
    """There is no further item, because of `error` if there is one."""

    error: BaseException | None


class Prefetch(Generic[Item]):
    """Iterating gives the items in their order, and raises what making one raised, in its place.

    For one user. Must be closed (it is a context manager), which ends the thread at its next item.
    """

    def __init__(self, items: Iterable[Item], *, num_ahead: int, name: str) -> None:
        """`num_ahead`: items that wait, at most; one more is being made. `name`: of the thread."""
        self.wait_seconds = 0.0  # that its user has waited
        self._items = items
        self._ready: queue.Queue[_Made[Item] | _Ended] = queue.Queue(maxsize=num_ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetch[Item]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        while True:
            begin = time.perf_counter()
            ready = self._ready.get()
            self.wait_seconds += time.perf_counter() - begin
            if isinstance(ready, _Made):
                yield ready.item
            elif ready.error is not None:
                raise ready.error
            else:
                return

    def close(self) -> None:
        """End the thread; safe to call twice."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(_Made(item)):
                    return
            self._put(_Ended(None))
        except BaseException as error:  # handed to the user's thread, which raises it
            self._put(_Ended(error))

    def _put(self, ready: _Made[Item] | _Ended) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(ready, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
