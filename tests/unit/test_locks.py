"""Locks by name: one holder a name, others not bothered, nothing kept when nobody holds them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from control.locks import KeyedLocks


@pytest.fixture
def locks() -> KeyedLocks:
    return KeyedLocks()


def test_one_name_has_one_holder_at_a_time(locks: KeyedLocks) -> None:
    holders = 0
    most = 0
    turns = 0

    def work(_: int) -> None:
        nonlocal holders, most, turns
        with locks.held("a"):
            holders += 1
            most = max(most, holders)
            seen = turns
            threading.Event().wait(0)  # lets the others have a go at it
            turns = seen + 1
            holders -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert (most, turns) == (1, 400)


def test_another_name_is_not_waited_for(locks: KeyedLocks) -> None:
    got = threading.Event()

    def work() -> None:
        with locks.held("b"):
            got.set()

    with locks.held("a"):
        thread = threading.Thread(target=work)
        thread.start()
        assert got.wait(10)
        thread.join()


def test_a_waiter_gets_the_lock_when_it_is_given_back(locks: KeyedLocks) -> None:
    begun, got = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        with locks.held("a"):
            got.set()

    with locks.held("a"):
        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(10)
        assert not got.wait(0.02)
    assert got.wait(10)
    thread.join()


def test_the_holder_may_take_it_again_and_keeps_it_until_the_last_is_given_back(locks: KeyedLocks) -> None:
    got = threading.Event()

    def work() -> None:
        with locks.held("a"):
            got.set()

    with locks.held("a"):
        with locks.held("a"):
            thread = threading.Thread(target=work)
            thread.start()
        assert not got.wait(0.02)
    assert got.wait(10)
    thread.join()


def test_an_error_gives_it_back(locks: KeyedLocks) -> None:
    def fail() -> None:
        with locks.held("a"):
            raise ValueError("stop")

    for _ in range(2):
        with pytest.raises(ValueError, match="stop"):
            fail()
    with ThreadPoolExecutor(1) as pool, locks.held("b"):
        pool.submit(lambda: locks.held("a").__enter__()).result(10)


def test_names_that_nobody_holds_take_no_room(locks: KeyedLocks) -> None:
    def work(number: int) -> None:
        with locks.held(f"{number % 50}"), locks.held(f"inner {number % 7}"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(500)))
    assert locks._locks == {}
