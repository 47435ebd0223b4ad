"""The watch on rank 0: hears every rank, judges, and tells all of them when the run must end."""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from typing import Any

from mtdnn_ds.faults import heartbeat
from mtdnn_ds.faults.exit import leave
from mtdnn_ds.faults.exit_codes import STOPPED
from mtdnn_ds.faults.heartbeat import Place
from mtdnn_ds.faults.watchdog.connection import Link, Message
from mtdnn_ds.faults.watchdog.diagnosis import SECONDS_TO_FOLLOW, Process, Seen, Verdict, judge, summarize
from mtdnn_ds.faults.watchdog.thread import WatchThread, end_lost, this_process

SECONDS_TO_TELL = 2.0  # that the others have to end when they were told to


class WatchServer(WatchThread):
    """Rank 0's side."""

    def __init__(self, timeout: float, world_size: int, address: str) -> None:
        super().__init__(timeout)
        self.token = secrets.token_hex(16)
        self._process = this_process()
        now = time.monotonic()
        self._ranks = {0: Seen(rank=0, process=self._process, heard=now, moved=now)}
        self._links: dict[int, Link] = {}
        self._strangers: list[Link] = []  # connected, and not yet known
        self._listener: socket.socket | None = None
        self._last_beat = 0.0
        self._done_by: float | None = None  # when the wait for the others' farewell ends
        self._is_failing = False
        self.all_told = threading.Event()  # of this rank's failure
        if world_size > 1:
            self._listener = _listen(address)
            self._selector.register(self._listener, selectors.EVENT_READ, "door")

    @property
    def port(self) -> int:
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    def read(self, source: Any, now: float) -> None:
        if source == "door":
            assert self._listener is not None
            link = Link(self._listener.accept()[0])
            self._selector.register(link, selectors.EVENT_READ, link)
            self._strangers.append(link)
            return
        for message in source.receive():
            self._hear(source, message, now)
        if source.closed:
            self._selector.unregister(source)
            source.close()
            closed = next((rank for rank, link in self._links.items() if link is source), None)
            if source in self._strangers:
                self._strangers.remove(source)
            elif closed is not None:
                del self._links[closed]
                if not self._ranks[closed].end:
                    self._ranks[closed].end, self._ranks[closed].ended = "closed", now

    def _hear(self, link: Link, message: Message, now: float) -> None:
        if link in self._strangers:
            if message.get("token") == self.token:
                self._strangers.remove(link)
                rank = int(message["rank"])
                self._links[rank] = link
                self._ranks[rank] = Seen(
                    rank=rank, process=Process(**message["process"]), heard=now, moved=now
                )
                link.send(
                    {
                        "welcome": True,
                        "host": self._process.host,
                        "pid": self._process.pid,
                        "started": self._process.started,
                    }
                )
            else:
                link.closed = True
            return
        sender = next((rank for rank, known in self._links.items() if known is link), None)
        if sender is None:
            return
        seen = self._ranks[sender]
        if "place" in message:
            seen.hear(Place(**message["place"]), now)
        if "stop" in message:
            self._stop(f"rank {sender}: {message['stop']}")
        if "failed" in message:
            seen.end, seen.ended, seen.failure = "failed", now, str(message["failed"])
        if "bye" in message and not seen.end:
            seen.end, seen.ended = "left", now

    def heed(self, kind: str, why: str, now: float) -> None:
        own = self._ranks[0]
        if kind == "stop":
            self._stop(f"rank 0: {why}")
        elif kind == "failed":
            own.end, own.ended, own.failure, self._is_failing = "failed", now, why, True
        elif kind == "end":
            own.end, own.ended = own.end or "left", now
            self._part(now)

    def forgive(self, now: float) -> None:
        for seen in self._ranks.values():
            seen.heard = seen.moved = now

    def tick(self, now: float) -> bool:
        if self._done_by is not None:
            if self._links and now < self._done_by:
                return True
            self._close()
            return False
        own = self._ranks[0]
        if not own.end:
            own.hear(heartbeat.place(), now)
        if now - self._last_beat >= self.beat * 0.9:
            self._last_beat = now
            where = summarize(seen for seen in self._ranks.values() if not seen.end)
            for link in self._links.values():
                link.send({"alive": where})
        for link in self._links.values():
            link.flush()
        verdict = judge(list(self._ranks.values()), now, self.timeout)
        if verdict is not None:
            self._condemn(verdict)
        if self._is_failing and (verdict is not None or all(seen.end for seen in self._ranks.values())):
            self._part(now)
            self.all_told.set()
        return True

    def _part(self, now: float) -> None:
        """Say farewell, and wait for the others to close."""
        self._done_by = now + SECONDS_TO_TELL
        for link in self._links.values():
            link.send({"bye": True})
            link.finish()

    def wait_until_told(self) -> None:
        """After this rank has failed: until the others have ended too, or have been told why they must."""
        self.all_told.wait(timeout=SECONDS_TO_FOLLOW + SECONDS_TO_TELL + 2 * self.beat)

    def _condemn(self, verdict: Verdict) -> None:
        silent = [self._ranks[rank].process for rank in verdict.silent]
        speaker = min(
            (seen.rank for seen in self._ranks.values() if not seen.end and seen.rank not in verdict.lost),
            default=0,
        )
        told = [[process.host, process.pid, process.started] for process in silent]
        self._tell({"end": verdict.text, "silent": told, "speaker": speaker})
        if not self._is_failing:
            end_lost(verdict.text, silent, speaks=speaker == 0)

    def _stop(self, reason: str) -> None:
        text = f"stopped before training ({reason}); nothing was to be saved; the same command with --resume auto goes on"
        self._tell({"stop": text})
        leave(STOPPED, text, speaks=True)

    def _leave_alone(self, reason: str) -> None:
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
        for link in (*self._links.values(), *self._strangers):
            link.close()
        if self._listener is not None:
            self._listener.close()


def _listen(address: str) -> socket.socket:
    if address == "127.0.0.1":
        return socket.create_server((address, 0), backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)
