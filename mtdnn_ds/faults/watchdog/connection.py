"""One connection of the watchdog: JSON objects, one a line, over a TCP socket that never blocks.

Knows not what they mean.
"""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]
LONGEST_LINE = 2**20


class Link:
    """A socket with what is still to be sent and what has come in halves.

    Used by one thread at a time; must be closed.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._out, self._in = bytearray(), bytearray()
        self.closed = False  # by the other side, or broken

    def fileno(self) -> int:
        """For a selector."""
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Queue a message and send what the other side has room for."""
        if (
            len(self._out) < LONGEST_LINE
        ):  # a stopped process reads nothing: what it will never need is dropped
            self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what is queued, as far as the other side has room."""
        while self._out and not self.closed:
            try:
                del self._out[: self._connection.send(self._out)]
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.closed = True

    def receive(self) -> list[Message]:
        """What has come in whole lines; sets `closed` when nothing more can come."""
        while not self.closed:
            try:
                part = self._connection.recv(2**16)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                part = b""
            self._in += part
            self.closed = not part or len(self._in) > LONGEST_LINE

        *lines, rest = self._in.split(b"\n")
        self._in = bytearray(rest)

        messages = []
        for line in lines:
            message = _parsed(line)
            if message is None:  # not one of ours
                self.closed = True
                break
            messages.append(message)
        return messages

    def finish(self) -> None:
        """Nothing more will be sent; what comes is still read."""
        self.flush()
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.closed = True

    def close(self) -> None:
        """Both ways."""
        self._connection.close()


def _parsed(line: bytearray) -> Message | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if not isinstance(message, dict):
        return None
    return message
