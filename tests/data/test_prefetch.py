"""Items made ahead in a thread: order, exceptions, how far ahead, and that the thread ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mtdnn_ds.data.batches.prefetch import Prefetch

NAME = "prefetch of a test"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def test_items_come_in_their_order_and_from_another_thread() -> None:
    made_by = []

    def items() -> Iterator[int]:
        for number in range(50):
            made_by.append(threading.current_thread().name)
            yield number

    with Prefetch(items(), num_ahead=2, name=NAME) as ahead:
        assert list(ahead) == list(range(50))
        assert ahead.wait_seconds > 0
    assert made_by == [NAME] * 50
    assert threads() == []


def test_what_making_an_item_raises_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no third")

    seen = []
    with Prefetch(items(), num_ahead=2, name=NAME) as ahead, pytest.raises(LookupError, match="no third"):
        for item in ahead:
            seen.append(item)
    assert seen == [1, 2]
    assert threads() == []


def test_an_exception_that_is_an_item_is_handed_on() -> None:
    with Prefetch([ValueError("an item")], num_ahead=1, name=NAME) as ahead:
        assert [str(item) for item in ahead] == ["an item"]


def test_only_so_many_are_made_ahead() -> None:
    made = 0

    def items() -> Iterator[int]:
        nonlocal made
        for number in range(1_000):
            made += 1
            yield number

    with Prefetch(items(), num_ahead=3, name=NAME) as ahead:
        for number in ahead:
            # Those taken, three that wait, and one in the hands of the thread.
            assert made <= number + 1 + 3 + 1


def test_closing_ends_a_thread_that_waits_to_hand_on_and_twice_is_once() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    ahead = Prefetch(endless(), num_ahead=1, name=NAME)
    assert next(iter(ahead)) == 0
    assert threads() == [NAME]
    ahead.close()
    ahead.close()
    assert threads() == []
