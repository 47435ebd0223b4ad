"""The watch on rank 0: hears every rank, and tells all of them when the run must end.

Who is lost: diagnosis.py.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from mtdnn_ds.faults import heartbeat
from mtdnn_ds.faults.exit import STOPPED, exit_now
from mtdnn_ds.faults.heartbeat import Place
from mtdnn_ds.faults.stop_requests import text_for_all_ranks
from mtdnn_ds.faults.watchdog.connection import Link, Message
from mtdnn_ds.faults.watchdog.diagnosis import (
    SECONDS_TO_FOLLOW,
    Process,
    RankStatus,
    Verdict,
    judge,
    summarize,
)
from mtdnn_ds.faults.watchdog.thread import WatchThread, end_lost, this_process

SECONDS_TO_TELL = 2.0  # that the others have to end when they were told to


class WatchServer(WatchThread):
    """Rank 0's side."""

    def __init__(self, timeout: float, world_size: int, address: str) -> None:
        super().__init__(timeout)
        self.token = secrets.token_hex(16)
        self.all_told = threading.Event()  # of this rank's failure

        now = time.monotonic()
        self._process = this_process()
        self._ranks = {0: RankStatus(rank=0, process=self._process, heard=now, moved=now)}
        self._links: dict[int, Link] = {}
        self._unknown_peers: list[Link] = []  # connected, and have not said who they are
        self._last_beat = 0.0
        self._done_by: float | None = None  # when the wait for the others' farewell ends
        self._is_failing = False

        self._listener: socket.socket | None = None
        if world_size > 1:
            self._listener = _listen(address)
            self._selector.register(self._listener, selectors.EVENT_READ, "listener")

    @property
    def port(self) -> int:
        """At which the other ranks connect; 0 where there are none."""
        if self._listener is None:
            return 0
        return int(self._listener.getsockname()[1])

    def read(self, source: Any, now: float) -> None:
        """A new connection, or what another rank says."""
        if source == "listener":
            self._accept()
            return

        for message in source.receive():
            self._hear(source, message, now)
        if source.closed:
            self._drop(source, now)

    def _accept(self) -> None:
        assert self._listener is not None
        link = Link(self._listener.accept()[0])
        self._selector.register(link, selectors.EVENT_READ, link)
        self._unknown_peers.append(link)

    def _drop(self, link: Link, now: float) -> None:
        """Its connection is closed: a rank that has not ended in another way has ended without a word."""
        rank = self._rank_of(link)
        self._selector.unregister(link)
        link.close()

        if link in self._unknown_peers:
            self._unknown_peers.remove(link)
        elif rank is not None:
            del self._links[rank]
            status = self._ranks[rank]
            if not status.end:
                status.end, status.ended = "closed", now

    def _rank_of(self, link: Link) -> int | None:
        return next((rank for rank, known in self._links.items() if known is link), None)

    def _hear(self, link: Link, message: Message, now: float) -> None:
        if link in self._unknown_peers:
            self._get_to_know(link, message, now)
            return

        sender = self._rank_of(link)
        if sender is None:
            return

        status = self._ranks[sender]
        if "place" in message:
            status.hear(Place(**message["place"]), now)
        if "stop" in message:
            self._stop(f"rank {sender}: {message['stop']}")
        if "failed" in message:
            status.end, status.ended, status.failure = "failed", now, str(message["failed"])
        if "bye" in message and not status.end:
            status.end, status.ended = "left", now

    def _get_to_know(self, link: Link, message: Message, now: float) -> None:
        """A connection's first message names its rank, and the token that only ranks of this run know."""
        if message.get("token") != self.token:
            link.closed = True
            return

        rank = int(message["rank"])
        self._unknown_peers.remove(link)
        self._links[rank] = link
        self._ranks[rank] = RankStatus(rank=rank, process=Process(**message["process"]), heard=now, moved=now)
        link.send({"welcome": True, **asdict(self._process)})

    def handle(self, kind: str, why: str, now: float) -> None:
        """Note it of rank 0, and tell the others."""
        own = self._ranks[0]
        if kind == "stop":
            self._stop(f"rank 0: {why}")
        elif kind == "failed":
            own.end, own.ended, own.failure = "failed", now, why
            self._is_failing = True
        elif kind == "end":
            own.end, own.ended = own.end or "left", now
            self._part(now)

    def reset(self, now: float) -> None:
        """As if every rank had just been heard, and had gone on."""
        for status in self._ranks.values():
            status.heard = status.moved = now

    def tick(self, now: float) -> bool:
        """Say who lives, and end the run where a rank is lost."""
        if self._done_by is not None:
            if self._links and now < self._done_by:
                return True
            self._close()
            return False

        own = self._ranks[0]
        if not own.end:
            own.hear(heartbeat.place(), now)
        self._say_who_lives(now)

        verdict = judge(list(self._ranks.values()), now, self.timeout)
        if verdict is not None:
            self._declare_lost(verdict)

        if self._is_failing and (verdict is not None or all(status.end for status in self._ranks.values())):
            self._part(now)
            self.all_told.set()
        return True

    def _say_who_lives(self, now: float) -> None:
        if now - self._last_beat >= self.beat * 0.9:
            self._last_beat = now
            where = summarize(status for status in self._ranks.values() if not status.end)
            for link in self._links.values():
                link.send({"alive": where})

        for link in self._links.values():
            link.flush()

    def _part(self, now: float) -> None:
        """Say farewell, and wait for the others to close."""
        self._done_by = now + SECONDS_TO_TELL
        for link in self._links.values():
            link.send({"bye": True})
            link.finish()

    def wait_until_told(self) -> None:
        """After this rank has failed: until the others have ended too, or have been told why they must."""
        self.all_told.wait(timeout=SECONDS_TO_FOLLOW + SECONDS_TO_TELL + 2 * self.beat)

    def _declare_lost(self, verdict: Verdict) -> None:
        """Tell all ranks, of which the lowest living one says why; end this one unless it fails anyway."""
        silent = [self._ranks[rank].process for rank in verdict.silent]
        living = [status.rank for status in self._ranks.values() if not status.end]
        speaker = min((rank for rank in living if rank not in verdict.lost), default=0)

        told = [[process.host, process.pid, process.started] for process in silent]
        self._tell({"end": verdict.text, "silent": told, "speaker": speaker})
        if not self._is_failing:
            end_lost(verdict.text, silent, speaks=speaker == 0)

    def _stop(self, reason: str) -> None:
        text = text_for_all_ranks(reason)
        self._tell({"stop": text})
        exit_now(STOPPED, text, speaks=True)

    def _stop_alone(self, reason: str) -> None:
        self._stop(f"rank 0: {reason}")

    def _tell(self, message: Message) -> None:
        """Tell all, and wait for them to go, those that can."""
        for link in self._links.values():
            link.send(message)

        until = time.monotonic() + SECONDS_TO_TELL
        while any(not link.closed for link in self._links.values()) and time.monotonic() < until:
            for link in self._links.values():
                link.flush()
                link.receive()
            time.sleep(0.01)

    def _close(self) -> None:
        for link in (*self._links.values(), *self._unknown_peers):
            link.close()
        if self._listener is not None:
            self._listener.close()


def _listen(address: str) -> socket.socket:
    """A socket at `address` if that is 127.0.0.1, else at any address, by IPv6 too where there is that."""
    if address == "127.0.0.1":
        return socket.create_server((address, 0), backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)
