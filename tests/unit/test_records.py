"""Records: written to the store first, found by id, name and prefix, numbered without gaps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.errors import InvalidArgument, NotFound, StoreError
from control.model import (
    Endpoint,
    EndpointId,
    EndpointState,
    Network,
    NetworkId,
    NetworkState,
    Sandbox,
    SandboxId,
    SandboxState,
    utcnow,
)
from control.records import Numbers, Records
from control.store.base import Put
from tests.memory_store import MemoryStore


def network(prefix: str, name: str, segment: int = 1) -> Network:
    return Network(
        id=NetworkId(prefix.ljust(64, "0")),
        name=name,
        driver="bridge",
        state=NetworkState.ACTIVE,
        created=utcnow(),
        segment=segment,
    )


def sandbox(prefix: str, name: str) -> Sandbox:
    return Sandbox(id=SandboxId(prefix.ljust(64, "0")), name=name, state=SandboxState.CREATED, created=utcnow())


def endpoint(prefix: str, of: Network, inside: Sandbox, slot: int = 0) -> Endpoint:
    return Endpoint(
        id=EndpointId(prefix.ljust(64, "0")),
        network_id=of.id,
        sandbox_id=inside.id,
        state=EndpointState.JOINED,
        created=utcnow(),
        slot=slot,
    )


NET, BOX = network("ab1", "net"), sandbox("c1", "box")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def records(store: MemoryStore) -> Records:
    made = Records(store)
    made.load()
    made.commit(put=[NET, BOX])
    return made


def test_everything_is_there_again_after_a_restart(records: Records, store: MemoryStore) -> None:
    joined = endpoint("e1", NET, BOX, slot=4)
    records.commit(put=[joined])
    again = Records(store)
    again.load()
    assert again.networks() == [NET]
    assert again.sandboxes() == [BOX]
    assert again.endpoints() == again.on_network(NET.id) == again.in_sandbox(BOX.id) == [joined]
    assert [again.slots.take() for _ in range(5)] == [0, 1, 2, 3, 5]
    assert again.segments.take() == 2


@pytest.mark.parametrize("ref", [NET.id, "net", "ab", "ab1"])
def test_a_network_is_found_by_id_name_and_prefix(records: Records, ref: str) -> None:
    assert records.network(ref) == NET


def test_a_name_goes_before_a_prefix_and_an_id_before_both(records: Records) -> None:
    named = network("ff", "ab")
    like_id = network("ee", NET.id)
    records.commit(put=[named, like_id])
    assert records.network("ab") == named
    assert records.network(NET.id) == NET


def test_a_prefix_of_several_is_ambiguous_and_says_of_how_many(records: Records) -> None:
    records.commit(put=[network("ab2", "other")])
    with pytest.raises(InvalidArgument, match=r"network ab is ambiguous \(2 matches found on ID prefix\)"):
        records.network("ab")
    assert records.network("ab2").name == "other"


@pytest.mark.parametrize("ref", ["", "nothing", "AB", "b1"])
def test_what_is_not_there_is_not_found_in_dockers_words(records: Records, ref: str) -> None:
    with pytest.raises(NotFound, match=f"^network {ref} not found$"):
        records.network(ref)
    with pytest.raises(NotFound, match=f"^No such container: {ref}$"):
        records.sandbox(ref)


def test_what_the_store_refuses_is_not_known_afterwards(
    records: Records, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(changes: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", refuse)
    with pytest.raises(StoreError):
        records.commit(put=[network("dd", "late")], drop=[BOX])
    assert not records.has_network_named("late")
    assert records.has_sandbox_named("box")


def test_a_dropped_record_frees_its_name_and_its_numbers(records: Records) -> None:
    slot = records.slots.take()
    joined = endpoint("e1", NET, BOX, slot)
    records.commit(put=[joined])
    assert records.slots.take() == slot + 1
    for _ in range(2):
        records.commit(drop=[joined])
    assert records.slots.take() == slot
    assert records.in_sandbox(BOX.id) == records.on_network(NET.id) == []
    records.commit(drop=[NET, BOX])
    assert not records.has_network_named("net")
    assert not records.has_sandbox_named("box")
    with pytest.raises(NotFound):
        records.network("ab")


def test_endpoints_of_a_sandbox_come_oldest_first(records: Records) -> None:
    joined = [endpoint(f"e{number}", NET, BOX, number) for number in range(5)]
    records.commit(put=list(reversed(joined)))
    assert records.in_sandbox(BOX.id) == joined


def test_a_changed_record_takes_the_place_of_the_old_one(records: Records) -> None:
    joined = endpoint("e1", NET, BOX)
    leaving = msgspec.structs.replace(joined, state=EndpointState.LEAVING)
    records.commit(put=[joined])
    records.commit(put=[leaving])
    assert records.endpoints() == records.on_network(NET.id) == records.in_sandbox(BOX.id) == [leaving]


@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"id": 3}', b"\xff\xfe", b""])
def test_a_damaged_record_is_named_with_what_to_do(store: MemoryStore, body: bytes) -> None:
    store.write([Put("network", "f" * 64, body)])
    with pytest.raises(StoreError, match=r"the stored network ffffffffffff is damaged .*restore a copy"):
        Records(store).load()


@given(st.sets(st.integers(1, 60)), st.lists(st.booleans(), max_size=80))
def test_numbers_are_the_smallest_free_ones(used: set[int], takes: list[bool]) -> None:
    numbers, taken = Numbers(1), set(used)
    numbers.reserve(used)
    for take in takes:
        if take or not taken:
            expected = next(n for n in range(1, 200) if n not in taken)
            assert numbers.take() == expected
            taken.add(expected)
        else:
            freed = max(taken)
            taken.remove(freed)
            numbers.give_back(freed)
