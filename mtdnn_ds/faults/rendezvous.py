"""The ranks' rendezvous where MASTER_ADDR will not do: a rank alone, and ranks that torchrun restarts.

Knows no DeepSpeed. torchrun keeps one store through all restarts (its static rendezvous always, c10d too
unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and torch 2.13 puts the ranks' addresses into it under the same
names each time: a restarted rank may read those of a dead one, and fails ("Gloo connectFullMesh failed") or
waits for ever. torchrun's count of restarts does not help: it differs between nodes. So rank 0 of each start
makes up a name that no earlier start has used, and tells it to every rank that asks; a rank asks under a name
of its own, so that no answer of an earlier start reaches it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from torch.distributed import HashStore, PrefixStore, Store, TCPStore

_ASKED = "mtdnn_ds/asked"
SECONDS_BETWEEN_LOOKS = 0.05


def own_store(rank: int, world_size: int, timeout: timedelta) -> AbstractContextManager[Store] | None:
    """A store for joining the process group within the block; None where torch's own will do.

    torch's own is that of MASTER_ADDR and MASTER_PORT. Collective. A rank alone needs no port, which another
    run may have; a torchrun's store outlives the ranks.
    """
    if world_size == 1:
        return nullcontext(HashStore())
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return fresh_store(rank, timeout)
    return None


@contextmanager
def fresh_store(rank: int, timeout: timedelta) -> Iterator[Store]:
    """This start's own part of torchrun's store, for joining the process group within the block.

    Collective.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def connect() -> TCPStore:
        return TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)

    store = connect()
    if rank != 0:
        yield PrefixStore(_ask(store), store)
        return

    name, joined = f"mtdnn_ds/{secrets.token_hex(8)}", threading.Event()
    answering = threading.Thread(
        target=_answer, args=(connect(), name, joined), name="mtdnn_ds-rendezvous", daemon=True
    )
    answering.start()
    try:
        yield PrefixStore(name, store)
    finally:
        joined.set()
        answering.join()


def _ask(store: Store) -> str:
    """The name of this start, once rank 0 is there."""
    own = secrets.token_hex(8)
    number = store.add(_ASKED, 1)
    store.set(f"{_ASKED}/{number}", own)
    return store.get(f"mtdnn_ds/answer/{own}").decode()  # waits for it


def _answer(store: Store, name: str, joined: threading.Event) -> None:
    """Tell `name` to all that ask, also to those of earlier starts, which read it no more."""
    waiting: set[int] = set()
    known = 0
    while not joined.wait(SECONDS_BETWEEN_LOOKS):
        asked = store.add(_ASKED, 0)
        waiting.update(range(known + 1, asked + 1))
        known = asked
        for number in sorted(waiting):
            if store.check([f"{_ASKED}/{number}"]):
                store.set(f"mtdnn_ds/answer/{store.get(f'{_ASKED}/{number}').decode()}", name)
                waiting.remove(number)
