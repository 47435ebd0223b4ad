"""The watch on every other rank: signs of life to rank 0, and what to do when that is silent or gone.

Judges no other rank than 0 (server.py).
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import asdict
from typing import Any

from mtdnn_ds.faults import heartbeat
from mtdnn_ds.faults.exit import STOPPED, exit_now
from mtdnn_ds.faults.stop_requests import text_for_all_ranks
from mtdnn_ds.faults.watchdog.connection import Link, Message
from mtdnn_ds.faults.watchdog.diagnosis import Process, ended_without_a_word, no_sign_of_life
from mtdnn_ds.faults.watchdog.thread import WatchThread, end_lost, speaks_without_rank_0, this_process

SECONDS_TO_CONNECT = 60.0
SECONDS_TO_PART = 1.0


class WatchClient(WatchThread):
    """The side of a rank that is not 0. Raises OSError if rank 0 cannot be reached."""

    def __init__(self, timeout: float, rank: int, address: tuple[str, int], token: str) -> None:
        super().__init__(timeout)
        self._rank = rank
        self._link = Link(socket.create_connection(address, timeout=SECONDS_TO_CONNECT))
        self._link.send({"token": token, "rank": rank, "process": asdict(this_process())})
        self._server = self._welcome()

        self._heard = time.monotonic()
        self._others = ""  # where they are, as rank 0 last said
        self._last_beat = 0.0
        self._done_by: float | None = None
        self._is_over = self._is_failing = False
        self._selector.register(self._link, selectors.EVENT_READ, "server")

    def _welcome(self) -> Process:
        """Rank 0's process, once it has answered."""
        until = time.monotonic() + SECONDS_TO_CONNECT
        while time.monotonic() < until and not self._link.closed:
            for message in self._link.receive():
                if message.get("welcome"):
                    return Process(
                        host=str(message["host"]), pid=int(message["pid"]), started=str(message["started"])
                    )
            time.sleep(0.01)

        self._link.close()
        raise OSError("rank 0 does not answer")

    def read(self, source: Any, now: float) -> None:
        """Of rank 0."""
        for message in self._link.receive():
            self._heard = now
            self._hear(message)

        if self._link.closed and not self._is_over:
            self._is_over = True
            if self._done_by is None and self.timeout and not self._is_failing:
                self._rank_0_is_lost(ended_without_a_word(now, now), silent=[])

    def _hear(self, message: Message) -> None:
        if "alive" in message:
            self._others = str(message["alive"])

        if "stop" in message:
            exit_now(STOPPED, str(message["stop"]), speaks=False)

        if "end" in message:
            silent = [
                Process(host=host, pid=pid, started=started) for host, pid, started in message["silent"]
            ]
            end_lost(str(message["end"]), silent, speaks=message["speaker"] == self._rank)

        if "bye" in message:
            self._is_over = True

    def handle(self, kind: str, why: str, now: float) -> None:
        """Tell rank 0."""
        if kind == "end":
            self._done_by = now + SECONDS_TO_PART
            self._link.send({"bye": True})
            self._link.finish()
            return
        self._is_failing = kind == "failed"
        self._link.send({kind: why})

    def reset(self, now: float) -> None:
        """As if rank 0 had just been heard."""
        self._heard = now

    def tick(self, now: float) -> bool:
        """Say where this rank is, and end it where rank 0 has been silent for too long."""
        if self._is_over or (self._done_by is not None and now >= self._done_by):
            self._link.close()
            return False

        if self._done_by is None and now - self._last_beat >= self.beat * 0.9:
            self._last_beat = now
            self._link.send({"place": heartbeat.place().to_json()})

        if self.timeout and now - self._heard > self.timeout:
            self._rank_0_is_lost(no_sign_of_life(self._heard, now), silent=[self._server])
        return True

    def _rank_0_is_lost(self, how: str, *, silent: list[Process]) -> None:
        text = (
            f"rank 0 on {self._server.host} is lost: {how}\n"
            f"when it was last heard, {self._others or 'the run began'}"
        )
        end_lost(text, silent, speaks=speaks_without_rank_0())

    def wait_until_told(self) -> None:
        """After this rank has failed: until that is sent."""
        until = time.monotonic() + SECONDS_TO_PART
        while self._requests and time.monotonic() < until:
            time.sleep(0.01)

    def _stop_alone(self, reason: str) -> None:
        exit_now(STOPPED, text_for_all_ranks(reason), speaks=False)
