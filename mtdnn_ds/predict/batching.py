"""Batcher: requests that arrive together share one pass of the encoder. Not the service (service.py).

One thread owns the model. It takes the oldest request, waits at most `max_wait_seconds` for others, and
answers as many as hold `max_texts` texts together. If a pass of several requests fails, each is answered
alone, so that only the one that fails gets the error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mtdnn_ds.predict.model import MultiTaskModel, RowAnswers


class QueueFull(Exception):
    """Too many texts wait."""


class Closed(Exception):
    """The batcher is closing, and takes nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Rows that one caller waits for."""

    rows: Sequence[Mapping[str, Any]]
    asked: tuple[int, ...] | None
    future: Future[RowAnswers] = field(default_factory=Future)


class Batcher:
    """Must be closed, which answers what waits and ends the thread."""

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        max_wait_seconds: float = 0.005,
        max_texts: int = 256,
        max_queue: int = 4096,
        max_tokens: int | None = None,
    ) -> None:
        """`max_queue`: most texts that wait. `max_tokens`: of a micro-batch."""
        self._model = model
        self._max_tokens = max_tokens
        self._max_wait_seconds = max_wait_seconds
        self._max_texts = max_texts
        self._max_queue = max_queue

        self._waiting: deque[Request] = deque()
        self._num_texts = 0  # that wait
        self._changed = threading.Condition()
        self._closing = False
        self.num_passes = 0
        self.num_requests = 0

        self._thread = threading.Thread(target=self._run, name="mtdnn_ds-batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Texts that wait."""
        return self._num_texts

    def submit(self, rows: Sequence[Mapping[str, Any]], asked: tuple[int, ...] | None) -> Future[RowAnswers]:
        """The answers to come. Raises QueueFull and Closed."""
        request = Request(rows=rows, asked=asked)
        with self._changed:
            if self._closing:
                raise Closed
            if self._num_texts + len(rows) > self._max_queue and self._waiting:
                raise QueueFull
            self._waiting.append(request)
            self._num_texts += len(rows)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what waits, take nothing more. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        requests = self._take()
        while requests:
            self.num_passes += 1
            self.num_requests += len(requests)
            self._answer(requests)
            requests = self._take()

    def _take(self) -> list[Request]:
        """The next requests that share a pass; none when all is done."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()

            until = time.monotonic() + self._max_wait_seconds
            while self._num_texts < self._max_texts and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)

            taken: list[Request] = []
            num_texts = 0
            while self._waiting and (not taken or num_texts + len(self._waiting[0].rows) <= self._max_texts):
                taken.append(self._waiting.popleft())
                num_texts += len(taken[-1].rows)
            self._num_texts -= num_texts
            return taken

    def _answer(self, requests: Sequence[Request]) -> None:
        rows = [row for request in requests for row in request.rows]
        asked = [request.asked for request in requests for _ in request.rows]
        try:
            found = self._model.answer(rows, asked, max_tokens=self._max_tokens)
        except Exception as error:
            if len(requests) == 1:
                _set(requests[0].future, error)
                return
            for request in requests:
                self._answer([request])
            return

        first = 0
        for request in requests:
            end = first + len(request.rows)
            own = RowAnswers(answers=found.answers[first:end], truncated=found.truncated[first:end])
            _set(request.future, own)
            first = end


def _set(future: Future[RowAnswers], result: RowAnswers | Exception) -> None:
    if not future.set_running_or_notify_cancel():  # its caller is gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
