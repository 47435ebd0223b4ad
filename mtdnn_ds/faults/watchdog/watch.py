"""The watch over all ranks of a run: a lost, stopped or hanging rank ends all of them.

Judges nothing itself (diagnosis.py). They end with a message that names that rank, and exit code 75. Every
rank has a thread that is connected to rank 0's. Rank 0 notices a closed connection at once, silence and a
lack of progress after train.stall_timeout seconds; the others watch rank 0 in the same way. The threads end
their processes with os._exit, so it does not matter what a main thread waits in (gloo, NCCL, a file).
Requests to stop before training take the same way.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mtdnn_ds import dist
from mtdnn_ds.config.errors import Stopped, UserError
from mtdnn_ds.faults import heartbeat, stop_requests
from mtdnn_ds.faults.exit import LOST, exit_now
from mtdnn_ds.faults.watchdog.client import WatchClient
from mtdnn_ds.faults.watchdog.server import WatchServer

SHORTEST_RENDEZVOUS = 60.0  # seconds: ranks are not started at one moment
SECONDS_TO_EXPLAIN = 10.0  # that the watch has to say whose loss broke a collective
_BROKEN_COLLECTIVE = re.compile(
    r"gloo|nccl|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|process group",
    re.IGNORECASE,
)

Watch = WatchServer | WatchClient
_watch: Watch | None = None


@contextmanager
def watching(stall_timeout: float) -> Iterator[None]:
    """Watch over all ranks until the block ends.

    Collective: every rank of a started process group enters it. A nested one changes the outer one's time-out
    (seconds).
    """
    global _watch
    if _watch is not None:
        with _changed_timeout(_watch, stall_timeout):
            yield
        return

    watch = _watch = _start(stall_timeout)
    if watch is None:
        yield
        return

    stop_requests.exit_through(watch.stop_all)
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        _explain(watch, error)
        raise
    finally:
        stop_requests.exit_through(None)
        _watch = None
        watch.end()


@contextmanager
def _changed_timeout(watch: Watch, stall_timeout: float) -> Iterator[None]:
    outer = watch.timeout
    watch.timeout = stall_timeout
    try:
        yield
    finally:
        watch.timeout = outer


def _start(stall_timeout: float) -> Watch | None:
    """This rank's side of the watch; None on all ranks, and said, where they cannot reach rank 0."""
    heartbeat.in_loop(False)  # this thread is the one that is watched
    one_node = dist.local_size() == dist.world_size()
    address = "127.0.0.1" if one_node else os.environ.get("MASTER_ADDR", "127.0.0.1")

    watch: Watch | None = None
    where: tuple[int, str] = (0, "")
    if dist.is_main():
        server = WatchServer(stall_timeout, dist.world_size(), address)
        server.start()
        watch, where = server, (server.port, server.token)

    port, token = dist.broadcast(where)
    problem = ""
    if not dist.is_main():
        try:
            watch = WatchClient(stall_timeout, dist.rank(), (address, port), token)
            watch.start()
        except OSError as error:
            problem = (
                f"rank {dist.rank()} on {socket.gethostname()} "
                f"cannot connect to rank 0 at {address}:{port} ({error})"
            )

    problems = [theirs for theirs in dist.gather(problem) if theirs]
    if not problems:
        return watch

    if watch is not None:
        watch.end()
    if dist.is_main():
        print(
            f"no watch over lost ranks: {problems[0]}; "
            "without it they are noticed when a collective fails or times out. "
            "Let the nodes of a run connect to each other on any port",
            flush=True,
        )
    return None


def _explain(watch: Watch, error: BaseException) -> None:
    """Before a rank fails: the watch ends it if another rank's loss is the reason, else tells the others."""
    broken = not isinstance(error, UserError) and _BROKEN_COLLECTIVE.search(str(error))
    if watch.timeout and dist.world_size() > 1 and broken:
        time.sleep(SECONDS_TO_EXPLAIN)  # the thread ends the process meanwhile if it knows of a lost rank

    why = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        why = "interrupted from the keyboard"
    watch.request("failed", why)
    watch.wait_until_told()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


@contextmanager
def joining(stall_timeout: float) -> Iterator[None]:
    """End this process with exit code 75 if the block fails or takes longer than `stall_timeout` (seconds).

    It is the ranks' rendezvous, before which there is no watch. It may take a minute in any case.
    """
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    who = f"error: rank {dist.rank()} on {socket.gethostname()}"
    patience = max(stall_timeout, SHORTEST_RENDEZVOUS)
    waited = (
        f"{who} has waited {patience:g} s (train.stall_timeout) for the other ranks at {place}; "
        f"WORLD_SIZE is {dist.world_size()}: see whether all were started and can reach that address"
    )

    is_watched = bool(stall_timeout) and dist.world_size() > 1
    timer = threading.Timer(patience, lambda: exit_now(LOST, waited, speaks=True))
    timer.daemon = True
    if is_watched:
        timer.start()

    try:
        yield
    except RuntimeError as error:
        if not is_watched or not _BROKEN_COLLECTIVE.search(str(error)):
            raise
        failed = (
            f"{who} could not meet the other ranks at {place}; "
            f"one of them ended meanwhile ({_first_line(error)})"
        )
        exit_now(LOST, failed, speaks=True)
    finally:
        timer.cancel()
