"""What every Store must do; a new one adds one line to STORES."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.errors import StoreError
from control.store.base import Change, Delete, Put, Store
from control.store.sqlite import SqliteStore
from tests.memory_store import MemoryStore

STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "state.db"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = STORES[request.param](tmp_path)
    yield made
    made.close()


def records(store: Store, kind: str = "network") -> list[tuple[str, bytes]]:
    return list(store.read(kind))


def test_an_empty_store_has_no_records(store: Store) -> None:
    assert records(store) == []


def test_a_put_is_read_back_byte_for_byte(store: Store) -> None:
    body = '{"name":"ÿ\\u0000 ☃"}'.encode()
    store.write([Put("network", "a", body)])
    assert records(store) == [("a", body)]


def test_a_second_put_replaces_the_first(store: Store) -> None:
    store.write([Put("network", "a", b"1")])
    store.write([Put("network", "a", b"2")])
    assert records(store) == [("a", b"2")]


def test_a_delete_removes_and_a_second_one_is_harmless(store: Store) -> None:
    store.write([Put("network", "a", b"1"), Put("network", "b", b"2")])
    for _ in range(2):
        store.write([Delete("network", "a")])
        assert records(store) == [("b", b"2")]


def test_kinds_are_apart(store: Store) -> None:
    store.write([Put("network", "a", b"1"), Put("endpoint", "a", b"2")])
    store.write([Delete("network", "a")])
    assert records(store, "endpoint") == [("a", b"2")]
    assert records(store, "network") == records(store, "net") == []


def test_changes_of_a_batch_apply_in_order(store: Store) -> None:
    store.write(
        [Put("network", "a", b"1"), Delete("network", "a"), Put("network", "a", b"2"), Put("network", "a", b"3")]
    )
    assert records(store) == [("a", b"3")]


def test_an_empty_batch_is_harmless(store: Store) -> None:
    store.write([])
    assert records(store) == []


def test_a_batch_whose_source_fails_writes_nothing(store: Store) -> None:
    def changes() -> Iterator[Change]:
        yield Put("network", "a", b"1")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        store.write(changes())
    assert records(store) == []
    store.write([Put("network", "b", b"2")])
    assert records(store) == [("b", b"2")]


def test_records_come_in_the_order_of_their_ids(store: Store) -> None:
    ids = ["b", "a", "B", "10.0.0.10", "10.0.0.2", "ä", "z", "☃", "", "a|b", "a/b", "\U0001f600", "\uffff"]
    store.write([Put("network", record_id, b"{}") for record_id in ids])
    assert [record_id for record_id, _ in records(store)] == sorted(ids)


def test_a_read_shows_one_moment(store: Store) -> None:
    store.write([Put("network", str(n), b"old") for n in range(100)])
    reading = store.read("network")
    next(reading)
    store.write([Put("network", str(n), b"new") for n in range(100)])
    assert {body for _, body in reading} == {b"old"}


def test_a_large_body_and_a_large_batch_pass(store: Store) -> None:
    big = b"x" * 2_000_000
    store.write([Put("network", f"{n:05}", b"{}") for n in range(5000)] + [Put("network", "big", big)])
    found = records(store)
    assert len(found) == 5001
    assert found[-1] == ("big", big)


def test_close_is_idempotent_and_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.write([Put("network", "a", b"1")])
    with pytest.raises(StoreError, match="closed"):
        store.read("network")


keys = st.tuples(st.sampled_from(["network", "lease"]), st.sampled_from(["a", "b", "c", "10.0.0.1"]))
changes = st.one_of(
    st.builds(lambda key, body: Put(*key, body), keys, st.binary(max_size=20)),
    st.builds(lambda key: Delete(*key), keys),
)


@given(batches=st.lists(st.lists(changes, max_size=6), max_size=6))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_equal_a_plain_dictionary(store: Store, batches: list[list[Change]]) -> None:
    store.write([Delete(kind, record_id) for kind in ("network", "lease") for record_id, _ in records(store, kind)])
    model: dict[tuple[str, str], bytes] = {}
    for batch in batches:
        store.write(batch)
        for change in batch:
            if isinstance(change, Put):
                model[change.kind, change.id] = change.body
            else:
                model.pop((change.kind, change.id), None)
        for kind in ("network", "lease"):
            assert records(store, kind) == sorted((key[1], body) for key, body in model.items() if key[0] == kind)


def test_parallel_writers_lose_nothing_and_readers_see_whole_batches(store: Store) -> None:
    writers, rounds = 6, 40
    start = threading.Barrier(writers + 1)
    failures: list[BaseException] = []

    def write(n: int) -> None:
        try:
            start.wait(10)
            for i in range(rounds):
                # The pair of a batch must never be seen apart.
                store.write([Put("pair", f"{n}/left", b"%d" % i), Put("pair", f"{n}/right", b"%d" % i)])
                store.write([Put("network", f"{n}/{i}", b"{}")])
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            start.wait(10)
            while any(thread.is_alive() for thread in threads[:writers]):
                seen = dict(store.read("pair"))
                for n in range(writers):
                    assert seen.get(f"{n}/left") == seen.get(f"{n}/right")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(records(store)) == writers * rounds
